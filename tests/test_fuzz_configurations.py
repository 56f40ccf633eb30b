"""Mutated configurations through the real commands: each is taken as it stands, or refused in one line that names it.

Flags of every stage, command and tool, DeepSpeed and YAML files, adapters, models, checkpoints and their markers, run.json,
rounds.json, caches, predictions, battles. Three things must not happen: a traceback, an error that names neither the flag nor
the file, and a run that gives other numbers without a word. 150 by default; DRIVE_VLM_FUZZ_CONFIGURATIONS=800 takes more,
DRIVE_VLM_FUZZ_SEED another seed.
"""

import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drive_vlm.stages import STAGES

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("mutations", Path(__file__).with_name("mutations.py"))
assert SPEC is not None and SPEC.loader is not None
mutations = importlib.util.module_from_spec(SPEC)
sys.modules["mutations"] = mutations
SPEC.loader.exec_module(mutations)
WORDS, Result = mutations.WORDS, mutations.Result
as_command, fault_of, forked, mutated = mutations.as_command, mutations.fault_of, mutations.forked, mutations.mutated
CASES = int(os.environ.get("DRIVE_VLM_FUZZ_CONFIGURATIONS", "150"))
SEED = int(os.environ.get("DRIVE_VLM_FUZZ_SEED", "11"))
TRAIN = (
    "--per_device_train_batch_size", 4, "--logging_steps", 1, "--learning_rate", 1e-3, "--lr_scheduler_type", "constant",
    "--disable_tqdm", "true", "--report_to", "none", "--use_cpu", "true",
)  # fmt: skip


# --- the world that is damaged


@dataclasses.dataclass(frozen=True)
class Kind:
    """Files that a command reads.

    `files`: patterns below the folder `source`. `command(folder)`: the words, with `folder` a copy of it. `shown(result)`:
    what must come out as from the whole files. `settings`: keys of these files that a user may set to something else.
    """

    source: Path
    files: tuple[str, ...]
    command: Callable[[Path], list[object]]
    shown: Callable[[Result], Any] | None = None
    settings: tuple[str, ...] = ()


# Commands that train or load a model twice take most of the time: each is tried a quarter as often as another.
LONG = {"deepspeed", "adapter, merged", "model", "checkpoint", "lengths", "features", "reference"}


def curve(result: Result, run: str = "out") -> list[Any]:
    """Step and loss, rounded as two runs agree."""
    lines = (result.folder / run / "metrics.jsonl").read_text().splitlines()
    return [(row["step"], round(row["loss"], 3)) for row in map(json.loads, lines) if "loss" in row]


def file_of(name: str) -> Callable[[Result], Any]:
    return lambda result: (result.folder / name).read_text()


