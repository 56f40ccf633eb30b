"""Nouns that a rewrite adds to its source."""

import pytest

from drive_vlm.rewards.text.new_nouns import NounCheck


@pytest.fixture(scope="module")
def nouns(spacy_model):
    return NounCheck(spacy_model)


SOURCE = "At first two red cars wait at a traffic light. Then a pedestrian crosses the street."


@pytest.mark.parametrize(
    ("text", "new"),
    [
        ("The ego vehicle waits while a pedestrian crosses the street.", []),
        ("A red car waits. The pedestrians are crossing.", []),  # plural and singular are one lemma
        ("Two red vehicles wait, and a person crosses.", []),  # other words for the same detector classes
        ("A bus waits at the traffic light beside two bicycles.", ["bicycle", "bus"]),
        ("The video shows a scene with cars and a truck.", ["truck"]),
        ("No cyclist is near the cars.", ["cyclist"]),  # the source does not say so
    ],
)
def test_new_nouns(nouns, text, new):
    assert nouns.new_nouns(SOURCE, text) == new


def test_a_missing_model_is_named_with_its_flag():
    with pytest.raises(ValueError, match=r"'xx_none' cannot be loaded.*spacy download.*--spacy_model"):
        NounCheck("xx_none")


def test_the_pipeline_of_the_dev_extra_is_found_by_its_usual_name():
    from drive_vlm.rewards.text.driving_text import DEFAULT_MODEL

    assert NounCheck(DEFAULT_MODEL)
