"""recipes/drive_vlm_synthetic.sh at its smaller size: what the three stages are to teach is found on held-out clips."""

import copy
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from drive_vlm.data.sources import open_sources
from drive_vlm.data.table import read_sample

CLAIMS = 9
CHANGE = {"value": 0.02, "low": 0.01, "high": 0.03}
GOOD: dict[str, Any] = {
    "stage1_loss": {"start": 0.4, "end": 0.1, "end_with_other_clips": 0.3},
    "concise_to_detailed": {"value": 0.3},
    "order_accuracy": {"accuracy": 0.75},
    "order_accuracy_shuffled": {"accuracy": 0.5},
    "words": {"sampled": {"stage2": 40.0, "stage3": 38.0}},
    "stage3_change": {
        way: {name: dict(CHANGE) for name in ("reward", "precision", "recall", "f1")} for way in ("greedy", "sampled")
    },
}


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / "tools" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("stage1_loss", "start"), 0.19),
        (("stage1_loss", "end_with_other_clips"), 0.19),
        (("concise_to_detailed", "value"), 0.51),
        (("order_accuracy", "accuracy"), 0.64),
        (("stage3_change", "sampled", "reward", "low"), -0.001),
        (("stage3_change", "sampled", "precision", "value"), 0.0),
        (("stage3_change", "sampled", "recall", "value"), -0.011),
        (("stage3_change", "sampled", "f1", "value"), None),
        (("words", "sampled", "stage3"), 33.0),
    ],
)
def test_each_claim_fails_on_its_own(place: tuple[str, ...], value: Any) -> None:
    module = tool("drive_vlm_summary")
    assert [holds for _, holds in module.claims(GOOD)] == [True] * CLAIMS
    bad = copy.deepcopy(GOOD)
    inner = bad
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    assert [holds for _, holds in module.claims(bad)].count(False) == 1


@pytest.mark.slow
def test_loss_of_captions_is_a_mean_over_tokens_and_depends_on_the_video(
    tiny_video_model: Path, synthetic_data: Path, tmp_path: Path
) -> None:
    module = tool("drive_vlm_summary")
    (tmp_path / "clips").symlink_to(synthetic_data / "clips")
    lines = (synthetic_data / "clips_train.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    long, short = ({**first, "conversations": [first["conversations"][0], {"from": "gpt", "value": words}]}
                   for words in ("A red car ahead and a green traffic light.", "Rain."))  # fmt: skip
    second = next(row for row in map(json.loads, lines) if row["video"] != first["video"])
    other = {**short, "video": second["video"]}

    def losses(*rows: dict[str, Any]) -> tuple[float, float]:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return module.caption_losses(tiny_video_model, tmp_path / "rows.jsonl", 4)

    same, alone, brief = losses(long, short), losses(long)[0], losses(short)[0]
    assert same[0] == same[1] and min(alone, brief) < same[0] < max(alone, brief)
    assert abs(same[0] - alone) < abs(same[0] - brief)  # the longer text counts for more
    own, swapped = losses(long, other)
    assert own != swapped


@pytest.mark.slow
@pytest.mark.parametrize("beside", [False, True])
def test_the_whole_recipe_reads_what_the_caption_tool_writes(dry: Callable, tmp_path: Path, beside: bool) -> None:
    """Videos in a folder of their own, as its meta files say; or bare rows with the videos beside them."""
    data = tmp_path / "data"
    videos = data if beside else tmp_path / "videos"
    (videos / "a").mkdir(parents=True)
    turns = [{"from": "human", "value": "<video>\nWhy?"}, {"from": "gpt", "value": "So."}]
    names = ("raw_captions_train", "split_entry_train", "split_entry_test")
    files = {f"{name}.jsonl": [{"id": name, "video": "a", "conversations": turns}] for name in names}
    tool("build_bdd_captions").write_files(data, str(videos), files)
    for meta in data.glob("*.meta.json") if beside else ():
        meta.unlink()
    done = dry("recipes/drive_vlm_4090.sh", DATA=str(data))
    assert done.returncode == 0, done.stderr
    read = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("  --data ")]
    samples = [[read_sample(source, 0) for source in open_sources([w for w in words if w != "\\"])] for words in read]
    both, raw, entry = ["raw_captions_train", "split_entry_train"], ["raw_captions_train"], ["split_entry_train"]
    assert [[sample.id for sample in found] for found in samples] == [both, entry, raw, entry, entry]
    assert {sample.video for found in samples for sample in found} == {str(videos / "a")}