class World:
    """Small files of every kind, each made by the command that users make it with."""

    def __init__(self, root: Path, model: Path, data: Path) -> None:
        self.root, self.model = root, model
        rows = [row for row in map(json.loads, (data / "train.jsonl").read_text().splitlines()) if "image" in row][:8]
        for row in rows:
            row["image"] = str(data / row["image"])
        self.rows = self._lines("rows.jsonl", rows)
        self.two = self._lines("two.jsonl", rows[:2])
        answers = [row["conversations"][-1]["value"] for row in rows]
        self.pairs = self._lines(
            "pairs.jsonl", [row | {"rejected": f"not {answer}"} for row, answer in zip(rows, answers, strict=True)]
        )
        self.captions = data / "captions_train.jsonl"
        self._make()
        self.kinds = self._kinds()
        self.whole: dict[str, Any] = {}

    def _lines(self, name: str, rows: list[Any]) -> Path:
        path = self.root / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def sft(self, *flags: object, model: object = None, out: object = "out") -> list[object]:
        data = () if "--data" in flags else ("--data", self.rows)
        return ["drive_vlm", "sft", "--model", model or self.model, *data, "--image_root", "/", "--output_dir", out, *TRAIN, *flags]  # fmt: skip

    def generate(self, model: object, out: object, *flags: object) -> list[object]:
        return ["drive_vlm", "generate", "--model", model, "--data", self.two, "--image_root", "/", "--max_new_tokens", 4, "--out", out, *flags]  # fmt: skip

    def dpo(self, *flags: object, out: object = "out") -> list[object]:
        words = ("--model", self.model, "--data", self.pairs, "--image_root", "/", "--output_dir", out, "--beta", 0.5)
        return ["drive_vlm", "dpo", *words, *TRAIN, *flags]

    def _make(self) -> None:
        os.environ["DRIVE_VLM_CACHE"] = str(self.root / "cache")
        made = self.root / "made"
        rounds = ["tools/rounds.py"]
        steps: list[list[object]] = [
            self.sft("--max_steps", 2, "--save_strategy", "steps", "--save_steps", 1, out="run"),
            self.sft("--max_steps", 1, "--lora_rank", 2, "--freeze", "vision_tower", "projector", "--save_strategy", "no", out="adapter"),
            self.generate(self.model, "answers/p.jsonl"),
            ["tools/cache_features.py", "--model", self.model, "--data", self.rows, "--image_root", "/", "--out", "features"],
            ["drive_vlm", "reference", "--model", self.model, "--data", self.pairs, "--image_root", "/", "--out", "reference"],
            [*rounds, "start", "--out", "chain", "--model", self.model, "--data", self.rows, "--image_root", "/", "--held_out", 2, "--metric", "a.b"],
        ]  # fmt: skip
        for words in steps:
            done = forked(words, made)
            assert done.code == 0, (words, done.text)
        shutil.copytree(made / "answers", made / "battles")
        text = (made / "answers" / "p.jsonl").read_text()
        (made / "battles" / "q.jsonl").write_text(text)
        (made / "chain" / "round-0").mkdir()
        (made / "chain" / "round-0" / "answers.jsonl").write_text(text)
        (made / "chain" / "round-0" / "scores.json").write_text('{"a": {"b": 0.5, "low": 0.4, "high": 0.6}}')
        for words in (
            [*rounds, "record", "--out", "chain", "--round", 0, "--step", "evaluate"],
            ["tools/judge_arena.py", "--predictions", "battles/p.jsonl", "battles/q.jsonl", "--judge_backend", "reference", "--no_images", "--out", "battles/b.jsonl"],
        ):  # fmt: skip
            done = forked(words, made)
            assert done.code == 0, (words, done.text)
        shutil.copytree(ROOT / "ds_configs", made / "deepspeed")
        (made / "yaml").mkdir()
        (made / "yaml" / "flags.yaml").write_text("learning_rate: 1e-3\nfreeze: [vision_tower]\nmax_length: 512\nbf16: false\nseed: 4\n")  # fmt: skip
        (made / "meta").mkdir()
        (made / "meta" / "meta.json").write_text(json.dumps({"a": {"root": "/", "annotation": str(self.two), "repeat_time": 1, "length": 2}}))  # fmt: skip
        shutil.copytree(self.model, made / "model")

    def _kinds(self) -> dict[str, Kind]:
        made, one = self.root / "made", ("--max_steps", 1, "--save_strategy", "no")
        arena = lambda f: ["tools/judge_arena.py", "--predictions", f / "p.jsonl", f / "q.jsonl", "--judge_backend", "reference", "--no_images", "--out", f / "b.jsonl", "--json", "s.json"]  # fmt: skip # noqa: E731
        return {
            "deepspeed": Kind(made / "deepspeed", ("zero[123].json",), lambda f: self.sft(*one, "--deepspeed", next(iter(f.glob("*.mutated"))).with_suffix("")), curve),
            "yaml": Kind(made / "yaml", ("flags.yaml",), lambda f: self.sft(*one, "--config", f / "flags.yaml")),
            "meta": Kind(made / "meta", ("meta.json",), lambda f: ["tools/check_data.py", "--model", self.model, "--data", f / "meta.json", "--json", "c.json"], file_of("c.json"), settings=("repeat_time", "root", "annotation", "a")),
            "adapter": Kind(made / "adapter", ("adapter_config.json", "base_model.json"), lambda f: self.generate(f, "p.jsonl"), file_of("p.jsonl"),
                            settings=("lora_alpha", "use_rslora", "alpha_pattern", "lora_dropout")),
            "adapter, merged": Kind(made / "adapter", ("adapter_config.json", "base_model.json"), lambda f: ["drive_vlm", "merge", "--checkpoint", f, "--out", "merged"],
                                    lambda r: (r.folder / "merged" / "model.safetensors").read_bytes(), settings=("lora_alpha", "use_rslora", "alpha_pattern")),
            "model": Kind(made / "model", ("*config.json", "*.jinja", "model.safetensors"), lambda f: self.sft(*one, model=f)),
            "model, generate": Kind(made / "model", ("*config.json", "tokenizer.json"), lambda f: self.generate(f, "p.jsonl")),
            "checkpoint": Kind(made / "run", ("checkpoint-2/*.json", "checkpoint-2/*.pt*", "checkpoint-2/*.safetensors", "*.jsonl", "status.json", "run.json"),
                               lambda f: self.sft("--max_steps", 3, "--save_strategy", "no", "--resume", "auto", out=f), lambda r: curve(r, "run")[-1]),
            "run.json": Kind(made / "run", ("run.json",), lambda f: ["drive_vlm", "reproduce", f, "--json", "--output_dir", "/nowhere/x"], lambda r: json.loads(r.text)["command"],
                             settings=("words", "directory", "topology", "launcher", "nnodes", "nproc_per_node", "world_size")),
            "run.json, generate": Kind(made / "run", ("run.json",), lambda f: self.generate(f, "p.jsonl"), file_of("p.jsonl")),
            "rounds, table": Kind(made / "chain", ("rounds.json", "round-0/scores.json"), lambda f: ["tools/rounds.py", "table", "--out", f]),
            "rounds, done": Kind(made / "chain", ("rounds.json",), lambda f: ["tools/rounds.py", "done", "--out", f, "--round", 0, "--step", "evaluate"], lambda r: r.code),
            "rounds, decide": Kind(made / "chain", ("rounds.json",), lambda f: ["tools/rounds.py", "decide", "--out", f, "--round", 0]),
            "lengths": Kind(self.root / "cache", ("**/*",), lambda f: self.sft(*one), curve),
            "features": Kind(made / "features", ("**/*.json", "**/*.jsonl", "**/*.safetensors", "**/*.npy", "**/*.bin"), lambda f: self.sft(*one, "--freeze", "vision_tower", "--feature_cache", f), curve),
            "reference": Kind(made / "reference", ("**/*.json", "**/*.jsonl"), lambda f: self.dpo(*one, "--reference_cache", f), curve),
            "answers": Kind(made / "answers", ("*",), lambda f: self.generate(self.model, f / "p.jsonl"), file_of("answers/p.jsonl")),
            "answers, scored": Kind(made / "answers", ("p.jsonl",), lambda f: ["tools/qa_eval.py", "--predictions", f / "p.jsonl", "--json", "s.json"]),
            "battles": Kind(made / "battles", ("b.jsonl", "p.jsonl"), arena),
        }  # fmt: skip


