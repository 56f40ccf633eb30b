"""Flags of the Trainer: each is taken, and does what it says, or is refused with its name; on resume they win over a checkpoint."""

import contextlib
import hashlib
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from drive_vlm.launch import machine
from drive_vlm.plan.training_fields import FIELDS, training_fields
from drive_vlm.stages import STAGES
from drive_vlm.stages.engine.arguments import parse_stage
from drive_vlm.stages.engine.stage import StageFlags
from drive_vlm.stages.engine.training_arguments import evaluation_defaults, training_arguments
from drive_vlm.stages.engine.training_flags import ACCEPTED, OWNED_ELSEWHERE, REFUSED

SHIPPED = json.loads(FIELDS.read_text())
STAGE_OF = {"transformers.TrainingArguments": "sft", "trl.DPOConfig": "dpo", "trl.GRPOConfig": "grpo"}
# Flags of the project's own dataclasses, which hide those of the same name.
OURS = {"deepspeed", "max_length", "trust_remote_code"}
# A value of each flag that is taken, other than its default, and what the arguments then have.
TAKEN: dict[str, tuple[str, Any]] = {
    "output_dir": ("OUT", "OUT"), "per_device_train_batch_size": ("4", 4), "num_train_epochs": ("2.5", 2.5), "max_steps": ("7", 7),
    "learning_rate": ("2e-3", 2e-3), "lr_scheduler_type": ("cosine_with_min_lr", "cosine_with_min_lr"),
    "lr_scheduler_kwargs": ('{"min_lr": 0.0001}', {"min_lr": 1e-4}), "warmup_steps": ("3", 3), "optim": ("adamw_torch", "adamw_torch"),
    "weight_decay": ("0.25", 0.25), "adam_beta1": ("0.8", 0.8), "adam_beta2": ("0.95", 0.95), "adam_epsilon": ("1e-6", 1e-6),
    "max_grad_norm": ("0.5", 0.5), "bf16": ("true", True), "fp16": ("false", False), "tf32": ("false", False),
    "gradient_checkpointing": ("true", None), "activation_checkpointing": ("true", True), "seed": ("3", 3), "data_seed": ("4", 4),
    "full_determinism": ("true", True), "use_cpu": ("true", True), "torch_empty_cache_steps": ("5", 5),
    "dataloader_num_workers": ("1", 1), "dataloader_pin_memory": ("false", False), "dataloader_prefetch_factor": ("3", 3),
    "logging_strategy": ("epoch", "epoch"), "logging_steps": ("3", 3), "logging_first_step": ("true", True), "log_level": ("error", "error"),
    "log_level_replica": ("error", "error"), "log_on_each_node": ("false", False), "disable_tqdm": ("true", True),
    "report_to": ("none", []), "run_name": ("name", "name"), "project": ("other", "other"), "save_strategy": ("steps", "steps"),
    "save_steps": ("4", 4), "ddp_backend": ("gloo", "gloo"), "ddp_timeout": ("99", 99), "ddp_bucket_cap_mb": ("9", 9),
    "train_sampling_strategy": ("group_by_length", "group_by_length"), "hub_token": ("abc", "abc"),
    "eval_strategy": ("steps", "steps"), "eval_steps": ("4", 4), "eval_delay": ("2", 2), "eval_on_start": ("true", True),
    "per_device_eval_batch_size": ("3", 3), "load_best_model_at_end": ("true", True), "metric_for_best_model": ("eval_loss", "eval_loss"),
    "greater_is_better": ("false", False), "beta": ("0.2", 0.2), "disable_dropout": ("false", False),
    "num_generations": ("4", 4), "max_completion_length": ("9", 9), "generation_batch_size": ("16", 16), "steps_per_generation": ("4", 4),
    "num_iterations": ("2", 2), "temperature": ("0.7", 0.7), "top_p": ("0.9", 0.9), "top_k": ("5", 5), "min_p": ("0.1", 0.1),
    "repetition_penalty": ("1.1", 1.1), "reward_weights": ("2.5", [2.5]), "scale_rewards": ("batch", "batch"), "epsilon": ("0.3", 0.3),
    "epsilon_high": ("0.4", 0.4), "delta": ("2", 2.0), "importance_sampling_level": ("sequence", "sequence"),
    "mask_truncated_completions": ("true", True), "multi_objective_aggregation": ("normalize_then_sum", "normalize_then_sum"),
    "use_bias_correction_kl": ("false", False), "top_entropy_quantile": ("0.5", 0.5), "entropy_coef": ("0.1", 0.1),
    "use_adaptive_entropy": ("true", True), "entropy_coef_min": ("0.01", 0.01), "entropy_coef_max": ("0.5", 0.5),
    "entropy_coef_delta": ("0.01", 0.01), "entropy_target": ("0.3", 0.3), "shuffle_dataset": ("false", False),
    "ds3_gather_for_generation": ("false", False),
}  # fmt: skip
# What only a GPU with vLLM can obey; TRL reads these alone.
VLLM = {name for name in ACCEPTED["trl.GRPOConfig"] if "vllm" in name}
# Of one kind with another one, of which the Trainer takes one; or what a world of one cannot have.
EXCLUDES = {
    "ddp_backend": "a world of one",
    "gradient_checkpointing": "activation_checkpointing",
    "steps_per_generation": "generation_batch_size",
}


