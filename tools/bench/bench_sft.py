"""Speed and memory of our SFT (packed) next to TRL's SFTTrainer (unpacked, as it comes) on the same rows and tiny model.

With --peers also next to LLaMA-Factory and ms-swift, as they come and packed, each in an environment of its own, and our way
from a camera's JPEG to tiles next to theirs. One step of each is compared first: token ids, labels and loss (peers.py).

Rows have mixed lengths: short answers, long captions, six pictures as in DriveLM, no picture. Both sides train one
epoch in processes of their own, in turns, with equal weights, float32, no gradient checkpointing, adamw_torch, loader
workers, threads and a frozen vision tower, and with the same non-padding tokens a step: TRL's batch size follows from
ours. Both learn the assistant's words only (TRL's prompt and completion rows). Before anything is timed, token ids and
labels of every row are compared.
Rates run from the log of step 1, a warm-up that also hides start-up, to the log of the last step: ours as they stand in
metrics.jsonl (logging_first_step), TRL's from a callback at the same two logs and its own count of tokens.
Peak RSS is that of the largest process of a side. The milliseconds of a step are those of its forward and backward passes:
of the tower with its projector, and of the rest, which is the language model's; the optimizer is in the rates alone.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import measure
import peer_child
import peers

EXAMPLES = """
python tools/bench/bench_sft.py --json runs/bench_sft.json
python tools/bench/bench_sft.py --family qwen3_vl
python tools/bench/bench_sft.py --peers llamafactory=lf/bin/python swift=swift/bin/python --json runs/bench_peers.json
python tools/bench/bench_sft.py --rows 2000 --hidden_size 256 --max_length 1024 --batch_size 4 --threads 2
"""
SHARED: dict[str, Any] = measure.TRAINING | {
    "num_train_epochs": 1,
    "gradient_checkpointing": False,
    "bf16": False,
    "logging_first_step": True,
}
# Whose tiny twin trains, and what stands between its pictures where TRL writes them: InternVL's template writes the newline itself.
BETWEEN = {"internvl": "\n", "qwen3_vl": "", "qwen2_5_vl": ""}
TITLES = {"ours": "drive-vlm sft --packing", "peer": "TRL SFTTrainer"}
SIZES = ("image_size", "patch_size", "hidden_size", "vision_layers", "text_layers", "vocab_size")
NUMBERS = {
    "rows": (480, 16, "training rows"),
    "max_length": (1024, 1, "tokens of a pack (ours)"),
    "batch_size": (4, 1, "packs a step (ours); TRL's batch follows"),
    "repeats": (2, 1, "runs of each side, in turns; the median counts"),
    "threads": (1, 1, "torch threads of both sides"),
    "workers": (1, 0, "loader workers of both sides"),
    "hidden_size": (128, 1, "width of vision tower and language model"),
    "vision_layers": (2, 1, "layers of the vision tower"),
    "text_layers": (4, 1, "layers of the language model"),
    "vocab_size": (4000, 1, "tokens of the tokenizer, at most"),
    "image_size": (112, 1, "pixels of a picture's side; one tile each"),
    "patch_size": (7, 1, "pixels of a patch's side; 4 patches make a token"),
    "pictures": (24, 0, "camera pictures from JPEG to tiles, with --peers; 0: leave it out"),
}


# ---- prepare: rows, model, plan


def mixed_rows(
    questions: list[dict[str, Any]], captions: list[dict[str, Any]], count: int, between: str = "\n"
) -> list[dict[str, Any]]:
    """`count` rows: of eight, one caption (short or long), one without a picture, one with six pictures, five plain questions."""
    rows = []
    for i in range(count):
        question = questions[i % len(questions)]
        row = captions[i // 8 % len(captions)] if i % 8 == 0 else question
        asked, answer = (turn["value"] for turn in row["conversations"])
        asked = asked.removeprefix("<image>\n")
        number = {1: 0, 2: 6}.get(i % 8, 1)
        images = (
            [row["image"]]
            if number == 1
            else [questions[(i + 11 * k) % len(questions)]["image"] for k in range(number)]
        )
        turns = [{"from": "human", "value": f"<image>{between}" * number + asked}, {"from": "gpt", "value": answer}]
        rows.append({"id": f"row-{i}", "conversations": turns} | ({"image": images} if images else {}))
    return rows


def prepare(args: Any, work: Path) -> None:
    """Write rows and model."""
    data = measure.build_synthetic(work, scenes=max(8, -(-args.rows // 6)), size=args.image_size)
    questions, captions = (measure.json_lines(data / name) for name in ("train.jsonl", "captions_train.jsonl"))
    rows = measure.write_json_lines(
        data / "mixed.jsonl", mixed_rows(questions, captions, args.rows, BETWEEN[args.family])
    )
    own = {} if args.family == "internvl" else {"family": args.family}
    measure.build_tiny(work, "model", rows, **own, **{name: getattr(args, name) for name in SIZES})


def plan_and_check(work: Path, max_length: int, batch_size: int) -> None:
    """Write plan.json, and compare the tokens and labels of all rows. Raises ValueError where they differ."""
    from drive_vlm.config import ModelConfig
    from drive_vlm.data.encoder import Encoder
    from drive_vlm.data.sources import open_sources
    from drive_vlm.data.table import build_table
    from drive_vlm.models import load_processor

    parts = load_processor(ModelConfig(model=str(work / "model")))
    encoder = Encoder(parts.tokenizer, parts.template, parts.vision)
    table = build_table(open_sources([str(work / "data" / "mixed.jsonl")]), encoder, max_length=max_length)
    (work / "plan.json").write_text(json.dumps(make_plan(table.length, max_length, batch_size)))
    check_same_tokens(table, encoder, peer_dataset(work / "data" / "mixed.jsonl"), parts.processor)


def make_plan(length: Any, max_length: int, batch_size: int) -> dict[str, Any]:
    """Steps and batch of each side, and our samples and tokens after step 1, for rows of `length` int[N] tokens.

    Raises ValueError when no batch of TRL's holds our tokens a step within 5 %, and when hardly a step can be timed.
    """
    from drive_vlm.data.order import EpochOrder

    order = EpochOrder(length, SHARED["seed"], max_length)
    total, rows, packs = int(length.sum()), len(length), order.num_sequences
    peer_batch = max(1, round(batch_size * rows / packs))
    tokens = {"ours": total / packs * batch_size, "peer": total / rows * peer_batch}
    if abs(tokens["peer"] / tokens["ours"] - 1) > 0.05:
        raise ValueError(
            f"TRL's batch of {peer_batch} rows holds {tokens['peer']:.0f} tokens on average, ours {tokens['ours']:.0f}: "
            "more than 5 % apart. Raise --batch_size or --max_length, so that a step holds more rows."
        )
    steps = {"ours": -(-packs // batch_size), "peer": -(-rows // peer_batch)}
    if min(steps.values()) < 3:
        raise ValueError(f"only {min(steps.values())} steps: raise --rows, so that something follows the warm-up step")
    first = [i for sequence in order(0)[:batch_size] for i in sequence]
    return {
        "rows": rows,
        "tokens": total,
        "lengths": {"min": int(length.min()), "mean": total / rows, "max": int(length.max())},
        "steps": steps,
        "batch": {"ours": batch_size, "peer": peer_batch},
        "tokens_per_step": tokens,
        "shared": SHARED,
        "timed": {"samples": rows - len(first), "tokens": total - int(length[first].sum())},
    }


# ---- our side


def our_command(args: Any, work: Path, out: Path, plan: dict[str, Any]) -> list[Any]:
    values = SHARED | {
        "model": work / "model",
        "data": work / "data" / "mixed.jsonl",
        "output_dir": out,
        "freeze": "vision_tower",
        "packing": True,
        "max_length": args.max_length,
        "per_device_train_batch_size": args.batch_size,
        "logging_steps": plan["steps"]["ours"],
        "dataloader_num_workers": args.workers,
    }
    return [sys.executable, __file__, "--child", "ours", out, *measure.flags(values)]


def our_rates(out: Path, plan: dict[str, Any]) -> dict[str, float]:
    """Rates of the window from step 1 to the last step, from metrics.jsonl."""
    first, last = measure.logged(out)
    assert (first["step"], last["step"]) == (1, plan["steps"]["ours"]), "not the logs of the first and the last step"
    seconds = plan["timed"]["samples"] / last["samples_per_second"]
    counted = last["tokens_per_second"] * seconds
    assert abs(counted / plan["timed"]["tokens"] - 1) < 1e-6, "the run did not follow the plan"
    rates = {name: last[name] for name in ("samples_per_second", "tokens_per_second", "data_wait_share")}
    parts = json.loads((out / "parts.json").read_text())
    cpu = peers.cpu_ms_per_row(parts.pop("cpu_seconds"), plan["timed"]["tokens"], plan)
    return rates | {"seconds": seconds, "last_loss": last["loss"], "cpu_ms_per_row": cpu} | parts


def peer_rates(out: Path, plan: dict[str, Any]) -> dict[str, float]:
    timed = json.loads((out / "timed.json").read_text())
    assert timed["steps"] == plan["steps"]["peer"]
    rates = {f"{name}_per_second": timed[name] / timed["seconds"] for name in ("samples", "tokens")}
    cpu = peers.cpu_ms_per_row(timed["cpu_seconds"], timed["tokens"], plan)
    return rates | {"cpu_ms_per_row": cpu} | {name: timed[name] for name in ("seconds", "tower_ms", "language_ms")}


# ---- both sides: the parts of a step


class PartClock:
    """Times the forward and backward passes of a trainer's steps: all of it, and that of the tower with its projector.

    The backward pass goes through the language model first. It is at the tower when the gradient of the features is there, and
    behind it when the last weight of the tower or projector has its own.
    """

    def __init__(self, trainer: Any) -> None:
        import torch

        body = trainer.model.model
        self.device = next(body.parameters()).device if torch.cuda.is_available() else None
        self.seconds: list[tuple[float, float]] = []
        self._forward = self._reached = self._left = 0.0
        self._features, self._step = body.get_image_features, trainer.training_step
        # Patches, of these two objects: the one place that every batch enters the tower by, and the step.
        body.get_image_features, trainer.training_step = self.features, self.step
        for name, weight in trainer.model.named_parameters():
            if weight.requires_grad and not name.startswith(("model.language_model.", "lm_head.")):
                weight.register_post_accumulate_grad_hook(self._leave)

    def _now(self) -> float:
        if self.device is not None:
            import torch

            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _reach(self, gradient: Any) -> None:
        self._reached = self._reached or self._now()

    def _leave(self, weight: Any) -> None:
        self._left = self._now()

    def features(self, *args: Any, **kwargs: Any) -> Any:
        begin = self._now()
        found = self._features(*args, **kwargs)
        self._forward += self._now() - begin
        pooled = found.pooler_output
        for tensor in pooled if isinstance(pooled, (list, tuple)) else [pooled]:
            tensor.register_hook(self._reach)
        return found

    def step(self, *args: Any, **kwargs: Any) -> Any:
        self._forward = self._reached = self._left = 0.0
        begin = self._now()
        loss = self._step(*args, **kwargs)
        whole, tower = self._now() - begin, self._forward + self._left - self._reached
        assert self._reached and 0 < tower < whole, "a step that did not pass the tower"
        self.seconds.append((tower, whole - tower))
        return loss

    def milliseconds(self) -> dict[str, float]:
        """Means over all steps but the first."""
        timed = self.seconds[1:]
        return {
            f"{part}_ms": 1000 * sum(step[i] for step in timed) / len(timed)
            for i, part in enumerate(("tower", "language"))
        }


def train_ours(out: Path, words: list[str]) -> None:
    """`sft WORDS` in this process; writes parts.json."""
    clocks: list[PartClock] = []
    window = peer_child.window_clock()

    def watch(trainer: Any) -> None:
        trainer.add_callback(window)
        clocks.append(PartClock(trainer))

    measure.run_stage("sft", words, watch)
    cpu = window.window()["cpu_seconds"]
    (out / "parts.json").write_text(json.dumps(clocks[0].milliseconds() | {"cpu_seconds": cpu}))


# ---- TRL's side, in processes of their own


def peer_dataset(file: Path) -> Any:
    """The rows of `file` as a TRL user writes them: {"images": [Image], "prompt": [...], "completion": [...]}."""
    from datasets import Dataset, Features, Image, List, Value

    rows = []
    for row in measure.json_lines(file):
        asked, answer = (turn["value"] for turn in row["conversations"])
        rows.append(
            {
                "images": [str(file.parent / name) for name in row.get("image", [])],
                "prompt": [{"role": "user", "content": asked.replace("<image>\n", "").replace("<image>", "")}],
                "completion": [{"role": "assistant", "content": answer}],
            }
        )
    turns = List({"role": Value("string"), "content": Value("string")})
    features = Features({"images": List(Image()), "prompt": turns, "completion": turns})
    return Dataset.from_list(rows, features=features)


def check_same_tokens(table: Any, encoder: Any, dataset: Any, processor: Any) -> None:
    """Raises ValueError for the first row whose token ids differ between our encoder and TRL's collator, or whose labels do.

    TRL learns one token more, the template's newline after the end of the turn.
    """
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    from drive_vlm.config import IGNORE_INDEX

    collate = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)
    for i in range(len(table)):
        ours, theirs = encoder.encode(table.sample(i)), collate([dataset[i]])
        ids, labels = ours["input_ids"].tolist(), ours["labels"].tolist()
        assert labels[-1] == IGNORE_INDEX, "our template ends with an unlearned newline"
        for key, expected in (("input_ids", ids), ("labels", labels[:-1] + ids[-1:])):
            if theirs[key][0].tolist() != expected:
                raise ValueError(
                    f"row {i}: {key} differ between ours ({len(ids)} tokens) and TRL ({theirs[key].shape[1]} tokens), so the two "
                    "sides would not train the same. Check the processor's tiles (crop_to_patches, max_patches) and its chat template."
                )


def train_peer(work: Path, out: Path, workers: int) -> None:
    """One epoch with TRL's SFTTrainer and its own collator; writes timed.json."""
    import torch
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from drive_vlm.config import ModelConfig
    from drive_vlm.models import load_family
    from drive_vlm.models.freezing import freeze

    plan = json.loads((work / "plan.json").read_text())
    logs_seen: list[dict[str, float]] = []

    class Clock(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in logs:
                now = {"seconds": time.perf_counter(), "tokens": logs["num_tokens"], "step": state.global_step}
                logs_seen.append(now)

    family = load_family(ModelConfig(model=str(work / "model")), torch.float32)
    freeze(family.model, family.parts, ["vision_tower"])
    cpu = not torch.cuda.is_available()
    config = SFTConfig(
        output_dir=str(out),
        per_device_train_batch_size=plan["batch"]["peer"],
        logging_steps=plan["steps"]["peer"],
        dataloader_num_workers=workers,
        dataloader_pin_memory=not cpu,
        use_cpu=cpu,
        max_length=None,
        **plan["shared"],
    )
    dataset = peer_dataset(work / "data" / "mixed.jsonl")
    window = peer_child.window_clock()
    rest = {"train_dataset": dataset, "processing_class": family.processor, "callbacks": [Clock(), window]}
    trainer = SFTTrainer(family.model, config, **rest)
    parts = PartClock(trainer)
    trainer.train()
    first, last = logs_seen[0], logs_seen[-1]
    timed = {
        "seconds": last["seconds"] - first["seconds"],
        "samples": len(dataset) - plan["batch"]["peer"],
        "tokens": last["tokens"] - first["tokens"],
        "steps": last["step"],
        "cpu_seconds": window.window()["cpu_seconds"],
        **parts.milliseconds(),
    }
    (out / "timed.json").write_text(json.dumps(timed))


def child(words: list[str]) -> None:
    """`plan WORK MAX_LENGTH BATCH_SIZE`, `ours OUT FLAGS`, `train WORK OUT WORKERS`, which is TRL's side, `check WORK FILES`
    (what the peers' first step held), or `pictures WORK MODEL OUT`, our side of the picture path."""
    work = Path(words[1])
    if words[0] == "plan":
        plan_and_check(work, int(words[2]), int(words[3]))
    elif words[0] == "ours":
        train_ours(work, words[2:])
    elif words[0] == "check":
        peers.check_against_ours(work, [Path(word) for word in words[2:]])
    elif words[0] == "pictures":
        peers.our_pictures(work, Path(words[2]), Path(words[3]))
    else:
        train_peer(work, Path(words[2]), int(words[3]))


# ---- both


def run(args: Any, work: Path) -> dict[str, Any]:
    """All sides in turns. This process loads no torch: a child begins with the peak RSS of the process that forks it."""
    found = peers.find_peers(args.peers, args.family)
    prepare(args, work)
    env, own = measure.environment(work, args.threads), [sys.executable, __file__, "--child"]
    measure.start([*own, "plan", work, args.max_length, args.batch_size], work / "check.log", env)
    plan = json.loads((work / "plan.json").read_text())
    others = peers.Bench(found, work, args, SHARED)
    checked = {}
    if found:
        measure.start([*own, "check", work, *others.check()], work / "checked.log", env)
        checked = {"checked": json.loads((work / "checked.json").read_text())}

    def timed(command: list[Any], out: Path) -> dict[str, float]:
        out.mkdir()
        return peers.used_rates(measure.start(command, out.with_suffix(".log"), env))

    def ours(repeat: int) -> dict[str, float]:
        out = work / f"ours{repeat}"
        return timed(our_command(args, work, out, plan), out) | our_rates(out, plan)

    def peer(repeat: int) -> dict[str, float]:
        out = work / f"peer{repeat}"
        return timed([*own, "train", work, out, args.workers], out) | peer_rates(out, plan)

    runs: dict[str, Callable[[int], dict[str, Any]]] = {"ours": ours, "peer": peer}
    runs |= {side: partial(others.train, side, plan=plan) for side in others.sides()}
    sides = measure.compare(measure.in_turns(runs, args.repeats), "peer")
    for name in ("ours", "peer"):
        sides[name] |= {key: plan[key][name] for key in ("tokens_per_step", "steps", "batch")}
    faster = {"against": peers.against(sides), "best_peer": peers.best_peer(sides), "titles": TITLES | others.titles()}
    pictures = peers.measure_pictures(others, args.pictures, args.repeats) if found and args.pictures else {}
    versions = {"peer_versions": {peer.name: peer.versions for peer in found}}
    facts = {name: plan[name] for name in ("rows", "tokens", "lengths", "shared")}
    return sides | facts | faster | versions | checked | ({"picture_path": pictures} if pictures else {})


def show(result: dict[str, Any], args: Any) -> None:
    lengths = result["lengths"]
    title = f"{result['rows']:,} rows of {lengths['min']} to {lengths['max']} tokens, {lengths['mean']:.0f} on average"
    columns = {
        "samples_per_second": ("samples/s", ".1f"),
        "tokens_per_second": ("tokens/s", ".0f"),
        "tower_ms": ("tower ms", ".1f"),
        "language_ms": ("language ms", ".1f"),
        "peak_rss_mb": ("peak RSS MB", ".0f"),
        "tokens_per_step": ("tokens a step", ".0f"),
        "steps": ("steps", "d"),
    }
    measure.print_sides(title, result, TITLES, columns)
    print(f"model: {args.family},", ", ".join(f"{name} {getattr(args, name)}" for name in SIZES))
    print(f"{args.threads} threads, {args.workers} loader workers, float32; padding is not counted as tokens")
    print(f"ratio in tokens/s: {result['ours']['ratio']['tokens_per_second']:.2f}")
    if args.peers:
        peers.show(result)


if __name__ == "__main__":
    parser = measure.bench_parser("bench_sft", __doc__, EXAMPLES, NUMBERS)
    parser.flag("--family", tuple(BETWEEN), "whose tiny random model all sides train")
    parser.add_argument(
        "--peers",
        nargs="+",
        type=peers.peer_word,
        default=[],
        metavar="NAME=PYTHON",
        help=f"peers to compare with too, each by the python of the environment that has it: {', '.join(peers.SPECS)}",
    )
    measure.run_bench(parser, run, show, child=child)
