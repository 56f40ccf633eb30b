"""Places of objects in a text, and verdicts that are those of the reward."""

import pytest

from drive_vlm.rewards.physics import terms
from drive_vlm.rewards.text.mentions import find_mentions

SEEN = frozenset({"car", "bus", "traffic light", "person"})


def marks(parser, text):
    return [(text[item.start : item.end], item.verdict) for item in find_mentions(parser, text, SEEN)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Then a red car  stops.", [("car", "hit")]),
        ("Two trucks, a bus.", [("trucks", "false"), ("bus", "hit")]),
        ("A double-decker bus and a police car wait.", [("double-decker bus", "hit"), ("police car", "hit")]),
        ("There are no trucks, and no cars.", [("trucks", "denied"), ("cars", "denied")]),
        ("The traffic light turns green near the bus stop.", [("traffic light", "hit"), ("bus stop", "unseen")]),
        ("The light turns green.", [("light", "hit")]),
        ("A cyclist waits.", [("cyclist", "false")]),  # a person is seen, a bicycle is not
        ("A car is ahead and vehicles follow.", [("car", "hit"), ("vehicles", "again")]),
        ("Vehicles are ahead.", [("Vehicles", "hit")]),
        ("A bike is parked.", [("bike", "false")]),
        ('A "STOP" sign, no "traffic light".', [('STOP" sign', "false"), ("traffic light", "denied")]),
        ("A sign reads STOP.", [("sign", "false")]),
        ("Filmed from a car, a van follows a bus.", [("car", "unseen"), ("van", "hit"), ("bus", "hit")]),
        ("The business is <b>busy</b>.", []),
        ("", []),
    ],
)
def test_places_and_verdicts(parser, text, expected):
    assert marks(parser, text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "A car and a truck pass a cyclist, then a van stops at the bus stop.",
        "No trucks are there. A truck waits behind the motorcycle, and vehicles follow.",
        "A dog, a bike and several animals cross the street while the traffic light turns red.",
    ],
)
def test_what_is_marked_false_is_what_the_reward_calls_false(parser, text):
    parsed = parser.parse([text])[0]
    found = terms(parsed, parsed, SEEN, parser.vocabulary)
    false = [item for item in find_mentions(parser, text, SEEN) if item.verdict == "false"]
    named = {name.strip("()") for name in found.false_claims}
    assert named and false
    groups = {term.phrase for term in parsed.groups}
    told = {name for item in false for name in set(item.classes) - SEEN} | {text[i.start : i.end] for i in false}
    assert named <= told | groups
    for item in false:
        assert named & (set(item.classes) | groups), item
