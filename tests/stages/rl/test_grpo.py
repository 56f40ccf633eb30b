"""GRPO on a tiny model: prompts, reference policy, rewards, memo, samples, and what a user may get wrong."""

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from drive_vlm.data.order import EpochOrder
from drive_vlm.sampling.local import left_padded
from drive_vlm.stages import STAGES, run
from drive_vlm.stages.engine.arguments import parse_stage
from drive_vlm.stages.rl.grpo import prepare
from drive_vlm.stages.rl.prompts import Prompt, PromptBatches

HERE = Path(__file__).parent


@pytest.fixture
def trainer(grpo_words: Callable, tmp_path: Path) -> Callable[..., Any]:
    """`trainer(*flags)`: the Trainer of these flags, in this process, with its memo and reference, ready to train."""

    def make(*flags: object) -> Any:
        words = [str(word) for word in grpo_words(tmp_path / "run", *flags)]
        made, _ = prepare(parse_stage("grpo", STAGES["grpo"], words).checked(STAGES["grpo"], 1))
        made.check_resume()
        made.begin_files()
        return made

    return make


def test_prompts_are_padded_as_rows_of_the_encoder_are() -> None:
    long, short = (Prompt("a", [], ids, {}, {}).features for ids in ([5, 6, 7], [8]))
    batch = left_padded([long, short], 0, lambda pictures: {"pictures": len(pictures)})
    assert batch["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8]] and batch["attention_mask"].tolist() == [
        [1, 1, 1],
        [0, 0, 1],
    ]
    assert batch["pictures"] == 0


def samples(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().split("\n") if line]


