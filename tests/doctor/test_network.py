import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from drive_vlm.doctor import network
from drive_vlm.doctor.finding import Check, Finding, Setting

SETTING = Setting(Path("runs"))


@pytest.fixture(autouse=True)
def _plain_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    names = (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "NNODES",
        "TORCHELASTIC_RUN_ID",
    )
    for name in (
        *names,
        "SLURM_PROCID",
        "NCCL_SOCKET_IFNAME",
        "GLOO_SOCKET_IFNAME",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        *network._SLOW,
    ):
        monkeypatch.delenv(name, raising=False)


def only(check: Check, setting: Setting = SETTING) -> Finding:
    (finding,) = check(setting)
    return finding


@pytest.fixture
def server() -> Iterator[str]:
    """A hub that answers everything with 404."""
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()


def test_a_hub_that_answers(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server)
    assert only(network.hub).verdict == "ok" and "answers in" in only(network.hub).seen


def test_a_hub_that_does_not_answer_is_not_asked_when_offline(free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port}")
    assert only(network.hub).verdict == "warn" and "HF_HUB_OFFLINE=1" in only(network.hub).todo
    assert "--offline" in only(network.hub, Setting(Path("runs"), offline=True)).seen
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert only(network.hub).seen.startswith("HF_HUB_OFFLINE is set")


def test_variables_of_a_launcher_in_a_plain_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(network.leftovers).verdict == "ok"
    monkeypatch.setenv("MASTER_ADDR", "node0")
    assert only(network.leftovers).verdict == "warn"
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert only(network.leftovers).verdict == "fail" and only(network.leftovers).todo == "unset WORLD_SIZE"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert only(network.leftovers).verdict == "ok"


@pytest.mark.parametrize(
    ("name", "value", "verdict"),
    [
        ("NCCL_SOCKET_IFNAME", "lo", "ok"),
        ("NCCL_SOCKET_IFNAME", "^docker", "ok"),
        ("NCCL_SOCKET_IFNAME", "=l", "fail"),
        ("NCCL_SOCKET_IFNAME", "ib77", "fail"),
        ("GLOO_SOCKET_IFNAME", "lo", "ok"),
        ("GLOO_SOCKET_IFNAME", "^docker", "fail"),
        ("GLOO_SOCKET_IFNAME", "ib77", "fail"),
        ("NCCL_P2P_DISABLE", "1", "warn"),
        ("NCCL_P2P_DISABLE", "0", "ok"),
        ("NCCL_DEBUG", "INFO", "ok"),
        ("TORCH_DISTRIBUTED_DEBUG", "DETAIL", "warn"),
    ],
)
def test_settings_of_collectives(name: str, value: str, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    finding = only(network.collectives)
    assert (finding.verdict == verdict and f"{name}={value}" in finding.seen) or verdict == "ok"


def test_a_gpu_number_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "driver_gpus", lambda: [["H200", "143771 MiB", "570"]] * 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    assert only(network.visible_gpus).verdict == "fail" and "0 to 1" in only(network.visible_gpus).todo
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert only(network.visible_gpus).verdict == "ok"


def test_a_package_that_pythonpath_shadows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert only(network.python_path).verdict == "ok"
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    assert only(network.python_path).verdict == "warn" and f"{tmp_path}/torch" in only(network.python_path).seen


def test_a_taken_port(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("", 0)) as other:
        monkeypatch.setattr(network, "_TORCHRUN_PORT", other.getsockname()[1])
        assert only(network.ports).verdict == "warn"
        monkeypatch.setenv("MASTER_PORT", str(other.getsockname()[1]))
        assert only(network.ports).verdict == "fail"
    assert only(network.ports).verdict == "ok"


def slurm_programs(folder: Path, sinfo: str) -> None:
    for name, line in (("sbatch", "echo slurm 22.05.8"), ("sinfo", sinfo)):
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)


def test_slurm_that_is_absent_answers_or_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert only(network.slurm).verdict == "ok" and "not on this machine" in only(network.slurm).seen
    slurm_programs(tmp_path, "echo 'gpu* up 1-00:00:00 4 nodes gpu:8'")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert only(network.slurm).seen == "slurm 22.05.8; inside job 17; gpu* up 1-00:00:00 4 nodes gpu:8"
    slurm_programs(tmp_path, "echo 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1")
    assert only(network.slurm).verdict == "warn" and "Unable to contact" in only(network.slurm).seen
