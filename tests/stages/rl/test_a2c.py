"""A2C on a tiny model, through the command line: one curve in every layout, resumed runs, rewards that rise, and user errors."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from drive_vlm.stages import STAGES, run
from drive_vlm.stages.engine.arguments import parse_stage
from drive_vlm.stages.rl.a2c import prepare

HERE = Path(__file__).parent
CURVES = ("loss", "grad_norm", "kl", "entropy", "value_loss", "reward", "explained_variance", "completions/mean_length")
TWO_RANKS = ("--per_device_train_batch_size", 4)


def samples(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().split("\n") if line]


def assert_same_walk(ours: Any, theirs: Any) -> None:
    """The same completions of the same rows, and the same figures: loss within 1e-4."""
    said = [[(line["step"], line["id"], line["completion"]) for line in samples(run.out)] for run in (ours, theirs)]
    assert said[0] == said[1]
    for name in CURVES:
        assert ours.curve(name) == pytest.approx(theirs.curve(name), abs=1e-4, rel=1e-3), name


@pytest.fixture
def trainer(a2c_words: Callable, tmp_path: Path) -> Callable[..., Any]:
    """`trainer(*flags)`: the Trainer of these flags, in this process, ready to train."""

    def make(*flags: object) -> Any:
        words = [str(word) for word in a2c_words(tmp_path / "run", *flags)]
        made, _ = prepare(parse_stage("a2c", STAGES["a2c"], words).checked(STAGES["a2c"], 1))
        made.check_resume()
        made.begin_files()
        return made

    return make


@pytest.fixture(scope="module")
def plain(a2c: Callable, fresh: Callable) -> Any:
    """One process, one micro-batch a step: the values of the pass that learns are those of the advantages."""
    return a2c(fresh("plain"))


@pytest.fixture(scope="module")
def zero2(a2c: Callable, fresh: Callable) -> Any:
    """Two ranks, LoRA; with checkpoints."""
    saving = ("--save_strategy", "steps", "--save_steps", 2)
    return a2c(fresh("zero2"), *TWO_RANKS, *saving, "--deepspeed", "zero2", "--lora_rank", 4, launcher="torchrun")


@pytest.mark.slow
@pytest.mark.supports("internvl a2c")
def test_what_a_sample_says_of_its_tokens(plain: Any) -> None:
    """Sums of r are the reward, G and the whitened A are those of r and V; the log-probabilities are those of sampling."""
    lines = samples(plain.out)
    assert len(lines) == 4 * 8 and max(plain.curve("sampling/log_prob_gap")) < 1e-4
    for step in range(1, 5):
        own = [line for line in lines if line["step"] == step]
        for line in own:
            count = line["length"]
            assert [len(line[name]) for name in ("tokens", "r", "returns", "values", "advantages")] == [count] * 5
            assert sum(line["r"]) == pytest.approx(line["reward"], abs=1e-5)
            assert line["returns"][0] == pytest.approx(line["reward"], abs=1e-5)
            assert line["reward"] == pytest.approx(sum(line["weighted"].values()), abs=1e-5)
            assert line["weighted"]["missing_eos"] == (-0.1 if line["truncated"] else 0)
        gains = [g - v for line in own for g, v in zip(line["returns"], line["values"], strict=True)]
        white = torch.tensor([a for line in own for a in line["advantages"]])
        raw = torch.tensor(gains)
        torch.testing.assert_close(white, (raw - raw.mean()) / raw.std(correction=0), atol=1e-3, rtol=1e-3)
    assert plain.curve("kl")[:2] == [0, 0] and plain.curve("kl")[-1] > 0
    # The policy waits for the value head.
    assert plain.curve("learning_rate") == [0, 1e-3, 1e-3, 1e-3] and plain.curve("value_learning_rate") == [1e-2] * 4
    assert all(value == 0 for line in lines[:8] for value in line["values"])
    assert any(value != 0 for line in lines[8:] for value in line["values"])


@pytest.mark.slow
def test_accumulation_walks_the_same_curve(a2c: Callable, fresh: Callable, plain: Any) -> None:
    assert_same_walk(a2c(fresh("accumulation"), "--per_device_train_batch_size", 2), plain)


@pytest.mark.slow
@pytest.mark.supports("internvl a2c zero3")
def test_zero3_with_every_weight_sharded_and_its_merge(
    a2c: Callable,
    fresh: Callable,
    world: Any,
    plain: Any,
    inside: Callable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    """The curve of one process; the reference has an engine of its own. Merged shards are the model without the head."""
    saving = ("--save_strategy", "steps", "--save_steps", 4)
    out = fresh("zero3")
    run = a2c(out, *TWO_RANKS, *saving, "--deepspeed", world.zero3, launcher="torchrun")
    assert_same_walk(run, plain)
    ours, theirs = (load_file(one.out / "model.safetensors") for one in (run, plain))
    assert ours.keys() == theirs.keys() and "value_head.last.weight" in ours
    for name, weight in ours.items():
        assert (weight - theirs[name]).abs().mean() < 1e-4, name
    inside("merge", "--checkpoint", out / "checkpoint-4", "--out", tmp_path / "merged")
    assert "its value head is left out" in capsys.readouterr().err
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert not [name for name in merged if "value_head" in name] and len(merged) == len(ours) - 4


@pytest.mark.slow
@pytest.mark.supports("internvl a2c zero2 lora")
def test_zero2_with_lora_walks_the_curve_of_one_process(
    a2c: Callable, fresh: Callable, zero2: Any, inside: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The start is the model without its new adapter. The adapter's directory holds the head; merge leaves it out."""
    one = a2c(fresh("lora"), "--lora_rank", 4)
    assert_same_walk(zero2, one)
    assert one.curve("kl")[0] == pytest.approx(0, abs=1e-7) and one.curve("kl")[-1] > 0
    saved = load_file(zero2.out / "adapter_model.safetensors")
    assert saved["base_model.model.value_head.last.weight"].abs().sum() > 0
    capsys.readouterr()
    inside("merge", "--checkpoint", zero2.out, "--out", tmp_path / "merged")
    assert "its value head is left out" in capsys.readouterr().err
    assert not [name for name in load_file(tmp_path / "merged" / "model.safetensors") if "value_head" in name]


