"""What makes rows: captions, pairs, splits, checks of finished files.

A new builder is a file here and tools/build_NAME.py; codalm.py and tools/build_codalm.py are a pair to copy (its rows have no splits):

1. Here: a generator that reads the published form and yields rows (docs/data.md), a BadRow for each that cannot be used. What is
   not in the published form at all is a ValueError that names the file.
2. Write through RowWriter (row_writer.py): bad rows stop the build or are counted, files appear whole; rows added with
   `split=` are checked for scenes and pictures that stand in two splits.
3. The tool: a parser, `run(args)` that returns the counts, `show(counts, args)` that prints them, `run_tool` for the rest.
4. docs/data.md gets the form that is read. The test calls the tool on a few invented files in the published form.
"""
