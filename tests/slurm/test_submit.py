"""slurm/submit.sh without a Slurm: the script it would submit, word for word, and what it refuses."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "submit.txt"
SFT = "recipes/internvl3_1b_sft.sh"
SCRIPTS = {
    "one GPU": ([SFT, "--time", "30"], ["--data", "my rows.jsonl"]),
    "two nodes of eight GPUs": (
        [
            SFT, "--nodes", "2", "--gpus-per-node", "8", "--gpu-type", "a100", "--time", "1-00:00:00", "--partition", "gpu", "--account", "vlm",
            "--qos=long", "--constraint", "ib", "--mem", "0", "--cpus-per-task", "96", "--requeue-margin", "600", "--max-restarts", "3",
            "--name", "mine", "--log-dir", "/logs", "--setup", "setup.sh",
        ],
        ["--data", "train.jsonl"],
    ),
    "after two jobs": ([SFT, "--time", "4:00:00", "--after", "17,18_3", "--dependency", "singleton"], []),
    "eight shards, four at a time": (
        ["recipes/generate.sh", "--array", "0-7%4", "--time", "1:00:00"],
        ["--out", "predictions.jsonl"],
    ),
    "two of eight shards": (["recipes/generate.sh", "--array", "3,5", "--shards", "8", "--time", "1:00:00"], []),
    "CPUs": ([SFT, "--nodes", "2", "--gpus-per-node", "0", "--procs-per-node", "4", "--time", "10"], []),
}  # fmt: skip


@pytest.fixture
def submit(run, tmp_path, monkeypatch):
    """`submit(words, flags)`: the finished process, in a folder where no Slurm answers."""
    for name in ("SLURM_CONF", "DRY_RUN", "PLAN"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "setup.sh").touch()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def start(words, flags=(), *more, **env):
        return run(["bash", ROOT / "slurm/submit.sh", *words, *more, "--", *flags], cwd=tmp_path, PATH=path, **env)

    return start


def test_the_script_is_the_golden_text(submit, tmp_path):
    texts = []
    for name, (words, flags) in SCRIPTS.items():
        done = submit(words, flags, "--dry-run", "--no-plan")
        assert done.returncode == 0, done.stderr
        texts.append(f"## {name}\n{done.stdout}".replace(str(ROOT), "ROOT").replace(str(tmp_path), "HERE"))
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text("\n".join(texts))
    assert "\n".join(texts) == GOLDEN.read_text()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "usage:"),
        (("recipes/sft.sh", "--time", "30"), "recipes/internvl3_1b_sft.sh"),
        ((SFT,), "--time is missing"),
        ((SFT, "--time", "soon"), "4:00:00"),
        ((SFT, "--time", "0"), "4:00:00"),
        ((SFT, "--time", "5"), "not longer than --requeue-margin 300"),
        ((SFT, "--time", "30", "--nodes", "two"), "--nodes two"),
        ((SFT, "--time", "30", "--nodes", "0"), "from 1 on"),
        ((SFT, "--time", "30", "--data", "x"), "behind --"),
        ((SFT, "--time"), "--time needs a value"),
        ((SFT, "x.jsonl", "--time", "30"), "unexpected word x.jsonl"),
        ((SFT, "--time", "30", "--after", "last"), "job ids"),
        ((SFT, "--time", "30", "--name", "a b"), "letters, digits"),
        ((SFT, "--time", "30", "--mem", "1G\n#SBATCH --exclusive"), "one line only"),
        ((SFT, "--time", "30", "--launcher", "mpi"), "torchrun or deepspeed"),
        ((SFT, "--time", "30", "--launcher", "deepspeed", "--max-restarts", "1"), "needs --launcher torchrun"),
        ((SFT, "--time", "30", "--setup", "none.sh"), "no such file"),
        ((SFT, "--time", "30", "--array", "8"), "--shards"),
        ((SFT, "--time", "30", "--array", "0-7", "--nodes", "2"), "one node"),
        ((SFT, "--time", "30", "--array", "0-8", "--shards", "8"), "no shard 8 of 8"),
        ((SFT, "--time", "30", "--array", "0-7%0"), "four at a time"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_way_out(submit, words, said):
    done = submit(words, (), *(["--dry-run"] if words else []))
    assert done.returncode == 2, done.stdout
    assert said in done.stderr


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("1:00:05", 3605),
        ("2-0", 172800),
        ("1-12:30", 131400),
        ("1-00:00:08", 86408),
        ("08:09:09", 29349),
    ],
)
def test_times_are_read_as_slurm_reads_them(submit, time, seconds):
    assert submit([SFT, "--time", time, "--requeue-margin", str(seconds - 1), "--dry-run", "--no-plan"]).returncode == 0
    assert submit([SFT, "--time", time, "--requeue-margin", str(seconds), "--dry-run"]).returncode == 2


def test_a_plan_that_does_not_fit_or_does_not_hold_together_is_refused(submit):
    words = [SFT, "--time", "30", "--dry-run", "--gpus-per-node"]
    fits = submit([*words, "8"], (), "--gpu-memory", "80GB")
    assert fits.returncode == 0 and "fits" in fits.stderr, fits.stderr
    too_big = submit([*words, "8"], (), "--gpu-memory", "8GB")
    assert too_big.returncode == 2 and "--force" in too_big.stderr
    forced = submit([*words, "8"], (), "--gpu-memory", "8GB", "--force")
    assert forced.returncode == 0 and forced.stdout == fits.stdout
    uneven = submit([*words, "7"])
    assert uneven.returncode == 2 and "not a multiple" in uneven.stderr and "--no-plan" in uneven.stderr


def test_no_slurm_is_said(submit):
    done = submit([SFT, "--time", "30", "--no-plan"])
    assert done.returncode == 2 and "Slurm does not answer" in done.stderr