def parse(stage: str, *words: object) -> StageFlags:
    needed = [
        "--model",
        "m",
        "--data",
        "d.jsonl",
        *(("--rewards", "physics", "--physics_detections", "d") if STAGES[stage].kind == "prompts" else ()),
    ]
    return parse_stage(stage, STAGES[stage], [*needed, *map(str, words)]).checked(STAGES[stage], 1)


@pytest.mark.parametrize("name", STAGE_OF)
def test_every_flag_is_taken_or_refused_with_a_reason(name: str) -> None:
    """Also one that an upgrade brings: it must go into one of the lists."""
    from drive_vlm.stages.preference.stage import _NOT_OFFERED

    reasons = set(REFUSED) | (set(_NOT_OFFERED) if "DPO" in name else set())
    assert set(SHIPPED[name]) - OURS - ACCEPTED[name] - reasons == set()
    assert ACCEPTED[name] - set(SHIPPED[name]) == set() and not ACCEPTED[name] & set(OWNED_ELSEWHERE)
    for flag in sorted(set(SHIPPED[name]) - OURS - ACCEPTED[name]):
        kind = SHIPPED[name][flag][0]
        with pytest.raises((ValueError, SystemExit)) as stopped:
            parse(STAGE_OF[name], f"--{flag}", "1" if kind in ("int", "float") else "true" if kind == "bool" else "{}")
        assert isinstance(stopped.value, SystemExit) or f"--{flag}" in str(stopped.value), flag


