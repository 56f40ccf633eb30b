"""Answers of a model for the rows of a file or about videos, as predictions JSONL: batched, sharded over ranks, restartable."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from drive_vlm.config import CommandParser, ModelConfig, add_dataclass, field, from_namespace
from drive_vlm.data.instructions import MODES
from drive_vlm.data.predictions import check_answered, finished_rows, join_parts, part_of_rank, prediction_row
from drive_vlm.data.samples import BadRow, Sample
from drive_vlm.generate.local import LocalModel
from drive_vlm.generate.rows import read_rows
from drive_vlm.generate.server import answers_of_server
from drive_vlm.launch.shards import parse_shard, shard_of, shard_path
from drive_vlm.launch.topology import read_topology
from drive_vlm.process_group import gather, join_ranks, leave_ranks, wait_for_ranks
from drive_vlm.stages.arguments import stop_on_user_error

EXAMPLES = """
python -m drive_vlm generate --model runs/sft --data test.jsonl --out predictions.jsonl
torchrun --nproc_per_node 8 -m drive_vlm generate --model runs/sft --data test.jsonl --out predictions.jsonl --batch_size 16
python -m drive_vlm generate --model runs/sft --data test.jsonl --out predictions.jsonl --shard 2/8   # then: cat predictions.shard-*-of-08.jsonl
python -m drive_vlm generate --model runs/drive_vlm --mode concise --data clips/ a.mp4 frames_folder/ --out texts.jsonl
python -m drive_vlm generate --model runs/stage2 --data test.jsonl --num_frames 16 --feature_cache features --out predictions.jsonl
python -m drive_vlm generate --backend openai --base-url http://localhost:8000/v1 --model my-vlm --data test.jsonl --out predictions.jsonl
"""


@dataclasses.dataclass
class GenerateConfig:
    """What to answer, how, and where the answers go."""

    data: list[str] = field(
        help="rows to answer: .jsonl, LLaVA .json or InternVL meta .json; with --mode also videos, folders of frames, and "
        "folders that hold some of both"
    )
    out: str = field(help="predictions JSONL; rows that are in it already are not answered again")
    image_root: str | None = field(
        None, help="folder that picture paths start from (default: the data file's own folder)"
    )
    mode: str | None = field(
        None,
        help="ask about videos: detailed or concise, each with its instruction in place of the rows' own question; rows of "
        "another mode are left out",
        choices=tuple(MODES),
    )
    batch_size: int = field(16, help="rows answered at a time", least=1)
    max_new_tokens: int = field(128, help="tokens of an answer, at most", least=1)
    temperature: float = field(0.0, help="0 takes the likeliest token, above 0 samples", least=0)
    top_p: float = field(
        1.0, help="nucleus of sampling: the likeliest tokens that make this share", least=0.001, most=1
    )
    seed: int = field(0, help="seed of sampling")
    num_frames: int = field(8, help="frames taken from a video, evenly spread", least=1)
    feature_cache: str | None = field(
        None,
        help="folder of tools/cache_features.py: answer from the vision tower's features; no picture is decoded, no tower runs",
    )
    limit: int | None = field(None, help="answer the first N rows only", least=1)
    shard: str | None = field(
        None,
        help="I/N: answer the I-th of N equal runs of rows (from 0) into a file of its own, e.g. out.shard-02-of-08.jsonl",
    )
    blank_images: bool = field(False, help="replace every picture by a grey one of the same size: the blind baseline")
    shuffle_frames: bool = field(
        False,
        help="show the frames of each video in a random order, fixed by the row's id: what a model knows without time",
    )
    on_bad_row: str = field(
        "error", help="error: stop at a bad row; skip: leave it out and count it", choices=("error", "skip")
    )
    backend: str = field("hf", help="hf: this process; openai: any OpenAI-compatible server", choices=("hf", "openai"))
    base_url: str | None = field(None, help="address of the server, e.g. http://localhost:8000/v1")
    api_key_env: str = field("OPENAI_API_KEY", help="environment variable that holds the server's key")
    workers: int = field(8, help="requests to the server at a time", least=1)


def main(words: Sequence[str]) -> None:
    """`python -m drive_vlm generate`."""
    parser = CommandParser(prog="python -m drive_vlm generate", description=__doc__, examples=EXAMPLES)
    add_dataclass(parser, GenerateConfig)
    add_dataclass(parser, ModelConfig)
    namespace = parser.parse_args(list(words))
    try:
        generate(from_namespace(ModelConfig, namespace), from_namespace(GenerateConfig, namespace))
    except ValueError as error:
        stop_on_user_error("generate", error)


def generate(model: ModelConfig, config: GenerateConfig) -> None:
    """Answer every row that has no answer yet. Each rank appends to a part file; the main one joins them in the rows' order."""
    topology = read_topology()
    check_flags(config)
    samples, bad = read_rows(config)
    out = Path(config.out)
    if config.shard:
        samples, out = take_shard(samples, out, config.shard)
    out.parent.mkdir(parents=True, exist_ok=True)
    done = finished_rows(out)
    keep_settings(out, model, config, bool(done))
    check_answered(out, done, samples)
    todo = [sample for sample in samples if sample.id not in done]
    if topology.is_main:
        if config.backend == "hf" and any(sample.video for sample in samples):
            from drive_vlm.launch.manifest import frames_note

            print(frames_note(model.model, config.num_frames), end="")
        print(
            f"{len(samples):,} rows, {len(samples) - len(todo):,} answered before, {len(todo):,} to do, {len(bad)} bad",
            flush=True,
        )
    join_ranks()
    wait_for_ranks()  # every rank has read what is finished before anybody writes
    answers = (
        answers_of_server(todo[topology.rank :: topology.world_size], model, config, bad)
        if config.backend == "openai"
        else _answers_of_model(samples, set(done), model, config, bad)
    )
    with open(part_of_rank(out, topology.rank), "a", encoding="utf-8") as file:
        for sample, answer in answers:
            file.write(json.dumps(prediction_row(sample, answer), ensure_ascii=False) + "\n")
            file.flush()
    bad = list({str(row): row for part in gather(bad) for row in part}.values())
    leave_ranks()
    if topology.is_main:
        join_parts(out, samples)
        if bad:
            audit = out.with_suffix(".bad_rows.json")
            audit.write_text(
                json.dumps(
                    [{"where": row.where, "reason": row.reason, "problem": row.problem} for row in bad], indent=2
                )
            )
        print(f"{out}: {len(finished_rows(out)):,} predictions", flush=True)


