"""Preference training through the real command lines: one curve for every reference, layout, number of ranks and interruption.

The 44 pairs make 5 steps of 8 and one of 4 an epoch; of 7 pairs one has no picture and one has two.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TRAIN = (
    "--max_steps", 7, "--logging_steps", 1, "--global_batch_size", 8, "--per_device_train_batch_size", 8, "--learning_rate", 1e-3,
    "--lr_scheduler_type", "constant", "--save_strategy", "no", "--disable_tqdm", "true", "--report_to", "none", "--beta", 0.5,
)  # fmt: skip
FIGURES = ("loss", "grad_norm", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected")


@pytest.fixture(scope="module")
def pairs(world: Any) -> Path:
    """The answers of `world` as chosen, another answer as rejected; beside them 9 pairs for evaluation."""
    rows = [json.loads(line) for name in (world.train, world.eval) for line in name.read_text().splitlines()]
    for i, row in enumerate(rows):
        chosen = row["conversations"][-1]["value"]
        others = (other["conversations"][-1]["value"] for other in rows[i + 1 :] + rows[:i])
        row["rejected"] = next(answer for answer in others if answer != chosen)
        if i % 2:
            row["chosen"] = chosen
    path = world.train.with_name("pairs.jsonl")
    for name, part in ((path, rows[:44]), (path.with_name("pairs_eval.jsonl"), rows[44:53])):
        name.write_text("".join(json.dumps(row) + "\n" for row in part))
    return path


@pytest.fixture(scope="module")
def dpo(command: Callable, pairs: Path, world: Any) -> Callable:
    """`dpo(out, *flags, model=InternVL, stage="dpo", **of_command)`."""

    def run(out: Path, *flags: object, model: Path | None = None, stage: str = "dpo", **options: Any) -> Any:
        words = (stage, "--model", model or world.model, "--data", pairs, "--output_dir", out, *TRAIN, *flags)
        return command(out, *words, **options)

    return run


@pytest.fixture
def quick(inside: Callable, pairs: Path, world: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`quick(*flags, model=InternVL, stage="dpo", out=new) -> output directory`: one process, this one."""

    def run(*flags: object, model: Path | None = None, stage: str = "dpo", out: Path | None = None) -> Path:
        out = out or tmp_path_factory.mktemp("quick")
        words = ("--model", model or world.model, "--data", pairs, "--output_dir", out, *TRAIN, "--use_cpu", "true")
        inside(stage, *words, *flags)
        return out

    return run


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def curves(out: Path) -> dict[str, list[float]]:
    rows = lines(out / "metrics.jsonl")
    return {name: [row[name] for row in rows if "loss" in row] for name in FIGURES}


def same(out: Path, reference: Path, tolerance: float = 1e-4) -> None:
    ours, theirs = curves(out), curves(reference)
    for name in FIGURES:
        relative = 2e-3 if name == "grad_norm" else 0
        assert ours[name] == pytest.approx(theirs[name], abs=tolerance, rel=relative or None), name


@pytest.fixture(scope="module")
def live(dpo: Callable, fresh: Callable, pairs: Path) -> Path:
    """One process, a second model as the reference, every weight trains; evaluated after the last step."""
    evaluation = ("--eval_data", pairs.with_name("pairs_eval.jsonl"), "--eval_strategy", "steps", "--eval_steps", 7)
    return dpo(fresh("live"), "--reference", "live", "--per_device_eval_batch_size", 4, *evaluation).out


@pytest.fixture(scope="module")
def cache(command: Callable, fresh: Callable, pairs: Path, world: Any) -> Path:
    """`python -m drive_vlm reference` on two ranks."""
    out = fresh("reference") / "cache"
    words = ("reference", "--model", world.model, "--data", pairs, "--out", out, "--batch_size", 5)
    # How many are known is not the same in every run: the other rank may write before this one has read.
    assert "44 pairs, " in command(out, *words, launcher="torchrun").text
    parts = sorted(out.glob("log-probs-*.jsonl"))
    assert [len(lines(part)) for part in parts] == [22, 22]
    return out


