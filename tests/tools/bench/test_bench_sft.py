"""tools/bench/bench_sft.py with tiny settings: both sides train the same tokens; no time is asserted."""

import json

import numpy as np
import pytest

TINY = ("--patch_size", 28, "--hidden_size", 32, "--text_layers", 1, "--vision_layers", 1, "--vocab_size", 600)


@pytest.fixture(scope="module")
def bench_sft(load):
    return load("bench_sft")


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", [pytest.param("internvl", marks=pytest.mark.fresh("its memory is measured")), "qwen3_vl"]
)
def test_both_sides_run(family, bench, tmp_path):
    own = ("--family", family, "--vision_layers", 2) if family == "qwen3_vl" else ()
    words = (*TINY, "--rows", 96, "--max_length", 256, "--repeats", 1, "--workers", 0, *own)
    result, text = bench("bench_sft", *words)
    assert f"model: {family}, image_size 112" in text
    ours, peer = result["ours"], result["peer"]
    for name in ("tokens_per_second", "samples_per_second"):
        assert ours["ratio"][name] == pytest.approx(ours[name] / peer[name])
    assert ours["tokens_per_step"] == pytest.approx(peer["tokens_per_step"], rel=0.05)
    assert min(ours["peak_rss_mb"], peer["peak_rss_mb"]) > 100
    assert result["best_peer"] == "peer" and result["peer_versions"] == {} and "checked" not in result
    assert result["against"]["peer"]["cpu_ms_per_row"] == pytest.approx(peer["cpu_ms_per_row"] / ours["cpu_ms_per_row"])
    for side in (ours, peer):
        window = side["cpu_ms_per_row"] * (96 - side["batch"]) / 1000
        # The run's own time holds imports too; of a forked process (fork_server.py) it is that of whoever asked for it.
        assert window > 0 and (family != "internvl" or window < side["run_cpu_seconds"])
        assert min(side["tower_ms"], side["language_ms"]) > 0
        passes = (side["tower_ms"] + side["language_ms"]) * (side["steps"] - 1) / 1000
        # Data and optimizer take the rest of the time between the two logs.
        assert passes < side["seconds"]
    plan = json.loads((tmp_path / "work" / "plan.json").read_text())
    timed = json.loads((tmp_path / "work" / "peer0" / "timed.json").read_text())
    assert timed["samples"] == 96 - result["peer"]["batch"] and timed["steps"] == plan["steps"]["peer"]
    assert 0 < timed["tokens"] < plan["tokens"]  # by TRL's own count, without its first step


def test_plan_by_hand(bench_sft):
    """Packs of 50 = 10 + 40 tokens: two of them hold the tokens of four rows, and the first step takes two packs."""
    plan = bench_sft.make_plan(np.array([10, 40] * 6), max_length=50, batch_size=2)
    assert plan["batch"] == {"ours": 2, "peer": 4} and plan["steps"] == {"ours": 3, "peer": 3}
    assert plan["tokens_per_step"] == {"ours": 100, "peer": 100} and plan["timed"] == {"samples": 8, "tokens": 200}
    with pytest.raises(ValueError, match="more than 5 % apart"):
        bench_sft.make_plan(np.array([40, 50, 10, 50, 50] * 6), max_length=50, batch_size=1)
    with pytest.raises(ValueError, match="only 2 steps"):
        bench_sft.make_plan(np.array([10, 40] * 4), max_length=50, batch_size=2)


def test_rows_are_mixed(bench_sft):
    def row(i: int, answer: str) -> dict:
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": answer}]
        return {"id": str(i), "image": f"{i}.jpg", "conversations": turns}

    rows = bench_sft.mixed_rows([row(i, "go") for i in range(9)], [row(90, "A long caption.")], 16)
    pictures = [[row["image"]] if isinstance(row.get("image"), str) else row.get("image", []) for row in rows]
    assert list(map(len, pictures)) == [1, 0, 6, 1, 1, 1, 1, 1] * 2
    for found in rows:
        assert found["conversations"][0]["value"].count("<image>") == len(found.get("image", []))
    assert [rows[i]["conversations"][1]["value"] for i in (0, 1, 8)] == ["A long caption.", "go", "A long caption."]
    assert len({row["id"] for row in rows}) == 16


def test_different_tokens_are_refused(bench_sft, tmp_path, tiny_model, synthetic_data):
    """A processor that cuts pictures into tiles where ours does not: the sides would not train the same."""
    from drive_vlm.config import ModelConfig
    from drive_vlm.data.encoder import Encoder
    from drive_vlm.data.sources import open_sources
    from drive_vlm.data.table import build_table
    from drive_vlm.models import load_processor

    questions = [json.loads(line) for line in (synthetic_data / "train.jsonl").read_text().splitlines()]
    rows = bench_sft.mixed_rows(questions, questions, 4)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "data" / "images").symlink_to(synthetic_data / "images")
    parts = load_processor(ModelConfig(model=str(tiny_model), max_tiles=1))
    encoder = Encoder(parts.tokenizer, parts.template, parts.vision)
    table = build_table(open_sources([str(tmp_path / "data" / "mixed.jsonl")]), encoder)
    dataset = bench_sft.peer_dataset(tmp_path / "data" / "mixed.jsonl")
    parts.processor.image_processor.min_patches = parts.processor.image_processor.max_patches = 1
    bench_sft.check_same_tokens(table, encoder, dataset, parts.processor)
    parts.processor.image_processor.min_patches = parts.processor.image_processor.max_patches = 4
    with pytest.raises(ValueError, match="row 0: input_ids differ"):
        bench_sft.check_same_tokens(table, encoder, dataset, parts.processor)


@pytest.mark.slow
def test_user_errors(refused):
    assert "--rows: must be at least 16" in refused("bench_sft", "--rows", 4)
    words = [*TINY, "--rows", 16, "--max_length", 32, "--repeats", 1]
    assert "more than --max_length 32" in refused("bench_sft", *words)
