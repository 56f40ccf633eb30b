"""What a recipe would run, word for word, in each topology."""

import os
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden" / "internvl3_1b_sft.txt"
RECIPE = "recipes/internvl3_1b_sft.sh"
TOPOLOGIES = {
    "one process": {"NPROC_PER_NODE": "1"},
    "eight processes": {"NPROC_PER_NODE": "8", "MASTER_PORT": "29501"},
    "deepspeed launcher": {"NPROC_PER_NODE": "2", "MASTER_PORT": "29501", "LAUNCHER": "deepspeed"},
    "second of two nodes": {
        "NPROC_PER_NODE": "8",
        "NNODES": "2",
        "NODE_RANK": "1",
        "MASTER_ADDR": "node0",
        "MASTER_PORT": "29501",
    },
}


def test_dry_run_of_every_topology_is_the_golden_text(run):
    texts = []
    for name, env in TOPOLOGIES.items():
        done = run(["bash", RECIPE, "--data", "my rows.jsonl"], DRY_RUN="1", **env)
        assert done.returncode == 0, done.stderr
        texts.append(f"# {name}\n{done.stdout}")
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text("\n".join(texts))
    assert "\n".join(texts) == GOLDEN.read_text()


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"LAUNCHER": "mpirun", "NPROC_PER_NODE": "2"}, "Use torchrun or deepspeed"),
        ({"NNODES": "2", "NPROC_PER_NODE": "2"}, "MASTER_ADDR"),
    ],
)
def test_a_wrong_topology_is_an_error_with_the_way_out(run, env, words):
    done = run(["bash", RECIPE, "--data", "rows.jsonl"], DRY_RUN="1", **env)
    assert done.returncode != 0
    assert words in done.stderr


def test_the_only_launcher_line_is_in_launch_sh():
    for script in Path("recipes").glob("*.sh"):
        if script.name != "_launch.sh":
            assert not any(
                line.strip().startswith(("torchrun ", "deepspeed ")) for line in script.read_text().splitlines()
            )
