import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from drive_vlm.launch.manifest import complete_manifest, frames_note, start_manifest, trained_frames, versions


@dataclasses.dataclass
class _Facts:
    rate: float
    path: Path


def test_a_manifest_is_started_and_completed(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.json"
    start_manifest(path, stage="sft", config=_Facts(0.5, Path("a/b")), data=(1, 2))
    started = json.loads(path.read_text())
    assert started["config"] == {"rate": 0.5, "path": "a/b"} and started["data"] == [1, 2]
    assert started["machine"]["cores"] >= 1 and started["command"] and started["started"] and "ended" not in started
    complete_manifest(path, peak_memory_gib=1.5)
    ended = json.loads(path.read_text())
    assert ended["peak_memory_gib"] == 1.5 and ended["ended"] and ended["stage"] == "sft"


def test_versions_name_what_decides_results() -> None:
    assert {"python", "torch", "transformers", "deepspeed"} <= set(versions())


def test_what_reproduces_a_run_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, yaml = tmp_path / "rows.jsonl", tmp_path / "sft.yaml"
    rows.write_text("{}\n")
    yaml.write_text("max_steps: 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["drive_vlm", "--local_rank=0", "sft", "--config", "sft.yaml", "--seed", "7"])
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "4",
        "LOCAL_WORLD_SIZE": "2",
        "DRIVE_VLM_RECIPE": "recipes/x.sh",
        "SLURM_JOB_ID": "12",
    }.items():
        monkeypatch.setenv(name, value)
    start_manifest(
        tmp_path / "run.json",
        config={"training": {"seed": 7, "data_seed": None}},
        data={"train": [{"path": "rows.jsonl"}]},
    )
    kept = json.loads((tmp_path / "run.json").read_text())
    assert kept["words"] == ["sft", "--config", "sft.yaml", "--seed", "7"] and kept["directory"] == str(tmp_path)
    assert kept["topology"] == {"launcher": "deepspeed", "world_size": 4, "nproc_per_node": 2, "nnodes": 2}
    assert kept["file_hashes"].keys() == {str(rows), str(yaml)} and all(kept["file_hashes"].values())
    assert kept["recipe"] == "recipes/x.sh" and kept["seeds"] == {"seed": 7, "data_seed": None}
    assert kept["job"] == {"SLURM_JOB_ID": "12"} and len(kept["code_hash"]) == 32


def test_a_resumed_run_keeps_its_earlier_starts(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    for _ in range(3):
        start_manifest(path)
    complete_manifest(path, steps=1)
    kept = json.loads(path.read_text())
    assert (
        len(kept["earlier"]) == 2 and kept["earlier"][0]["started"] <= kept["earlier"][1]["started"] <= kept["started"]
    )


def test_secrets_do_not_enter_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "NCCL_AUTH_TOKEN"):
        monkeypatch.setenv(name, "swordfish")
    monkeypatch.setattr(
        sys, "argv", ["drive_vlm", "sft", "--hub_token", "tuna-fish", "--model", "https://swordfish@host/m"]
    )
    start_manifest(
        tmp_path / "run.json",
        config={"training": {"hub_token": "tuna-fish", "deepspeed": {"comet": {"api_key": "tuna-fish"}}}},
    )
    complete_manifest(tmp_path / "run.json", error="401 for swordfish")
    text = (tmp_path / "run.json").read_text()
    assert "fish" not in text and "hub_token" in text


@pytest.mark.fresh("its memory is measured")
def test_peak_memory_of_a_child_is_its_own() -> None:
    ballast = b"x" * (400 << 20)  # resident in this process, which the child must not report
    code = "from drive_vlm.launch.manifest import peak_resident_bytes; print(peak_resident_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(ballast) == 400 << 20 and int(done.stdout) < 200 << 20


def test_another_number_of_frames_than_the_model_was_trained_on_is_told(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoint-5").mkdir(parents=True)
    assert frames_note(str(run), 8) == "" and frames_note("org/name", 8) == ""
    (run / "run.json").write_text(json.dumps({"config": {"data": {"num_frames": 16}}}))
    for model in (run, run / "checkpoint-5"):
        assert trained_frames(str(model)) == 16 and frames_note(str(model), 16) == ""
        assert f"{model} was trained on 16 frames of a video, this takes 8" in frames_note(str(model), 8)
