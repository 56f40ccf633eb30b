"""tools/bench/peers.py and peer_child.py: what refuses a comparison, what is counted, and real peers where they are named.

`DRIVE_VLM_LLAMAFACTORY` and `DRIVE_VLM_SWIFT` name the python of an environment that has LLaMA-Factory or ms-swift.
"""

import argparse
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

TINY = ("--patch_size", 28, "--hidden_size", 32, "--text_layers", 1, "--vision_layers", 1, "--vocab_size", 600)
INTERPRETERS = {"llamafactory": "DRIVE_VLM_LLAMAFACTORY", "swift": "DRIVE_VLM_SWIFT"}
PLAN = {"rows": 4, "tokens": 100, "lengths": {"mean": 25}, "batch": {"ours": 4, "peer": 31}}


@pytest.fixture(scope="module")
def peers(load):
    return load("peers")


@pytest.fixture(scope="module")
def child(load):
    return load("peer_child")


# ---- --peers


def test_refusals(peers, tmp_path):
    for word in ("axolotl=python", "swift", "swift=", "=python"):
        with pytest.raises(argparse.ArgumentTypeError, match="is no NAME=PYTHON, with a name of llamafactory, swift"):
            peers.peer_word(word)
    with pytest.raises(
        ValueError, match=r"no such program\. Name the python of the environment that has LLaMA-Factory"
    ):
        peers.find_peers([f"llamafactory={tmp_path / 'python'}"], "internvl")
    with pytest.raises(ValueError, match="no such program"):
        peers.find_peers([f"llamafactory={tmp_path}"], "internvl")
    with pytest.raises(ValueError, match="on --family internvl, which all of them train, not on qwen3_vl"):
        peers.find_peers([f"swift={sys.executable}"], "qwen3_vl")
    broken = script(tmp_path, "echo no module here >&2; exit 3")
    with pytest.raises(ValueError, match="is no Python that runs: no module here"):
        peers.find_peers([f"swift={broken}"], "internvl")
    named = script(tmp_path, """echo '{"ms-swift": "4.6.0", "torch": "2"}'""")
    assert peers.find_peers([f"swift={named}"], "internvl")[0].versions["ms-swift"] == "4.6.0"
    with pytest.raises(ValueError, match="names swift and swift: name each peer once"):
        peers.find_peers([f"swift={named}"] * 2, "internvl")
    assert peers.find_peers([], "qwen3_vl") == []


def script(folder: Path, words: str) -> Path:
    file = folder / f"program{len(list(folder.iterdir()))}"
    file.write_text(f"#!/bin/sh\n{words}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return file


def test_an_environment_without_the_package_is_refused(refused):
    """This one's own python has neither peer."""
    error = refused("bench_sft", "--peers", f"swift={sys.executable}")
    assert f"has no package ms-swift. Install ms-swift there: {sys.executable} -m pip install ms-swift" in error


# ---- what the peers are asked


def test_rows_as_each_peer_reads_them(peers, tmp_path):
    turns = [{"from": "human", "value": "<image>\n<image>\nWhat?"}, {"from": "gpt", "value": "a\nb"}]
    rows = [{"id": "1", "image": ["x.jpg", "y.jpg"], "conversations": turns}, {"id": "2", "conversations": turns[1:]}]
    peers.write_rows(tmp_path, "one", rows)
    peers.write_rows(tmp_path, "two", rows[:1])
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    assert set(info) == {"one", "two"} and info["one"]["file_name"] == "one.jsonl"
    assert [json.loads(line) for line in (tmp_path / "one.jsonl").read_text().splitlines()] == rows
    first, second = [json.loads(line) for line in (tmp_path / "one.swift.jsonl").read_text().splitlines()]
    # Its template writes the newline behind a picture; those of the texts stay.
    assert [turn["content"] for turn in first["messages"]] == ["<image><image>What?", "a\nb"]
    assert first["images"] == [f"{tmp_path}/x.jpg", f"{tmp_path}/y.jpg"] and second["images"] == []


@pytest.fixture
def at_work(peers, tmp_path):
    """A Bench whose interpreter keeps its words and job, and writes what a run of four rows would."""
    run = {"steps": 3, "all": {"rows": 4, "tokens": 100}, "widest": 8, "losses": [7.0]}
    run["timed"] = {"rows": 3, "tokens": 75, "seconds": 5.0, "cpu_seconds": 3.0}
    (tmp_path / "fake.py").write_text(
        "import json, os, sys\n"
        "assert 'PYTHONPATH' not in os.environ\n"
        "for file in sys.argv[4:]:\n"
        "    job = json.load(open(file))\n"
        f"    json.dump({run!r} | {{'job': job, 'words': sys.argv[2:4]}}, open(job['out'], 'w'))\n"
    )
    python = script(tmp_path, f'exec {sys.executable} -I {tmp_path / "fake.py"} "$@"')
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"text_config": {"pad_token_id": 7}}')
    args = SimpleNamespace(threads=1, workers=2, max_length=256)
    found = [peers.Peer(name, str(python), {}) for name in peers.SPECS]
    return peers.Bench(found, tmp_path, args, {"seed": 0})