@pytest.mark.slow
def test_resumed_equals_uninterrupted(a2c: Callable, fresh: Callable, zero2: Any) -> None:
    """From the checkpoint of step 2 on two ranks: completions, figures and weights of the run that was not stopped, the head's moments
    included."""
    out = fresh("resumed") / "run"
    shutil.copytree(zero2.out, out)
    for name in ("run.json", "adapter_model.safetensors"):
        (out / name).unlink()
    shutil.rmtree(out / "checkpoint-4")
    flags = (*TWO_RANKS, "--deepspeed", "zero2", "--lora_rank", 4, "--resume", "auto")
    again = a2c(out, *flags, launcher="torchrun")
    assert_same_walk(again, zero2)
    ours, theirs = (load_file(run.out / "adapter_model.safetensors") for run in (again, zero2))
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, atol=1e-6, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("reward", ["half_counts", "nothing_counts"])
def test_ranks_without_a_token_that_counts_do_not_hang(a2c: Callable, fresh: Callable, world: Any, reward: str) -> None:
    """ZeRO-3 with every weight sharded; a rank has both completions of one prompt, in two micro-batches, and may not count any."""
    flags = ("--per_device_train_batch_size", 1, "--global_batch_size", 4, "--num_generations", 2)
    rewards = ("--rewards", f"{HERE / 'letter_reward.py'}:{reward}", "--deepspeed", world.zero3, "--max_steps", 3)
    run = a2c(fresh(reward), *flags, *rewards, launcher="torchrun")
    left_out = run.curve("completions/left_out")
    assert 0.5 in left_out if reward == "half_counts" else left_out == [1, 1, 1]
    lines = samples(run.out)
    assert any(line["values"] == [] for line in lines)
    if reward == "nothing_counts":
        assert run.curve() == [0, 0, 0] and run.curve("grad_norm") == [0, 0, 0]


@pytest.mark.slow
def test_the_reward_rises(trainer: Callable) -> None:
    """The share of vowels, paid where it is earned: more than twice what it was, in 20 steps of 32."""
    batch = ("--global_batch_size", 32, "--per_device_train_batch_size", 32, "--max_steps", 20, "--learning_rate", 5e-3)
    made = trainer(*batch, "--gae_lambda", 0, "--kl_coef", 0, "--missing_eos_penalty", 0, "--sample_steps", 0)
    made.train()
    logs = [row for row in made.state.log_history if "reward" in row]
    rewards = [row["reward"] for row in logs]
    assert sum(rewards[-3:]) > 2 * sum(rewards[:3]), rewards
    assert logs[-1]["rewards/letter_reward/variance_share"] == pytest.approx(1) and logs[-1]["kl"] == 0


