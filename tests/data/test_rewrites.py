"""Answers of a teacher: what is cleaned off, and what makes one unusable."""

import pytest

from drive_vlm.data.rewrites import clean, fault


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