def test_each_side_is_asked_for_the_same_tokens_a_step(at_work, tmp_path):
    """Padded: TRL's batch. Packed: our packs a step, which ms-swift takes one by one."""
    asked = {"llamafactory": (31, 1), "llamafactory_packed": (4, 1), "swift": (31, 1), "swift_packed": (1, 4)}
    assert set(at_work.sides()) == set(asked)
    assert at_work.titles()["llamafactory_packed"] == "LLaMA-Factory --neat_packing"
    for side, (batch, accumulate) in asked.items():
        rates = at_work.train(side, 0, PLAN)
        written = json.loads((tmp_path / f"{side}0.json").read_text())
        job = written["job"]
        assert (job["batch"], job["accumulate"]) == (batch, accumulate)
        assert job["packed"] == side.endswith("_packed") and written["words"] == [side.removesuffix("_packed"), "train"]
        assert (job["pad_id"], job["max_length"], job["workers"], job["steps"]) == (7, 256, 2, -1)
    assert rates["tokens_per_second"] == 15 and rates["samples_per_second"] == 0.6
    # 75 tokens are three rows of mean length: 3 s of processor time are 1,000 ms a row.
    assert rates["cpu_ms_per_row"] == pytest.approx(1000) and rates["tokens_per_step"] == 37.5
    with pytest.raises(ValueError, match="ms-swift trained 4 rows of 100 tokens, the data holds 5 of 130"):
        at_work.train("swift", 1, PLAN | {"rows": 5, "tokens": 130})


def test_the_words_of_each_peer(child):
    """Padded and packed differ in one word; no step is left to a default that the peers set otherwise."""
    job = {"model": "m", "rows": "r", "folder": "/d", "packed": False, "max_length": 256, "tiles": 1, "batch": 2}
    job |= {"accumulate": 1, "workers": 0, "steps": -1, "training": {"seed": 0}, "out": "/o.json"}
    plain, packed = (child.llamafactory_words(job | {"packed": flag}) for flag in (False, True))
    assert {name for name in plain if plain[name] != packed[name]} == {"neat_packing"}
    assert plain["freeze_vision_tower"] and not plain["freeze_multi_modal_projector"] and plain["weight_decay"] == 0
    words = child.swift_words(job | {"packed": True})
    assert words[words.index("--packing") + 1] == "true" and words[words.index("--dataset") + 1] == "/d/r.swift.jsonl"
    assert words[words.index("--adam_beta2") + 1] == "0.999"


# ---- what is counted


def test_tokens_and_answers_by_hand(child):
    torch = pytest.importorskip("torch")
    counted = child.Counted(0)
    try:
        ids = torch.tensor([[5, 6, 7, 8, 9, 5], [5, 6, 0, 0, 0, 0]])
        labels = torch.tensor([[-100, 6, 7, -100, 9, 5], [-100, 6, -100, -100, -100, -100]])
        assert counted.count(ids, labels) == {"tokens": 8, "learned": 5, "rows": 3, "width": 6}
    finally:
        counted.end()


@pytest.mark.fresh("a forked process is no child of this one")
def test_processor_time_counts_the_loader_s_workers(child):
    """A process that still runs has spent 0.3 s of processor time; it tells so, and this one has spent nearly none."""
    burn = "import sys, time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\nsys.stdin.read()"
    before = child.tree_cpu_seconds() - sum(os.times()[:2])
    with subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"done\n"
        spent = child.tree_cpu_seconds() - sum(os.times()[:2]) - before
        process.stdin.close()
    assert 0.25 < spent < 2


def test_best_peer_and_ratios(peers):
    sides = {
        "ours": {"tokens_per_second": 100, "cpu_ms_per_row": 10},
        "peer": {"tokens_per_second": 50, "cpu_ms_per_row": 25},
        "llamafactory_packed": {"tokens_per_second": 40, "cpu_ms_per_row": 12},
    }
    assert peers.best_peer(sides) == "llamafactory_packed"
    assert peers.against(sides)["llamafactory_packed"] == {"tokens_per_second": 2.5, "cpu_ms_per_row": 1.2}


# ---- the same training


