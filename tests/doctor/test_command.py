import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import drive_vlm.doctor
from drive_vlm.doctor.finding import Finding, Setting, ok

DOCTOR = [sys.executable, "-m", "drive_vlm", "doctor", "--offline"]
CLEAN = dict.fromkeys(("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"), "")


@pytest.mark.slow
@pytest.mark.fresh("its CPU time is measured")
def test_the_report_is_quick_and_says_what_to_do(run: Callable, tmp_path: Path) -> None:
    before = os.times()
    done = run([*DOCTOR, "--json", "--output_dir", tmp_path / "runs" / "new"], **CLEAN)
    after = os.times()
    # Seconds of CPU, not of the clock: 4 on a quiet machine, 10 where others fill its caches. Deep checks take minutes.
    assert after.children_user + after.children_system - before.children_user - before.children_system < 25
    content = json.loads(done.stdout)
    findings = {item["check"]: item for item in content["findings"]}
    assert {
        "python",
        "torch",
        "torchvision",
        "packages",
        "deepspeed ops",
        "attention",
        "cpu",
        "memory",
        "/dev/shm",
        "limits",
    } < findings.keys()
    assert {
        "output disk",
        "HF_HOME",
        "TORCH_EXTENSIONS_DIR",
        "hub",
        "launcher variables",
        "collectives",
        "ports",
        "slurm",
    } < findings.keys()
    assert all(bool(item["todo"]) == (item["verdict"] != "ok") for item in content["findings"]), content
    assert not [item for item in content["findings"] if "the check broke" in item["seen"]], content
    assert done.returncode == (0 if content["passed"] else 1)
    assert not (tmp_path / "runs").exists() and list(tmp_path.iterdir()) == [], "it leaves nothing behind"


def test_a_failure_is_exit_code_1_and_a_line_with_the_way_out(run: Callable) -> None:
    done = run(DOCTOR, RANK="3", **CLEAN)
    assert done.returncode == 1
    assert "left over: RANK=3" in done.stdout and "→ unset RANK" in done.stdout


@pytest.mark.slow
def test_two_ranks_sum_a_tensor(run: Callable) -> None:
    done = run([*DOCTOR, "--json", "--communication"], **CLEAN)
    (finding,) = [item for item in json.loads(done.stdout)["findings"] if item["check"] == "communication"]
    assert finding["verdict"] == "ok" and "16 MiB summed over 2 ranks" in finding["seen"], finding


def test_a_check_that_breaks_is_a_line_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(setting: Setting) -> Iterator[Finding]:
        yield ok("first", "seen")
        raise FileNotFoundError(2, "No such file", "/proc/nothing")

    def sound(setting: Setting) -> Iterator[Finding]:
        yield ok("sound", "seen")

    monkeypatch.setattr(drive_vlm.doctor, "CHECKS", [broken, sound])
    found = list(drive_vlm.doctor.examine(Setting(Path("runs"))))
    assert [(item.check, item.verdict) for item in found] == [("first", "ok"), ("broken", "warn"), ("sound", "ok")]
    assert "/proc/nothing" in found[1].seen and found[1].todo


def test_brackets_in_what_was_seen_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    drive_vlm.doctor.print_findings([ok("x", "nodes[1-4] [red]")])
    assert "nodes[1-4] [red]" in capsys.readouterr().out
