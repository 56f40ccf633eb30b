"""--eval_generate: a training that answers held-out rows trains as one that does not, and keeps the best checkpoint by its score."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

STEPS = ("--save_strategy", "steps", "--save_steps", 2, "--eval_steps", 2)
SHORT = ("--eval_max_new_tokens", 8)
LORA = ("--lora_rank", 4, "--lora_dropout", 0.2, "--gradient_checkpointing", "true")
# Stage, flags next to those of `words`.
KINDS = {
    "sft": ("sft", ()),
    "sft-lora": ("sft", LORA),
    "dpo": ("dpo", ("--lora_rank", 4)),
    "spin": ("spin", ("--learning_rate", 1e-3)),
    "grpo": ("grpo", ()),
    "a2c": ("a2c", ("--gradient_checkpointing", "true")),
}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def scores_of(out: Path) -> list[dict[str, Any]]:
    """The evaluations in metrics.jsonl, without their time."""
    found = [row for row in lines(out / "metrics.jsonl") if "eval_answers_seconds" in row]
    timed = ("seconds", "runtime", "per_second")
    return [{name: value for name, value in row.items() if not name.endswith(timed)} for row in found]


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in lines(out / "metrics.jsonl") if "loss" in row]


def answers(out: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((out / "eval_answers").iterdir())}


def text_row(number: object, question: str, answer: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": str(number), "conversations": turns}


@pytest.fixture
def held(world: Any) -> Path:
    """Six held-out rows, in the folder of the pictures."""
    return write(world.eval.with_name("held6.jsonl"), lines(world.eval)[:6])


@pytest.fixture
def pairs(world: Any) -> Path:
    """Twelve pairs: a row's answer, and a wrong one."""
    rows = [
        {name: row[name] for name in ("id", "image") if name in row}
        | {"conversations": row["conversations"][:-1]}
        | {"chosen": row["conversations"][-1]["value"], "rejected": "no idea"}
        for row in lines(world.train)[:12]
    ]
    return write(world.train.with_name("pairs12.jsonl"), rows)


@pytest.fixture
def train(inside: Callable, world: Any, pairs: Path, grpo_words: Callable, a2c_words: Callable) -> Callable[..., None]:
    """`train(stage, out, *flags)`: a training of four steps in this process."""

    def run(stage: str, out: Path, *flags: object) -> None:
        if stage in ("grpo", "a2c"):
            words = {"grpo": grpo_words, "a2c": a2c_words}[stage](out, "--max_steps", 4, *flags)
        else:
            words = [
                "--model", world.model, "--data", pairs if stage in ("dpo", "spin") else world.train, "--output_dir", out,
                "--freeze", "vision_tower", "--max_steps", 4, "--logging_steps", 1, "--per_device_train_batch_size", 4,
                "--learning_rate", 1e-3, "--lr_scheduler_type", "constant", "--report_to", "none", "--disable_tqdm", "true",
                "--use_cpu", "true", "--image_root", world.train.parent, *flags,
            ]  # fmt: skip
        inside(stage, *words)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_training_does_not_notice_and_the_answers_are_those_of_generate(
    kind: str, train: Callable, inside: Callable, held: Path, tmp_path: Path
) -> None:
    """Losses and weights to the last bit, with dropout, adapters and checkpointing; and what the last checkpoint answers."""
    stage, flags = KINDS[kind]
    asked = ("--eval_generate", held, "--eval_metric", "accuracy", "word_f1", *STEPS, *SHORT)
    train(stage, tmp_path / "scored", *flags, *asked, "--per_device_eval_batch_size", 4)
    train(stage, tmp_path / "plain", *flags, *STEPS[:4])
    scored, plain = tmp_path / "scored", tmp_path / "plain"
    assert losses(scored) == losses(plain) and len(losses(plain)) == 4
    name = "adapter_model.safetensors" if "--lora_rank" in flags else "model.safetensors"
    ours, theirs = load_file(scored / name), load_file(plain / name)
    assert ours.keys() == theirs.keys() and all(ours[key].equal(weight) for key, weight in theirs.items())
    assert [row["step"] for row in scores_of(scored)] == [2, 4] and scores_of(scored)[0]["eval_word_f1_rows"] == 6
    out = tmp_path / "generated.jsonl"
    inside("generate", "--model", scored, "--data", held, "--out", out, "--batch_size", 4, "--max_new_tokens", 8)
    assert answers(scored)["step-4.jsonl"] == out.read_text() and len(lines(out)) == 6
    best = json.loads((scored / "run.json").read_text())["best_metric"]
    assert best["name"] == "eval_accuracy" and best["step"] in (2, 4)


