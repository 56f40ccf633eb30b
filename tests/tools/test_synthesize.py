"""tools/synthesize.py: the steps of a plan, killed and not, in shards; what it prints before; what it refuses."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = "tools/synthesize.py"
GOLDEN = ROOT / "tests" / "golden" / "synthesize.txt"
NAMES = ["bicycle", "bus", "car", "person", "traffic cone", "traffic light", "traffic sign", "truck"]
# All steps that there are but the two that stand in for others.
WHOLE = {
    "out": "runs/synthetic",
    "data": ["data/frames"],
    "image_root": "data",
    "servers": {"teacher": {"base_url": "http://localhost:8000/v1", "model": "teacher", "price_in": 1.0, "price_out": 4.0}},
    "steps": {
        "database": {"data": ["data/named"], "model": "google/siglip2-base-patch16-224"},
        "knowledge": {"data": ["data/wikipedia.jsonl"]},
        "detect": {"model": "IDEA-Research/grounding-dino-base", "labels": ["car", "traffic cone"], "threshold": 0.3},
        "segment": {"model": "facebook/sam2.1-hiera-small"},
        "embed": {"model": "google/siglip2-base-patch16-224"},
        "retrieve": {"boxes": "check"},
        "describe": {},
        "caption": {"backend": "hf", "model": "{model}", "with_objects": True},
        "refine": {"server": "teacher"},
        "questions": {"server": "teacher", "temperature": 0.7},
        "gate": {"gates": "form,grounding,positions,duplicates,decontamination,judge,balance", "judge_model": "judge"},
    },
}  # fmt: skip


@pytest.fixture
def plan(tmp_path: Path) -> Any:
    """`plan(content)`: a file of it."""

    def write(content: Any, name: str = "plan.json") -> Path:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


# ---- what is printed before anything runs


@pytest.mark.slow
def test_commands_graph_and_estimate_are_the_golden_text(plan, run_here, run, tmp_path):
    """The numbers of the estimate by hand: a preview of two pictures, caption in this process at 3 s a picture, refine with 2 calls of
    300 + 50 tokens in all: 200,000 pictures take 300 M and 50 M tokens at 1 and 4 dollars a million = 500 dollars."""
    path = plan(WHOLE)
    texts = []
    for title, words in {
        "commands": ("--dry_run", "--model", "runs/sft", "--round", 2),
        "commands of a shard": ("--dry_run", "--model", "runs/sft", "--steps", "detect..refine", "--shard", "1/4"),
        "commands of a round": (
            "--dry_run",
            "--model",
            "m",
            "--steps",
            "caption..",
            "--frozen",
            "runs/frozen",
            "--out",
            "runs/r1",
        ),
    }.items():
        done = run_here(TOOL, "--plan", path, *words)
        assert done.returncode == 0, done.stderr
        texts.append(f"# {title}\n{done.stdout}")
    graph = (
        "bash",
        "slurm/synthesize.sh",
        "--plan",
        path,
        "--shards",
        8,
        "--at-once",
        4,
        "--time",
        "2:00:00",
        "--dry-run",
    )
    done = run([*graph, "--", "--model", "runs/sft"])
    assert done.returncode == 0, done.stderr
    texts.append(f"# graph\n{done.stdout}")
    out = tmp_path / "out"
    write_preview(out / "preview")
    done = run_here(
        TOOL, "--plan", path, "--out", out, "--estimate", "--pictures", 200_000, "--model", "m", COLUMNS="160"
    )
    assert done.returncode == 0, done.stderr
    texts.append(f"# estimate\n{done.stdout}")
    text = "\n".join(texts).replace(str(tmp_path), "TMP")
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()
    assert "500.0000" in text and "166.67" in text  # 200,000 x 3 s are 166.67 hours


def write_preview(folder: Path) -> None:
    folder.mkdir(parents=True)
    caption = {"key": "k", "image": "a.png", "calls": {"caption": 1}, "tokens": {"caption": {}}}
    refine = {
        "key": "k",
        "image": "a.png",
        "calls": {"refine": 1},
        "tokens": {"refine": {"prompt": 1500, "reply": 250}},
    }
    for name, line, seconds in (("caption", caption, 6.0), ("refine", refine, 9.0)):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(line | {"image": f"{i}.png"}) + "\n" for i in range(2)))
        audit = {"seconds": seconds, "made": 2, "cost": 0.0}
        path.with_name(f"{path.name}.audit.json").write_text(json.dumps(audit))


def test_a_preview_makes_its_own_lines_and_shares_what_is_made_of_no_picture(plan, run_here):
    done = run_here(TOOL, "--plan", plan(WHOLE), "--dry_run", "--model", "m", "--preview", 3)
    assert done.returncode == 0, done.stderr
    words = {
        line.split()[1].removeprefix("tools/synth_").removesuffix(".py"): line.split()
        for line in done.stdout.splitlines()
    }
    assert words["database"][words["database"].index("--out") + 1] == "runs/synthetic/database"
    assert words["retrieve"][words["retrieve"].index("--database") + 1] == "runs/synthetic/database"
    assert words["detect"][words["detect"].index("--out") + 1] == "runs/synthetic/preview/detect.jsonl"
    assert words["detect"][words["detect"].index("--limit") + 1] == "3" and "--limit" not in words["segment"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stepz": {}}, "stepz is not known. Did you mean steps?"),
        ({"steps": {"retreive": {}}}, "steps: retreive is not known. Did you mean retrieve?"),
        ({"steps": {}}, "steps: the plan has none"),
        ({"steps": {"truth": {"shard": "0/2"}}}, "steps.truth.shard is decided by the plan itself"),
        ({"steps": {"refine": {"server": "techer"}}}, "steps.refine.server: 'techer' is none of servers: teacher"),
        ({"out": None}, "out is missing"),
        ({"data": []}, "data is missing"),
        ({"steps": {"truth": {"misses": {"a": 1}}}}, "steps.truth.misses: a flag takes a text, a number"),
        ({"steps": {"ask": {"model": "{model}"}}}, "steps.ask.model: {model} needs --model"),
        ("steps: [", "not valid YAML"),
        ("- a", "a plan is a mapping"),
    ],
)
def test_a_plan_that_cannot_be_meant_is_named_by_its_key(plan, run_here, change, said):
    path = plan(WHOLE | change) if isinstance(change, dict) else plan(change, "plan.yaml")
    done = run_here(TOOL, "--plan", path, "--dry_run")
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--steps", "caption..detect"), "caption comes after detect"),
        (("--steps", "truth"), "has no step truth"),
        (("--steps", "tooth"), "'tooth' is no step. Did you mean truth?"),
        (("--steps", "gate", "--shard", "0/2"), "gate is not made in shards"),
        (("--set", "ask.names=car"), "write STEP.FLAG=VALUE with a step of the plan"),
        (("--set", "gate.round=1"), "round is decided by the command line"),
    ],
)
def test_words_that_do_not_fit_the_plan_are_refused(plan, run_here, words, said):
    done = run_here(TOOL, "--plan", plan(WHOLE), "--dry_run", "--model", "m", *words)
    assert done.returncode == 2 and said in done.stderr


# ---- the steps themselves: the truth of 12 scenes, a server that answers, the gates


@pytest.fixture
def small(plan, chat_server, synthetic_data: Path, tmp_path: Path) -> Any:
    """`small(out, **more)`: words for synthesize.py; the server says yes to every question, at 10 dollars a million tokens."""
    chat_server.answer = lambda body: "Yes, there is one."
    lines = (synthetic_data / "scenes.jsonl").read_text().splitlines()
    truths = [truth for truth in map(json.loads, lines) if "image" in truth][:12]
    rows = tmp_path / "pictures.jsonl"
    rows.write_text(
        "".join(json.dumps({"id": t["id"], "image": t["image"], "group": t["group"]}) + "\n" for t in truths)
    )

    def words(out: Path, *more: object) -> list[object]:
        ask = {
            "model": "vlm",
            "base_url": chat_server.url,
            "names": NAMES,
            "workers": 1,
            "max_retries": 0,
            "cache": str(tmp_path / "replies"),
        }
        content = {
            "data": str(rows),
            "image_root": str(synthetic_data),
            "steps": {
                "truth": {"truth": str(synthetic_data / "scenes.jsonl")},
                "ask": ask | {"price_in": 10, "price_out": 10, "batch_size": 2, "picture_tokens": 10},
                "gate": {"gates": "form,duplicates", "rouge": 0.9, "page_pictures": 0},
            },
        }  # fmt: skip
        return [TOOL, "--plan", plan(content), "--out", out, *more]

    return words


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "gate" / "rows.jsonl").read_text().splitlines()]


def finished(done: Any, step: str) -> bool:
    return f"== {step}: finished before" in done.stdout


@pytest.mark.slow
def test_killed_at_any_step_it_ends_with_the_same_rows_and_pays_nothing_twice(small, run_here, chat_server, tmp_path):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    done = run_here(*small(whole))
    assert done.returncode == 0, done.stdout + done.stderr
    asked = len(chat_server.requests)
    assert asked > 24 and len(rows_of(whole)) > 12

    # All of it once more: nothing is asked, no step runs.
    again = run_here(*small(whole))
    assert all(finished(again, step) for step in ("truth", "ask", "gate")), again.stdout
    assert len(chat_server.requests) == asked

    # The server dies in the middle of ask; then the process is gone before gate, and in the middle of the state.
    (tmp_path / "replies").rename(tmp_path / "other")
    chat_server.requests.clear()
    chat_server.dies_after = 7
    broken = run_here(*small(torn))
    assert (
        broken.returncode == 2 and "synthesize: ask ended with 2" in broken.stderr and "Traceback" not in broken.stderr
    )
    chat_server.dies_after = None
    assert run_here(*small(torn, "--steps", "..ask")).returncode == 0
    assert len(chat_server.requests) == asked
    (torn / "ask.jsonl").write_text("".join((torn / "ask.jsonl").read_text().splitlines(keepends=True)[:5]))
    done = run_here(*small(torn))
    assert done.returncode == 0 and finished(done, "truth") and not finished(done, "ask"), done.stdout + done.stderr
    assert len(chat_server.requests) == asked
    assert rows_of(torn) == rows_of(whole)


@pytest.mark.slow
def test_shards_give_the_rows_of_one_run_and_another_setting_is_refused(small, run_here, run, chat_server, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = run_here(*small(whole))
    assert done.returncode == 0, done.stderr
    for shard in ("0/2", "1/2"):
        done = run_here(*small(parts, "--steps", "truth..ask", "--shard", shard))
        assert done.returncode == 0, done.stdout + done.stderr
    (parts / "ask.shard-01-of-02.jsonl").rename(tmp_path / "gone")
    done = run_here(*small(parts, "--steps", "gate"))
    assert done.returncode == 2 and "1 of 2 shards are there" in done.stderr
    (tmp_path / "gone").rename(parts / "ask.shard-01-of-02.jsonl")
    done = run_here(*small(parts, "--steps", "gate"))
    assert done.returncode == 0 and "== ask: joining 2 shards" in done.stdout, done.stdout + done.stderr
    assert rows_of(parts) == rows_of(whole)

    # Other settings of a step need another folder; the steps before it are not begun.
    asked = len(chat_server.requests)
    done = run([sys.executable, *small(whole, "--set", "ask.absent=0")])
    assert done.returncode == 2 and "was made with other settings (questions.absent: 2 then, 0 now)" in done.stderr
    assert finished(done, "truth") and len(chat_server.requests) == asked


@pytest.mark.slow
def test_the_limit_of_cost_holds_over_all_steps_and_a_preview_shows_rows(small, run, run_here, chat_server, tmp_path):
    out = tmp_path / "out"
    done = run_here(*small(out, "--preview", 2))
    assert done.returncode == 0 and "user: <image>\nIs there a" in done.stdout, done.stdout + done.stderr
    assert (out / "preview" / "ask.jsonl").read_text().count("\n") == 2
    previewed = len(chat_server.requests)
    estimate = run_here(*small(out, "--estimate", "--json", tmp_path / "estimate.json"))
    assert estimate.returncode == 0, estimate.stderr
    entry = next(
        item for item in json.loads((tmp_path / "estimate.json").read_text())["estimate"] if item["step"] == "ask"
    )
    assert entry["pictures"] == 12 and entry["calls"] == previewed * 6 and entry["cost"] > 0
    assert len(chat_server.requests) == previewed

    # A step is a process, whose last line goes past this one.
    stopped = run([sys.executable, *small(out, "--max_cost", 0.003)])
    assert (
        stopped.returncode == 2
        and "--max_cost 0.003" in stopped.stderr
        and "synthesize: ask ended with 2" in stopped.stderr
    )
    paid = len(chat_server.requests)
    assert previewed < paid
    done = run_here(*small(out, "--max_cost", 1))
    assert done.returncode == 0, done.stderr
    # Each conversation once, the preview's among them.
    texts = [json.dumps([body["messages"], body.get("seed")]) for body in chat_server.requests]
    assert len(texts) == len(set(texts)) > paid


def test_a_wrong_flag_of_the_last_step_is_found_before_the_first_begins(small, run_here, chat_server, tmp_path):
    done = run_here(*small(tmp_path / "out", "--set", "gate.gatez=form"))
    assert done.returncode == 2 and "unknown argument --gatez. Did you mean --gates?" in done.stderr
    assert not (tmp_path / "out").exists() and not chat_server.requests