def damaged_file(world: World, name: str, folder: Path, dice: random.Random) -> str:
    """One file of a kind, mutated, under the command that reads it. -> the fault of the product, '' where there is none."""
    kind = world.kinds[name]
    copied = folder / kind.source.name
    _copy(kind.source, copied)
    files = sorted(
        {path for pattern in kind.files for path in copied.glob(pattern) if path.is_file() and path.name != ".log"}
    )
    file = dice.choice(files)
    content, way = mutated(file.read_bytes(), dice)
    same = content == file.read_bytes()
    file.unlink()
    file.write_bytes(content)
    if name == "deepspeed":
        (file.parent / f"{file.name}.mutated").touch()
    if name not in world.whole and kind.shown is not None:
        clean = folder.with_name(f"whole-{len(world.whole)}")
        _copy(kind.source, clean / kind.source.name)
        if name == "deepspeed":
            (clean / "deepspeed" / "zero2.json.mutated").touch()
        done = _run(kind, clean)
        assert done.code == 0, (name, done.text)
        world.whole[name] = kind.shown(done)
    done = _run(kind, folder)
    told = [file.name, str(file.parent), file.parent.name]
    if name == "yaml":
        told += [f"--{key}" for key in ("learning_rate", "freeze", "max_length", "bf16", "seed")]
    if fault := fault_of(done, told):
        return f"{fault}: {name} {file.relative_to(copied)} {way} {content[:200]!r}\n{done.text[-1500:]}"
    changes_nothing = same or kind.shown is None or any(key in kind.settings for key in way)
    if done.code == 0 and not changes_nothing and kind.shown is not None:
        shown = kind.shown(done)
        if shown != world.whole[name] and file.name not in done.text:
            return f"silent: {name} {file.relative_to(copied)} {way} {content[:300]!r}\n{str(shown)[:200]} for {str(world.whole[name])[:200]}\n{done.text[-500:]}"
    return ""


