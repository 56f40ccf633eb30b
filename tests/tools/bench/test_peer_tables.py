"""tools/bench/peer_tables.py: what a run with --peers measured goes into README and docs/results.md."""

import copy
import json
from pathlib import Path

import pytest

SIDE = {"tokens_per_second": 1500.0, "cpu_ms_per_row": 80.4, "peak_rss_mb": 1000.0, "run_cpu_seconds": 50.0}
FOUND = {
    "settings": {"repeats": 2, "threads": 1, "workers": 1},
    "machine": {"cores": 2},
    "load_average": {"before": [0.14, 0, 0], "after": [1.26, 0, 0]},
    "versions": {"trl": "1.16.0"},
    "titles": {
        "ours": "drive-vlm sft --packing",
        "peer": "TRL SFTTrainer",
        "swift": "ms-swift",
        "swift_packed": "ms-swift --packing",
    },
    "ours": SIDE,
    "peer": SIDE,
    "swift": SIDE | {"cpu_ms_per_row": 160.8},
    "swift_packed": SIDE,
    "against": {
        "peer": {"tokens_per_second": 2.004, "cpu_ms_per_row": 1.996},
        "swift": {"tokens_per_second": 2.2, "cpu_ms_per_row": 2.0},
        "swift_packed": {"tokens_per_second": 1.2, "cpu_ms_per_row": 1.3},
    },
    "best_peer": "swift_packed",
    "peer_versions": {"swift": {"ms-swift": "4.6.0", "torch": "2.13.0"}},
    "checked": {"rows": 16, "loss": 7.29876},
    "rows": 480,
    "lengths": {"min": 20, "max": 430},
    "picture_path": {"size": [900, 1600], "jpeg_kb": 271.4, "sides": {"ours": {"cpu_ms": 51.24, "wall_ms": 60.0}}},
}


@pytest.fixture
def tree(tmp_path, monkeypatch):
    # As when it is started: the files next to it can be imported.
    monkeypatch.syspath_prepend(Path(__file__).parents[3] / "tools" / "bench")
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "docs/results.md"):
        (tmp_path / name).write_text("before\n<!-- peers: begin -->\nNot measured.\n<!-- peers: end -->\nafter\n")
    (tmp_path / "found.json").write_text(json.dumps(FOUND))
    return tmp_path


def test_tables_are_written(tree, run_here):
    command = ["tools/bench/peer_tables.py", tree / "found.json", "--root", tree]
    done = run_here(*command, "--dry_run")
    assert "README.md: would change" in done.stdout and "Not measured." in (tree / "README.md").read_text()
    done = run_here(*command)
    assert done.returncode == 0, done.stderr
    readme, results = ((tree / name).read_text() for name in ("README.md", "docs/results.md"))
    assert "| TRL SFTTrainer 1.16.0, as it comes | 2.00x | 2.00x |" in readme
    assert "| **ms-swift 4.6.0, `--packing`, the best peer** | 1.30x | 1.20x |" in readme
    # README is short: the best mode of each.
    assert "as it comes" not in readme.replace("1.16.0, as it comes", "")
    assert "| ms-swift 4.6.0, as it comes | 1,500 | 161 | 1,000 | 50 | 2.20x | 2.00x |" in results
    assert "| `drive-vlm sft --packing` | 1,500 | 80 | 1,000 | 50 |  |  |" in results
    assert "load up to 1.3 on 2 cores" in readme
    assert (
        "Medians of 2 runs in turns" in results
        and "load 0.1 to 1.3 on 2 cores" in results
        and "loss of step 1 (7.2988)" in results
    )
    assert "| drive-vlm | 51.2 | 60.0 |" in results
    for text in (readme, results):
        assert text.startswith("before\n") and text.endswith("after\n") and "Not measured" not in text
    assert "every table says this already" in run_here(*command).stdout


def test_refusals(tree, run_here):
    without = copy.deepcopy(FOUND) | {"peer_versions": {}}
    (tree / "without.json").write_text(json.dumps(without))
    (tree / "other.json").write_text('{"parts": {}}')
    for name, words in (("without", "measured without --peers"), ("other", "not a file of tools/bench/bench_sft.py")):
        done = run_here("tools/bench/peer_tables.py", tree / f"{name}.json", "--root", tree)
        assert done.returncode == 2 and words in done.stderr
    (tree / "README.md").write_text("no place for it\n")
    done = run_here("tools/bench/peer_tables.py", tree / "found.json", "--root", tree)
    assert (
        done.returncode == 2
        and "<!-- peers: begin --> and <!-- peers: end --> must each stand in it once" in done.stderr
    )