@pytest.mark.slow
def test_the_value_head_alone_learns_first(trainer: Callable) -> None:
    """With a weight decay, and though its error may move the body: nothing else moves in the first steps, and the values come to
    explain returns."""
    batch = (
        "--global_batch_size",
        32,
        "--per_device_train_batch_size",
        32,
        "--missing_eos_penalty",
        0,
        "--sample_steps",
        0,
    )
    waits = ("--max_steps", 12, "--value_warmup_steps", 12, "--value_learning_rate", 3e-3)
    made = trainer(*batch, *waits, "--value_detach", "false", "--weight_decay", 0.1, "--kl_coef", 0)
    before = {name: weight.detach().clone() for name, weight in made.model.named_parameters()}
    made.train()
    moved = {name for name, weight in made.model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == {f"value_head.{layer}.{part}" for layer in ("first", "last") for part in ("weight", "bias")}
    explained = [row["explained_variance"] for row in made.state.log_history if "reward" in row]
    assert explained[0] == 0 and sum(explained[-3:]) / 3 > 0.05, explained


@pytest.mark.slow
def test_the_start_of_an_adapter_is_the_adapter(trainer: Callable, a2c: Callable, fresh: Callable) -> None:
    """An a2c adapter trains on: its head is found again, KL to it is 0 at first, and would not be to the bare model."""
    first = fresh("adapter")
    a2c(first, "--lora_rank", 4, "--learning_rate", 1e-2, "--value_warmup_steps", 0)
    made = trainer("--model", first, "--value_warmup_steps", 0, "--max_steps", 2)
    head = load_file(first / "adapter_model.safetensors")["base_model.model.value_head.last.weight"]
    weights = dict(made.model.named_parameters())
    assert torch.equal(weights["base_model.model.value_head.modules_to_save.default.last.weight"], head)
    copies = {name: weight.detach().clone() for name, weight in weights.items() if ".ref." in name}
    assert any(weight.abs().sum() > 0 for name, weight in copies.items() if "lora_B" in name)
    made.train()
    kl = [row["kl"] for row in made.state.log_history if "kl" in row]
    assert kl[0] == pytest.approx(0, abs=1e-7) and kl[1] > 0
    assert all(torch.equal(weights[name], copy) for name, copy in copies.items())
    assert not any(weights[name].requires_grad for name in copies)


@pytest.mark.supports("siglip_qwen a2c")
def test_video_rows_on_siglip_qwen(trainer: Callable, tiny_video_model: Path, synthetic_data: Path) -> None:
    """Frames as in SFT; the frozen tower runs once for each video; drawn and learned log-probabilities agree."""
    clips = synthetic_data / "clips_train.jsonl"
    more = (
        "--num_frames",
        3,
        "--max_steps",
        2,
        "--num_generations",
        4,
        "--reward_shape",
        "terminal",
        "--gae_lambda",
        0.9,
    )
    made = trainer("--model", tiny_video_model, "--data", clips, *more)
    made.train()
    logs = [row for row in made.state.log_history if "reward" in row]
    assert len(logs) == 2 and max(row["sampling/log_prob_gap"] for row in logs) < 1e-4
    assert made.rollouts.memo.asked > 4 * made.rollouts.memo.pictures
    line = samples(made.out)[0]
    assert all(gain == 0 for gain in line["r"][:-1]) and line["r"][-1] == pytest.approx(line["reward"], abs=1e-5)


def test_the_models_own_settings_of_generation_do_not_bend_what_is_drawn(
    trainer: Callable, world: Any, tmp_path: Path
) -> None:
    """A repetition penalty in the model's files: what is drawn is still of the distribution that the loss is of. Tokens that they
    suppress are drawn by neither; the files stay as they are."""
    model = tmp_path / "model"
    shutil.copytree(world.model, model)
    own = json.loads((model / "generation_config.json").read_text())
    own |= {"repetition_penalty": 1.8, "suppress_tokens": [11, 12], "min_new_tokens": 4, "bad_words_ids": [[13]]}
    (model / "generation_config.json").write_text(json.dumps(own))
    made = trainer("--model", model, "--max_steps", 1)
    made.train()
    assert {11, 12} < set(made._never)
    assert max(row["sampling/log_prob_gap"] for row in made.state.log_history if "reward" in row) < 1e-4
    assert made.model.generation_config.repetition_penalty == 1.8


def test_a_collapse_ends_the_run(
    trainer: Callable, monkeypatch: pytest.MonkeyPatch, world: Any, tmp_path: Path
) -> None:
    """Rows with `actions`: answers that vary at first and are one answer later."""
    rows = [json.loads(line) | {"actions": [0, 1, 0, 0]} for line in world.train.read_text().splitlines()]
    data = tmp_path / "actions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = trainer("--data", data, "--image_root", world.train.parent, "--max_steps", 30, "--max_completion_length", 1)
    told = iter(range(10_000))
    varied, one = ("Action: stop", "Action: turn left", "Action: forward"), "Action: stop"
    monkeypatch.setattr(
        "drive_vlm.stages.rl.a2c_trainer.text_of",
        lambda tokenizer, ids: varied[i % 3] if (i := next(told)) < 80 else one,
    )
    with pytest.raises(ValueError, match="The actions have collapsed"):
        made.train()
    assert made.state.global_step == 19
    logs = [row for row in made.state.log_history if "actions/entropy" in row]
    assert logs[0]["actions/entropy"] > 1 and logs[-1]["actions/entropy"] < 0.3


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--gamma", 1.5), "--gamma: must be at most 1, got 1.5"),
        (("--gamma", -0.1), "--gamma: must be at least 0"),
        (("--gae_lambda", 1.01), "--gae_lambda: must be at most 1"),
        (("--gae_lambda", "nan"), "--gae_lambda: must be at least 0, got nan"),
        (("--reward_every", 0), "--reward_every: must be at least 1"),
        (("--temperature", 0), "--temperature: must be at least"),
        (("--reward_weights", 1.0, 0.5), "2 numbers, --rewards 1 (letter_reward"),
        (("--num_generations", 3), "a step of 8 completions is not a multiple of --num_generations 3"),
        (("--packing",), "--packing has no place in a2c"),
        (("--eval_data", "x.jsonl"), "--eval_data has no place in a2c"),
        (("--eval_steps", 5), "--eval_steps has no place in a2c"),
        (("--lora_rank", 4, "--lora_dropout", 0.1), "--lora_dropout has no place in a2c"),
        (("--top_p", 0.9), "unknown argument --top_p"),
        (("--rewards", "physic"), "unknown reward 'physic'"),
    ],
)  # fmt: skip
@pytest.mark.supports("* a2c packing refused")
def test_user_errors(
    a2c_words: Callable, tmp_path: Path, flags: tuple, words: str, capsys: pytest.CaptureFixture
) -> None:
    """One line, exit 2, before any model is loaded."""
    given = [str(word) for word in a2c_words(tmp_path / "run", *flags)]
    with pytest.raises(SystemExit) as stopped:
        run("a2c", given)
    assert stopped.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--gamma", 0.9, "--kl_coef", 0.1), ("gamma: 1.0 then, 0.9 now", "kl_coef: 0.05 then, 0.1 now")),
        (("--reward_shape", "terminal", "--letter_wanted", "xyz"), ("increments then, terminal now", "aeiou then, xyz now")),
    ],
)  # fmt: skip
def test_what_would_not_go_on_where_it_stopped_is_refused(
    zero2: Any, a2c: Callable, more: tuple, words: tuple[str, str]
) -> None:
    """A process of its own: DeepSpeed leaves a group of ranks behind in the one that it ran in."""
    flags = ("--lora_rank", 4, "--deepspeed", "zero2", "--resume", zero2.out / "checkpoint-2", *more)
    done = a2c(zero2.out, *TWO_RANKS, *flags, launcher="torchrun", code=1)
    assert all(word in done.text for word in words), done.text[-1500:]


def test_the_plan_knows_head_and_sampling(capsys: pytest.CaptureFixture) -> None:
    from drive_vlm.plan.command import make_plan

    words = "--model smolvlm --freeze vision_tower --bf16 --gradient_checkpointing --global_batch_size 32"
    plan = make_plan("a2c", words.split())
    head = plan["parameters"]["value_head"]
    assert head["trainable"] == head["total"] == 2048 * 512 + 512 + 512 + 1
    batch = plan["batch"]["generation"]
    assert (batch["prompts"], batch["length"], batch["steps"], batch["passes"]) == (32, 64, 4, 2)
    chosen = plan["memory"]["layouts"]["ddp"]
    assert chosen["sampling"] > 0 and chosen["learning"] > 0 and chosen["cache"] > 0
    without = make_plan("a2c", [*words.split(), "--kl_coef", "0"])["memory"]["layouts"]["ddp"]
    # The frozen copy of the model.
    assert chosen["weights"] > 1.5 * without["weights"]