@pytest.mark.slow
def test_array_jobs_fill_one_cache(
    cache: Path, inside: Callable, pairs: Path, world: Any, tmp_path: Path, capsys: Any
) -> None:
    """Two jobs, the second of which was killed within its last line: the same numbers as of two ranks, each pair once."""
    words = ("--model", world.model, "--data", pairs, "--out", tmp_path, "--batch_size", 3)
    for shard in ("0/2", "1/2"):
        inside("reference", *words, "--shard", shard)
    parts = sorted(tmp_path.glob("log-probs-*.jsonl"))
    parts[1].write_bytes(parts[1].read_bytes()[:-20])
    capsys.readouterr()
    inside("reference", *words, "--shard", "1/2")
    assert "22 pairs, 21 known" in capsys.readouterr().out
    found, expected = (
        {
            row["key"]: (row["chosen"], row["rejected"])
            for part in folder.glob("log-probs-*.jsonl")
            for row in lines(part)
        }
        for folder in (tmp_path, cache)
    )
    assert len(found) == 44 == sum(len(lines(part)) for part in parts)
    assert all(values == pytest.approx(expected[key], abs=1e-4) for key, values in found.items())


@pytest.mark.slow
@pytest.mark.supports("internvl dpo")
def test_the_policy_begins_at_the_reference_and_learns(live: Path) -> None:
    found = curves(live)
    assert found["loss"][0] == pytest.approx(0.693147, abs=1e-5) and found["rewards/chosen"][0] == 0
    facts = json.loads((live / "run.json").read_text())
    assert facts["parameters"]["vision_tower"]["trainable"] == facts["parameters"]["vision_tower"]["total"] > 0
    assert facts["stage"] == "dpo" and facts["reference"]["kind"] == "live"
    rows = [json.loads(line) for line in (live / "metrics.jsonl").read_text().splitlines()]
    evaluated = next(row for row in rows if "eval_loss" in row)
    assert evaluated["eval_rewards/margins"] == pytest.approx(
        evaluated["eval_rewards/chosen"] - evaluated["eval_rewards/rejected"], abs=1e-5
    )


@pytest.mark.slow
def test_a_cache_is_as_good_as_a_second_model(live: Path, cache: Path, quick: Callable) -> None:
    out = quick("--reference_cache", cache)
    same(out, live)
    assert json.loads((out / "run.json").read_text())["reference"]["pairs"] == 44


@pytest.mark.slow
@pytest.mark.supports("internvl dpo zero2")
def test_zero2_on_two_ranks_with_its_own_cache(live: Path, dpo: Callable, fresh: Callable, pairs: Path) -> None:
    """Computed at the start by both ranks; four micro-batches a step, half of which the short step leaves empty."""
    evaluation = ("--eval_data", pairs.with_name("pairs_eval.jsonl"), "--eval_strategy", "steps", "--eval_steps", 7)
    flags = ("--per_device_train_batch_size", 1, "--per_device_eval_batch_size", 4, "--deepspeed", "zero2")
    run = dpo(fresh("zero2"), *flags, *evaluation, launcher="torchrun")
    same(run.out, live)
    losses = [
        [
            json.loads(line)["eval_loss"]
            for line in (out / "metrics.jsonl").read_text().splitlines()
            if "eval_loss" in line
        ]
        for out in (run.out, live)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4) and len(losses[0]) == 1


@pytest.mark.slow
@pytest.mark.supports("internvl dpo zero3")
def test_zero3_with_every_weight_sharded_and_a_live_reference(
    live: Path, dpo: Callable, fresh: Callable, world: Any
) -> None:
    flags = ("--per_device_train_batch_size", 4, "--deepspeed", world.zero3, "--reference", "live")
    same(dpo(fresh("zero3"), *flags, launcher="torchrun").out, live)


@pytest.mark.slow
@pytest.mark.supports("llava_next dpo", "llava_next dpo zero3")
def test_llava_next_on_zero3_computes_its_own_cache(
    dpo: Callable, fresh: Callable, world: Any, tiny_families: Callable, quick: Callable
) -> None:
    model = tiny_families("llava_next")
    flags = ("--per_device_train_batch_size", 2, "--deepspeed", world.zero3)
    run = dpo(fresh("llava"), *flags, model=model, launcher="torchrun")
    same(run.out, quick("--reference", "live", model=model))
    assert curves(run.out)["loss"][0] == pytest.approx(0.693147, abs=1e-5)


