"""Pictures that are the same, and gate 4: planted pictures, scenes and words of evaluation rows are found, templates are not."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from drive_vlm.builders.synthesis.gates.decontamination import EvaluationRows, check_decontamination
from drive_vlm.builders.synthesis.gates.pictures import (
    Print,
    merged_groups,
    read_vectors,
    take_prints,
    twins,
)
from drive_vlm.data.samples import BadRow, parse_row


def unit(*values):
    return (np.array(values) / np.linalg.norm(values)).astype(np.float32)[None]


@pytest.fixture
def four(picture_files, tmp_path):
    """Pictures a, b and c that differ, d with a's bytes, e a halved and encoded again."""
    paths = picture_files("a", "b", "c")
    shutil.copy(paths["a"], tmp_path / "d.png")
    Image.open(paths["a"]).resize((160, 80)).save(tmp_path / "e.jpg", quality=50)
    return paths | {"d": str(tmp_path / "d.png"), "e": str(tmp_path / "e.jpg")}


def test_twins_by_bytes_and_by_looks(four):
    prints = {one.name: one for one in take_prints(four)}
    found = twins([prints[name] for name in "abcde"], [prints["a"]])
    assert [(twin.name, twin.how) for twin in found] == [("a", "bytes"), ("d", "bytes"), ("e", "look")]
    assert found[2].likeness > 0.995 and twins([prints["b"]], [prints["a"]]) == []


def test_twins_by_vectors_above_97_hundredths():
    """Two pictures of one grey have no looks; the cosine of their vectors decides, and .97 itself is not above."""
    first = [Print("x", "1", None, unit(1, 0)), Print("y", "2", None, unit(0, 1))]
    below = float(np.float32(0.97))
    other = [Print("z", "3", None, np.array([[below, np.sqrt(1 - below**2)]], dtype=np.float32))]
    assert twins(first, other) == []
    near = [Print("z", "3", None, unit(0.98, np.sqrt(1 - 0.98**2)))]
    assert [(twin.name, twin.other, twin.how) for twin in twins(first, near)] == [("x", "z", "embedding")]
    with pytest.raises(ValueError, match="vectors of 2 and of 3 numbers"):
        twins(first, [Print("z", "3", None, unit(1, 0, 0))])


def test_groups_with_one_picture_become_one(four):
    groups = {"a": "s3", "b": "s2", "c": "s2", "d": "s1", "e": "s4"}
    assert merged_groups(take_prints(four), groups) == {"a": "s1", "b": "s2", "c": "s2", "d": "s1", "e": "s1"}


def test_groups_are_joined_through_others(four):
    """b and c share a scene, c's scene shares a picture with a's: all three are one."""
    groups = {"a": "s1", "d": "s2", "b": "s2", "c": "s9"}
    prints = [one for one in take_prints(four) if one.name in groups]
    assert merged_groups(prints, groups) == {"a": "s1", "d": "s1", "b": "s1", "c": "s9"}


def test_vectors_of_a_folder(tmp_path):
    np.save(tmp_path / "vectors.npy", np.array([[3, 4], [0, 2]], dtype=np.float16))
    names = [{"row": 0, "image": "a.png"}, {"row": 1, "image": "a.png"}]
    (tmp_path / "names.jsonl").write_text("".join(json.dumps(name) + "\n" for name in names))
    assert np.allclose(read_vectors(tmp_path)["a.png"], [[0.6, 0.8], [0, 1]])
    (tmp_path / "names.jsonl").write_text('{"row": 2, "image": "a.png"}\n')
    with pytest.raises(ValueError, match=r"names\.jsonl:1: expected"):
        read_vectors(tmp_path)
    with pytest.raises(ValueError, match=r"vectors\.npy"):
        read_vectors(tmp_path / "none")


def test_a_picture_that_cannot_be_read_stops_with_its_name(tmp_path):
    (tmp_path / "x.png").write_text("no picture")
    with pytest.raises(BadRow, match=r"x\.png"):
        take_prints({"x.png": str(tmp_path / "x.png")})


def sample(name, question, answer, image=None, group=None):
    row = {"id": name, "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
    row |= ({"image": image} if image else {}) | ({"group": group} if group else {})
    return parse_row(row, f"eval.jsonl:{name}", "/")


EIGHT = "one two three four five six seven eight"


def held(*samples, prints=()):
    return EvaluationRows.of(samples, prints)


def reasons(rows, prints, evaluation):
    return [outcome.reason for outcome in check_decontamination(rows, prints, evaluation).outcomes]


def test_eight_words_in_a_row_of_question_and_answer(row, four):
    prints = {one.name: one for one in take_prints({"a": four["a"]})}
    evaluation = held(sample("1", "one two three", "four five six seven eight nine"))
    rows = [
        row(image="a", question="One, two three?", answer="Four five six seven eight!"),
        row(image="a", question="Zero one two three?", answer="four five six seven."),
        row(image="a", question="one two three", answer="four five six seven", reasoning="eight"),
    ]
    assert reasons(rows, prints, evaluation) == ["ngram", "", "ngram"]
    assert "evaluation row 1" in check_decontamination(rows, prints, evaluation).outcomes[0].detail


def test_templates_of_the_benchmark_are_shared_by_design_and_answers_are_not(row, four):
    prints = {one.name: one for one in take_prints({"c": four["c"]})}
    question = f"Please describe {EIGHT} for the ego car."
    evaluation = held(
        sample("1", question, "A white truck.", four["a"]), sample("2", question, f"It says {EIGHT}.", four["b"])
    )
    rows = [row(image="c", question=question, answer="A red bus."), row(image="c", answer=f"Look: {EIGHT}")]
    found = check_decontamination(rows, prints, evaluation)
    assert [outcome.reason for outcome in found.outcomes] == ["", "ngram"] and found.audit["templates"] == 1
    # Asked about one picture only, the question is that row's own.
    assert reasons(rows[:1], prints, held(sample("1", question, "A white truck.", four["a"]))) == ["ngram"]


def test_planted_pictures_and_scenes_are_found_and_counted(row, four):
    prints = {one.name: one for one in take_prints({name: four[name] for name in "bcde"})}
    evaluation = held(sample("1", "What?", "A car.", four["a"], "scene-9"), prints=take_prints({"a": four["a"]}))
    rows = [row(image="b"), row(image="c", group="scene-9"), row(image="d"), row(image="e")]
    found = check_decontamination(rows, prints, evaluation)
    assert [outcome.reason for outcome in found.outcomes] == ["", "group", "picture_bytes", "picture_look"]
    assert found.audit["pictures"] == {"bytes": 1, "look": 1, "embedding": None}
    assert found.audit["rows"] == {
        "picture_bytes": 1,
        "picture_look": 1,
        "picture_embedding": 0,
        "group": 1,
        "ngram": 0,
    }


def test_counts_are_there_when_they_are_zero(row, four):
    prints = {one.name: one for one in take_prints({"b": four["b"]})}
    evaluation = held(sample("1", "What?", "A car.", four["a"]), prints=take_prints({"a": four["a"]}))
    found = check_decontamination([row(image="b")], prints, evaluation)
    assert set(found.audit["rows"].values()) == {0} and found.audit["pictures"]["bytes"] == 0
    assert (found.audit["evaluation_rows"], found.audit["evaluation_pictures"], found.audit["n"]) == (1, 1, 8)


def test_a_prompts_reference_is_an_answer_too():
    row = {"id": "1", "reference": EIGHT, "messages": [{"role": "user", "content": "What?"}]}
    assert len(held(parse_row(row, "eval.jsonl:1", "/", need_answer=False)).grams) == 2