def _run(kind: Kind, folder: Path) -> Result:
    copied = folder / kind.source.name
    if copied.name == "cache":
        os.environ["DRIVE_VLM_CACHE"] = str(copied)
    try:
        return forked(kind.command(copied), folder)
    finally:
        os.environ["DRIVE_VLM_CACHE"] = str(kind.source.parent.parent / "cache")


def _copy(source: Path, target: Path) -> None:
    """Large files are linked: commands replace them, and do not write into them."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target, copy_function=lambda s, t: os.link(s, t) if os.path.getsize(s) > 50_000 else shutil.copy2(s, t))  # fmt: skip


# --- flags


def mutated_flags(world: World, folder: Path, dice: random.Random) -> str:
    """One to two flags of a command, a stage or a tool with odd values. -> the fault of the product, '' where there is none."""
    base, parser = dice.choice(COMMANDS)
    words = [str(word) for word in base(world)]
    flags = parser(words)
    changed: dict[str, list[str]] = {}
    for _ in range(dice.choice((1, 1, 2))):
        flag = dice.choice(flags)
        values = [dice.choice(WORDS) for _ in range(dice.choice((0, 1, 1, 1, 1, 1, 2)))]
        (folder / "a_file").write_text("text")
        (folder / "a_folder").mkdir(exist_ok=True)
        changed[flag] = [{"FILE": "a_file", "FOLDER": "a_folder"}.get(value, value) for value in values]
    for flag, values in changed.items():
        words += [flag if dice.random() < 0.95 else flag[:-1], *values]
    stage = words[1] if words[0] == "drive_vlm" and words[1] in STAGES else ""
    record = folder / "record.json" if stage and dice.random() < 0.8 else None
    done = forked(words, folder, record)
    given = [word for values in changed.values() for word in values if word]
    # An empty word is named by its quotes.
    given += ["''" for values in changed.values() if "" in values]
    fault = fault_of(
        done, [*(flag.lstrip("-")[:-1] for flag in changed), *given, *(repr(word)[1:-1] for word in given)]
    )
    if not fault and record is not None and done.code == 0:
        parts = json.loads(record.read_text())
        # The rewards' flags are a list: they are the words themselves.
        config = {name: value for part in parts.values() if isinstance(part, dict) for name, value in part.items()}
        for flag, values in changed.items():
            name = flag[2:]
            if name in config and values and not _reads_as(values, config[name]):
                fault = f"silent, {name} is {config[name]!r}"
    return f"{fault}: {' '.join(map(repr, words))[:1500]}\n{done.text[-1500:]}" if fault else ""


def _reads_as(values: list[str], found: Any) -> bool:
    """Whether the words of a flag may have become `found`."""
    text = values[-1]
    if isinstance(found, bool) or found is None:
        return text.lower() in ("true", "false", "1", "0", "yes", "no", "none", "")
    if isinstance(found, (int, float)):
        try:
            return float(text) == found
        except ValueError:
            return False
    return isinstance(found, (dict, list)) or text in str(found)


def _stage(name: str) -> Callable[[World], list[object]]:
    def words(world: World) -> list[object]:
        once = ("--max_steps", 1, "--save_strategy", "no")
        if name in ("dpo", "spin"):
            # Behind the name, so that a mutation comes last.
            return [*world.dpo(*once)[:1], name, *world.dpo(*once)[2:]]
        if name == "grpo":
            reward = ROOT / "tests" / "stages" / "rl" / "letter_reward.py"
            sizes = ("--num_generations", 4, "--max_completion_length", 4, "--rewards", f"{reward}:build")
            return ["drive_vlm", "grpo", *world.sft(*once)[2:], *sizes]
        return world.sft(*once)

    return words


def _flags_of_stage(words: list[str]) -> list[str]:
    from drive_vlm.config import CommandParser, add_dataclass
    from drive_vlm.plan.training_fields import FIELDS

    name = words[1] if words[1] in STAGES else "sft"
    parser = CommandParser()
    for cls in STAGES[name].config_classes([]):
        add_dataclass(parser, cls)
    own = [action.option_strings[0] for action in parser._actions[1:]]
    return [*own, *own, *(f"--{flag}" for flag in json.loads(FIELDS.read_text())[STAGES[name].training_arguments])]


def _flags_of_help(words: list[str]) -> list[str]:
    """The flags that --help names, but those that start other programs or ask servers."""
    text = _HELP.get(words[0] + words[1])
    if text is None:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            as_command([*words[:2], "--help"] if words[0] == "drive_vlm" else [words[0], "--help"], None)
        text = _HELP[words[0] + words[1]] = out.getvalue()
    found = dict.fromkeys(word.strip(",[]") for word in text.split() if word.startswith(("--", "[--")))
    return [flag for flag in found if flag.replace("_", "").strip("-").isalnum() and flag not in ("--help", "--go", "--judge_url", "--judge_backend")]  # fmt: skip


_HELP: dict[str, str] = {}
# (words of a run that ends well, flags to mutate)
COMMANDS: list[tuple[Callable[[World], list[object]], Callable[[list[str]], list[str]]]] = [
    *((_stage(name), _flags_of_stage) for name in (*STAGES, "sft", "dpo", "grpo", "sft")),
    (lambda w: ["drive_vlm", "plan", "sft", *w.sft()[2:]], _flags_of_stage),
    (lambda w: w.generate(w.model, "p.jsonl"), _flags_of_help),
    (lambda w: ["drive_vlm", "merge", "--checkpoint", w.root / "made" / "adapter", "--out", "merged"], _flags_of_help),
    (lambda w: ["drive_vlm", "reproduce", w.root / "made" / "run"], _flags_of_help),
    (lambda w: ["drive_vlm", "reference", "--model", w.model, "--data", w.pairs, "--image_root", "/", "--out", "r"], _flags_of_help),
    (lambda w: ["tools/check_data.py", "--model", w.model, "--data", w.rows, "--image_root", "/"], _flags_of_help),
    (lambda w: ["tools/build_synthetic.py", "--scenes", "2", "--clips", "0", "--size", "32", "--workers", "1", "--out", "s"], _flags_of_help),
    (lambda w: ["tools/build_pairs.py", "--data", w.two, "--predictions", w.root / "made" / "answers" / "p.jsonl", "--image_root", "/", "--out", "p.jsonl"], _flags_of_help),
    (lambda w: ["tools/qa_eval.py", "--predictions", w.root / "made" / "answers" / "p.jsonl"], _flags_of_help),
    (lambda w: ["tools/judge_arena.py", "--predictions", w.root / "made" / "battles" / "p.jsonl", w.root / "made" / "battles" / "q.jsonl", "--judge_backend", "reference", "--no_images", "--out", "b.jsonl"], _flags_of_help),
    (lambda w: ["tools/rounds.py", "start", "--out", "chain", "--model", w.model, "--data", w.rows, "--image_root", "/", "--held_out", "2"], _flags_of_help),
    (lambda w: ["tools/cache_features.py", "--model", w.model, "--data", w.two, "--image_root", "/", "--out", "f"], _flags_of_help),
    (lambda w: ["tools/train_clip.py", "--data", w.captions, "--out", "c", "--max_steps", "1", "--width", "64", "--layers", "1"], _flags_of_help),
    (lambda w: ["tools/build_tiny_model.py", "--corpus", w.two, "--out", "t"], _flags_of_help),
]  # fmt: skip


@pytest.mark.slow
def test_mutated_configurations(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, synthetic_data: Path
) -> None:
    import deepspeed  # noqa: F401
    import torch._dynamo  # noqa: F401
    import trl.trainer.dpo_trainer
    import trl.trainer.grpo_trainer  # noqa: F401

    import drive_vlm.stages.preference.stage
    import drive_vlm.stages.rl.grpo
    import drive_vlm.stages.sft  # noqa: F401

    cache, dice = os.environ.get("DRIVE_VLM_CACHE"), random.Random(SEED)
    root = tmp_path_factory.mktemp("fuzz")
    faults = []
    try:
        world = World(root, tiny_model, synthetic_data)
        names = [name for name in world.kinds for _ in range(1 if name in LONG else 4)]
        for i in range(CASES):
            folder, own = root / f"case-{i}", random.Random(f"{SEED} {i}")
            folder.mkdir()
            if i % 5 > 2:
                fault = damaged_file(world, dice.choice(names), folder, own)
            else:
                fault = mutated_flags(world, folder, own)
            if fault:
                faults.append(f"case {i}: {fault}")
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.environ["DRIVE_VLM_CACHE"] = cache or ""
    if log := os.environ.get("DRIVE_VLM_FUZZ_LOG"):
        Path(log).write_text("\n\n".join(faults))
    assert not faults, f"{len(faults)} of {CASES}\n" + "\n\n".join(faults[:10])
