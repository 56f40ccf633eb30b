"""Rounds that regenerate their rows: what is taken from the gate step, what is refused, what the table shows."""

import json
from pathlib import Path
from typing import Any

import pytest

from drive_vlm.rounds.chain import Chain
from drive_vlm.rounds.regenerated import take_rows
from drive_vlm.rounds.table import rows_of_round

TOOL = "tools/rounds.py"
MODEL = {"name": "sft", "config": "c", "weights": "w"}


def row(name: str, answer: str, human: bool = False, image: str = "images/a.png") -> dict[str, Any]:
    turns = [{"role": "user", "content": f"<image>\nWhat is {name}?"}, {"role": "assistant", "content": answer}]
    return {"id": f"{'h' if human else 's'}-{name}", "image": image, "group": name, "messages": turns} | (
        {"origin": "human"} if human else {}
    )


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


def gate(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """What tools/synth_gate.py leaves behind."""
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    names = ("distinct_1", "distinct_2", "answer_words", "hallucinated", "rows_hallucinated")
    figures = {kind: {name: estimate(value) for name in names} for kind, value in (("given", 0.2), ("used", 0.05))}
    gates = {
        "form": {"given": 9, "passed": 7, "rejected": {"long": 2}},
        "grounding": {"given": 7, "passed": 6, "rejected": {"a": 1}},
    }
    audit = {"given": 9, "used": len(rows), "gates": gates, "figures": figures}
    (folder / "data_audit.json").write_text(json.dumps(audit))
    return folder


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    plan = {"path": "plan.yaml", "hash": "1"}
    settings = {"model": MODEL, "metric": "a.accuracy", "regenerate": plan, "human_share": 0.5}
    return Chain.start(tmp_path / "out", settings)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The chain's own model, as its fingerprint says."""
    monkeypatch.setattr("drive_vlm.rounds.regenerated.model_fingerprint", lambda name: MODEL | {"name": name})
    return str(tmp_path / "sft")


def test_rows_of_a_round_start_from_the_folder_of_the_chain(chain, model):
    """So that the pairs of two rounds can be learned together: each keeps its pictures in its own folder."""
    rows = [
        row("x", "a car"),
        row("y", "a bus", image="images_w_boxes/b.jpg"),
        row("x", "a car", True),
        row("y", "no", True),
    ]
    folder = gate(chain.out / "round-1/synthetic/gate", rows)
    audit = take_rows(chain, 1, model, folder)
    assert (audit["rows"], audit["human"], audit["human_share"], audit["changed"]) == (4, 2, 0.5, None)
    assert audit["gate"]["rejected"] == {"form": 2, "grounding": 1}
    taken = [json.loads(line) for line in (chain.out / "round-1/rows.jsonl").read_text().splitlines()]
    assert taken[0]["image"] == "round-1/synthetic/gate/images/a.png"
    assert taken[1]["image"] == "round-1/synthetic/gate/images_w_boxes/b.jpg"
    assert [one["messages"] for one in taken] == [one["messages"] for one in rows]


def test_changed_rows_are_counted_by_picture_and_question_of_synthetic_rows_alone(chain, model):
    """By hand: x is the same, y has another answer, z is new; the human row with a new answer does not count: 2 of 3."""
    human = [row("p", "a car", True), row("q", "a car", True), row("r", "a car", True)]
    take_rows(
        chain, 1, model, gate(chain.out / "round-1/synthetic/gate", [row("x", "a car"), row("y", "a bus"), *human[:2]])
    )
    human[0]["messages"][1]["content"] = "a bus"
    now = [row("x", "A car."), row("y", "a van"), row("z", "a bus"), *human]
    audit = take_rows(chain, 2, model, gate(chain.out / "round-2/synthetic/gate", now))
    assert {key: audit["changed"][key] for key in ("both", "new", "gone", "changed")} == {
        "both": 2,
        "new": 1,
        "gone": 0,
        "changed": 1,
    }
    assert rows_of_round(audit)["changed"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([*(row(name, "a") for name in "uvwxy"), row("x", "a", True)], "human share of 0.5, here 1 of 6 rows"),
        ([*(row(name, "a", True) for name in "uvwxy"), row("x", "a")], "human share of 0.5, here 5 of 6 rows"),
        ([], "here there is no row"),
    ],
)
def test_another_share_of_human_rows_is_refused(chain, model, rows, said):
    with pytest.raises(ValueError, match=said):
        take_rows(chain, 1, model, gate(chain.out / "round-1/synthetic/gate", rows))
    assert not (chain.out / "round-1/rows.jsonl").exists()


def test_a_round_begins_with_its_rows_and_those_of_another_model_are_refused(chain, model, monkeypatch):
    folder = gate(chain.out / "round-1/synthetic/gate", [row("x", "a car"), row("x", "a car", True)])
    with pytest.raises(ValueError, match="generate cannot be recorded before regenerate"):
        chain.record("1", "generate")
    take_rows(chain, 1, model, folder)
    chain.record("1", "regenerate")
    facts = chain.entry("1")["regenerate"]
    assert facts["file"] == "round-1/rows.jsonl" and facts["synthetic"] == 1
    shown = rows_of_round(facts)
    assert (shown["hallucinated"]["given"]["value"], shown["hallucinated"]["used"]["value"]) == (0.2, 0.05)
    assert shown["changed"] is None
    (chain.out / "round-1/rows.jsonl").write_text("another\n")
    with pytest.raises(ValueError, match="round 1's result of regenerate, has changed since"):
        Chain(chain.out).is_done("1", "regenerate")
    del chain.content["rounds"]["1"]
    monkeypatch.setattr("drive_vlm.rounds.regenerated.model_fingerprint", lambda name: MODEL | {"weights": "other"})
    take_rows(chain, 1, model, folder)
    with pytest.raises(ValueError, match="made with another model than round 0's"):
        chain.record("1", "regenerate")


def test_a_chain_that_regenerates_nothing_has_no_such_step_and_does_not_become_one(tmp_path, run_here):
    plain = Chain.start(tmp_path / "plain", {"model": MODEL, "metric": "a.accuracy"})
    with pytest.raises(ValueError, match="this chain regenerates no rows"):
        plain.is_done("1", "regenerate")
    done = run_here(TOOL, "take", "--out", tmp_path / "plain", "--round", 1, "--model", "m", "--synthetic", tmp_path)
    assert done.returncode == 2 and "started without --synth" in done.stderr
    again = Chain.start(tmp_path / "r", {"model": MODEL, "regenerate": {"path": "p", "hash": "1"}, "human_share": 0.3})
    with pytest.raises(ValueError, match="its rounds regenerate their rows"):
        Chain.start(again.out, {"model": MODEL})
    with pytest.raises(ValueError, match="started with other settings"):
        Chain.start(again.out, {"model": MODEL, "regenerate": {"path": "p", "hash": "2"}, "human_share": 0.3})
