"""Gates: what keeps rubbish out of synthetic rows, as pure functions that give reasons. One idea, one file.

A gate reads all rows that the gates before it let through and gives an Outcome for each, in order (`Gate`). GATES is their order: the
free ones first, then the judge, who costs money, and at the end the balance of what is left.

* form             lengths, punctuation, refusals, what the writer was shown and must not speak of
* grounding        objects that a text names and no source has
* positions        left, middle, right, and coordinates, against the boxes
* duplicates       the same question twice about one picture, a question about too many pictures
* decontamination  pictures and words of evaluation rows
* judge            a rubric of 1 to 5 by a model that is not the author
* balance          caps for a class, a template, a picture

pictures.py compares pictures, objects.py says what a gate asks of a reader of texts.
"""

GATES = ("form", "grounding", "positions", "duplicates", "decontamination", "judge", "balance")