@pytest.mark.slow
def test_two_ranks_that_shard_every_weight_give_the_scores_of_one(sft: Callable, fresh: Callable, world: Any) -> None:
    """13 rows in batches of 5: in the second round one rank has none. Resumed on one rank from step 2, it is the same run."""
    asked = ("--eval_generate", world.eval, "--eval_metric", "accuracy", "f1", *STEPS, *SHORT)
    flags = (*asked, "--per_device_eval_batch_size", 5, "--eval_data", world.eval, "--max_steps", 4)
    one = sft(fresh("one"), *flags)
    out = fresh("two")
    two = sft(out, *flags, "--deepspeed", world.zero3, launcher="torchrun")
    assert answers(one.out) == answers(out) and list(answers(out)) == ["step-2.jsonl", "step-4.jsonl"]
    assert two.curve() == pytest.approx(one.curve(), abs=1e-4)
    for ours, theirs in zip(scores_of(one.out), scores_of(out), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4) and ours["eval_accuracy_rows"] == 13
    words = (
        r"^step 4/4: evaluation loss [\d.]+, accuracy [\d.]+ \[[\d.]+, [\d.]+\] of 13 rows, f1 [\d.]+ .*, \d+ unread$"
    )
    again = sft(out, *flags, "--deepspeed", world.zero3, "--resume", out / "checkpoint-2", "--disable_tqdm", "false")
    assert re.search(words, again.text, re.M), again.text
    assert answers(out) == answers(one.out)
    assert scores_of(out)[1] == pytest.approx(scores_of(one.out)[1], abs=1e-4)


