"""rounds.json: what is recorded, what is refused, when a chain ends."""

import json
import sys
from pathlib import Path

import pytest

from drive_vlm.builders.splits import split_position
from drive_vlm.rounds.chain import Chain, metric_of
from drive_vlm.rounds.table import held_out_rows, table, training_curves

TOOL = "tools/rounds.py"


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def evaluated(chain: Chain, number: int, accuracy: float, last: float = 0.5) -> None:
    """A recorded round whose files are as small as they can be; its margin ends at `last`."""
    folder = chain.out / f"round-{number}"
    if number:
        before = chain.entry(str(number - 1))
        model = before["train"]["identity"] if number > 1 else {"config": "c", "weights": "w"}
        write(folder / "generated.jsonl", '{"id": "a"}\n{"id": "b"}\n')
        write(folder / "generated.jsonl.settings.json", {"model": model, "temperature": 1.0})
        chain.record(str(number), "generate")
        write(folder / "pairs.jsonl", f'{{"round": {number}}}\n')
        words = {"chosen": {"mean": 2}, "rejected": {"mean": 3}, "chosen_longer": 0.4}
        audit = {"pairs": 1, "rows": 2, "dropped": {"identical": 1}, "near_duplicates": {"count": 0}, "words": words}
        write(folder / "pairs.jsonl.audit.json", audit)
        chain.record(str(number), "pairs")
        rows = [{"path": str(folder / "pairs.jsonl"), "rows": 1}]
        run = {
            "state": "finished",
            "world_size": 2,
            "zero_stage": 2,
            "config": {"training": {"beta": 0.1, "learning_rate": 5e-7}},
        }
        write(folder / "model/run.json", run | {"data": {"train": rows}, "reference": {"model": [model]}})
        logged = [{"rewards/margins": 0.0, "rewards/accuracies": 0.5}, {"rewards/margins": last, "rewards/accuracies": 0.9}, {"loss": 1}]  # fmt: skip
        lines = [json.dumps({"step": step, **line}) + "\n" for step, line in zip((1, 9, 9), logged, strict=True)]
        write(folder / "model/metrics.jsonl", "".join(lines))
        write(folder / "model/model.safetensors", f"weights {number}")
        chain.record(str(number), "train")
    write(folder / "answers.jsonl", f"answers {number}\n")
    write(folder / "scores.json", {"a": {"accuracy": accuracy, "low": accuracy - 0.1, "high": accuracy + 0.1}})
    chain.record(str(number), "evaluate")  # fmt: skip


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    settings = {"model": {"name": "sft", "config": "c", "weights": "w"}, "metric": "a.accuracy"}
    return Chain.start(tmp_path / "out", settings)


