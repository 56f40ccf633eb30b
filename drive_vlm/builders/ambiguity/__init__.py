"""Questions that fit several things in a picture, next to questions that fit one: what makes rows that ask back.

truth file -> sources.py -> Picture -> instances.py keeps what can be asked about -> questions.py: every description of a
thing (descriptions.py) with what it fits -> select.py: as many ambiguous as clear rows of each text -> rows.py -> leak.py

build.py joins these steps; teacher.py lets a model rephrase; clarifyvlm.py is the published project's own pipeline.
"""