@pytest.mark.slow
@pytest.mark.supports("internvl spin")
def test_spin_resumed_is_spin_uninterrupted(quick: Callable, fresh: Callable, pairs: Path, capsys: Any) -> None:
    """SPIN's optimizer, an SFT term, and the data of two rounds; the reference is what the run began with."""
    out = fresh("spin")
    before = pairs.with_name("round0.jsonl")
    before.write_text("".join(pairs.read_text().splitlines(keepends=True)[:6]))
    flags = ("--data", pairs, before, "--optim", "rmsprop", "--loss_type", "sigmoid", "sft", "--loss_weights", 1, 0.1)
    flags = (*flags, "--save_strategy", "steps", "--save_steps", 3, "--keep", 3)
    quick(*flags, stage="spin", out=out)
    facts = json.loads((out / "run.json").read_text())
    assert facts["config"]["training"]["optim"] == "rmsprop" and facts["stage"] == "spin"
    assert facts["reference"]["pairs"] == 44  # the pairs of both files are the same ones
    kept = fresh("whole") / "run"
    shutil.copytree(out, kept)
    for step in (6, 7):
        shutil.rmtree(out / f"checkpoint-{step}")
    (out / "model.safetensors").unlink()
    quick(*flags, "--resume", out / "checkpoint-3", stage="spin", out=out)
    same(out, kept)
    assert len(curves(out)["loss"]) == 7
    shutil.rmtree(out / "reference")
    with pytest.raises(SystemExit):
        quick(*flags, "--resume", "auto", stage="spin", out=out)
    lost = "50 of 50 pairs are not in the reference cache. Add them: python -m drive_vlm reference"
    assert lost in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.supports("internvl dpo lora")
def test_lora_with_its_adapter_off_is_the_base_model(cache: Path, quick: Callable) -> None:
    """The cache was computed from the base model; the live run has one model only. The tower trains beside the adapter."""
    flags = ("--lora_rank", 4, "--learning_rate", 1e-2)
    off = quick(*flags, "--reference", "live")
    same(off, quick(*flags, "--reference_cache", cache))
    same(off, quick(*flags))
    from safetensors import safe_open

    with safe_open(off / "adapter_model.safetensors", "pt") as file:
        names = set(file.keys())
    assert any("vision_tower" in name for name in names) and not any(".ref." in name for name in names)
    assert not list(off.glob("ref*/adapter*"))
    again = quick("--reference", "live", "--learning_rate", 1e-2, model=off)  # the next round: the adapter goes on
    assert curves(again)["loss"][0] == pytest.approx(0.693147, abs=1e-5)
    same(again, quick("--learning_rate", 1e-2, model=off))
    with safe_open(again / "adapter_model.safetensors", "pt") as file:
        assert set(file.keys()) == names
    assert not list(again.glob("**/ref/adapter_model.safetensors"))


@pytest.mark.slow
def test_freeze_works_on_an_adapter_too(quick: Callable, capsys: pytest.CaptureFixture) -> None:
    """Its tower trained in the round before; the copy for the reference must not turn it on again, nor the live reference
    between two steps: frozen weights have no gradient that would be clipped with the others."""
    from safetensors.torch import load_file

    before = quick("--lora_rank", 2, "--max_steps", 1)
    norms = []
    for reference in ("live", "cached"):
        after = quick("--max_steps", 3, "--freeze", "vision_tower", "--reference", reference, model=before)
        old, new = (load_file(out / "adapter_model.safetensors") for out in (before, after))
        moved = {name for name in old if not old[name].equal(new[name])}
        assert old.keys() == new.keys() and not any("vision_tower" in name for name in moved)
        assert any("lora_B" in name for name in moved) and any("multi_modal_projector" in name for name in moved)
        norms.append(curves(after)["grad_norm"])
    assert len(norms[0]) == 3 and norms[0] == pytest.approx(norms[1], rel=1e-3)
    with pytest.raises(SystemExit):
        quick("--lora_rank", 2, model=before)
    assert "is an adapter and trains on as it is: leave --lora_rank out" in capsys.readouterr().err


