"""tools/bench/gpu.sh at toy size on a CPU: every part, what a kill leaves, and the real sizes on the meta device."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
# What each kind of case must say; on a GPU also the peak, the plan's and MFU.
FIGURES = {
    "environment": {"copy GB/s", "matmul TFLOP/s", "versions", "machine", "findings", "doctor fail"},
    "train": {"seconds a step", "samples/s", "tokens/s", "losses", "loss"},
    "peer": {"seconds a step", "samples/s", "tokens/s"},
    "save": {"save s", "GiB"},
    "resume": {"resume to first step s", "step"},
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows and models that the tests of this file share."""
    return tmp_path_factory.mktemp("gpu")


def command(out: Path, work: Path, *words: object) -> list[str]:
    return ["bash", str(ROOT / "tools/bench/gpu.sh"), "--out", str(out), "--work", str(work), *map(str, words)]


def start(words: list[str], **env: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"} | env
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=800, check=False)


@pytest.mark.fresh("it forks its own cases")
@pytest.mark.slow
def test_every_part_runs_and_what_a_kill_left_is_gone_on_with(work: Path, load: Callable) -> None:
    """Killed within part c, with the figures of a, b and a case of c in the file; the same command ends the rest."""
    parts = load("gpu_parts").PARTS
    out = work / "gpu.json"
    words = command(out, work, "--minutes", 120)
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    process = subprocess.Popen(
        words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while process.poll() is None and not read_parts(out).get("c", {}).get("cases"):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = read_parts(out)
    assert set(before) == {"a", "b", "c"} and len(before["c"]["cases"]) < len(parts["c"].cases)
    refused = start(words)
    assert refused.returncode == 2 and f"{out} is there. Go on with --resume" in refused.stderr

    done = start([*words, "--resume", "--parts", "a,b,c,d,e,f,g"])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "toy sizes: no figure of a GPU" in done.stdout
    found = json.loads(out.read_text())
    assert found["toy"] and found["device"] == "CPU"
    for letter, part in before.items():
        for name, case in part["cases"].items():
            assert found["parts"][letter]["cases"][name] == case, "a case that was done was run again"
    for letter in "abcdefg":
        cases = found["parts"][letter]["cases"]
        assert set(cases) == {case.name for case in parts[letter].cases}
        for case in parts[letter].cases:
            entry = cases[case.name]
            if entry["state"] == "skipped":
                assert entry["why"].startswith(("not installed: ", "this kernel needs")), entry
                continue
            assert entry["state"] == "done", (letter, case.name, entry)
            assert FIGURES[case.run] <= entry["figures"].keys(), (letter, case.name)
            if case.against:
                assert entry["figures"]["equal"] is True, (letter, case.name, entry["figures"])
    phases = found["parts"]["d"]["cases"]["step"]["figures"]
    assert all(phases[f"{name} s"] > 0 for name in ("sampling", "scoring", "reward", "learning"))
    pairs = found["parts"]["e"]["cases"]
    assert pairs["cached"]["figures"]["losses"] == pytest.approx(pairs["live"]["figures"]["losses"], rel=1e-4)
    assert found["parts"]["g"]["cases"]["resume"]["figures"]["step"] == 3


def read_parts(out: Path) -> dict[str, Any]:
    return json.loads(out.read_text())["parts"] if out.is_file() else {}


@pytest.mark.fresh("it starts its own ranks")
@pytest.mark.slow
def test_two_processes_play_two_gpus(work: Path) -> None:
    """The first case of part h; the others have no time left by then, and the file says so."""
    out = work / "two.json"
    process = subprocess.Popen(
        command(out, work, "--minutes", 120, "--parts", "h"),
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    while process.poll() is None and not read_parts(out).get("h", {}).get("cases"):
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    entry = read_parts(out)["h"]["cases"]["zero1_all"]
    assert entry["state"] == "done", entry
    assert entry["figures"]["samples/s"] > 0 and len(entry["figures"]["losses"]) == 3


def test_a_case_that_takes_too_long_is_cut_and_one_without_time_is_left(load: Callable, tmp_path: Path) -> None:
    gpu, parts = load("gpu"), load("gpu_parts")
    found = gpu.run_case("g", parts.PARTS["g"].cases[0], tmp_path, 0.2, True)
    assert found["state"] == "cut" and found["why"] == "it took more than its 0 s"
    result: dict[str, Any] = {"parts": {}}
    args = SimpleNamespace(out=tmp_path / "o.json")
    gpu.run_part("f", parts.PARTS["f"], tmp_path, result, args, time.monotonic(), True)
    states = {name: case["state"] for name, case in result["parts"]["f"]["cases"].items()}
    assert states["fp32"] == "left" and states["bf16_packed_flash"] == "skipped"
    assert json.loads((tmp_path / "o.json").read_text()) == result


@pytest.mark.slow
@pytest.mark.parametrize("name", ["internvl", "llava_next", "siglip_qwen"])
def test_real_sizes_are_those_of_the_published_models(load: Callable, work: Path, name: str) -> None:
    from drive_vlm.config import ModelConfig
    from drive_vlm.models import model_on_meta
    from drive_vlm.plan.model_sizes import shipped

    models = load("gpu_models")
    folder = work / "meta"
    (folder / "synthetic").mkdir(parents=True, exist_ok=True)
    row = {"id": "1", "conversations": [{"from": "human", "value": "What is red?"}, {"from": "gpt", "value": "A car."}]}
    (folder / "synthetic" / "train.jsonl").write_text(json.dumps(row) + "\n")

    def count(family: Any) -> int:
        return sum(weight.numel() for weight in family.model.parameters())

    published = models.MODELS[name].shipped
    expected = count(model_on_meta(ModelConfig(model=published), shipped(published)[1]["config"]))
    with models.random_weights("meta"):
        found = count(model_on_meta(ModelConfig(model=str(models.directory(folder, name, True)))))
    assert found == expected > 9e8


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--parts", "a,x"), "--parts a,x: x is not a part. Parts: a, b, c, d, e, f, g, h"),
        (("--wheels", "nowhere"), "--wheels nowhere: no such folder. Make it with tools/bench/gpu_wheels.sh"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    done = start(command(tmp_path / "out.json", tmp_path / "work", *words))
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out.json").exists()


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
@pytest.mark.parametrize("with_wheel", [False, True])
@pytest.mark.slow
def test_a_missing_package_comes_from_the_wheels(tmp_path: Path, with_wheel: bool) -> None:
    """A wheel of that name, and no time for any case: the one that needs it is left, and no longer skipped."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    name = "bitsandbytes" if with_wheel else "another"
    with zipfile.ZipFile(wheels / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", "")
    out = tmp_path / "o.json"
    done = start(command(out, tmp_path / "w", "--wheels", wheels, "--parts", "f", "--minutes", 0.1))
    assert done.returncode == 0, done.stderr
    found = read_parts(out)["f"]["cases"]["bf16_nf4"]
    assert found["state"] == ("left" if with_wheel else "skipped"), found


def test_a_wheel_that_lacks_a_requirement_stays_off_the_path(
    load: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` without pyarrow would end every case: transformers imports it wherever it finds it. TRL asks for `datasets`."""
    asked = {
        "tables": ["no-such-arrow>=21", "numpy"],
        "learner": ["tables>=4.7", "torch"],
        "Deep_Speed": ["ninja", "torch", "wheel.of-here<2"],
        "wheel_of_here": ["no-such-thing; extra == 'all'", "no-such-thing; python_version < '3'"],
    }
    for name, lines in asked.items():
        info = tmp_path / f"{name}-1.0-py3-none-any" / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        requires = "".join(f"Requires-Dist: {line}\n" for line in lines)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{requires}")
    gpu, before = load("gpu"), list(sys.path)
    monkeypatch.setattr(sys, "path", list(before))
    left_out = load("gpu_wheels").add(tmp_path)
    assert left_out == {"tables": "no-such-arrow", "learner": "no-such-arrow"}
    assert sys.path == [
        *before,
        str(tmp_path / "Deep_Speed-1.0-py3-none-any"),
        str(tmp_path / "wheel_of_here-1.0-py3-none-any"),
    ]
    monkeypatch.setattr(gpu, "_LEFT_OUT", {"no-such-package": "another"})
    case = load("gpu_parts").Case("x", needs=("no_such_package", "json"))
    assert gpu.skipped(case) == "not installed: no_such_package (its wheel needs another)"


def test_a_package_missing_within_a_library_is_named(load: Callable, tmp_path: Path) -> None:
    """As TRL's late imports wrap it. The case is skipped, and tried again by --resume: the package may be there by then."""
    gpu, parts = load("gpu"), load("gpu_parts")
    wrapped = RuntimeError("Failed to import trl")
    wrapped.__cause__ = ModuleNotFoundError("No module named 'pyarrow.lib'", name="pyarrow.lib")
    assert gpu.missing_package(wrapped) == "pyarrow"
    assert gpu.missing_package(ModuleNotFoundError("our own mistake", name="drive_vlm.nothing")) == ""
    result = {"parts": {"x": {"title": "x", "cases": {"one": {"state": "skipped", "why": "not installed: pyarrow"}}}}}
    part = parts.Part("x", 1, (parts.Case("one"),))
    args = SimpleNamespace(out=tmp_path / "o.json")
    gpu.run_part("x", part, tmp_path, result, args, time.monotonic(), True)
    assert result["parts"]["x"]["cases"]["one"]["state"] == "left", "its package may be there now"
    ran = {"state": "done", "seconds": 0.0, "figures": {}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "run_case", lambda *words: ran)
        gpu.run_part("x", part, tmp_path, result, args, time.monotonic() + 99, True)
    assert result["parts"]["x"]["cases"]["one"] == ran


# ---- gpu_tables.py


MEASURED = {
    "format": 1,
    "device": "NVIDIA H200",
    "toy": False,
    "parts": {
        "b": {"title": "SFT", "cases": {"packed_16384": {"state": "done", "figures": {"samples/s": 12.34, "tokens/s": 45678.9, "MFU": 0.4321, "peak GiB": 38.26, "planned GiB": 40.0, "plan error": 0.0455}}}},
        "c": {"title": "24 GB", "cases": {"stage1": {"state": "done", "figures": {"samples/s": 3.21, "peak GiB": 17.0}}, "stage2": {"state": "cut", "why": "time"}}},
    },
}  # fmt: skip


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    import shutil

    for name in ("docs", "recipes"):
        shutil.copytree(ROOT / name, tmp_path / name)
    return tmp_path


def test_tables_and_recipe_heads_say_what_was_measured(run_here: Callable, tree: Path) -> None:
    file = tree / "gpu.json"
    file.write_text(json.dumps(MEASURED))
    command = ["tools/bench/gpu_tables.py", file, "--root", tree]
    assert run_here(*command).returncode == 0
    row = "| NVIDIA H200 | SFT | packed_16384 | samples/s 12.3, tokens/s 45,679, MFU 43.2%, peak GiB 38.3 |"
    assert (tree / "docs/results.md").read_text().count(row) == 1
    assert "| NVIDIA H200 | b packed_16384 | 40.0 | 38.3 | +4.5% |" in (tree / "docs/plan.md").read_text()
    head = (tree / "recipes/internvl3_1b_sft.sh").read_text().split("set -euo")[0].splitlines()
    (place,) = (i for i, line in enumerate(head) if line.startswith("# Measured"))
    assert head[place].endswith("38.3 peak GiB: NVIDIA H200, random weights (tools/bench/gpu.sh, b packed_16384)")
    assert any(line.startswith("# Result") for line in head[:place]) and head[place + 1].startswith("# Command")
    assert "Measured" not in (tree / "recipes/drive_vlm_stage2.sh").read_text(), "it was cut: nothing is known"
    assert os.access(tree / "recipes/internvl3_1b_sft.sh", os.X_OK) == os.access(
        ROOT / "recipes/internvl3_1b_sft.sh", os.X_OK
    )
    assert "every table says this already" in run_here(*command).stdout


def test_toy_figures_do_not_reach_a_table(run_here: Callable, tree: Path) -> None:
    (tree / "toy.json").write_text(json.dumps(MEASURED | {"toy": True, "device": "CPU"}))
    done = run_here("tools/bench/gpu_tables.py", tree / "toy.json", "--root", tree)
    assert done.returncode == 2 and "toy sizes on a CPU, which says nothing about a GPU" in done.stderr
