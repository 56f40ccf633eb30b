"""recipes/spin_rounds.sh: two rounds on a tiny model through the real recipe, interrupted and not; what it refuses."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "spin_rounds.sh"
SETTINGS = ("HELD_OUT=12", "MARGIN=1", "LAYOUT=", "MAX_NEW_TOKENS=6", "EVALUATE_FLAGS=--max_new_tokens 6")
FLAGS = (
    "--max_steps", 4, "--global_batch_size", 8, "--per_device_train_batch_size", 8, "--bf16", "false", "--gradient_checkpointing", "false",
    "--logging_steps", 1, "--save_strategy", "steps", "--save_steps", 2, "--dataloader_num_workers", 0, "--report_to", "none",
    "--disable_tqdm", "true", "--warmup_steps", 0,
)  # fmt: skip
# A job of Slurm only checks that the packages are there; a batch script without a step is an ordinary machine.
ENV = {"CUDA_VISIBLE_DEVICES": "", "NPROC_PER_NODE": "1", "SLURM_JOB_ID": "7", "LEARNING_RATES": "1e-4", "BETAS": "0.5"}


@pytest.fixture
def chain(tiny_model: Path, synthetic_data: Path, tmp_path: Path, run: Any) -> Any:
    """`chain(out, *settings)`: the finished recipe; `chain.words(out, ...)`: its words."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join((synthetic_data / "train.jsonl").read_text().splitlines(keepends=True)[:44]))

    def words(out: Path, *settings: str) -> list[Any]:
        data = (f"MODEL={tiny_model}", f"DATA={rows}", f"IMAGE_ROOT={synthetic_data}", f"OUT={out}")
        return ["bash", RECIPE, *data, *SETTINGS, *settings, *FLAGS]

    def start(out: Path, *settings: str) -> Any:
        env = ENV | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        return run(words(out, *settings), timeout=400, **env)

    start.words = words  # type: ignore[attr-defined]
    return start


def state(out: Path) -> dict[str, Any]:
    """rounds.json without what names a folder."""
    return json.loads((out / "rounds.json").read_text().replace(str(out), "OUT"))