@pytest.mark.slow
def test_resumed_equals_uninterrupted_with_its_best(
    train: Callable, held: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A best score of before the stop stays; answers behind the checkpoint are given again, or removed."""
    asked = ("--eval_generate", held, "--eval_metric", "word_f1", *STEPS, *SHORT, "--keep", 1, "--learning_rate", 0.02)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train("sft", whole, *asked, "--max_steps", 8)
    train("sft", cut, *asked, "--max_steps", 4)
    (cut / "eval_answers" / "step-6.jsonl").write_text("of another run\n")
    (cut / "eval_answers" / "step-12.jsonl").write_text("of another run\n")
    train("sft", cut, *asked, "--max_steps", 8, "--resume", "auto")
    assert losses(cut) == losses(whole) and scores_of(cut) == scores_of(whole) and answers(cut) == answers(whole)
    status = [json.loads((out / "status.json").read_text()) for out in (whole, cut)]
    for name in ("scores", "best_value", "best_step", "best_metric"):
        assert status[0][name] == status[1][name], name
    values = {row["step"]: row["eval_word_f1"] for row in scores_of(whole)}
    best = max(values, key=lambda step: (values[step], -step))
    assert status[0]["best_step"] == best and status[0]["best_value"] == values[best] and best < 8, values
    for out in (whole, cut):
        assert {path.name for path in out.glob("checkpoint-*")} == {f"checkpoint-{best}", "checkpoint-8"}
        assert json.loads((out / "run.json").read_text())["best_checkpoint"].endswith(f"/checkpoint-{best}")
    assert status[0]["scores"]["step"] == 8 and status[0]["scores"]["eval_word_f1"] == values[8]


@pytest.mark.slow
def test_where_loss_and_accuracy_part_the_accurate_checkpoint_is_kept(train: Callable, tmp_path: Path) -> None:
    """The rows of the loss say "no" again and again where the training says "yes": the better the answers, the worse that loss."""
    say_yes = write(tmp_path / "train.jsonl", [text_row(i, "Is it day or night?", "yes") for i in range(8)])
    say_no = write(
        tmp_path / "loss.jsonl", [text_row(f"l{i}", "Is it day or night?", "no " * 8 + "no") for i in range(4)]
    )
    held = write(tmp_path / "held.jsonl", [text_row(f"h{i}", "Is it day or night?", "yes") for i in range(4)])
    flags = (
        "--data", say_yes, "--eval_data", say_no, "--eval_generate", held, "--eval_metric", "accuracy", *SHORT,
        "--save_strategy", "steps", "--save_steps", 1, "--eval_steps", 1, "--max_steps", 7, "--keep", 1,
    )  # fmt: skip
    train("sft", tmp_path / "accurate", *flags, "--load_best_model_at_end")
    found = scores_of(tmp_path / "accurate")
    loss = {row["step"]: row["eval_loss"] for row in found}
    right = {row["step"]: row["eval_accuracy"] for row in found}
    accurate, cheap = max(right, key=lambda step: (right[step], -step)), min(loss, key=loss.__getitem__)
    assert right[accurate] == 1 and right[cheap] == 0 and cheap < accurate < 7, (loss, right)
    assert {path.name for path in (tmp_path / "accurate").glob("checkpoint-*")} == {
        f"checkpoint-{accurate}",
        "checkpoint-7",
    }
    final, best = (
        load_file(tmp_path / "accurate" / name)
        for name in ("model.safetensors", f"checkpoint-{accurate}/model-trained.safetensors")
    )
    assert all(final[name].equal(weight) for name, weight in best.items()) and len(best) > 10
    train("sft", tmp_path / "cheap", *flags, "--metric_for_best_model", "eval_loss")
    assert {path.name for path in (tmp_path / "cheap").glob("checkpoint-*")} == {f"checkpoint-{cheap}", "checkpoint-7"}


@pytest.mark.slow
def test_an_evaluation_that_a_request_has_ended_is_made_up_for(
    train: Callable, held: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the evaluation of step 2: its checkpoint has no score until the resumed run gives it one, before its first step."""
    from drive_vlm.stages.engine.held_out import HeldOut

    asked = ("--eval_generate", held, "--eval_metric", "word_f1", *STEPS, *SHORT, "--per_device_eval_batch_size", 1)
    train("sft", tmp_path / "whole", *asked)
    out, opened = tmp_path / "run", HeldOut.__init__

    def ask(self: Any, *args: Any) -> None:
        """The request comes while the first row is answered."""
        opened(self, *args)
        take = self.take_vision

        def asks(rows: Any) -> Any:
            (out / "stop").touch()
            return take(rows)

        self.take_vision = asks

    monkeypatch.setattr(HeldOut, "__init__", ask)
    train("sft", out, *asked)
    assert json.loads((out / "status.json").read_text())["state"] == "saved"
    assert scores_of(out) == [] and not (out / "eval_answers").exists() and (out / "checkpoint-2").is_dir()
    monkeypatch.undo()
    (out / "stop").unlink(missing_ok=True)
    train("sft", out, *asked, "--resume", "auto")
    assert losses(out) == losses(tmp_path / "whole") and answers(out) == answers(tmp_path / "whole")
    assert [row["eval_word_f1"] for row in scores_of(out)] == [
        row["eval_word_f1"] for row in scores_of(tmp_path / "whole")
    ]
    ours, theirs = (json.loads((one / "status.json").read_text()) for one in (out, tmp_path / "whole"))
    assert (ours["best_step"], ours["best_value"]) == (theirs["best_step"], theirs["best_value"])


@pytest.mark.slow
def test_grpo_scores_the_weights_that_it_saves(train: Callable, held: Path, tmp_path: Path) -> None:
    """Each generation batch is learned from twice, so that step 3 is no place for a checkpoint: saved and scored is step 4."""
    steps = ("--max_steps", 6, "--save_strategy", "steps", "--save_steps", 3)
    asked = ("--eval_generate", held, "--eval_metric", "word_f1", "--eval_steps", 3, *SHORT)
    train("grpo", tmp_path / "scored", "--num_iterations", 2, *steps, *asked)
    train("grpo", tmp_path / "plain", "--num_iterations", 2, *steps)
    assert losses(tmp_path / "scored") == losses(tmp_path / "plain")
    assert [row["step"] for row in scores_of(tmp_path / "scored")] == [4, 6]
    assert {path.name for path in (tmp_path / "scored").glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-6"}
    assert json.loads((tmp_path / "scored" / "status.json").read_text())["best_step"] in (4, 6)


def test_what_cannot_be_scored_is_refused_before_anything_trains(
    train: Callable, world: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = [text_row(i, "Which way? A. Left. B. Right.", "A") for i in range(3)]
    for name, metric, broken, told in (
        ("options", "choice", text_row(9, "Which way?", "A"), "1 of 4 rows of --eval_generate cannot be scored; {}:4 lacks options"),
        ("own", "choice", text_row(9, "Which? A. Left. B. Right.", "C"), "{}:4 lacks an answer that names one of its options"),
        ("labels", "oia_f1", rows[0] | {"id": "9"}, '4 of 4 rows of --eval_generate cannot be scored; {}:1 lacks a column "actions"'),
        ("prompt", "accuracy", {"id": "9", "conversations": rows[0]["conversations"][:1]}, "{}:4 lacks an answer of its own"),
    ):  # fmt: skip
        path = write(tmp_path / f"{name}.jsonl", [*rows, broken])
        with pytest.raises(SystemExit):
            train("sft", tmp_path / "run", "--eval_generate", path, "--eval_metric", metric)
        said = capsys.readouterr().err
        assert f"--eval_metric {metric}: " in said and told.format(path) in said, said
        assert not (tmp_path / "run" / "metrics.jsonl").exists()
    with pytest.raises(SystemExit):
        train("sft", tmp_path / "run", "--eval_generate", world.train.parent / "images", "--eval_metric", "f1")
    assert "give a file of rows with questions and answers" in capsys.readouterr().err


@pytest.mark.slow
def test_rows_that_leak_are_told_and_rows_that_cannot_be_used_are_counted(
    train: Callable, world: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = [row for row in lines(world.train) if isinstance(row.get("image"), str)][:3]
    shutil.copytree(world.train.parent / "images", tmp_path / "images")
    first = tmp_path / rows[0]["image"]
    shutil.copy(first, first.with_name("copied.jpg"))
    copied = rows[0] | {"id": "new", "group": "new", "image": "images/copied.jpg"}
    torn = rows[1] | {"id": "torn", "image": "images/torn.jpg"}
    (tmp_path / "images" / "torn.jpg").write_bytes((tmp_path / rows[1]["image"]).read_bytes()[:-200])
    twice = rows[2] | {"id": "new"}
    held = write(
        tmp_path / "held.jsonl", [copied, rows[1], torn, twice, rows[2] | {"id": "lost", "image": "images/lost.jpg"}]
    )
    out = tmp_path / "run"
    flags = ("--image_root", tmp_path, "--on_bad_row", "skip", "--max_steps", 2)
    train("sft", out, "--eval_generate", held, "--eval_metric", "accuracy", "--eval_steps", 1, *SHORT, *flags)
    said = capsys.readouterr().err
    assert re.search(
        r"warning: --eval_generate shares values with --data \(1 of id, \d of group, \d of image, 1 of content; id ",
        said,
    ), said
    audit = json.loads((out / "data_audit.json").read_text())
    assert audit["eval_generate"]["bad_rows"]["by_reason"] == {"image_missing": 1, "duplicate_id": 1}
    # A picture that breaks off is found when it is decoded: once in the audit, however many evaluations there are.
    assert audit["bad_during_run"]["total"] == 1
    assert [row["eval_accuracy_rows"] for row in scores_of(out)] == [2, 2]
    assert [row["eval_answers_missing"] for row in scores_of(out)] == [1, 1]
    assert [row["id"] for row in lines(out / "eval_answers" / "step-2.jsonl")] == ["new", rows[1]["id"]]


def test_the_model_is_as_it_was_also_after_an_error() -> None:
    from drive_vlm.stages.engine.as_it_stands import as_it_stands

    network = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Dropout()))
    network.train()
    network[2].eval()
    modes, state = [module.training for module in network.modules()], torch.get_rng_state()
    with pytest.raises(ValueError, match="torn"), as_it_stands(network, network, zero3=False):
        assert not any(module.training for module in network.modules())
        torch.rand(3)
        raise ValueError("torn")
    assert [module.training for module in network.modules()] == modes and any(modes) and not all(modes)
    assert torch.equal(torch.get_rng_state(), state)