def check_flags(config: GenerateConfig) -> None:
    """Raises ValueError for a feature cache beside what needs pictures."""
    needs = {"--blank_images": config.blank_images, "--backend openai": config.backend == "openai"}
    for flag, given in needs.items():
        if config.feature_cache and given:
            raise ValueError(f"--feature_cache: {flag} needs the pictures themselves. Leave one of the two out.")


def keep_settings(out: Path, model: ModelConfig, config: GenerateConfig, answered: bool) -> None:
    """Model and sampling stand beside the answers, in OUT.settings.json: answers of two models must not mix in one file.

    Raises ValueError naming what differs from the settings of the answers that are there.
    """
    from drive_vlm.launch.cache import write_atomically
    from drive_vlm.launch.fingerprint import model_fingerprint, same_model

    names = (
        "backend",
        "max_new_tokens",
        "temperature",
        "top_p",
        "seed",
        "num_frames",
        "blank_images",
        "mode",
        "shuffle_frames",
    )
    remote = config.backend == "openai"
    settings = {
        "model": {"name": model.model} if remote else model_fingerprint(model.model),
        "max_tiles": model.max_tiles,
        "top_k": 0,  # of sampling: every token
        **{name: getattr(config, name) for name in names},
    }
    path = out.with_name(f"{out.name}.settings.json")
    if answered and path.is_file():
        before = json.loads(path.read_text())
        sampled = before.get("temperature", 0) > 0 and not remote
        before = {"shuffle_frames": False, "top_k": 50 if sampled else 0} | before  # what older files do not say
        moved = {name for name in settings if name != "model" and before.get(name) != settings[name]}
        if (agreed := same_model(before["model"], settings["model"])) is None:
            moved.add("model")
        if moved:
            raise ValueError(
                f"{out}: its answers were made with other settings ({', '.join(sorted(moved))}; see {path.name}). Give another --out, or "
                "remove both files to answer anew."
            )
        settings["model"] = agreed
    elif answered:
        print(
            f"{out}: {path.name} is not there, so nobody can tell which model gave the answers that are kept",
            flush=True,
        )
    if read_topology().is_main:
        write_atomically(path, lambda file: file.write(json.dumps(settings, indent=2).encode()))


def take_shard(samples: list[Sample], out: Path, shard: str) -> tuple[list[Sample], Path]:
    """The rows of shard "I/N" and its file. Shards are consecutive runs of rows: their files joined in the order of their names
    are the rows in order. Raises ValueError for anything but 0 <= I < N."""
    part = parse_shard(shard)
    return shard_of(samples, part), shard_path(out, part)


def _answers_of_model(
    samples: list[Sample], done: set[str], model: ModelConfig, config: GenerateConfig, bad: list[BadRow]
) -> Iterator[tuple[Sample, str]]:
    """Answers of this rank to the samples that are not `done`.

    Batches are the same whatever is done and however many ranks there are, each with a seed of its own, and a batch that
    lacks an answer is answered whole: a run that was interrupted gives the answers of one that was not.
    """
    topology = read_topology()
    batches = [batch for batch in batches_of(samples, config.batch_size) if not {row.id for row in batch} <= done]
    mine = batches[topology.rank :: topology.world_size]
    if mine:
        answers = LocalModel(model, config).answers(mine, config, bad)
        yield from ((sample, answer) for sample, answer in answers if sample.id not in done)


def batches_of(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    """Batches of similar length, so that little is spent on padding."""
    ordered = sorted(samples, key=lambda sample: sum(len(turn.text) for turn in sample.turns))
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]