def test_a_chain_does_not_begin_with_pictures_inside_a_table(run, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a car"}]
    picture = {"bytes": b"\x89PNG", "path": "a.png"}
    rows = [{"id": str(i), "image": picture, "conversations": turns} for i in range(4)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    words = ["--out", tmp_path / "out", "--model", tmp_path, "--data", tmp_path / "rows.parquet", "--held_out", 1]
    done = run([sys.executable, TOOL, "start", *words], DRIVE_VLM_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 2 and "rows.parquet: holds its pictures itself" in done.stderr, done.stderr
    assert not (tmp_path / "out" / "rounds.json").exists()


def test_a_person_reads_every_step_of_a_round_and_its_decision(chain):
    for number, accuracy in enumerate((0.5, 0.55)):
        evaluated(chain, number, accuracy)
    assert chain.decide(1, 0.02)
    found = json.loads((chain.out / "rounds.json").read_text())["rounds"]["1"]
    assert list(found) == ["generate", "pairs", "train", "evaluate", "decision"]
    assert found["generate"]["rows"] == 2 and found["generate"]["settings"]["temperature"] == 1.0
    assert found["pairs"]["dropped"] == {"identical": 1}
    assert found["train"]["steps"] == 9 and found["train"]["margin"] == {"first": 0.0, "last": 0.5}
    assert found["train"]["pairs"] == {"round-1/pairs.jsonl": 1}
    assert (found["evaluate"]["value"], found["evaluate"]["low"]) == (0.55, pytest.approx(0.45))
    assert found["decision"]["words"] == "go on: accuracy 0.5500 after 0.5000 (+0.0500)"
    rates = {"round-1/answers": {"round-0/answers": {"rate": 0.6, "low": 0.5, "high": 0.7, "n": 9, "wins": 5}}}
    rows = table(chain, {"pairs": rates})
    assert [(row["model"], row["value"], row["pairs"]) for row in rows] == [("SFT", 0.5, None), ("round 1", 0.55, 1)]
    assert rows[1]["win_rate"] == {"rate": 0.6, "low": 0.5, "high": 0.7, "n": 9}


@pytest.mark.parametrize(
    ("step", "file"),
    [
        ("generate", "generated.jsonl"),
        ("pairs", "pairs.jsonl"),
        ("train", "model/model.safetensors"),
        ("evaluate", "answers.jsonl"),
    ],
)
def test_a_state_that_does_not_fit_its_files_is_refused_with_the_way_out(chain, step, file):
    for number in (0, 1):
        evaluated(chain, number, 0.5)
    assert Chain(chain.out).is_done("1", step)
    write(chain.out / "round-1" / file, "another")
    with pytest.raises(
        ValueError, match=rf"round 1's result of {step}, has changed.*rounds.py forget --out .* --round 1"
    ):
        Chain(chain.out).is_done("1", step)


def test_steps_come_in_order_and_from_the_model_of_the_round_before(chain):
    evaluated(chain, 0, 0.5)
    with pytest.raises(ValueError, match="pairs cannot be recorded before generate"):
        chain.record("1", "pairs")
    write(chain.out / "round-1/generated.jsonl", '{"id": "a"}\n')
    write(chain.out / "round-1/generated.jsonl.settings.json", {"model": {"config": "c", "weights": "another"}})
    with pytest.raises(ValueError, match="made with another model than round 0's"):
        chain.record("1", "generate")
    served = {"model": {"name": "/runs/sft"}}
    write(chain.out / "round-1/generated.jsonl.settings.json", served)
    chain.record("1", "generate")
    assert not chain.is_done("1", "train")
    write(chain.out / "round-1/model/run.json", {"state": "saved"})
    assert not chain.is_done("1", "train")


def test_shards_are_joined_when_all_are_there(chain):
    evaluated(chain, 0, 0.5)
    folder = chain.out / "round-1"
    for index in (0, 2, 1):
        name = f"generated.shard-{index:02}-of-03.jsonl"
        with pytest.raises(ValueError, match="STEP=generate"):
            chain.record("1", "generate")
        write(folder / f"{name}.settings.json", chain.settings | {"model": {"config": "c", "weights": "w"}})
        write(folder / name, f'{{"id": {index}}}\n')
    chain.record("1", "generate")
    assert (folder / "generated.jsonl").read_text() == '{"id": 0}\n{"id": 1}\n{"id": 2}\n'
    assert chain.entry("1")["generate"]["shards"] == 3


def test_a_round_that_falls_by_more_than_the_margin_ends_the_chain(chain, run):
    for number, accuracy in enumerate((0.5, 0.45)):
        evaluated(chain, number, accuracy)
    words = [sys.executable, TOOL, "decide", "--out", chain.out, "--round", 1, "--margin"]
    stopped = run([*words, 0.04])
    assert stopped.returncode == 3
    assert "stopped: accuracy 0.4500 after 0.5000 (-0.0500) fell by more than the margin 0.04" in stopped.stdout
    assert run([*words, 0.06]).returncode == 0
    assert Chain(chain.out).entry("1")["decision"]["go_on"]
    shown = run([sys.executable, TOOL, "table", "--out", chain.out])
    assert "SFT" in shown.stdout and "round 1" in shown.stdout, shown.stderr
    assert json.loads((chain.out / "table.json").read_text())["rows"][1]["value"] == 0.45
    assert (chain.out / "table.png").read_bytes().startswith(b"\x89PNG")


def test_every_round_whose_margin_does_not_grow_is_named(chain, run):
    words = [sys.executable, TOOL, "check", "--out", chain.out]
    evaluated(chain, 0, 0.5)
    assert run(words).returncode == 2
    evaluated(chain, 1, 0.5)
    grown = run([*words, "--seconds", 60])
    assert "SPIN: 2 ranks, ZeRO-2, 60 s" in grown.stdout, grown.stderr
    assert grown.returncode == 0 and "holds  round 1: the reward margin grows, +0.0000 -> +0.5000" in grown.stdout
    evaluated(chain, 2, 0.5, last=-0.25)
    fallen = run(words)
    assert fallen.returncode == 1 and "FAILS  round 2: the reward margin grows, +0.0000 -> -0.2500" in fallen.stdout
    curves = training_curves(chain)
    assert curves["2"] == [{"step": 1, "margin": 0, "accuracy": 0.5}, {"step": 9, "margin": -0.25, "accuracy": 0.9}]


def test_another_start_is_refused_and_a_moved_model_is_the_same(chain):
    moved = chain.settings | {"model": {"name": "elsewhere/sft", "config": "c", "weights": "w"}}
    Chain.start(chain.out, moved)
    with pytest.raises(
        ValueError,
        match=r"started with other settings .model\.name: .*model\.weights: w then, new now.*Give another OUT",
    ):
        Chain.start(chain.out, moved | {"model": {"name": "sft", "config": "c", "weights": "new"}})


def test_a_hub_model_is_the_same_after_its_download_and_no_other(tmp_path):
    def started(name, commit):
        return Chain.start(tmp_path, {"model": {"name": name, "hub_commit": commit}}).settings["model"]["hub_commit"]

    assert started("org/name", None) is None
    assert started("org/name", "abc") == started("org/name", None) == "abc"
    for name, commit in (("org/name", "def"), ("org/other", None)):
        with pytest.raises(ValueError, match="started with other settings"):
            started(name, commit)


def test_what_is_forgotten_is_kept_beside(chain):
    for number in (0, 1, 2):
        evaluated(chain, number, 0.5)
    chain.forget(2)
    assert list(Chain(chain.out).content["rounds"]) == ["0", "1"]
    assert (chain.out / "round-2.forgotten-1/pairs.jsonl").is_file() and not (chain.out / "round-2").exists()


def test_a_death_while_a_round_is_forgotten_leaves_no_old_file_for_a_new_one(chain, monkeypatch):
    """Its folder is renamed before the state is written: the other way round its finished generation would count again."""
    for number in (0, 1, 2):
        evaluated(chain, number, 0.5)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Chain, "save", lambda self: sys.exit(143))
        chain.forget(2)
    with pytest.raises(ValueError, match=r"round 2's result of generate, is gone.*rounds.py forget --out .* --round 2"):
        Chain(chain.out).is_done("2", "generate")
    Chain(chain.out).forget(2)
    assert list(Chain(chain.out).content["rounds"]) == ["0", "1"] and not Chain(chain.out).is_done("2", "generate")


@pytest.mark.parametrize(
    ("step", "file", "content", "problem"),
    [
        ("generate", "generated.jsonl.settings.json", {}, "model is missing"),
        ("generate", "generated.jsonl.settings.json", {"model": "sft"}, "model must be an object, got 'sft'"),
        ("pairs", "pairs.jsonl.audit.json", {"pairs": 1, "rows": "2"}, "rows must be a whole number, got '2'"),
        ("pairs", "pairs.jsonl.audit.json", [], "its content must be an object"),
        ("train", "model/run.json", {"state": "finished"}, "reference is missing"),
        ("train", "model/run.json", {"state": "finished", "reference": {"model": []}}, "reference.model is empty"),
    ],
)
def test_a_damaged_file_of_a_step_names_its_field(chain, step, file, content, problem):
    evaluated(chain, 0, 0.5)
    evaluated(chain, 1, 0.5)
    for name in ("generate", "pairs", "train", "evaluate")[("generate", "pairs", "train").index(step) :]:
        del chain.content["rounds"]["1"][name]
    write(chain.out / "round-1" / file, content)
    with pytest.raises(ValueError, match=f"{file}: {problem}"):
        chain.record("1", step)


@pytest.mark.parametrize("action", ["forget", "decide"])
def test_what_needs_a_number_says_so_to_direct(chain, run, action):
    done = run([sys.executable, TOOL, action, "--out", chain.out, "--round", "direct"])
    assert done.returncode == 2 and f"--round direct: {action} needs the number of a round" in done.stderr


def test_whole_groups_are_held_out_in_an_order_that_does_not_depend_on_the_rows():
    groups = [f"g{i % 7}" for i in range(40)]
    chosen = held_out_rows(groups, 10, split_position)
    assert chosen == held_out_rows(sorted(groups), 10, split_position)
    assert 10 <= sum(group in chosen for group in groups) < 16
    with pytest.raises(ValueError, match="nothing is left"):
        held_out_rows(groups, 40, split_position)


def test_a_metric_that_is_not_there_is_named(tmp_path):
    path = write(tmp_path / "scores.json", {"a": {"accuracy": 0.5, "words": "x"}})
    assert metric_of(path, "a.accuracy") == (0.5, {"low": None, "high": None})
    with pytest.raises(ValueError, match=r"no a.f1: there are accuracy, words.*METRIC"):
        metric_of(path, "a.f1")
    with pytest.raises(ValueError, match="not a number"):
        metric_of(path, "a.words")


def test_pictures_on_both_sides_are_refused(run, tmp_path):
    row = {"id": "a", "image": "x.png", "conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "no"}]}  # fmt: skip
    train = write(tmp_path / "train.jsonl", json.dumps(row) + "\n")
    shown = [{"type": "image", "image": "x.png"}, {"type": "text", "text": "?"}]
    other = {"id": "b", "messages": [{"role": "user", "content": shown}, {"role": "assistant", "content": "no"}]}
    held_out = write(tmp_path / "eval.jsonl", json.dumps(other) + "\n")
    words = ["--model", "m", "--data", train, "--eval_data", held_out, "--out", tmp_path / "out"]
    done = run([sys.executable, TOOL, "start", *words])
    assert done.returncode == 2 and "image 'x.png' is in training rows and held-out rows" in done.stderr
    assert not (tmp_path / "out/rounds.json").exists()
