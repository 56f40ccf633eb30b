"""Runs that are killed at random moments and go on with another number of processes walk the curve of one that nobody kills.

In CI three kills of one run. By hand, a line for each kill and each run:
RANDOM_KILLS=50 RANDOM_KILLS_SEED=11 python -m pytest -s tests/stages/engine/test_random_kills.py
"""

import collections
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from drive_vlm.launch.checkpoint import read_complete
from drive_vlm.launch.stop import StopRequested
from drive_vlm.sampling.process_group import join_ranks
from drive_vlm.stages.engine.saving import CheckpointMixin

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("RANDOM_KILLS", "3"))
# The first three kills of this one: rank 1 within a save, rank 0 within a conversion, all at a step.
SEED = int(os.environ.get("RANDOM_KILLS_SEED", "1095"))
# Kills of one run.
EACH = 5
STEPS = 16
GENERATIONS = 4
VICTIMS = ("rank 0", "rank 1", "torchrun", "all")
MOMENTS = ("start", "step", "save", "conversion")
# Seconds that a step takes at least in a run that will be killed, so that the kill finds it there.
PACE = 0.1
CONFIGURATIONS = {
    "sft-zero2": ("sft", "--packing", "--max_length", 160, "--global_batch_size", 4, "--deepspeed", "zero2"),
    "sft-zero3": ("sft", "--deepspeed", "ZERO3", "--weight_decay", 0.5),
    "sft-lora": ("sft", "--deepspeed", "zero2", "--lora_rank", 4),
    "dpo": ("dpo", "--deepspeed", "zero2"),
    "grpo": ("grpo", "--deepspeed", "zero2", "--num_generations", GENERATIONS, "--max_completion_length", 8),
}
# `python RECORDER COMMAND ...` is `python -m drive_vlm COMMAND ...` that writes down which rows each step trains on.
RECORDER = """
import json, os, time
from drive_vlm.__main__ import main
from drive_vlm.stages.engine import run

run_training = run.run_training

def recorded_training(trainer, *rest):
    training_step = trainer.training_step

    def recorded_step(*args, **kwargs):
        time.sleep(float(os.environ["PACE"]))
        loss = training_step(*args, **kwargs)
        line = json.dumps([int(os.environ["LIFE"]), trainer.state.global_step + 1, trainer.sample_ids])
        with open(os.environ["TRAINED"], "a") as file:
            file.write(line + "\\n")
        return loss

    trainer.training_step = recorded_step
    run_training(trainer, *rest)

run.run_training = recorded_training
main()
"""


class Card(NamedTuple):
    """What one kill is to be."""

    victim: str
    moment: str


class Hand(NamedTuple):
    """One run of the campaign: its configuration and kills."""

    configuration: str
    cards: list[Card]
    seed: int


def dealt(kills: int) -> list[Hand]:
    """Every victim at every moment as often as `kills` allows, over the configurations in turn."""
    chance = random.Random(SEED)
    all_cards = [Card(victim, moment) for victim in VICTIMS for moment in MOMENTS]
    deck: list[Card] = []
    while len(deck) < kills:
        deck += chance.sample(all_cards, len(all_cards))
    names = list(CONFIGURATIONS)
    return [
        Hand(names[i % len(names)], deck[start : min(start + EACH, kills)], i)
        for i, start in enumerate(range(0, kills, EACH))
    ]


