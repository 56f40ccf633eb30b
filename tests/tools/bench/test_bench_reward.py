"""tools/bench/bench_reward.py on a few texts; no time is asserted."""

import json
import sys
from pathlib import Path

TOOL = Path(__file__).parents[3] / "tools" / "bench" / "bench_reward.py"


def test_writes_what_it_measured(run, tmp_path, spacy_model):
    out = tmp_path / "bench.json"
    words = ["--texts", 20, "--words", 40, "--processes", 1, "--spacy", spacy_model, "--json", out]
    done = run([sys.executable, TOOL, *words])
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result["parse_and_score_texts_per_s"].keys() == {"1"} and result["score_texts_per_s"] > 0
    assert result["parse_and_score_texts_per_cpu_s"]["1"] > 0
    assert result["texts"] == 20 and 40 <= result["words_per_text"] < 70
    assert "score parsed texts" in done.stdout


def test_a_model_that_is_not_there(run):
    done = run([sys.executable, TOOL, "--spacy", "en_none"])
    assert done.returncode == 2 and "python -m spacy download en_none" in done.stderr
