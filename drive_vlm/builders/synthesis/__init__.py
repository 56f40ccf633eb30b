"""Synthetic data from unlabelled driving pictures, in steps that hand files on: detect -> segment -> embed -> retrieve -> describe ->
caption -> refine -> questions -> gate.

A step reads pictures, or the file of an earlier step, and writes one JSON line a picture (step.py). A line carries on the fields of
its input's line. records.py says what the fields hold, pictures.py where pictures come from. The commands are tools/synth_*.py;
docs/synthesis.md is the page for users.
"""
