"""Answers of a model to the rows of a file, or about videos, as predictions JSONL: batched, dealt to ranks, restartable."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from drive_vlm.config import CommandParser, DataConfig, ModelConfig, add_dataclass, from_namespace, user_errors
from drive_vlm.data.predictions import Answer, check_answered, finished_rows, join_parts, part_of_rank, prediction_row
from drive_vlm.data.samples import BadRow, Sample
from drive_vlm.generate.config import GenerateConfig
from drive_vlm.generate.json_schema import JsonSchema
from drive_vlm.generate.rows import read_rows
from drive_vlm.generate.server import answers_of_server
from drive_vlm.launch import stop
from drive_vlm.launch.topology import read_topology
from drive_vlm.sampling.local import LocalModel, batches_of
from drive_vlm.sampling.process_group import gather, join_ranks, leave_ranks, sole_writer_of_ranks, wait_for_ranks
from drive_vlm.store.forms import part, read_object
from drive_vlm.store.keyed_lines import LineWriter, check_same
from drive_vlm.store.shards import parse_shard, shard_of, shard_path

EXAMPLES = """
python -m drive_vlm generate --model runs/sft --data test.jsonl --out predictions.jsonl
torchrun --nproc_per_node 8 -m drive_vlm generate --model runs/sft --data test.jsonl --out predictions.jsonl --batch_size 16
python -m drive_vlm generate --model runs/sft --data test.jsonl --out predictions.jsonl --shard 2/8   # then: cat predictions.shard-*-of-08.jsonl
python -m drive_vlm generate --model runs/drive_vlm --mode concise --data clips/ a.mp4 frames_folder/ --out texts.jsonl
python -m drive_vlm generate --model runs/stage2 --data test.jsonl --num_frames 16 --feature_cache features --out predictions.jsonl
python -m drive_vlm generate --model runs/a2c --data test.jsonl --json_schema answer.json --out predictions.jsonl
python -m drive_vlm generate --backend openai --base-url http://localhost:8000/v1 --model my-vlm --data test.jsonl --out predictions.jsonl
"""


def main(words: Sequence[str]) -> None:
    """`python -m drive_vlm generate`."""
    parser = CommandParser(prog="python -m drive_vlm generate", description=__doc__, examples=EXAMPLES)
    add_dataclass(parser, GenerateConfig)
    add_dataclass(parser, ModelConfig)
    namespace = parser.parse_args(list(words))
    with user_errors(parser.prog), stop.listening():
        generate(from_namespace(ModelConfig, namespace), from_namespace(GenerateConfig, namespace))


def generate(model: ModelConfig, config: GenerateConfig) -> None:
    """Answer every row that has no answer yet.

    1. read_rows: every row, checked; bad ones stop the run or are counted.
    2. finished_rows, keep_settings, check_answered: what an earlier run answered, and whether its settings and rows are the same.
    3. Each rank answers its batches and appends to a part file of its own, a row at a time.
    4. join_parts: the main rank writes all answers in the order of the rows, and removes the parts.
    """
    topology = read_topology()
    check_flags(config)
    schema = JsonSchema(config.json_schema) if config.json_schema else None
    # None where answers are free. Made here, so that a schema that cannot be obeyed is known before anything is loaded.
    grammar = schema.grammar() if schema and not config.json_free and config.backend == "hf" else None
    samples, bad = read_rows(config)
    out = Path(config.out)
    if config.shard:
        samples, out = take_shard(samples, out, config.shard)
    join_ranks()
    with sole_writer_of_ranks(out):
        _answer(model, config, samples, bad, out, schema, grammar)
    if topology.is_main:
        rows = finished_rows(out)
        print(f"{out}: {len(rows):,} predictions", flush=True)
        if cut := sum(row.get("finish_reason") == "length" for row in rows.values()):
            print(
                f"{cut:,} of them end at --max_new_tokens {config.max_new_tokens} and are not whole (finish_reason length): raise it, "
                "or leave them out",
                flush=True,
            )
        if schema:
            fit = sum(schema.fits(row["prediction"]) for row in rows.values())
            how = "written freely" if config.json_free else "written under it"
            print(f"{fit:,} of {len(rows):,} answers follow {schema.path} ({how})", flush=True)


def _answer(
    model: ModelConfig,
    config: GenerateConfig,
    samples: list[Sample],
    bad: list[BadRow],
    out: Path,
    schema: JsonSchema | None,
    grammar: str | None,
) -> None:
    """Steps 2 to 4 of `generate`."""
    topology = read_topology()
    done = finished_rows(out)
    keep_settings(out, model, config, bool(done), schema)
    check_answered(out, done, samples)
    todo = [sample for sample in samples if sample.key not in done]
    if topology.is_main:
        if config.backend == "hf" and any(sample.video for sample in samples):
            from drive_vlm.launch.manifest import frames_note

            print(frames_note(model.model, config.num_frames), end="")
        print(
            f"{len(samples):,} rows, {len(samples) - len(todo):,} answered before, {len(todo):,} to do, {len(bad)} bad",
            flush=True,
        )
    # Every rank must have read what is finished before one of them writes: their batches are dealt from the same list.
    wait_for_ranks()
    answers = (
        answers_of_server(
            todo[topology.rank :: topology.world_size], model, config, bad, None if config.json_free else schema
        )
        if config.backend == "openai"
        else _answers_of_model(samples, set(done), model, config, bad, grammar)
    )
    with LineWriter(part_of_rank(out, topology.rank)) as file:
        for sample, answer in answers:
            file.append(prediction_row(sample, *answer))
            stop.count_kept(1)
    # Every rank reads all rows, so each bad one is known to all of them: it is counted once.
    bad = list({str(row): row for part in gather(bad) for row in part}.values())
    leave_ranks()
    if topology.is_main:
        join_parts(out, samples)
        if bad:
            audit = out.with_suffix(".bad_rows.json")
            audit.write_text(json.dumps([row.facts() for row in bad], indent=2))


def check_flags(config: GenerateConfig) -> None:
    """Reject --feature_cache with options that need the original images, and --json_free without a schema (ValueError)."""
    if config.json_free and not config.json_schema:
        raise ValueError("--json_free says how --json_schema is used. Give the schema that answers are held against.")
    needs = {"--blank_images": config.blank_images, "--backend openai": config.backend == "openai"}
    for flag, given in needs.items():
        if config.feature_cache and given:
            raise ValueError(f"--feature_cache: {flag} needs the pictures themselves. Leave one of the two out.")


def keep_settings(
    out: Path, model: ModelConfig, config: GenerateConfig, answered: bool, schema: JsonSchema | None = None
) -> None:
    """Write model and sampling to OUT.settings.json, so that answers of two models do not mix in one file.

    Raises ValueError naming what differs from the settings of the answers that are there.
    """
    from drive_vlm.store.cache import write_json
    from drive_vlm.store.fingerprint import model_fingerprint, same_model

    names = ("backend", "max_new_tokens", "temperature", "top_p", "seed", "num_frames", "blank_images", "mode")
    remote = config.backend == "openai"
    settings = {
        "model": {"name": model.model} if remote else model_fingerprint(model.model),
        "max_tiles": model.max_tiles,
        "pixels": [model.min_pixels, model.max_pixels],
        # Sampling draws from all tokens. Versions before this key drew from the 50 likeliest.
        "top_k": 0,
        **{name: getattr(config, name) for name in (*names, "shuffle_frames")},
        # What answers were held to; those that are only counted by a schema are written as without one.
        "json_schema": schema.schema if schema and not config.json_free else None,
    }
    path = out.with_name(f"{out.name}.settings.json")
    if answered and path.is_file():
        before = read_object(path, f"Give another --out, or remove {out.name} and it to answer again.")
        part(before, "model", dict, path)
        part({"temperature": 0.0} | before, "temperature", float, path)
        sampled = before.get("temperature", 0) > 0 and not remote
        # What files of earlier versions do not say.
        before = {
            "shuffle_frames": False,
            "json_schema": None,
            "pixels": [None, None],
            "top_k": 50 if sampled else 0,
        } | before
        if agreed := same_model(before["model"], settings["model"]):
            before["model"] = settings["model"] = agreed
        way_out = f"Give another --out, or remove it and {path.name} to answer again."
        check_same(f"{out}: its answers were made with other settings", before, settings, way_out)
    elif answered:
        print(f"{out}: {path.name} is missing, so it is unknown which model gave the answers that are kept", flush=True)
    # The other ranks have compared with the old file, or find this one: both are the same but for the name of a moved model.
    if read_topology().is_main:
        write_json(path, settings)


def take_shard(samples: list[Sample], out: Path, shard: str) -> tuple[list[Sample], Path]:
    """The rows of shard "I/N" and its file. Shards are consecutive parts of the rows: their files, joined in the order of their
    names, are the rows in order. Raises ValueError for anything but 0 <= I < N."""
    part = parse_shard(shard)
    return shard_of(samples, part), shard_path(out, part)


def _answers_of_model(
    samples: list[Sample],
    done: set[tuple[str, str]],
    model: ModelConfig,
    config: GenerateConfig,
    bad: list[BadRow],
    grammar: str | None,
) -> Iterator[tuple[Sample, Answer]]:
    """Answers of this rank to the samples that are not `done`.

    Batches are the same whatever is done and however many ranks there are, each with a seed of its own, and a batch that
    lacks an answer is answered whole: a run that was interrupted gives the answers of one that was not.
    """
    topology = read_topology()
    batches = [batch for batch in batches_of(samples, config.batch_size) if not {row.key for row in batch} <= done]
    mine = batches[topology.rank :: topology.world_size]
    if mine:
        names = ("image_root", "num_frames", "feature_cache")
        data = DataConfig(data=config.data, **{name: getattr(config, name) for name in names})
        local = LocalModel(model, data, config.blank_images, config.shuffle_frames)
        answers = local.answers(mine, config.sampling(), bad, between=stop.check, grammar=grammar)
        yield from ((sample, answer) for sample, answer in answers if sample.key not in done)