def test_the_whole_recipe_has_a_way_with_four_bits(dry: Callable, run: Callable, tmp_path: Path) -> None:
    """Stage 1 has nothing that could train on 4-bit weights, and is not to stop the chain; nor is a stage that has only begun."""
    (tmp_path / "run/stage1").mkdir(parents=True)
    words = ("--gpu_memory", "24GB", "--quantize", "nf4")
    printed = dry("recipes/drive_vlm_4090.sh", *words, PLAN="1", OUT=str(tmp_path / "run"))
    assert printed.returncode == 0 and "stage 1: the language model stays in bfloat16" in printed.stderr
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    stages = printed.stdout[printed.stdout.index("DS_ACCELERATOR=") :]  # behind the commands that make model and caches
    done = run(["bash", "-e", "-c", stages], PATH=path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("zero2 fits") == 3
    assert re.findall(r"--quantize +(\w+) ", done.stdout) == ["none", "nf4", "nf4"]


@pytest.fixture
def demonstration(run: Callable, tmp_path: Path, spacy_model: str) -> Callable[..., tuple[Any, dict[str, Any], Path]]:
    """`demonstration(SIZE, seconds)`: (how the recipe ended, its summary, its folder)."""

    def start(size: str, seconds: int) -> tuple[Any, dict[str, Any], Path]:
        out = tmp_path / "run"
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        env = {"OUT": str(out), "SIZE": size, "SPACY": spacy_model, "VIRTUAL_ENV": sys.prefix, "PATH": path}
        done = run(["bash", "recipes/drive_vlm_synthetic.sh"], timeout=seconds, CUDA_VISIBLE_DEVICES="", **env)
        assert "Drive-VLM at small size: 2 ranks, ZeRO-2" in done.stdout, done.stdout[-1500:] + done.stderr[-3000:]
        summary = json.loads((out / "summary.json").read_text())
        assert len(summary["claims"]) == CLAIMS
        return done, summary, out

    return start


# Minutes on quiet cores, several times that where others use them.
@pytest.mark.timeout(2400)
@pytest.mark.slow
@pytest.mark.demonstration
def test_what_each_of_the_three_stages_teaches(demonstration: Callable) -> None:
    """The recipe itself fails when a claim does not hold: see claims() in tools/drive_vlm_summary.py."""
    done, summary, _ = demonstration("small", 2400)
    assert done.returncode == 0 and all(claim["holds"] for claim in summary["claims"]), done.stdout[-1500:]


@pytest.mark.slow
@pytest.mark.supports(
    "siglip_qwen sft zero2 features",
    "siglip_qwen sft zero2 lora features",
    "siglip_qwen grpo zero2 lora features",
    "siglip_qwen generate ddp lora",
)
def test_two_steps_of_everything_go_through_and_claim_nothing(demonstration: Callable) -> None:
    done, summary, out = demonstration("smoke", 600)
    assert done.returncode == 1 and "Not every claim holds." in done.stderr
    assert not all(claim["holds"] for claim in summary["claims"])
    assert (out / "report.html").stat().st_size > 100_000
    for stage in (1, 2, 3):
        assert json.loads((out / f"stage{stage}/run.json").read_text())["state"] == "finished"
    trained = {n: json.loads((out / f"stage{n}/run.json").read_text())["parameters"] for n in (1, 2, 3)}
    assert {part for part, count in trained[1].items() if count["trainable"]} == {
        "temporal_embeddings",
        "projector",
        "all",
    }
    for stage in (2, 3):
        assert {part for part, count in trained[stage].items() if count["trainable"]} == {
            "projector",
            "language_model",
            "all",
        }
    before, after = (load_file(out / name / "model.safetensors") for name in ("base", "stage1"))
    assert before.keys() == after.keys()  # the tied embeddings once
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("projector" in name or "temporal_embeddings" in name for name in moved)
    said = [json.loads(line) for line in (out / "stage3/samples.jsonl").read_text().splitlines()]
    assert said and {"object", "temporal", "detail", "hallucination"} <= said[0]["terms"]["physics"].keys()
