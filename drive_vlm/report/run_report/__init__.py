"""report.html: one self-contained page of one run or several, for people who did not make it.

1. run_files.py reads what a run directory holds; timeline.py says from it when the run trained, and what a restart cost.
2. scored.py scores prediction files row by row next to the baselines; score_files.py reads what the evaluators write with --json.
3. curves.py, confusion.py, bird_view.py and pictures.py draw; verdict.py decides the line at the top; training_rows.py reads what was trained on.
4. page.py puts the blocks into templates/ (Jinja2, which escapes every text of data and models) and writes one file.

What is not there is said on the page, and no number stands in for it.
"""