class Campaign:
    """One output directory, and the lives of the run that writes it."""

    def __init__(self, start: Callable, folder: Path, words: list[object]) -> None:
        self._start, self.folder, self.words = start, folder, words
        self.out, self.lives, self.ranks_of = folder / "run", 0, [0]
        self.trained = folder / "trained.jsonl"
        self.trained.touch()
        self.recorder = folder / "recorder.py"
        self.recorder.write_text(RECORDER)

    def start(self, ranks: int, *flags: object, pace: float = 0.0, **env: str) -> Any:
        self.lives += 1
        self.ranks_of.append(ranks)
        env |= {"PACE": str(pace), "LIFE": str(self.lives), "TRAINED": str(self.trained)}
        return self._start([self.recorder, *self.words, *flags], self.out, ranks, "--max_restarts", "0", **env)

    def to_the_end(self, ranks: int, *flags: object) -> Any:
        run = self.start(ranks, *flags)
        assert run.wait(180) == 0, run.text[-3000:]
        assert not run.survivors()
        return run

    def newest(self) -> tuple[int, int]:
        """Step and number of processes of the newest checkpoint; (0, 0) without. Whatever is named as one is whole."""
        facts = [read_complete(path) for path in self.out.glob("checkpoint-*")]
        return max(((one.step, one.world_size) for one in facts), default=(0, 0))

    def steps(self) -> list[int]:
        """Steps of the last life, once for each micro-batch."""
        lines = [line for line in self.trained.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [step for life, step, _ in map(json.loads, lines) if life == self.lives]

    def rows(self) -> dict[int, tuple[int, list[str]]]:
        """Step -> the last life that made it, with the rows that it trained on."""
        found: dict[int, tuple[int, list[str]]] = {}
        for life, step, ids in map(json.loads, self.trained.read_text().splitlines()):
            before = found.get(step, (0, []))
            found[step] = (life, before[1] + ids if before[0] == life else ids)
        return dict(sorted(found.items()))


@pytest.fixture(scope="module")
def data(synthetic_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 rows, which are pairs as well."""
    folder = tmp_path_factory.mktemp("killed")
    rows = [json.loads(line) for line in (synthetic_data / "train.jsonl").read_text().splitlines()[:20]]
    answers = [row["conversations"][-1]["value"] for row in rows]
    for i, row in enumerate(rows):
        row["rejected"] = next(answer for answer in answers[i + 1 :] + answers[:i] if answer != answers[i])
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


@pytest.fixture
def campaign(
    start_training: Callable, tmp_path: Path, shard_everything: Path, data: Path, synthetic_data: Path, tiny_model: Path
) -> Callable[[str, str], Campaign]:
    def make(configuration: str, name: str) -> Campaign:
        folder = tmp_path / name
        folder.mkdir()
        stage, *flags = (shard_everything if word == "ZERO3" else word for word in CONFIGURATIONS[configuration])
        words = [
            stage, "--model", tiny_model, "--data", data, "--image_root", synthetic_data, "--freeze", "vision_tower", "--max_steps", STEPS,
            "--logging_steps", 1, "--global_batch_size", 8, "--per_device_train_batch_size", 2, "--learning_rate", 1e-3,
            "--lr_scheduler_type", "constant", "--save_steps", 2, "--keep", 2, "--resume", "auto", "--report_to", "none",
            "--disable_tqdm", "true", "--use_cpu", "true", *flags,
        ]  # fmt: skip
        if stage == "grpo":
            reward = f"{Path(__file__).parents[1] / 'rl' / 'letter_reward.py'}:build"
            words += ["--rewards", reward, "--per_device_train_batch_size", GENERATIONS]
        return Campaign(start_training, folder, words)

    return make


@pytest.mark.parametrize("hand", [pytest.param(hand, id=f"{hand.configuration}-{hand.seed}") for hand in dealt(KILLS)])
def test_killed_at_random_moments(campaign: Callable, data: Path, hand: Hand) -> None:
    chance = random.Random(hand.seed)
    killed, ranks, cards = campaign(hand.configuration, "killed"), 1, list(hand.cards)
    while cards:
        step, world_size = killed.newest()
        card = next((card for card in cards if can_be_played(card, step, world_size)), cards[0])
        cards.remove(card)
        if not can_be_played(card, step, world_size):
            card = Card(card.victim, "save")
        ranks = 3 - (world_size if card.moment == "conversion" and step else ranks)
        ranks = 2 if card.victim == "rank 1" else ranks
        kill(killed, hand, card, ranks, step, chance)
    step, _ = killed.newest()
    last = killed.to_the_end(3 - ranks)
    assert (last.status["state"], last.status["step"]) == ("finished", STEPS)
    assert not [path.name for path in killed.out.rglob("*") if "universal" in path.name or "tmp" in path.name]
    assert not (killed.out / ".saving").exists()
    rows = killed.rows()
    assert_every_row_once(hand.configuration, rows, data)
    whole = campaign(hand.configuration, "whole")
    if hand.configuration == "grpo":
        replay(whole, killed, rows)
        assert completions(killed.out) == completions(whole.out)
    else:
        whole.to_the_end(1)
    expected, found = curve(whole.out), curve(killed.out)
    deviation = max(abs(ours - theirs) for ours, theirs in zip(found, expected, strict=True))
    print(json.dumps({"hand": hand.seed, "configuration": hand.configuration, "deviation": deviation}), flush=True)
    assert found == pytest.approx(expected, abs=1e-4)
    cursors = [one.out / f"checkpoint-{STEPS}" / "data_cursor.json" for one in (killed, whole)]
    assert hand.configuration == "grpo" or cursors[0].read_text() == cursors[1].read_text()


def can_be_played(card: Card, step: int, world_size: int) -> bool:
    """A conversion needs a checkpoint, and two processes to lose rank 1."""
    return card.moment != "conversion" or (step > 0 and (card.victim != "rank 1" or world_size == 1))


def kill(killed: Campaign, hand: Hand, card: Card, ranks: int, step: int, chance: random.Random) -> None:
    """One life and its end: returns when every process of it is gone."""
    # Without torchrun, forked processes have no parent to miss.
    env = {"FRESH_PYTHON": "1"} if card.victim == "torchrun" else {}
    began = time.monotonic()
    run = killed.start(ranks, pace=PACE, **env)
    reached = wait_for(card.moment, killed, run, step, chance)
    run.survivors()
    victims = victims_of(card.victim, run)
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    died = time.monotonic()
    while left := run.survivors():
        assert time.monotonic() - died < 240, f"{left} live on\n{run.text[-3000:]}"
        time.sleep(0.2)
    code = run.process.wait()
    saving = [path.name for path in (killed.out / ".saving").glob("*")]
    universal = [path.name for path in killed.out.glob("checkpoint-*/*universal*")]
    at = killed.steps()
    assert not at or min(at) == step + 1, "went on from another checkpoint than the newest whole one"
    print(json.dumps({
        "hand": hand.seed, "configuration": hand.configuration, "life": killed.lives, "ranks": ranks, **card._asdict(), "reached": reached,
        "from": step, "at": max(at, default=step), "newest": killed.newest(), "saving": saving, "universal": universal, "code": code,
        "killed_after": round(died - began, 1), "gone_after": round(time.monotonic() - died, 1),
    }), flush=True)  # fmt: skip


def wait_for(moment: str, killed: Campaign, run: Any, step: int, chance: random.Random) -> bool:
    """Whether the moment came before the run ended."""
    began = time.time()

    def ended() -> bool:
        return run.process.poll() is not None

    def behind(distance: int) -> bool:
        return until(lambda: max(killed.steps(), default=0) >= min(step + distance, STEPS - 1), ended=ended)

    def is_new(path: Path) -> bool:
        """What an earlier life left stands there until this one begins its own."""
        with contextlib.suppress(OSError):  # it is removed
            return path.stat().st_mtime > began
        return False

    if moment == "start":
        reached = until(lambda: bool(ranks_of(run)), ended=ended)
        time.sleep(chance.uniform(0, 5))
        return reached and not ended()
    if moment == "step":
        reached = behind(chance.randint(2, 4))
        time.sleep(chance.uniform(0, 3 * PACE))
    elif moment == "save":
        reached = behind(chance.randint(2, 4)) and until(lambda: is_new(run.out / ".saving"), ended=ended)
        time.sleep(chance.choice([0, chance.uniform(0, 0.1)]))
    else:
        reached = until(lambda: any(is_new(path) for path in run.out.glob("checkpoint-*/*_universal")), ended=ended)
        time.sleep(chance.choice([0, chance.uniform(0, 0.5)]))
    return reached


def until(condition: Callable[[], bool], timeout: float = 300, ended: Callable[[], bool] = lambda: False) -> bool:
    """Whether it came true."""
    deadline = time.monotonic() + timeout
    while not condition():
        if ended() or time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def victims_of(victim: str, run: Any) -> list[int]:
    if victim == "all":
        return run.processes()
    if victim == "torchrun":
        return [run.process.pid]
    ranks = ranks_of(run)
    return [ranks[victim]] if victim in ranks else run.processes()


def ranks_of(run: Any) -> dict[str, int]:
    """ "rank 0" and so on, as far as they have been started -> process."""
    found = {}
    for rank in (0, 1):
        with contextlib.suppress(StopIteration, OSError):  # it has ended
            found[f"rank {rank}"] = run.rank_pid(rank)
    return found


def assert_every_row_once(configuration: str, rows: dict[int, tuple[int, list[str]]], data: Path) -> None:
    """In each epoch; a generation batch may hold the end of one and the beginning of the next, in this order."""
    known = {json.loads(line)["id"] for line in data.read_text().splitlines()}
    stream: list[str] = []
    assert list(rows) == list(range(1, STEPS + 1))
    for _, ids in rows.values():
        counts = collections.Counter(ids)
        assert set(counts.values()) == {GENERATIONS if configuration == "grpo" else 1}
        stream += counts
    for start in range(0, len(stream), len(known)):
        epoch = stream[start : start + len(known)]
        assert len(set(epoch)) == len(epoch) and (set(epoch) == known or start + len(known) > len(stream))
    assert len(stream) > len(known)


def replay(whole: Campaign, killed: Campaign, rows: dict[int, tuple[int, list[str]]]) -> None:
    """The same steps on the same numbers of processes, without a kill: what is sampled depends on their number."""
    ranks = {step: killed.ranks_of[life] for step, (life, _) in rows.items()}
    for step in ranks:
        if ranks.get(step + 1) != ranks[step]:
            whole.to_the_end(ranks[step], "--max_steps", step, "--save_steps", step)


def completions(out: Path) -> list[tuple[int, str, str]]:
    lines = map(json.loads, (out / "samples.jsonl").read_text().splitlines())
    return [(line["step"], line["id"], line["completion"]) for line in lines]


def curve(out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "loss" in row]
    assert steps == list(range(1, STEPS + 1))
    return [row["loss"] for row in rows if "loss" in row]


def test_ranks_without_their_launcher_do_not_look_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generation and the caches would wait for seven days."""
    for name, value in {"TORCHELASTIC_RUN_ID": "run", "RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "getppid", lambda: 1)
    with pytest.raises(StopRequested, match="143"):
        join_ranks()


def test_what_a_killed_conversion_left_is_removed(tmp_path: Path) -> None:
    """Also where this run has the number of processes that wrote the shards, and converts nothing."""
    (tmp_path / "global_step2_universal" / "zero").mkdir(parents=True)
    (tmp_path / "latest_universal").write_text("global_step2_universal")
    (tmp_path / "latest").write_text("global_step2")
    engine = SimpleNamespace(_config=SimpleNamespace(), load_checkpoint=lambda *words, **flags: ("", {}))
    parts = SimpleNamespace(resume=SimpleNamespace(convert=False))
    trainer: Any = SimpleNamespace(model_wrapped=engine, parts=parts, args=SimpleNamespace(should_save=True))
    CheckpointMixin._load_engine(trainer, tmp_path, universal=False)
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]


def test_a_conversion_ends_with_the_run_that_asked_for_it(tmp_path: Path) -> None:
    """It waits for a shard that is a pipe when its rank is killed. Living on, it would write into the next run's conversion."""
    tag = tmp_path / "global_step2"
    tag.mkdir()
    (tmp_path / "latest").write_text(tag.name)
    os.mkfifo(tag / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    text = f"""
import os
from pathlib import Path
from drive_vlm.stages.engine.saving import convert_to_universal
print(os.getpid(), flush=True)
convert_to_universal(Path({str(tmp_path)!r}))
"""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    words = [sys.executable, "-c", text]
    with subprocess.Popen(words, env=env, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as rank:
        assert rank.stdout is not None
        pid = int(rank.stdout.readline())
        began = until(lambda: bool(readers(tmp_path)), 120)
        # It alone, by its own number: a forked process has another than `rank`.
        os.kill(pid, signal.SIGKILL)
    assert began, "no conversion waits for the shard"
    ended = until(lambda: not readers(tmp_path), 20)
    for pid in readers(tmp_path):
        os.kill(pid, signal.SIGKILL)
    assert ended, "it lives on"


def readers(folder: Path) -> list[int]:
    """Processes that work in `folder` and wait for somebody to write into a pipe."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if (path / "wchan").read_text() == "wait_for_partner" and (path / "cwd").readlink() == folder:
                found.append(int(path.name))
    return found
