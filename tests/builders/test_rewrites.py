"""Answers of a teacher: what is cleaned off, and what makes one unusable."""

import pytest

from drive_vlm.builders.rewrites import clean, fault


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
        ("Let me look.\nIt is a car.\n</think>\n\nA red car stops.", "A red car stops."),
        ("**Concise caption:** A red car stops.", "A red car stops."),
        ("### Description\nA **red** car stops.", "A red car stops."),
        ("Sure, here you go:\n\nRewritten caption (one sentence): “A red car stops.”", "A red car stops."),
        ("A red car stops.\n\n**Note:** I have kept only facts of the caption.", "A red car stops."),
        ("A red car stops. (Note: the description leaves out the time.)", "A red car stops."),
        ("A red car stops. Note: a cyclist is close.", "A red car stops. Note: a cyclist is close."),
        (
            "Here is a busy street: cars wait and a bus turns left.",
            "Here is a busy street: cars wait and a bus turns left.",
        ),
        ("Here is the concise caption: cars wait.", "cars wait."),
        ("Of course the bus stops: the light is red.", "Of course the bus stops: the light is red."),
        ("Certainly, I can do that:\n\nA red car stops.", "A red car stops."),
        ("Sure! A red car stops.", "A red car stops."),
        ("Here's a clear, factual description of the scene: Cars wait.", "Cars wait."),
        ("The sign shows a sentence: no entry.", "The sign shows a sentence: no entry."),
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
        ("I’m sorry, but I can’t assist with that request.", "stop", "refusal"),
        ("I’m unable to describe it in this way.", "stop", "refusal"),
        ("Please provide the caption you would like me to rewrite.", "stop", "refusal"),
        ("Unfortunately, the caption does not provide enough information.", "stop", "refusal"),
        ("There isn’t enough detail here for four sentences.", "stop", "refusal"),
        ("A red car stops. Let me know if I should change it.", "stop", "refusal"),
        ("Cars wait, and there is not enough space.", "stop", None),
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
