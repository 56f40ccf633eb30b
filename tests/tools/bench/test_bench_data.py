"""tools/bench/bench_data.py, small: every case writes what it measured; no time is asserted."""

import pytest


@pytest.mark.fresh("its memory is measured")
def test_jsonl(bench):
    """The promise is 300 MB for a million rows; a part of that, so that the test stays quick."""
    result, text = bench("bench_data", "jsonl", "--rows", 100_000)
    assert (result["rows"], result["row"]) == (100_000, 99_999)
    assert result["ratio"]["seconds"] == pytest.approx(result["peer"]["seconds"] / result["ours"]["seconds"])
    assert result["ours"]["indexing"]["seconds"] > 0 and result["ours"]["peak_rss_mb"] < 300
    assert "drive-vlm, indexed" in text


def test_lengths(bench):
    """Enough rows for several processes; each size is measured afresh."""
    result, text = bench("bench_data", "lengths", "--rows", 20_000)
    small, all_rows = result["sizes"]["2000"], result["sizes"]["20000"]
    assert (small["rows"], all_rows["rows"]) == (2000, 20_000) and all_rows["tokens"] > 9 * small["tokens"]
    assert all(part["measuring_s"] > 0 and part["cpu_seconds"] > 0 for part in (small, all_rows))
    assert "first measuring of rows" in text


def test_pictures(bench):
    """The bench itself compares the tiles of both sides; a quarter of the bytes pass the pipe."""
    result, text = bench("bench_data", "pictures", "--pictures", 4, "--repeats", 1)
    ours, peer = result["ours"], result["peer"]
    assert result["tiles"] == 9 and peer["pipe_mb_a_row"] == 4 * ours["pipe_mb_a_row"] == pytest.approx(
        9 * 3 * 448**2 * 4e-6
    )
    assert all(side["one_worker"] == side["rows_per_s"]["1"] / side["rows_per_s"]["0"] for side in (ours, peer))
    assert result["ratio"]["cpu_ms_a_row"] == peer["cpu_ms_a_row"] / ours["cpu_ms_a_row"]
    assert ours["loader_ms_a_row"] < ours["cpu_ms_a_row"] and "1600 x 900 to 9 equal tiles" in text


def test_synthetic(bench):
    result, text = bench("bench_data", "synthetic", "--scenes", 20, "--size", 64, "--workers", 2)
    assert result["ours"] > 0 and "images/s at 64 x 64 on 2 processes" in text


def test_reward(bench, spacy_model):
    flags = ["--texts", 20, "--words", 40, "--processes", 1, "--spacy_model", spacy_model]
    result, text = bench("bench_data", "reward", *flags)
    assert result["parse_and_score_texts_per_s"].keys() == {"1"} and result["score_texts_per_s"] > 0
    assert result["texts"] == 20 and 40 <= result["words_per_text"] < 70
    assert "score parsed texts" in text


def test_user_errors(refused):
    assert "--row 10 is not in a file of --rows 10" in refused("bench_data", "jsonl", "--rows", 10, "--row", 10)
    assert "python -m spacy download en_none" in refused("bench_data", "reward", "--spacy_model", "en_none")
    assert "--scenes: must be at least 1" in refused("bench_data", "synthetic", "--scenes", 0)