@pytest.mark.slow
def test_the_margin_grows(quick: Callable) -> None:
    """The whole data set is one step, so that steps can be compared."""
    margins = [
        chosen - rejected
        for found in [curves(quick("--global_batch_size", 44, "--per_device_train_batch_size", 22))]
        for chosen, rejected in zip(found["rewards/chosen"], found["rewards/rejected"], strict=True)
    ]
    assert margins == sorted(margins) and margins[0] == pytest.approx(0, abs=1e-5) and margins[-1] > 1


@pytest.mark.slow
@pytest.mark.supports("internvl dpo packing")
def test_packed_pairs_do_not_see_each_other(cache: Path, quick: Callable, pairs: Path) -> None:
    """The cache was computed unpacked: the packed policy begins at exactly those log-probabilities."""
    out = quick("--packing", "--max_length", 400, "--global_batch_size", 2, "--per_device_train_batch_size", 2, "--max_steps", 2,
                 "--reference_cache", cache)  # fmt: skip
    found = curves(out)
    assert found["rewards/chosen"][0] == pytest.approx(0, abs=1e-4)
    assert found["rewards/rejected"][0] == pytest.approx(0, abs=1e-4)
    assert found["loss"][0] == pytest.approx(0.693147, abs=1e-4) != found["loss"][1]


@pytest.mark.slow
def test_a_picture_that_cannot_be_decoded_does_not_stop_a_resume(quick: Callable, pairs: Path, capsys: Any) -> None:
    """The cache lacks the pair for ever: with skip it may, while a pair that can be read may not."""
    rows = [json.loads(line) for line in pairs.read_text().splitlines()[:9]]
    content = (pairs.parent / rows[0]["image"]).read_bytes()
    rows[0]["image"] = "cut.png"
    pairs.with_name("cut.png").write_bytes(content[: len(content) // 2])
    cut = pairs.with_name("cut.jsonl")
    cut.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--data", cut, "--on_bad_row", "skip", "--resume", "auto", "--save_strategy", "steps", "--save_steps", 1)
    out = quick(*flags, "--max_steps", 1)
    quick(*flags, "--max_steps", 2, out=out)
    assert len(curves(out)["loss"]) == 2
    again = quick(*flags, "--max_steps", 2, "--reference_cache", out / "reference")
    assert json.loads((again / "run.json").read_text())["reference"]["pairs"] == 8
    with pytest.raises(SystemExit):
        quick(*flags, "--data", cut, pairs, "--reference_cache", out / "reference")
    assert "37 of 53 pairs are not in the reference cache" in capsys.readouterr().err


@pytest.mark.slow
def test_what_stops_a_run(
    dpo: Callable, fresh: Callable, pairs: Path, cache: Path, world: Any, quick: Callable, capsys: Any
) -> None:
    bad = pairs.with_name("bad.jsonl")
    rows = [json.loads(line) for line in pairs.read_text().splitlines()[:9]]
    rows[4]["rejected"] = rows[4].get("chosen") or rows[4]["conversations"][-1]["value"]
    rows[6]["rejected"] = "much " * 900
    bad.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def refused(*flags: object, **options: Any) -> str:
        with pytest.raises(SystemExit) as stop:
            quick(*flags, **options)
        assert stop.value.code == 2
        return capsys.readouterr().err

    assert "bad.jsonl:5: chosen equals rejected" in refused("--data", bad)
    lacking = refused("--data", pairs, pairs.with_name("pairs_eval.jsonl"), "--reference_cache", cache)
    assert "9 of 53 pairs are not in the reference cache" in lacking
    assert "no such directory" in refused("--reference_cache", cache / "nowhere")
    other = refused("--reference_cache", cache, "--max_tiles", 2)
    assert "log-probabilities were made with other settings (encoding: " in other
    assert "--precompute_ref_log_probs is not taken. Use --reference cached" in refused(
        "--precompute_ref_log_probs", "true"
    )
    assert "--loss_type apo_zero is not offered" in refused("--loss_type", "apo_zero")
    out = quick("--data", bad, "--on_bad_row", "skip", "--max_steps", 1, "--max_length", 600)
    audit = json.loads((out / "data_audit.json").read_text())["train"]["bad_rows"]
    assert audit["by_reason"] == {"identical": 1, "too_long": 1}