@pytest.mark.slow
def test_a_chain_that_was_killed_ends_as_one_that_was_not(chain, tmp_path):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    done = chain(whole, "ROUNDS=1")
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.copytree(whole, torn)
    done = chain(whole, "ROUNDS=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "round 1: evaluate is done" in done.stderr

    # Round 2 as it is when its generation was killed in the middle.
    (torn / "round-2").mkdir()
    lines = (whole / "round-2/generated.jsonl").read_text().splitlines(keepends=True)
    (torn / "round-2/generated.jsonl.part0").write_text("".join(lines[1:9]) + lines[12][:30])
    name = "round-2/generated.jsonl.settings.json"
    (torn / name).write_text((whole / name).read_text().replace(str(whole), str(torn)))
    # Then its training is, once it has a checkpoint.
    env = os.environ | ENV | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    words = [str(word) for word in chain.words(torn, "ROUND=2")]
    with open(tmp_path / "killed.log", "w") as log:
        process = subprocess.Popen(words, env=env, stdout=log, stderr=log, start_new_session=True)
    end = time.monotonic() + 300
    while not (torn / "round-2/model/checkpoint-2/complete.json").exists():
        assert process.poll() is None and time.monotonic() < end, (tmp_path / "killed.log").read_text()
        time.sleep(0.01)
    os.killpg(process.pid, 9)
    process.wait()
    assert "train" not in state(torn)["rounds"]["2"]
    done = chain(torn, "ROUNDS=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert state(torn)["rounds"] == state(whole)["rounds"]
    assert json.loads((torn / "table.json").read_text())["rows"][2]["model"] == "round 2"
    trained = state(whole)["rounds"]["2"]["train"]
    assert set(trained["pairs"]) == {"round-1/pairs.jsonl", "round-2/pairs.jsonl"} and trained["steps"] == 4
    done = subprocess.run([*words, "--max_steps", "5"], env=env, capture_output=True, text=True, check=False)
    assert (
        done.returncode == 2
        and "round 2 was trained with other flags: then --max_steps 4; now --max_steps 5" in done.stderr
    )


@pytest.mark.slow
def test_a_server_answers_and_an_adapter_goes_on_from_round_to_round(chain, chat_server, tmp_path, run):
    """Step by step, as a graph of jobs does it; the evaluation, which changes nothing here, is left out."""
    out = tmp_path / "out"
    server = ("BACKEND=openai", f"BASE_URL={chat_server.url}", "LORA=4", "EVALUATE_FLAGS=--max_new_tokens 2")
    chat_server.answer = lambda body: f"answer {len(chat_server.requests)} of {body['model'][-13:]}"

    def step(number: int, name: str) -> Any:
        return chain(out, *server, f"ROUND={number}", f"STEP={name}")

    chat_server.dies_after = 9
    torn = step(1, "generate")
    assert torn.returncode == 2 and "Traceback" not in torn.stderr, torn.stderr
    chat_server.dies_after = None
    for number in (1, 2):
        for name in ("generate", "pairs", "train"):
            done = step(number, name)
            assert done.returncode == 0, done.stdout + done.stderr
        recorded = run(
            [sys.executable, "tools/rounds.py", "record", "--out", out, "--round", number, "--step", "train"]
        )
        assert recorded.returncode == 0, recorded.stderr
    rounds = state(out)["rounds"]
    assert rounds["1"]["generate"]["settings"]["model"]["name"].endswith("tiny_model")
    assert rounds["2"]["generate"]["settings"]["model"]["name"].endswith("round-1/model")
    rejected = [json.loads(line)["rejected"] for line in (out / "round-2/pairs.jsonl").read_text().splitlines()]
    assert all(text.endswith("round-1/model") for text in rejected)
    models = [out / f"round-{number}/model" for number in (1, 2)]
    assert all(
        (model / "adapter_config.json").is_file() and not (model / "model.safetensors").exists() for model in models
    )
    trainable = [json.loads((model / "run.json").read_text())["parameters"]["all"]["trainable"] for model in models]
    assert trainable[0] == trainable[1] > 0
    assert rounds["1"]["train"]["identity"] != rounds["2"]["train"]["identity"]
    assert set(rounds["2"]["train"]["pairs"]) == {"round-1/pairs.jsonl", "round-2/pairs.jsonl"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "kind"),
    [("spin_minicpm_v_8b", "minicpmv"), ("spin_cogvlm2_19b", "cogvlm2")],
    ids=["minicpmv", "cogvlm2"],
)
def test_a_round_of_a_family_through_its_own_recipe(recipe, kind, tiny_families, synthetic_data, tmp_path, run):
    """Answers, pairs and two steps on two ranks, with what the recipe sets but for the card: no bfloat16 on these cores."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join((synthetic_data / "train.jsonl").read_text().splitlines(keepends=True)[:36]))
    out = tmp_path / "out"
    data = (f"MODEL={tiny_families(kind)}", "DIRECT=", f"DATA={rows}", f"IMAGE_ROOT={synthetic_data}", f"OUT={out}")
    env = ENV | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "NPROC_PER_NODE": "2"}
    flags = (*FLAGS[2:], "--max_steps", 2, "--per_device_train_batch_size", 4)
    for step in ("generate", "pairs", "train"):
        words = (
            "bash",
            RECIPE.with_name(f"{recipe}.sh"),
            *data,
            *SETTINGS,
            "LAYOUT=zero2",
            "ROUND=1",
            f"STEP={step}",
            *flags,
        )
        done = run(words, timeout=400, **env)
        assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    said = json.loads((out / "round-1/model/run.json").read_text())
    assert (said["state"], said["world_size"], said["zero_stage"]) == ("finished", 2, 2)
    assert said["config"]["training"]["beta"] == 0.5 and said["config"]["training"]["adam_beta2"] == 0.95
    losses = [json.loads(line) for line in (out / "round-1/model/metrics.jsonl").read_text().splitlines()]
    assert next(row["loss"] for row in losses if "loss" in row) == pytest.approx(0.693147, abs=1e-4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "MODEL (the fine-tuned model) and DATA (training rows) are needed"),
        (("MODEL=m", "DATA=d", "ROUND=two"), "whole numbers"),
        (("MODEL=m", "DATA=d", "STEP=train"), "of which round"),
        (("MODEL=m", "DATA=d", "ROUND=1", "STEP=sft"), "generate, pairs, train or evaluate"),
        (("MODEL=m", "DATA=d", "BACKEND=openai"), "needs BASE_URL"),
        (("MODEL=m", "DATA=d", "BETA=1"), "BETA is not a setting"),
        (("MODEL=m", "DATA=d", "--shard", "0/2"), "--shard is for STEP=generate"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(dry, words, said):
    done = dry(RECIPE, *words, NPROC_PER_NODE="1")
    assert done.returncode == 2 and said in done.stderr, done.stdout


def test_several_nodes_run_the_training_alone(dry):
    nodes = {"NPROC_PER_NODE": "8", "NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "node0", "MASTER_PORT": "29501"}
    done = dry(RECIPE, "MODEL=m", "DATA=d", **nodes)
    assert done.returncode == 2 and "slurm/spin_rounds.sh" in done.stderr
    done = dry(RECIPE, "MODEL=m", "DATA=d", "ROUND=3", "STEP=train", **nodes)
    assert done.returncode == 0 and done.stdout.count("drive_vlm spin") == 1 and "rounds.py" not in done.stdout


def test_betas_and_rates_are_those_of_the_round_and_the_last_one_stays(dry):
    text = dry(RECIPE, "MODEL=m", "DATA=d", "ROUNDS=5", NPROC_PER_NODE="1").stdout.split()
    assert [text[i + 1] for i, word in enumerate(text) if word == "--beta"] == ["0.1", "0.1", "0.1", "5.0", "5.0"]
    rates = [text[i + 1] for i, word in enumerate(text) if word == "--learning_rate"]
    assert rates == ["5e-7", "5e-7", "1e-7", "1e-7", "1e-7"]


def test_an_adapter_is_made_in_the_first_round_and_trained_on_in_the_next(dry):
    words = ("MODEL=m", "DATA=d", "LORA=64", "STEP=train")
    assert "--lora_rank 64" in dry(RECIPE, *words, "ROUND=1", NPROC_PER_NODE="1").stdout
    second = dry(RECIPE, *words, "ROUND=2", NPROC_PER_NODE="1").stdout
    assert "--lora_rank" not in second and "--model runs/spin/round-1/model" in second
