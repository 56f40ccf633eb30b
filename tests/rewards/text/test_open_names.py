"""Objects of a text for any list of names: COCO's classes read as before, further names become classes, what is not looked for is unseen."""

import pytest

from drive_vlm.rewards.text import driving_text
from drive_vlm.rewards.text.mentions import find_mentions
from drive_vlm.rewards.text.open_names import OpenNames

TEXT = "A taxi and a van wait, no bus is there, a horse crosses, a traffic cone and three Barriers stand near a wheelchair."


@pytest.fixture
def names_of(parser, monkeypatch):
    """`names_of(names)`: an OpenNames on the pipeline that all tests here share."""
    monkeypatch.setattr(driving_text, "load_spacy", lambda model: parser._nlp)
    return lambda *names: OpenNames(names or None)


def verdicts(reader, labels, text=TEXT):
    return {text[item.start : item.end].lower(): item.verdict for item in reader.mentions(text, labels)}


def test_without_names_it_reads_as_mentions_do(parser, names_of):
    reader = names_of()
    for labels, classes in ((["car"], {"car"}), (["pedestrian", "horse"], {"person", "horse"}), ([], set())):
        assert list(reader.mentions(TEXT, labels)) == find_mentions(parser, TEXT, frozenset(classes))


def test_names_that_coco_lacks_are_classes_of_their_own(names_of):
    reader = names_of("car", "traffic_cone", "Barrier", "bus")
    found = verdicts(reader, ["car", "barrier"])
    assert found == {
        "taxi": "hit",
        "van": "again",
        "bus": "denied",
        "horse": "unseen",
        "traffic cone": "false",
        "barriers": "hit",
        "wheelchair": "unseen",
    }


def test_a_general_word_is_false_only_where_every_kind_would_have_been_seen(names_of):
    assert verdicts(names_of("car"), [], "A vehicle waits.") == {"vehicle": "unseen"}
    every = ("car", "truck", "bus", "motorcycle", "train")
    assert verdicts(names_of(*every), [], "A vehicle waits.") == {"vehicle": "false"}
    assert verdicts(names_of(*every), ["train"], "A vehicle waits.") == {"vehicle": "hit"}
    # Of a cyclist the person is seen: the bicycle nobody looks for.
    assert verdicts(names_of("person"), ["person"], "A cyclist waits.") == {"cyclist": "hit"}
    assert verdicts(names_of("person"), [], "A cyclist waits.") == {"cyclist": "false"}
    assert verdicts(names_of("person", "bicycle"), ["person"], "A cyclist waits.") == {"cyclist": "false"}


def test_labels_stand_for_classes(names_of):
    reader = names_of("pedestrian", "vehicle", "sentry box")
    assert reader.classes_of("pedestrian") == {"person"} and reader.classes_of("traffic_light") == {"traffic light"}
    assert reader.classes_of("Sentry Box") == {"sentry box"} and reader.classes_of("sky") == {"sky"}
    assert {"person", "car", "bus", "sentry box"} <= reader.visible and "horse" not in reader.visible
    # A source that says "vehicle" leaves open which.
    assert verdicts(reader, ["vehicle"], "A bus waits.") == {"bus": "hit"}


def test_prepared_texts_are_read_as_single_ones(names_of):
    texts = [TEXT, "A car waits.", "No car waits.", TEXT]
    labels = [["car"], [], ["car"], ["bus"]]
    prepared, single = names_of("car", "bus"), names_of("car", "bus")
    prepared.prepare(zip(texts, labels, strict=True))
    for text, found in zip(texts, labels, strict=True):
        assert prepared.mentions(text, found) == single.mentions(text, found)
