"""The synthetic driving world: dashcam-like scenes and clips of any number from (seed, index), with exact truth.

Everything here is a pure function of its arguments: the same bytes in any order and in any process. Truth lives in scene.py,
chance in sample.py, pixels in render.py, words in words.py, motion in clip.py; rows.py and files.py make a data set of them.
"""
