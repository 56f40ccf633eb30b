"""Metrics and their statistics. They work on values already read; the tools own the files and the tables.

A new evaluation is a file here and tools/NAME_eval.py; answer_accuracy.py and tools/qa_eval.py are a pair to copy:

1. Here: a function of predictions and references, one value an answer, whose docstring names the formula's source.
2. The tool reads predictions (data/predictions.py), keeps the questions that all files share, and calls it.
3. Intervals resample whole scenes, and two models are compared by pairs (statistics.py).
4. --json is what `python -m drive_vlm report` reads: {"checkpoints": {name: {...}}, "baselines": ..., "comparisons": [...]}, a score being an
   object with "value", "low" and "high" (the head of report/run_report/score_files.py). HEADLINES there names the evaluator's main score.
5. A metric that a training may score its answers with (--eval_metric) is a line in metric_help.py and one in answer_metrics.py.
6. docs/evaluation.md gets a section. The test has an example by hand, and the published script's own number where there is one.
"""