@pytest.mark.parametrize("name", STAGE_OF)
def test_every_flag_that_is_taken_reaches_the_arguments(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    assert set(TAKEN) | VLLM | {"loss_type", "loss_weights"} == set().union(*ACCEPTED.values())
    # An older transformers has not all of them (5.17: no activation_checkpointing).
    offered = ACCEPTED[name] & training_fields(name).keys()
    flags = {flag: word for flag, (word, _) in TAKEN.items() if flag in offered and flag not in EXCLUDES}
    held_out = ("--eval_data", "e.jsonl")
    expected = {flag: TAKEN[flag][1] for flag in flags}
    if name == "trl.GRPOConfig":
        del flags["train_sampling_strategy"]
        # It has no loss of rows.
        held_out = ("--eval_generate", "e.jsonl", "--eval_metric", "f1")
        flags["metric_for_best_model"] = expected["metric_for_best_model"] = "eval_f1"
    words = [word for flag, value in flags.items() for word in (f"--{flag}", value)]
    given = parse(STAGE_OF[name], *words, *held_out)
    module, _, cls = name.rpartition(".")
    args, _ = training_arguments(getattr(importlib.import_module(module), cls), given)
    for flag in flags:
        found = getattr(args, flag)
        assert getattr(found, "value", found) == expected[flag], flag


@pytest.mark.parametrize(
    ("stage", "words", "told"),
    [
        ("sft", "--label_smoothing_factor 0.1", "--label_smoothing_factor is not taken. transformers' smoother does not shift"),
        ("grpo", "--label_smoothing_factor 0.1", "--label_smoothing_factor is not taken"),
        ("dpo", "--neftune_noise_alpha 5", "--neftune_noise_alpha is not taken"),
        ("grpo", "--eval_steps 5", "--eval_steps has no place in grpo: without --eval_generate nothing is evaluated"),
        ("a2c", "--eval_steps 5", "--eval_steps has no place in a2c: without --eval_generate nothing is evaluated"),
        ("sft", "--eval_generate e --eval_metric f1 --eval_strategy no", "--eval_generate has no effect with --eval_strategy no"),
        ("sft", "--eval_generate e --eval_metric f1 --metric_for_best_model eval_loss", "an evaluation of sft has eval_f1"),
        ("grpo", "--eval_generate e --eval_metric f1 --metric_for_best_model eval_accuracy", "an evaluation of grpo has eval_f1"),
        ("sft", "--eval_generate e --eval_metric f1 --save_steps 5 --eval_steps 2", "--save_steps 5 is not a multiple of --eval_steps 2"),
        ("dpo", "--eval_generate e --eval_metric f1 --save_strategy epoch --eval_steps 2", "--save_strategy epoch with --eval_strategy steps"),
        ("grpo", "--loss_type sapo", "--loss_type sapo is not offered (known: grpo,"),
        ("sft", "--average_tokens_across_devices false", "--average_tokens_across_devices is not taken"),
        ("sft", "--train_sampling_strategy sequential", "--train_sampling_strategy sequential is not offered (known: random, group"),
        ("sft", "--lr_scheduler_type reduce_lr_on_plateau", "--lr_scheduler_type reduce_lr_on_plateau is not offered"),
        ("sft", "--lr_scheduler_type constant --warmup_steps 5", "Use constant_with_warmup"),
        ("sft", "--optim schedule_free_adamw", "--optim schedule_free_adamw is not offered"),
        ("sft", "--optim sgd --adam_beta1 0.8", "--adam_beta1 has no effect with --optim sgd"),
        ("sft", "--save_strategy epoch --save_steps 5", "--save_steps has no effect with --save_strategy epoch"),
        ("sft", "--eval_steps 5", "--eval_strategy needs rows to evaluate: give --eval_data (its loss) or --eval_generate"),
        ("sft", "--load_best_model_at_end", "--load_best_model_at_end needs rows to evaluate: give --eval_data"),
        ("sft", "--eval_data e --metric_for_best_model eval_acc", "an evaluation of sft has eval_loss."),
        ("dpo", "--eval_data e --metric_for_best_model rewards/accuracy", "Did you mean eval_rewards/accuracies?"),
        ("dpo", "--lora_rank 4 --lora_dropout 0.1", "Add --disable_dropout false"),
        ("sft", "--learning_rate nan", "--learning_rate nan: give a number"),
        ("sft", "--learning_rate -1", "--learning_rate -1.0: it must be from 0 to 100"),
        ("sft", "--weight_decay inf", "--weight_decay inf"),
        ("sft", "--adam_beta2 1.0", "--adam_beta2 1.0: it must be from 0"),
        ("sft", "--num_train_epochs 0", "--num_train_epochs 0.0: it must be above 0"),
        ("sft", "--logging_steps 0", "--logging_steps 0.0: it must be above 0"),
        ("sft", "--max_steps 0", "--max_steps 0 trains nothing"),
        ("sft", "--max_steps -3", "--max_steps -3: it must be"),
        ("sft", "--seed -1", "--seed -1: it must be"),
        ("sft", "--warmup_steps 1e30", "--warmup_steps 1e+30: it must be"),
        ("dpo", "--beta nan", "--beta nan"),
        ("dpo", "--loss_type sigmoid sft --loss_weights 1 nan", "--loss_weights nan"),
        ("grpo", "--temperature nan", "--temperature nan"),
        ("grpo", "--top_p 1.5", "--top_p 1.5: it must be"),
        ("grpo", "--reward_weights inf", "--reward_weights inf"),
        ("grpo", "--max_completion_length 0", "--max_completion_length 0: it must be from 1"),
    ],
)  # fmt: skip
def test_what_would_bend_the_loss_or_do_nothing_is_refused(stage: str, words: str, told: str) -> None:
    with pytest.raises(ValueError) as stopped:
        parse(stage, *words.split())
    assert told in str(stopped.value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--report_to wandbb", "--report_to wandbb is not known (known: none, all, "),
        ("--report_to comet_ml", "--report_to comet_ml: it is not installed (pip install comet_ml)"),
        ("--lr_scheduler_kwargs {min", '--lr_scheduler_kwargs {min: write a JSON object'),
        ("--lr_scheduler_kwargs [1]", "--lr_scheduler_kwargs [1]: write a JSON object"),
        ('--lr_scheduler_kwargs {"min_lr":0.1}', "--lr_scheduler_kwargs {'min_lr': 0.1} with --lr_scheduler_type linear: "),
        ("--lr_scheduler_type warmup_stable_decay", "--lr_scheduler_type warmup_stable_decay: "),
    ],
)  # fmt: skip
def test_what_the_trainer_would_find_late_is_found_before_the_weights(words: str, told: str, tmp_path: Path) -> None:
    from transformers import TrainingArguments

    with pytest.raises(ValueError) as stopped:
        flags = parse("sft", "--output_dir", tmp_path, *words.split())
        training_arguments(TrainingArguments, flags)
    assert told in str(stopped.value)


@pytest.mark.parametrize(
    ("words", "flags", "warned"),
    [
        ("--bf16", "avx2 avx512f", True),
        ("--dtype bfloat16", "avx2 avx512f", True),
        ("", "avx2 avx512f", False),
        ("--bf16", "avx512f avx512_bf16", False),
    ],
)
def test_the_start_says_that_bf16_is_slow_on_this_processor(
    words: str,
    flags: str,
    warned: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from transformers import TrainingArguments

    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : fpu {flags}\n")
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    given = parse("sft", "--output_dir", tmp_path, "--report_to", "none", "--use_cpu", *words.split())
    training_arguments(TrainingArguments, given)
    told = "warning: this processor has no bf16 units (avx512_bf16, amx_bf16, bf16): bf16 is several times slower than fp32"
    assert (told in capsys.readouterr().err) == warned


def test_steps_ask_for_their_strategy_and_a_metric_for_its_direction() -> None:
    flags = parse("sft", "--save_steps", 5, "--eval_steps", 5, "--eval_data", "e").training
    assert (flags["save_strategy"], flags["eval_strategy"]) == ("steps", "steps")
    # A recipe's words stand before the user's.
    assert parse("sft", "--save_steps", 5, "--save_strategy", "no").training["save_strategy"] == "no"
    chosen = parse("dpo", "--metric_for_best_model", "eval_rewards/accuracies", "--eval_data", "e").training
    assert evaluation_defaults(chosen, True)["greater_is_better"] is True
    assert evaluation_defaults({}, True)["greater_is_better"] is False


def test_the_best_checkpoint_is_that_of_the_first_metric_in_its_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also next to a loss; a metric of which less is better is looked for in that direction, whatever it is called."""
    from drive_vlm.evaluation.answer_metrics import METRICS, Metric, accuracy

    monkeypatch.setitem(METRICS, "choice", Metric(accuracy, "an error", greater_is_better=False))
    for stage in ("sft", "grpo", "a2c", "dpo", "spin"):
        loss = ("--eval_data", "d") if stage in ("sft", "dpo") else ()
        for names, found in (("f1 choice", ("eval_f1", True)), ("choice f1", ("eval_choice", False))):
            flags = parse(stage, "--eval_generate", "e", "--eval_metric", *names.split(), "--eval_steps", 5, *loss)
            chosen = evaluation_defaults(flags.training, bool(loss), flags.scores)
            assert (chosen["metric_for_best_model"], chosen["greater_is_better"]) == found
            # A checkpoint is written where there is a score.
            assert (chosen["save_strategy"], chosen["save_steps"]) == ("steps", 5)
    flags = parse(
        "sft", "--eval_generate", "e", "--eval_metric", "f1", "--eval_data", "d", "--metric_for_best_model", "loss"
    )
    chosen = evaluation_defaults(flags.training, True, flags.scores)
    assert (chosen["metric_for_best_model"], chosen["greater_is_better"]) == ("loss", False)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--eval_generate e", "--eval_generate needs --eval_metric: say by what its answers are scored (accuracy, "),
        ("--eval_metric f1", "--eval_metric scores the rows of --eval_generate. Give them"),
        ("--eval_generate e --eval_metric f1 f1", "a metric is named twice"),
        ("--eval_generate e --eval_metric acc", "invalid choice: 'acc'"),
    ],
)
def test_rows_to_answer_need_a_metric(words: str, told: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parse("a2c", *words.split())
    assert told in capsys.readouterr().err


@pytest.mark.slow
def test_mutated_command_lines_are_taken_or_refused_in_words() -> None:
    """Flags of every stage with words that no flag likes, read by the run and by the plan: no traceback.
    MUTATIONS=800 tries more than the 150 of the suite."""
    from drive_vlm.config import CommandParser, add_dataclass
    from drive_vlm.plan.training_fields import training_flags

    rng = random.Random(0)
    odd = [
        "nan",
        "inf",
        "-1",
        "0",
        "1e30",
        "",
        "x",
        "true",
        "[1]",
        "{}",
        "9" * 5000,
        "a b",
        "\ud800",
        "../x",
        "1",
        "3.5",
        "*",
        "(",
        "\0",
    ]
    taken = 0
    for _ in range(int(os.environ.get("MUTATIONS", "150"))):
        name = rng.choice(list(STAGES))
        stage, own = STAGES[name], CommandParser()
        for cls in stage.config_classes([]):
            add_dataclass(own, cls)
        flags = [action.option_strings[0] for action in own._actions[1:]]
        words = [
            "--model",
            "m",
            "--data",
            "d",
            *(("--rewards", "physics", "--physics_detections", "d") if stage.kind == "prompts" else ()),
        ]
        for _ in range(rng.randint(1, 3)):
            flag = (
                rng.choice(flags) if rng.random() < 0.5 else f"--{rng.choice(list(SHIPPED[stage.training_arguments]))}"
            )
            words += [flag, *(rng.choice(odd) for _ in range(rng.choice([0, 1, 1, 1, 2])))]
        for reader in (training_flags, None):
            with contextlib.suppress(ValueError, SystemExit):
                parse_stage(name, stage, words, parse_training=reader).checked(stage, rng.choice([1, 2]))
                taken += 1
    assert taken


@pytest.fixture
def few(world: Any, tmp_path: Path) -> Path:
    """Eight rows with a picture: two batches of four, or an epoch of four batches of two."""
    rows = [json.loads(line) for line in world.train.read_text().splitlines()]
    rows = [row for row in rows if isinstance(row.get("image"), str)][:8]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "few.jsonl"


@pytest.fixture
def short(inside: Callable, world: Any, few: Path, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """`short(*flags)`: the lines of metrics.jsonl of a training on `few`, into the same folder each time."""

    def train(*flags: object) -> list[dict[str, Any]]:
        inside("sft", "--model", world.model, "--data", few, "--image_root", world.train.parent, "--output_dir", tmp_path / "run", "--logging_steps", 1,
               "--report_to", "none", "--disable_tqdm", "true", "--use_cpu", "true", *flags)  # fmt: skip
        lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        return [row for row in map(json.loads, lines) if "loss" in row]

    return train


def test_the_loss_is_that_of_the_next_token_whatever_the_flags(world: Any, few: Path, short: Callable) -> None:
    """The loss of the first step against the model's own logits, shifted by hand; flags that must not touch it do not."""
    from drive_vlm.config import ModelConfig
    from drive_vlm.data.encoder import Encoder
    from drive_vlm.data.sources import open_sources
    from drive_vlm.data.table import build_table
    from drive_vlm.models import load_family

    family = load_family(ModelConfig(model=str(world.model)), torch.float32)
    encoder = Encoder(family.tokenizer, family.template, family.vision, 8, 4096)
    table = build_table(open_sources([str(few)], str(world.train.parent)), encoder, "error", 4096)
    total = count = 0.0
    for i in range(len(table)):
        row = encoder.encode(table.sample(i))
        vision = {k: torch.as_tensor(v) for k, v in family.vision.collate_vision([row["vision"]]).items()}
        ids, labels = torch.as_tensor(row["input_ids"])[None], torch.as_tensor(row["labels"])[1:]
        with torch.inference_mode():
            logits = family.model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), **vision).logits[0, :-1]
        total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        count += int((labels != -100).sum())
    flags = ("--max_steps", 1, "--per_device_train_batch_size", 8, "--save_strategy", "no")
    neutral = ("--max_grad_norm", 0.1, "--gradient_checkpointing", "--weight_decay", 0.5, "--optim", "adafactor")
    for more in (
        (),
        (*neutral, "--train_sampling_strategy", "group_by_length", "--full_determinism", "true", "--chunk_tokens", 7),
    ):
        assert short(*flags, *more)[0]["loss"] == pytest.approx(total / count, abs=2e-4)
    torch.use_deterministic_algorithms(False)


