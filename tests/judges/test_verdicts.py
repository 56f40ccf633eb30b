import json

import pytest

from drive_vlm.judges.verdicts import combine, fill, parse_rating, parse_verdict, read_prompt


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("B misses the cyclist.\n[[A]]", "first"),
        ("[[B]]", "second"),
        ("Both are fine. [[ C ]]", "tie"),
        ("<think>[[A]]? no</think>[[B]]", "second"),
        ("[[A]] ... so [[A]]", "first"),
        ("Write [[A]], [[B]] or [[C]].", None),
        ("A is better", None),
        ("[[D]]", None),
        ("", None),
    ],
)
def test_verdicts(reply, verdict):
    assert parse_verdict(reply) == verdict


def test_both_orders_must_agree():
    assert combine("first", "second") == "first" and combine("second", "first") == "second"
    assert combine("tie", "tie") == "tie"
    for shown, swapped in [("first", "first"), ("second", "second"), ("first", "tie"), ("tie", "second")]:
        assert combine(shown, swapped) == "tie"
    assert combine(None, "first") is None and combine("first", None) is None


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("Good. Rating: [[7]]", 7),
        ("[[3]] of the points ... Rating: [[10]]", 10),  # the first mark wins over an earlier bare one
        ("My rating is: [[4]].", 4),
        ("I give [[ 6 ]].", 6),
        ("Rating: [[high]], I mean [[5]]", None),  # the bare mark finds [[high]] first, as the published code does
        ("Rating: [[7.5]]", None),
        ("Rating: [[0]]", None),
        ("Rating: [[11]]", None),
        ("Rating: 7", None),
        ("Rating: [[7", 7),
        ("", None),
    ],
)
def test_ratings_as_published(reply, rating):
    assert parse_rating(reply) == rating


def test_prompts(tmp_path):
    text = tmp_path / "p.txt"
    text.write_text("Q {question}\nA {answer}\n")
    turns = read_prompt(text, ("question", "answer"))
    filled = fill(turns, {"question": "{answer} {x}", "answer": r"\1 {question}"})
    assert filled == (("user", "Q {answer} {x}\nA \\1 {question}"),)
    with pytest.raises(ValueError, match=r"p\.txt: the prompt must hold \{reference\}"):
        read_prompt(text, ("reference",))
    with pytest.raises(ValueError, match="cannot be read"):
        read_prompt(tmp_path / "no.txt", ())


def test_prompts_with_examples(tmp_path):
    path = tmp_path / "p.json"
    turns = [("system", "Judge."), ("user", "one"), ("assistant", "Rating: [[3]]"), ("user", "{reference}")]
    path.write_text(json.dumps([{"role": role, "content": content} for role, content in turns]))
    assert read_prompt(path, ("reference",)) == tuple(turns)
    path.write_text(json.dumps([{"role": "user", "content": "{reference}"}, {"role": "assistant", "content": "x"}]))
    with pytest.raises(ValueError, match="last turn must be the user's"):
        read_prompt(path, ("reference",))
    path.write_text('{"role": "user"}')
    with pytest.raises(ValueError, match="expected a JSON list"):
        read_prompt(path, ())