def test_a_difference_is_refused(peers):
    """Two rows; the peers learn the last token too."""
    ours = [
        {"input_ids": [1, 5, 2, 3], "labels": [-100, 5, 2, -100]},
        {"input_ids": [1, 4, 3], "labels": [-100, 4, -100]},
    ]
    theirs = [
        {"input_ids": [1, 4, 3], "labels": [-100, 4, 3]},
        {"input_ids": [1, 5, 2, 3], "labels": [-100, 5, 2, 3]},
    ]
    run = {"encoded": theirs, "all": {"tokens": 7, "learned": 5}, "losses": [2.0001]}
    packed = run | {"encoded": []}
    found = peers.compare_runs({"a": run, "a_packed": packed}, ours, lambda: 2.0)
    assert (found["tokens"], found["learned"], found["loss"]) == (7, 5, 2.0)
    other = [theirs[0], theirs[1] | {"input_ids": [1, 5, 2, 9]}]
    with pytest.raises(ValueError, match="a: input_ids of row 1"):
        peers.compare_runs({"a": run | {"encoded": other}}, ours, lambda: 2.0)
    other = [theirs[0], theirs[1] | {"labels": [-100, 5, 2, -100]}]
    with pytest.raises(ValueError, match="a: labels of row 1"):
        peers.compare_runs({"a": run | {"encoded": other}}, ours, lambda: 2.0)
    with pytest.raises(ValueError, match="b trained 6 tokens and learned 5 of them, ours are 7 and 5"):
        peers.compare_runs({"b": packed | {"all": {"tokens": 6, "learned": 5}}}, ours, lambda: 2.0)
    with pytest.raises(ValueError, match=r"b: the loss of step 1 is 2\.000100, ours on the same rows 2\.010000"):
        peers.compare_runs({"b": packed}, ours, lambda: 2.01)


def test_our_loss_is_that_of_one_padded_batch(peers, tiny_model, synthetic_data):
    """mean_loss goes row by row; the model's own loss of all rows in one padded batch is the same."""
    import torch

    from drive_vlm.config import IGNORE_INDEX, ModelConfig
    from drive_vlm.data.collate import Collator
    from drive_vlm.data.encoder import Encoder
    from drive_vlm.data.sources import open_sources
    from drive_vlm.data.table import build_table
    from drive_vlm.models import load_family

    family = load_family(ModelConfig(model=str(tiny_model), max_tiles=1), torch.float32)
    family.model.eval()
    encoder = Encoder(family.tokenizer, family.template, family.vision)
    table = build_table(open_sources([str(synthetic_data / "train.jsonl")]), encoder)
    rows = [encoder.encode(table.sample(i)) for i in range(5)]
    batch = Collator(family.tokenizer.pad_token_id, family.vision)([[row] for row in rows])
    labels = batch["labels"]
    for i, row in enumerate(rows):
        last = len(row["input_ids"]) - 1
        assert labels[i, last] == IGNORE_INDEX
        labels[i, last] = int(row["input_ids"][last])
    inputs = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    with torch.no_grad():
        expected = float(family.model(**inputs | {"labels": labels}).loss)
    assert peers.mean_loss(family, encoder, rows) == pytest.approx(expected, rel=1e-5)


# ---- the picture path


def test_our_way_from_jpeg_to_nine_tiles(peers, tmp_path):
    from drive_vlm.models.tiny.tiny import build_tiny_internvl

    peers.write_pictures(tmp_path, 3)
    sizes = {"image_size": peers.TILE, "patch_size": 14, "hidden_size": 32, "vision_layers": 1, "text_layers": 1}
    model = build_tiny_internvl(
        tmp_path / "model", ["What is ahead?"], **sizes, max_tiles=peers.MAX_TILES, vocab_size=300
    )
    peers.our_pictures(tmp_path, model, tmp_path / "ours.json")
    found = json.loads((tmp_path / "ours.json").read_text())
    assert (found["tiles"], found["rows"]) == (peers.TILES, 3) and found["tokens"] > 9 * 256
    assert min(found["wall_ms"], found["cpu_ms"]) > 0


# ---- the peers themselves


@pytest.mark.slow
@pytest.mark.parametrize("name", INTERPRETERS)
def test_a_real_peer(name, bench):
    """Same tokens, labels and loss as ours in both modes, and all rows trained; no time is asserted."""
    python = os.environ.get(INTERPRETERS[name])
    if not python:
        pytest.skip(f"{INTERPRETERS[name]} names no python of an environment that has this peer")
    words = ("--rows", 96, "--max_length", 256, "--repeats", 1, "--workers", 0, "--pictures", 3)
    result, text = bench("bench_sft", *TINY, *words, "--peers", f"{name}={python}", timeout=900)
    assert {name, f"{name}_packed"} <= set(result["checked"]["losses"])
    for side in (name, f"{name}_packed"):
        assert result[side]["tokens_per_step"] == pytest.approx(result["ours"]["tokens_per_step"], rel=0.25)
        assert result["against"][side]["cpu_ms_per_row"] > 0
    assert result["picture_path"]["sides"][name]["tiles"] == 9
    assert "best peer: " in text and f"{result['peer_versions'][name]['torch']}" in text