def test_pictures_under_other_names_in_the_evaluation_are_told(
    world: Any, few: Path, short: Callable, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """Once found they are known to the next start, which reads no row and no picture for it."""
    rows = [json.loads(line) for line in few.read_text().splitlines()]
    other = [row | {"id": f"e{i}"} for i, row in enumerate(rows[:3])]
    (tmp_path / "copied.png").write_bytes((world.train.parent / rows[1]["image"]).read_bytes())
    other[1]["image"] = str(tmp_path / "copied.png")
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in other))
    flags = ("--max_steps", 1, "--save_strategy", "no", "--eval_strategy", "no", "--image_root", "/")
    for path, kept in ((few, rows), (tmp_path / "eval.jsonl", other)):
        absolute = [row | {"image": str(world.train.parent / row["image"])} for row in kept]
        path.write_text("".join(json.dumps(row) + "\n" for row in absolute))
    for _ in range(2):
        short(*flags, "--eval_data", tmp_path / "eval.jsonl")
        told = capfd.readouterr().err
        assert "1 pictures of --eval_data are in --data under other names, e.g. " in told
        assert f"{rows[1]['image']} = {tmp_path / 'copied.png'}. The evaluation" in told
    short(*flags, "--eval_data", few)
    assert "under other names" not in capfd.readouterr().err


