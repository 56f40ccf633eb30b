"""The sides of the benchmark find the same rows, and it says so when they do not; no time is asserted."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest


def test_sides_find_the_same(load: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = load("bench_retrieval")
    flags = "--names 500 --width 32 --batch 8 --k 3 --repeats 1 --threads 1"
    args = bench.make_parser().parse_args(flags.split())
    result = bench.run(args, tmp_path)
    assert bench.show(result, args) is None and set(result["other_hits_than_ours"].values()) == {0}
    assert result["ours"]["ratio"]["seconds"] > 0
    shown = capsys.readouterr().out
    assert "product, scored again" in shown
    if importlib.util.find_spec("faiss"):
        assert "faiss Flat" in shown and result["other_hits_than_ours"].keys() == {"ours", "faiss", "checked"}
    result["other_hits_than_ours"]["ours"] = 1
    assert "other hits" in bench.show(result, args)
