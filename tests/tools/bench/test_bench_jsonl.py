"""tools/bench/bench_jsonl.py on a small file; no time is asserted."""

import json
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[3] / "tools" / "bench" / "bench_jsonl.py"


def test_writes_what_it_measured(run, tmp_path):
    out = tmp_path / "bench.json"
    done = run([sys.executable, TOOL, "--rows", 3000, "--json", out])
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert (result["rows"], result["row"]) == (3000, 2999)
    assert {"ours", "peer", "ratio", "machine", "versions"} <= set(result)
    assert result["ratio"]["seconds"] == pytest.approx(result["peer"]["seconds"] / result["ours"]["seconds"])
    assert result["ours"]["indexing"]["seconds"] > 0
    assert "drive-vlm, indexed" in done.stdout


def test_memory_does_not_grow_with_the_file(run, tmp_path):
    """The promise is 300 MB for a million rows; a part of that, so that the test stays quick."""
    done = run([sys.executable, TOOL, "--rows", 100_000, "--row", 99_998, "--json", tmp_path / "bench.json"])
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "bench.json").read_text())["ours"]["peak_rss_mb"] < 300


def test_row_outside_the_file(run):
    done = run([sys.executable, TOOL, "--rows", 10, "--row", 10])
    assert done.returncode == 2 and "--row 10 is not in a file of --rows 10" in done.stderr