SAVES = ("--per_device_train_batch_size", 4, "--save_strategy", "steps", "--save_steps", 2)


def test_a_resumed_run_takes_rate_schedule_and_the_rest_from_its_flags(
    short: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Step 5 runs at the rate that the new schedule has there: 1e-6 * (8 - 4) / 8; and --save_steps is the new one."""
    from torch import load

    short(*SAVES, "--max_steps", 4, "--learning_rate", 1e-3)
    capsys.readouterr()
    more = ("--weight_decay", 0.25, "--adam_beta2", 0.9, "--adam_epsilon", 1e-6, "--save_steps", 3)
    rows = short(*SAVES, "--max_steps", 8, "--learning_rate", 1e-6, *more, "--resume", "auto")
    assert [row["learning_rate"] for row in rows[4:]] == pytest.approx([5e-7, 3.75e-7, 2.5e-7, 1.25e-7])
    told = capsys.readouterr().out
    for words in ("learning_rate 0.001 -> 1e-06", "weight_decay 0.0 -> 0.25", "(0.9, 0.999) -> (0.9, 0.9)", "rate of the next step 0.0 -> 5e-07"):  # fmt: skip
        assert words in told, told
    assert {path.name for path in (tmp_path / "run").glob("checkpoint-*")} == {"checkpoint-6", "checkpoint-8"}
    group = load(tmp_path / "run" / "checkpoint-8" / "optimizer.pt", weights_only=True)["param_groups"][0]
    assert (group["weight_decay"], group["betas"], group["eps"]) == (0.25, (0.9, 0.9), 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["zero2", "zero3"])
def test_so_does_one_under_deepspeed(sft: Callable, fresh: Callable, world: Any, layout: str) -> None:
    out = fresh(layout)
    engine = (
        "--deepspeed",
        world.zero3 if layout == "zero3" else layout,
        "--lr_scheduler_type",
        "linear",
        "--resume",
        "auto",
    )
    engine = (*engine, "--save_strategy", "steps", "--save_steps", 2)
    sft(out, *engine, "--max_steps", 2)
    run = sft(out, *engine, "--max_steps", 4, "--learning_rate", 1e-6, "--weight_decay", 0.25)
    assert run.curve("learning_rate")[2:] == pytest.approx([5e-7, 2.5e-7])
    assert "learning_rate 0.001 -> 1e-06" in run.text and "rate of the next step 0.0 -> 5e-07" in run.text


def test_a_finished_run_that_is_resumed_ends_at_once(
    short: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Its epoch has four steps, --max_steps ends inside it. A smaller --max_steps trains nothing either."""
    run, flags = tmp_path / "run", ("--per_device_train_batch_size", 2, "--save_strategy", "steps", "--save_steps", 2)

    def files() -> dict[str, tuple[str, int]]:
        found = [path for path in run.rglob("*") if path.is_file() and path.name not in ("status.json", ".writer.lock")]
        return {str(p): (hashlib.md5(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in found}

    short(*flags, "--max_steps", 3)
    before = files()
    for steps in (3, 1):
        capsys.readouterr()
        assert len(short(*flags, "--max_steps", steps, "--resume", "auto")) == 3
        assert "this run finished before, at step 3. Nothing is left to train." in capsys.readouterr().out
        assert files() == before
        status = json.loads((run / "status.json").read_text())
        assert (status["state"], status["step"]) == ("finished", 3)
    # Killed between the last checkpoint and the final model: that is written, from no further step and without a loss of none.
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"state": "running"}))
    (run / "model.safetensors").unlink()
    short(*flags, "--max_steps", 3, "--resume", "auto")
    name = str(run / "model.safetensors")
    assert files()[name][0] == before[name][0] and json.loads((run / "run.json").read_text())["state"] == "finished"
    assert "train_loss" not in json.loads((run / "run.json").read_text())["metrics"]
    assert len(short(*flags, "--max_steps", 4, "--resume", "auto")) == 4
