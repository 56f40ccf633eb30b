"""The sides of the benchmark find the same rows; no time is asserted."""

import importlib.util
from collections.abc import Callable


def test_sides_find_the_same(bench: Callable) -> None:
    flags = ("--names", 500, "--width", 32, "--batch", 8, "--k", 3, "--repeats", 1, "--threads", 1)
    result, text = bench("bench_retrieval", *flags)
    assert result["ours"]["ratio"]["seconds"] > 0 and set(result["other_hits_than_ours"].values()) == {0}
    assert "product, scored again" in text
    if importlib.util.find_spec("faiss"):
        assert "faiss Flat" in text and result["other_hits_than_ours"].keys() == {"ours", "faiss", "checked"}
