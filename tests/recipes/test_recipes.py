"""What every recipe would run, word for word, in each topology."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from drive_vlm.__main__ import main
from drive_vlm.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "dry_run"
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("[!_]*.sh"))
# Recipes of rounds print many commands: two rounds, or one with an adapter, in one topology.
ROUNDS = {
    "spin_rounds": {"NPROC_PER_NODE": "8", "MODEL": "runs/sft", "ROUNDS": "2", "JUDGE": "--judge_model judge"},
    "spin_llava_next_8b": {"NPROC_PER_NODE": "8", "ROUND": "1", "LORA": "64", "FREEZE": "vision_tower"},
    "spin_minicpm_v_8b": {"NPROC_PER_NODE": "8", "ROUND": "1", "LAYOUT": "zero3"},
    "spin_cogvlm2_19b": {"NPROC_PER_NODE": "8", "ROUND": "1", "LORA": "64", "FREEZE": "vision_tower projector"},
    "synth_rounds": {"NPROC_PER_NODE": "8", "MODEL": "runs/sft", "ROUNDS": "2", "SYNTH": "plan.yaml"},
}
# The whole of OpenDriver: other recipes one after the other.
CHAINS = {"opendriver": ("FAMILY=minicpm_v_8b", "SYNTH=plan.yaml", "JUDGE_FLAGS=--judge_model judge")}
DEMONSTRATIONS = (
    "quickstart",
    "drive_vlm_synthetic",
    "spin_synthetic",
    "bddoia_synthetic",
    "clarify_synthetic",
    "opendriver_synthetic",
)
# Two processes, or one, on one machine, always.
OWN_TOPOLOGY = {*DEMONSTRATIONS, "drive_vlm_4090", "bddoia_4090", "clarify_4090"}
STEP = {
    "SLURM_JOB_ID": "40123",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_NODEID": "1",
    "SLURMD_NODENAME": "gpu08.invalid",
}
TASK_A_NODE = {**STEP, "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "2", "NPROC_PER_NODE": "8"}
TASK_A_GPU = {
    **STEP,
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
}
TWO_NODES = {"NPROC_PER_NODE": "8", "NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "node0", "MASTER_PORT": "29501"}
TOPOLOGIES = {
    "one process": {"NPROC_PER_NODE": "1"},
    "two processes": {"NPROC_PER_NODE": "2"},
    "two GPUs of a shared machine": {"CUDA_VISIBLE_DEVICES": "2,5"},
    "two processes, restarted up to three times": {"NPROC_PER_NODE": "2", "MAX_RESTARTS": "3"},
    "second of two nodes": TWO_NODES,
    "second of two nodes, restarted up to three times": {**TWO_NODES, "MAX_RESTARTS": "3"},
    "Slurm step, one task a node": TASK_A_NODE,
    "Slurm step, requeued once": {**TASK_A_NODE, "SLURM_RESTART_COUNT": "1", "RESUME": "auto", "SLURM_NODEID": "0"},
    "Slurm step, one task a GPU": TASK_A_GPU,
    "batch script of Slurm, no step": {"SLURM_JOB_ID": "40123", "SLURM_PROCID": "0", "SLURM_STEP_ID": "4294967291"},
    "deepspeed launcher": {"NPROC_PER_NODE": "2", "MASTER_PORT": "29501", "LAUNCHER": "deepspeed"},
    "deepspeed launcher, two GPUs of a shared machine": {
        "CUDA_VISIBLE_DEVICES": "2,5",
        "MASTER_PORT": "29501",
        "LAUNCHER": "deepspeed",
    },
    "deepspeed launcher, second of two nodes": {**TWO_NODES, "LAUNCHER": "deepspeed", "TMPDIR": "/tmp"},
    "deepspeed launcher, Slurm step": {**TASK_A_NODE, "LAUNCHER": "deepspeed", "TMPDIR": "/tmp"},
    "plan": {"PLAN": "1", "NPROC_PER_NODE": "8"},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_dry_run_of_every_topology_is_the_golden_text(dry, recipe):
    topologies = {"its own topology": {}} if recipe in OWN_TOPOLOGY else TOPOLOGIES
    flags: tuple[str, ...] = () if recipe in DEMONSTRATIONS else ("--data", "my rows.jsonl")
    if recipe in ROUNDS:
        topologies, flags = {"eight GPUs": ROUNDS[recipe]}, ("DATA=my data/train.jsonl", "--seed", "3")
    if recipe in CHAINS:
        topologies, flags = {"eight GPUs": {"NPROC_PER_NODE": "8"}}, CHAINS[recipe]
    texts = []
    for name, env in topologies.items():
        done = dry(f"recipes/{recipe}.sh", *flags, **env)
        assert done.returncode == 0, done.stderr
        texts.append(f"# {name}\n{done.stdout}")
    text = "\n".join(texts).replace(f"/drive_vlm_{os.getuid()}", "/drive_vlm_UID").replace(f"{ROOT}/", "")
    text = re.sub(r"--seconds \d+", "--seconds 0", text)  # what a dry run takes on a busy machine
    golden = GOLDEN / f"{recipe}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.parametrize("recipe", DEMONSTRATIONS)
def test_a_demonstration_takes_neither_words_nor_a_plan(dry, recipe):
    """Words that it ignored would start the whole of it; its models are not there to be planned."""
    done = dry(f"recipes/{recipe}.sh", "--max_steps", "3")
    assert done.returncode == 2 and f"{recipe} takes no words (--max_steps 3)" in done.stderr and not done.stdout
    done = dry(f"recipes/{recipe}.sh", PLAN="1")
    assert done.returncode == 2 and "made on the way and cannot be planned" in done.stderr and not done.stdout


PLANNED = {
    "bddoia_sft": [],
    "bddoia_a2c": ["--model", "smolvlm", "--lora_rank", "16"],
    "clarify_grpo": ["--model", "qwen3_vl_2b", "--lora_rank", "8"],
    "clarify_sft": ["--model", "qwen3_vl_2b"],
    "cogvlm2_19b_sft": [],
    "drive_vlm_stage1": ["--model", "siglip2_qwen3_4b"],
    "drive_vlm_stage2": ["--model", "siglip2_qwen3_4b"],
    "drive_vlm_stage3": ["--model", "siglip2_qwen3_4b", "--lora_rank", "32"],
    "internvl3_1b_sft": [],
    "llava_next_8b_sft": [],
    "minicpm_v_8b_sft": [],
    "opendriver": ["FAMILY=cogvlm2_19b", "SYNTH=plan.yaml"],
    "qwen2_5_vl_sft": [],
    "qwen3_vl_sft": [],
    "spin_cogvlm2_19b": ["DATA=rows.jsonl"],
    "spin_llava_next_8b": ["DATA=rows.jsonl"],
    "spin_minicpm_v_8b": ["DATA=rows.jsonl"],
    "spin_rounds": ["MODEL=internvl3_1b", "DATA=rows.jsonl"],
    "synth_rounds": ["SYNTH=plan.yaml", "RECIPE=spin_llava_next_8b", "DATA=rows.jsonl"],
}


@pytest.fixture
def plans_of(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """`plans_of(recipe, *words, gpus)`: what PLAN=1 prints. The recipe's own plan commands run in this process, which saves their start."""
    stages, asked = tmp_path / "stages", tmp_path / "asked"
    stages.write_text("".join(f"{name}\n" for name in STAGES))
    (tmp_path / "python").write_text(
        f"""#!/bin/bash
case "$*" in
  "-m drive_vlm stages") cat {stages} ;;
  "-m drive_vlm plan "*) printf '%s\\0' "$DRIVE_VLM_RECIPE" "$DRIVE_VLM_USER_WORDS" "${{@:3}}" >>{asked}; printf '\\0' >>{asked} ;;
  *) exec {sys.executable} "$@" ;;
esac
"""
    )
    (tmp_path / "python").chmod(0o755)

    def plans(recipe: str, *words: str, gpus: int) -> str:
        asked.unlink(missing_ok=True)
        env = {"VIRTUAL_ENV": sys.prefix, "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
        done = run(["bash", f"recipes/{recipe}.sh", *words], PLAN="1", NPROC_PER_NODE=str(gpus), **env)
        assert done.returncode == 0, done.stderr
        for command in asked.read_text().removesuffix("\0\0").split("\0\0"):
            name, count, *words_of_plan = command.split("\0")
            monkeypatch.setenv("DRIVE_VLM_RECIPE", name)
            monkeypatch.setenv("DRIVE_VLM_USER_WORDS", count)
            monkeypatch.setattr(sys, "argv", ["drive_vlm", *words_of_plan])
            main()
        return capsys.readouterr().out

    return plans


@pytest.mark.parametrize("gpus", [1, 2, 4, 8])
@pytest.mark.parametrize("recipe", PLANNED)
def test_a_recipe_runs_unchanged_on_any_number_of_gpus(plans_of, recipe, gpus):
    """The global batch is a multiple of what all GPUs take at once, and so are the groups of a generation batch."""
    assert f" accumulation x {gpus} GPUs" in plans_of(recipe, *PLANNED[recipe], gpus=gpus)


def test_a_plan_of_a_recipe_is_that_of_its_command(run, plans_of):
    words, env = (
        PLANNED["drive_vlm_stage3"],
        {"VIRTUAL_ENV": sys.prefix, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    done = run(["bash", "recipes/drive_vlm_stage3.sh", *words], PLAN="1", NPROC_PER_NODE="2", **env)
    # Others use the disk as well.
    free = re.compile(r"[\d.]+ GiB, (not )?enough")
    texts = [free.sub("", text) for text in (done.stdout, plans_of("drive_vlm_stage3", *words, gpus=2))]
    assert done.returncode == 0 and texts[0] == texts[1]


@pytest.mark.parametrize(
    ("recipe", "extras"),
    [
        ("generate", "video"),
        ("bddoia_a2c", "eval"),
        ("bddoia_4090", "eval"),
        ("clarify_4090", "eval,trl"),
        ("clarify_grpo", "eval,trl"),
        ("drive_vlm_4090", "video,yolo,trl,reward"),
        ("drive_vlm_stage1", "video"),
        ("drive_vlm_stage2", "video"),
        ("drive_vlm_stage3", "video,trl,reward"),
        ("spin_rounds", "eval,trl"),
    ],
)
def test_recipes_ask_for_the_packages_that_they_use(run, tmp_path, recipe, extras):
    """In an environment that lacks everything: what a node of a job says it was to have."""
    (tmp_path / "python").write_text("#!/bin/bash\necho all\n")
    (tmp_path / "python").chmod(0o755)
    env = {"SLURM_JOB_ID": "7", "VIRTUAL_ENV": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = run(["bash", f"recipes/{recipe}.sh"], **env)
    assert done.returncode == 2 and done.stderr.rstrip().endswith(f"_environment.sh {extras}"), done.stderr


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"LAUNCHER": "mpirun", "NPROC_PER_NODE": "2"}, "Use torchrun or deepspeed"),
        ({"NNODES": "2", "NPROC_PER_NODE": "2"}, "NODE_RANK"),
        ({**TWO_NODES, "MASTER_PORT": ""}, "MASTER_PORT"),
        ({"MAX_RESTARTS": "2", "LAUNCHER": "deepspeed"}, "restarts nothing"),
        ({"MAX_RESTARTS": "often"}, "not a number"),
        ({**TASK_A_GPU, "SLURM_STEP_NUM_TASKS": "15"}, "same number"),
        ({**TASK_A_GPU, "SLURM_STEP_TASKS_PER_NODE": "10,6"}, "same number"),
        ({**TASK_A_GPU, "NPROC_PER_NODE": "4"}, "one task a node"),
        ({**TASK_A_GPU, "MAX_RESTARTS": "1"}, "one task a node"),
        ({**TASK_A_NODE, "SLURM_STEP_NODELIST": "elsewhere"}, "Set MASTER_ADDR"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8f2a,GPU-11c0", "LAUNCHER": "deepspeed"}, "LAUNCHER=torchrun"),
        ({**TWO_NODES, "LAUNCHER": "deepspeed", "CUDA_VISIBLE_DEVICES": "4,5", "NPROC_PER_NODE": "2"}, "from 0"),
    ],
)  # fmt: skip
def test_a_wrong_topology_is_an_error_with_the_way_out(dry, env, words):
    done = dry("recipes/internvl3_1b_sft.sh", "--data", "rows.jsonl", **env)
    assert done.returncode == 2, done.stdout
    assert words in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(
    ("env", "single", "ranks"),
    [
        ({}, "CORES", "HALF"),
        ({"RANK_THREADS": "1"}, "CORES", "1"),
        ({"SLURM_CPUS_PER_TASK": "6"}, "6", "3"),
        ({"SLURM_CPUS_PER_TASK": "6", "RANK_THREADS": "1"}, "6", "1"),
        ({"OMP_NUM_THREADS": "5", "RANK_THREADS": "1"}, "5", "5"),
    ],
)
@pytest.mark.parametrize("bound", [True, False])
def test_one_process_takes_all_cores_and_ranks_divide_them(run, tmp_path, env, single, ranks, bound):
    """`bound`: to one of the machine's cores. A recipe that another one runs divides the cores itself."""
    for name in ("python", "torchrun"):
        (tmp_path / name).write_text(f"#!/bin/bash\necho {name} $OMP_NUM_THREADS\n")
        (tmp_path / name).chmod(0o755)
    inner = f"source {ROOT}/recipes/_launch.sh\nNPROC_PER_NODE=2 launch generate\n"
    (tmp_path / "inner.sh").write_text(inner)
    recipe = tmp_path / "outer.sh"
    recipe.write_text(f"{inner}NPROC_PER_NODE=1 launch generate\nrun python tools/x.py\nrun bash {tmp_path}/inner.sh\n")
    words = ["taskset", "-c", min(os.sched_getaffinity(0))] if bound else []
    env = {"CUDA_VISIBLE_DEVICES": "", "PATH": f"{tmp_path}:{os.environ['PATH']}", **env}
    done = run([*words, "env", *(() if "OMP_NUM_THREADS" in env else ("-u", "OMP_NUM_THREADS")), "bash", recipe], **env)
    cores = 1 if bound else len(os.sched_getaffinity(0))
    single, ranks = ({"CORES": cores, "HALF": -(-cores // 2)}.get(word, word) for word in (single, ranks))
    lines = [f"torchrun {ranks}", f"python {single}", f"python {single}", f"torchrun {ranks}"]
    assert (done.returncode, done.stdout.splitlines()) == (0, lines), done.stderr


def test_where_slurm_shows_each_task_one_gpu_it_is_number_0(dry):
    done = dry("recipes/internvl3_1b_sft.sh", **TASK_A_GPU, CUDA_VISIBLE_DEVICES="0")
    assert "\nLOCAL_RANK=0 " in done.stdout
    done = dry("recipes/internvl3_1b_sft.sh", **TASK_A_GPU, CUDA_VISIBLE_DEVICES="0,1,2,3,4,5,6,7")
    assert "\nLOCAL_RANK=3 " in done.stdout


def test_steps_jobs_and_launches_have_ports_and_rendezvous_of_their_own(dry, tmp_path):
    recipe = tmp_path / "two.sh"
    recipe.write_text(f'source {ROOT}/recipes/_launch.sh\nlaunch generate --out a "$@"\nlaunch generate --out b "$@"\n')
    seen = set()
    for job, step in (("40123", "0"), ("40123", "1"), ("40124", "0")):
        text = dry(recipe, **TASK_A_NODE | {"SLURM_JOB_ID": job, "SLURM_STEP_ID": step}).stdout.split()
        ids = [text[i + 1] for i, word in enumerate(text) if word == "--rdzv_id"]
        ends = [text[i + 1] for i, word in enumerate(text) if word == "--rdzv_endpoint"]
        seen |= set(zip(ids, ends, strict=True))
    assert len({id for id, _ in seen}) == 6
    assert len(seen) == 6 and all(end.startswith("10.0.0.7:1") or end.startswith("10.0.0.7:2") for _, end in seen)


@pytest.mark.parametrize(
    ("words", "count"),
    [((), 0), (("--data", "a b.jsonl", "--seed", "1"), 4), (("--warmup_steps", "0.03"), 2)],
)
def test_the_words_of_the_user_are_counted(dry, words, count):
    done = dry("recipes/internvl3_1b_sft.sh", *words)
    assert f"\nDRIVE_VLM_USER_WORDS={count} " in done.stdout
    assert "\nDRIVE_VLM_RECIPE=recipes/internvl3_1b_sft.sh " in done.stdout


def test_a_launch_that_does_not_take_the_users_words_counts_none(dry, tmp_path):
    recipe = tmp_path / "mine.sh"
    recipe.write_text(f"source {ROOT}/recipes/_launch.sh\nlaunch sft --model x --output_dir y\n")
    done = dry(recipe, "--output_dir", "z")
    assert "\nDRIVE_VLM_USER_WORDS=0 " in done.stdout
    assert f"\nDRIVE_VLM_RECIPE={recipe} " in done.stdout


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        ((), (), ""),
        (("--seed", "1", "--bf16"), ("--bf16", "--seed", "1"), ""),
        ((), ("--seed", "1"), "then without; now --seed 1\n"),
        (("--data", "a b", "c", "--bf16"), ("--data", "a b"), "then --data 'a b' c --bf16; now --data 'a b'\n"),
        (("--seed", "1", "--seed", "2"), ("--seed", "2"), ""),
    ],
)
def test_flags_of_a_finished_run_are_compared_with_those_of_now(run, tmp_path, then, now, said):
    """The recipe's own flags (--max_steps) do not count: only what was given to it."""
    words = {"words": ["sft", "--max_steps", "9", *then], "environment": {"DRIVE_VLM_USER_WORDS": str(len(then))}}
    (tmp_path / "run.json").write_text(json.dumps(words))
    script = f'source {ROOT}/recipes/_launch.sh; changed_flags "$@"'
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = run(["bash", "-c", script, "recipe", tmp_path, *now], PATH=path)
    assert (done.stdout, done.returncode) == (said, 0), done.stderr


def test_resume_is_asked_for_before_the_users_flags_and_for_training_only(dry, tmp_path):
    done = dry("recipes/internvl3_1b_sft.sh", "--data", "rows.jsonl", RESUME="auto")
    assert "--resume auto \\\n  --data rows.jsonl" in done.stdout
    done = dry("recipes/internvl3_1b_sft.sh", "--resume", "checkpoint-5", RESUME="auto")
    assert "auto" not in done.stdout
    recipe = tmp_path / "answers.sh"
    recipe.write_text(f'source {ROOT}/recipes/_launch.sh\nlaunch generate "$@"\n')
    assert "--resume" not in dry(recipe, RESUME="auto").stdout


def test_a_stopped_training_leaves_out_the_rest_of_its_recipe(run, tmp_path):
    """Training that saved on request ends with 0: without a check the recipe would go on with a half-trained model."""
    (tmp_path / "python").write_text(
        f'#!/bin/bash\n[ "$*" != "-m drive_vlm stages" ] || exec {sys.executable} "$@"\n'
        'case "$*" in *sft*) echo "{\\"state\\": \\"saved\\", \\"step\\": 3}" > "$DRIVE_VLM_CONTROL_DIR/status.json";; *) echo "ran $*";; esac\n'
    )
    (tmp_path / "python").chmod(0o755)
    recipe = tmp_path / "two.sh"
    recipe.write_text(f"set -euo pipefail\nsource {ROOT}/recipes/_launch.sh\nlaunch sft\nlaunch generate\n")
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "DRIVE_VLM_CONTROL_DIR": str(tmp_path), "NPROC_PER_NODE": "1"}
    done = run(["bash", recipe], **env)
    assert done.returncode == 0 and "left out" in done.stderr and "ran" not in done.stdout
    (tmp_path / "status.json").unlink()
    recipe.write_text(recipe.read_text().replace("launch sft\n", ""))
    assert "ran -m drive_vlm generate" in run(["bash", recipe], **env).stdout


def test_a_recipe_outlives_sigterm_until_its_ranks_have_saved(tmp_path):
    (tmp_path / "python").write_text(
        "#!/bin/bash\ntrap 'sleep 0.3; echo saved; exit 0' TERM\ntouch started\nwhile :; do sleep 0.05; done\n"
    )
    (tmp_path / "python").chmod(0o755)
    recipe = tmp_path / "one.sh"
    recipe.write_text(f"set -euo pipefail\nsource {ROOT}/recipes/_launch.sh\nlaunch sft\necho went on\n")
    script = (
        f"set -m; bash {recipe} & pid=$!; until [ -e started ]; do sleep 0.05; done; kill -TERM -- -$pid; wait $pid"
    )
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NPROC_PER_NODE": "1"}
    done = subprocess.run(
        ["bash", "-c", script], check=False, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=20
    )
    assert (done.stdout, done.returncode) == ("saved\n", 143), done.stderr


def test_nodes_of_a_job_only_check_the_environment(run, tmp_path):
    recipe = tmp_path / "mine.sh"
    recipe.write_text(f"source {ROOT}/recipes/_launch.sh\nensure_environment no_such_extra\necho ready\n")
    env = {"SLURM_JOB_ID": "7", "VIRTUAL_ENV": str(tmp_path)}
    done = run(["bash", recipe], **env)
    assert (done.stdout, done.returncode) == ("ready\n", 0), done.stderr
    (tmp_path / "python").symlink_to(sys.base_prefix + f"/bin/python3.{sys.version_info[1]}")
    done = run(["bash", recipe], **env, PATH=f"{tmp_path}:/usr/bin:/bin", PYTHONPATH="")
    assert done.returncode == 2 and "bash " in done.stderr and "_environment.sh no_such_extra" in done.stderr


def test_the_only_launcher_line_is_in_launch_sh():
    for script in [*(ROOT / "recipes").glob("*.sh"), *(ROOT / "slurm").glob("*")]:
        if script.name != "_launch.sh":
            lines = [line.strip() for line in script.read_text().splitlines()]
            assert not any(line.startswith(("torchrun ", "deepspeed ")) for line in lines), script


@pytest.mark.slow
def test_two_runs_at_once_on_one_machine_do_not_meet(tmp_path):
    """Both recipes start two ranks in the same moment; each of the four must see a world of two and its own folder."""
    recipe = tmp_path / "pair.sh"
    recipe.write_text(f'set -euo pipefail\nsource {ROOT}/recipes/_launch.sh\nexport PYTHONPATH=$PWD/$1\nlaunch "$@"\n')
    for name in ("a", "b"):
        package = tmp_path / name / "drive_vlm"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(
            "import time, torch, torch.distributed as dist\n"
            "dist.init_process_group('gloo')\n"
            f"seen = [None] * dist.get_world_size(); dist.all_gather_object(seen, {name!r}); time.sleep(1)\n"
            f"dist.barrier(); print('{name}', seen, flush=True) if dist.get_rank() == 0 else None\n"
        )
    env = {name: value for name, value in os.environ.items() if name not in ("MASTER_PORT", "NNODES")}
    env |= {"NPROC_PER_NODE": "2", "CUDA_VISIBLE_DEVICES": ""}
    both = [
        subprocess.Popen(["bash", recipe, name], cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for name in ("a", "b")
    ]
    texts = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    assert [out.decode() for out, _ in texts] == ["a ['a', 'a']\n", "b ['b', 'b']\n"]