@pytest.mark.fresh("the command as a user starts it")
@pytest.mark.slow
@pytest.mark.supports("internvl grpo")
def test_the_reward_rises(grpo: Callable, fresh: Callable) -> None:
    """The share of vowels doubles in 16 steps; samples.jsonl holds every completion with its reward and terms."""
    out = fresh("rises")
    batch = ("--global_batch_size", 16, "--per_device_train_batch_size", 16, "--num_generations", 8)
    run = grpo(out, *batch, "--max_steps", 16, "--beta", 0.001, "--letter_wanted", "aeiou")
    rewards = run.curve("reward")
    assert sum(rewards[-3:]) / 3 > 1.5 * sum(rewards[:3]) / 3, rewards
    assert run.curve("kl")[0] == 0 and run.curve("kl")[-1] > 0
    lines = samples(out)
    assert len(lines) == 16 * 16 and [line["step"] for line in lines] == [i // 16 + 1 for i in range(256)]
    for line in lines:
        terms = line["terms"]["letter_reward"]
        assert line["rewards"]["letter_reward"] == pytest.approx(terms["wanted"] / max(terms["letters"], 1), abs=1e-6)
        assert terms["letters"] == len(line["completion"]) and 1 <= line["length"] <= 8 and line["reference"]
    for start in range(0, len(lines), 8):
        group = lines[start : start + 8]
        assert len({line["id"] for line in group}) == 1
        assert sum(line["advantage"] for line in group) == pytest.approx(0, abs=0.02)
    first = [line["rewards"]["letter_reward"] for line in lines[:16]]
    assert run.metrics[0]["reward"] == pytest.approx(sum(first) / 16, abs=1e-5)
    assert "letter/length" in run.metrics[0] and json.loads((out / "run.json").read_text())["stage"] == "grpo"


def test_prompt_tokens_are_those_of_sft_and_generate(trainer: Callable, world: Any) -> None:
    """For every row: what GRPO generates from is the beginning of what SFT trained on, pictures and their tiles included."""
    made = trainer("--beta", 0)
    table, encoder = made.parts.tables["train"], made.rollouts.prompts.encoder
    pictures = set()
    for row, prompt in enumerate(made.rollouts.prompts.load(range(len(table)))):
        made._rows = [prompt]
        made._pictures = [prompt.vision]
        ids, images, vision = made._tokenize_prompts([prompt.messages])
        trained = encoder.encode(table.sample(row))
        count = len(ids[0])
        assert images is None and ids[0] == trained["input_ids"][:count].tolist()
        assert (trained["labels"][:count] < 0).all() and (trained["labels"][count:] >= 0).any()
        tiles = ids[0].count(encoder.image_id) / made.processing_class.image_seq_length
        assert tiles == (len(vision["pixel_values"]) if vision else 0)
        if vision:
            torch.testing.assert_close(vision["pixel_values"], trained["vision"]["pixel_values"])
        pictures.add(len(table.sample(row).images))
        assert prompt.columns["reference"] == table.sample(row).reference
    assert pictures == {0, 1, 2}


@pytest.mark.slow
@pytest.mark.supports("internvl grpo zero2", "internvl grpo zero3")
def test_a_second_model_is_the_reference_under_deepspeed(grpo: Callable, fresh: Callable, world: Any) -> None:
    """Without an adapter the reference has an engine of its own: the same loss and KL as without DeepSpeed."""
    flags = ("--max_steps", 3, "--beta", 0.1)
    plain = grpo(fresh("plain"), *flags)
    one = grpo(fresh("zero2"), *flags, "--deepspeed", "zero2")
    two = grpo(fresh("zero3"), *flags, "--deepspeed", world.zero3, launcher="torchrun")
    assert plain.curve("kl")[0] == pytest.approx(0, abs=1e-6) and plain.curve("kl")[-1] > 1e-4
    for name in ("kl", "loss"):
        assert one.curve(name) == pytest.approx(plain.curve(name), abs=1e-4)
    # Ranks sample from generators of their own, so that only the start is the same.
    assert two.curve("kl")[0] == pytest.approx(0, abs=1e-6) and two.curve("kl")[-1] > 1e-4


@pytest.mark.slow
@pytest.mark.supports("internvl grpo lora")
def test_the_reference_is_the_adapter_that_the_run_began_with(
    trainer: Callable, grpo: Callable, fresh: Callable, tmp_path: Path
) -> None:
    """Stage 2 leaves an adapter and a projector of its own. KL to it is 0 at first, and would not be to the bare base."""
    stage2 = fresh("stage2")
    grpo(stage2, "--lora_rank", 4, "--beta", 0, "--max_steps", 4)
    made = trainer("--model", stage2, "--freeze", "vision_tower", "--max_steps", 3)
    weights = dict(made.model.named_parameters())
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    copies = {name for name in weights if ".ref." in name}
    assert any("lora_B" in name for name in copies) and any("multi_modal_projector" in name for name in copies)
    for name in copies:
        assert torch.equal(weights[name], weights[name.replace(".ref.", ".default.")]), name
        assert not weights[name].requires_grad
    assert any(weights[name].abs().sum() > 0 for name in copies if "lora_B" in name)
    base = {name: weight for name, weight in weights.items() if "original_module" in name}
    assert any(
        not torch.equal(w, weights[n.replace("original_module", "modules_to_save.ref")]) for n, w in base.items()
    )
    made.train()
    kl = [row["kl"] for row in made.state.log_history if "kl" in row]
    assert kl[0] == 0 and kl[-1] > 0
    for name, weight in weights.items():
        moved = not torch.equal(weight, before[name])
        assert not (moved and ".default." not in name), f"{name} changed"
    assert any(not torch.equal(weights[name], before[name]) for name in weights if ".default." in name)
    made.save_model(str(tmp_path / "saved"))
    assert not (tmp_path / "saved" / "ref").exists() and (tmp_path / "saved" / "adapter_model.safetensors").is_file()


def test_the_reference_of_full_training_is_a_frozen_copy(trainer: Callable) -> None:
    made = trainer("--max_steps", 3)
    before = copy.deepcopy(made.ref_model.state_dict())
    made.train()
    kl = [row["kl"] for row in made.state.log_history if "kl" in row]
    assert kl[0] == 0 and kl[-1] > 0
    assert all(torch.equal(weight, before[name]) for name, weight in made.ref_model.state_dict().items())


@pytest.mark.slow
def test_the_tower_runs_once_for_each_picture(trainer: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two prompts of four completions, policy and reference, two iterations: two pictures a generation batch, and the same
    curve as without the memo."""
    flags = ("--num_iterations", 2, "--max_steps", 4, "--save_strategy", "no")
    curves, pictures = [], []
    for kept in (True, False):
        if not kept:
            monkeypatch.setattr("drive_vlm.sampling.tower_memo.TowerMemo.install", lambda memo, tower: None)
        made = trainer(*flags)
        runs: list[int] = []
        for model in (made.model, made.ref_model):
            layer = model.model.vision_tower.embeddings
            layer.register_forward_hook(lambda module, args, out, runs=runs: runs.append(len(args[0])))
        made.train()
        curves.append([(row["loss"], row["reward"], row["kl"]) for row in made.state.log_history if "reward" in row])
        pictures.append(sum(runs))
        if kept:
            batches = [made.rollouts.prompts.load(made.rollouts.batches.prompts_of(batch)) for batch in (0, 1)]
            tiles = [[tile for p in batch for tile in p.vision.get("pixel_values", ())] for batch in batches]
            distinct = sum(len({tile.numpy().tobytes() for tile in batch}) for batch in tiles)
            assert distinct <= sum(runs) <= distinct + 2  # with the dummy tile of micro-batches without a picture
            assert made.rollouts.memo.asked > 8 * made.rollouts.memo.pictures
    for with_memo, without in zip(*curves, strict=True):
        assert with_memo == pytest.approx(without, abs=1e-5)
    assert pictures[1] > 8 * pictures[0]


def test_a_tower_that_trains_has_no_memo(trainer: Callable) -> None:
    assert trainer("--freeze", "projector", "--beta", 0).rollouts.memo is None


def test_the_stream_of_prompts() -> None:
    """7 prompts in batches of 3: each pass takes all of them, a batch may hold the end of one and the beginning of the next."""
    order = EpochOrder([1] * 7, seed=5)
    one = PromptBatches(order, prompts=3, num_generations=2, reuse=2)
    stream = [row for batch in range(7) for row in one.prompts_of(batch)]
    assert [sorted(stream[start : start + 7]) for start in (0, 7, 14)] == [list(range(7))] * 3
    assert stream[:7] != stream[7:14]
    assert len(one) == 6 and [len(rows) for rows in one] == [6] * 6
    batches = list(one)
    assert batches[0] == batches[1] == [row for row in stream[:3] for _ in range(2)]
    one.set_epoch(1)
    assert next(iter(one))[::2] == stream[9:12]
    halves = [PromptBatches(order, 3, 2, 2, rank, 2) for rank in (0, 1)]
    joined = [left + right for left, right in zip(*halves, strict=True)]
    assert joined == batches


@pytest.mark.slow
def test_rows_that_cannot_be_decoded(grpo: Callable, fresh: Callable, world: Any) -> None:
    """A picture whose header is whole and whose pixels are not: told with its line, or counted before the training starts."""
    data = fresh("torn") / "d"
    shutil.copytree(world.train.parent, data)
    rows = [json.loads(line) for line in (data / world.train.name).read_text().splitlines()]
    rows = [row for row in rows if isinstance(row.get("image"), str)][:4]
    (data / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    name = rows[-1]["image"]
    torn = data / "torn.jpg"
    torn.write_bytes((data / name).read_bytes()[:400])
    rows[-1]["image"] = "torn.jpg"
    (data / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--data", data / "few.jsonl", "--max_steps", 2, "--beta", 0)
    refused = grpo(fresh("refused"), *flags, code=2)
    assert f"{data / 'few.jsonl'}:4" in refused.text and "torn.jpg" in refused.text
    out = fresh("skipped")
    grpo(out, *flags, "--on_bad_row", "skip")
    audit = json.loads((out / "data_audit.json").read_text())["train"]
    assert audit["rows_used"] == 3 and audit["bad_rows"]["by_reason"] == {"image_corrupt": 1}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--num_generations", 3), "8 completions (4 x 1 processes x 2 micro-batches) is not a multiple of --num_generations 3"),
        (("--rewards", "physic"), "unknown reward 'physic'"),
        (("--rewards", "nowhere.py:build"), "no such file"),
        (("--rewards", "drive_vlm.config:build"), "has no function 'build'"),
        (("--reward_weights", 1.0, 0.5), "2 numbers, --rewards 1 (letter_reward"),
        (("--packing",), "--packing has no place in grpo"),
        (("--eval_data", "x.jsonl"), "--eval_data has no place in grpo"),
        (("--sync_ref_model", "true"), "--sync_ref_model has no place in grpo"),
        (("--temperature", "0"), "--temperature 0 has no place in grpo"),
        (("--use_liger_kernel", "true"), "--use_liger_kernel has no place in grpo"),
        (("--num_generation", 4), "Did you mean num_generations"),
        (("--alarm_length", 0.5), "--alarm_length 0.5 above 1"),
    ],
)  # fmt: skip
@pytest.mark.supports("* grpo packing refused")
def test_user_errors(
    grpo_words: Callable, tmp_path: Path, flags: tuple, words: str, capsys: pytest.CaptureFixture
) -> None:
    """One line, exit 2, before any model is loaded."""
    given = [str(word) for word in grpo_words(tmp_path / "run", *flags)]
    with pytest.raises(SystemExit) as stopped:
        run("grpo", given)
    assert stopped.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.slow
def test_an_adapter_takes_no_new_adapter(trainer: Callable, grpo: Callable, fresh: Callable) -> None:
    stage2 = fresh("adapter")
    grpo(stage2, "--lora_rank", 2, "--beta", 0, "--max_steps", 1)
    with pytest.raises(ValueError, match="leave --lora_rank out"):
        trainer("--model", stage2, "--lora_rank", 2)


def test_a_reward_that_is_no_number_ends_the_run(trainer: Callable) -> None:
    made = trainer("--rewards", f"{HERE / 'letter_reward.py'}:broken", "--beta", 0)
    with pytest.raises(ValueError, match=r"reward letter_reward is nan for row scene-\S+, completion"):
        made.train()


def test_alarms_of_a_run(trainer: Callable, capsys: pytest.CaptureFixture) -> None:
    """A reward that is always 0 sounds once; with --stop_on_alarm it ends the run."""
    reward = ("--rewards", f"{HERE / 'letter_reward.py'}:constant", "--alarm_after", 2, "--beta", 0)
    made = trainer(*reward, "--max_steps", 4)
    made.train()
    logs = [row["alarm/zero_reward"] for row in made.state.log_history if "alarm/zero_reward" in row]
    assert logs == [0, 1, 1, 1] and capsys.readouterr().err.count("alarm zero_reward") == 1
    made = trainer(*reward, "--max_steps", 4, "--stop_on_alarm")
    with pytest.raises(ValueError, match="got a reward of 0"):
        made.train()


@pytest.mark.supports("siglip_qwen grpo")
def test_video_rows_on_siglip_qwen(trainer: Callable, tiny_video_model: Path, synthetic_data: Path) -> None:
    """Frames sampled and written as in SFT; rewards are told the video as the row gives it."""
    clips = synthetic_data / "clips_train.jsonl"
    made = trainer("--model", tiny_video_model, "--data", clips, "--num_frames", 3, "--max_steps", 2)
    table, encoder = made.parts.tables["train"], made.rollouts.prompts.encoder
    prompt = made.rollouts.prompts.load([0])[0]
    trained = encoder.encode(table.sample(0))
    assert prompt.input_ids == trained["input_ids"][: len(prompt.input_ids)].tolist()
    assert len(prompt.vision["pixel_values"]) == 3
    row = json.loads(clips.read_text().splitlines()[0])
    assert prompt.columns["video"] == row["video"] and Path(prompt.columns["files"][0]).is_file()
    made.train()
    kl = [row["kl"] for row in made.state.log_history if "kl" in row]
    assert kl[0] == 0 and len(kl) == 2
    assert made.rollouts.memo.asked > 4 * made.rollouts.memo.pictures


def test_rows_that_a_reward_cannot_score_stop_the_run_before_it_trains(
    trainer: Callable, tiny_video_model: Path, synthetic_data: Path, spacy_model: str, tmp_path: Path
) -> None:
    """Each is named by its line, and so are detections of other frames than the run samples."""
    from drive_vlm.builders.detection_items import PendingItem
    from drive_vlm.data.vision import frame_indices
    from drive_vlm.rewards.detections import DetectedFrame, Detector, VideoDetections, append_detections

    data = tmp_path / "d"
    shutil.copytree(synthetic_data, data)
    rows = [json.loads(line) for line in (data / "clips_train.jsonl").read_text().splitlines()][:6]
    for row, video in zip(rows, sorted((data / "clips").iterdir()), strict=False):
        row["video"] = f"clips/{video.name}"
    few, cache = data / "few.jsonl", tmp_path / "detections.jsonl"
    few.write_text("".join(json.dumps(row) + "\n" for row in rows))
    frames = tuple(DetectedFrame(i, "", ()) for i in frame_indices(4, 3))
    videos = list(dict.fromkeys(row["video"] for row in rows))
    files = {v: PendingItem(v, str(data / v), "", is_video=True).identity(3) for v in videos}
    append_detections(cache, [VideoDetections(v, Detector("w", "", 64, 0.3, "v"), frames, files[v]) for v in videos])
    words = ("--model", tiny_video_model, "--data", few, "--rewards", "physics", "--physics_detections", cache)
    words = (*words, "--spacy_model", spacy_model, "--beta", 0, "--num_frames")
    trainer(*words, 3)
    with pytest.raises(
        ValueError, match=rf"few\.jsonl:1: the detections of '{videos[0]}' .*are of 3 frames .*this run takes 2 "
    ):
        trainer(*words, 2)
    os.utime(data / videos[0])  # as in a copy of the data
    trainer(*words, 3)
    shutil.copy(data / videos[1], data / videos[0])
    with pytest.raises(
        ValueError, match=rf"few\.jsonl:1: '{videos[0]}' is not what was looked at for .*bytes then, 1 of"
    ):
        trainer(*words, 3)
    shutil.copy(synthetic_data / videos[0], data / videos[0])
    rows[4]["conversations"].pop()
    few.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cache.write_text("".join(line for line in cache.open() if json.loads(line)["video"] != rows[1]["video"]))
    with pytest.raises(ValueError, match="reward physics cannot score") as stopped:
        trainer(*words, 3)
    told = str(stopped.value)
    missing = [i for i, row in enumerate(rows) if row["video"] == rows[1]["video"]]
    assert f"cannot score {len({*missing, 4})} of 6 rows: {few}:2: no detections for '{rows[1]['video']}'" in told
    assert f"{few}:5: the row has no answer to be the reference" in told


@pytest.mark.slow
@pytest.mark.supports("smolvlm grpo")
def test_smolvlm(trainer: Callable, tiny_families: Callable[[str], Path], world: Any) -> None:
    """Prompts of rows with one picture, two and none are those of SFT; both steps have a loss, and the reference is held to."""
    made = trainer("--model", tiny_families("smolvlm"), "--max_steps", 2)
    table, encoder = made.parts.tables["train"], made.rollouts.prompts.encoder
    for row, prompt in enumerate(made.rollouts.prompts.load(range(8))):
        trained = encoder.encode(table.sample(row))
        assert prompt.input_ids == trained["input_ids"][: len(prompt.input_ids)].tolist()
    made.train()
    kl = [row["kl"] for row in made.state.log_history if "kl" in row]
    assert kl[0] == pytest.approx(0, abs=1e-6) and len(kl) == 2 and kl[1] > 0
    assert made.rollouts.memo.asked > made.rollouts.memo.pictures > 0
