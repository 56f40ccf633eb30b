"""Log-probabilities of preference pairs under a frozen reference model, once, for all epochs and runs that compare with it."""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from drive_vlm.config import (
    CommandParser,
    ModelConfig,
    add_dataclass,
    field,
    from_namespace,
    image_root_field,
    links_field,
    user_errors,
)
from drive_vlm.launch.stop import listening, until_stopped
from drive_vlm.store.lock import sole_writer
from drive_vlm.store.shards import parse_shard

if TYPE_CHECKING:
    import torch

    from drive_vlm.data.caches.reference_cache import ReferenceCache
    from drive_vlm.data.preference.pair_encoding import EncodedPairs, PairCollator
    from drive_vlm.models.training_forward import TokenLogProbs
    from drive_vlm.stages.preference.trainer import PreferenceTrainer

EXAMPLES = """
python -m drive_vlm reference --model runs/sft --data pairs.jsonl --out reference
torchrun --nproc_per_node 8 -m drive_vlm reference --model runs/sft --data pairs.jsonl --out reference --batch_size 8
python -m drive_vlm reference --model runs/sft --data pairs.jsonl --out reference --shard 2/8
python -m drive_vlm dpo --model runs/sft --data pairs.jsonl --reference_cache reference --output_dir runs/dpo
"""


@dataclasses.dataclass
class ReferenceConfig:
    """Which pairs, and where their log-probabilities go."""

    data: list[str] = field(help="preference pairs: rows with chosen and rejected texts; those of --eval_data as well")
    out: str = field(help="cache directory; pairs that are in it already are not computed again")
    image_root: str | None = image_root_field()
    links: str = links_field()
    batch_size: int = field(8, help="pairs computed at a time", least=1)
    max_length: int = field(4096, help="tokens of a prompt with one answer, at most", least=1)
    num_frames: int = field(8, help="frames taken from a video, evenly spread", least=1)
    shard: str | None = field(None, help="I/N: compute the I-th of N parts of the pairs (from 0), for array jobs")
    on_bad_row: str = field(
        "error", help="error: stop at a bad row; skip: leave it out and count it", choices=("error", "skip")
    )


def main(words: Sequence[str]) -> None:
    """`python -m drive_vlm reference`."""
    parser = CommandParser(prog="python -m drive_vlm reference", description=__doc__, examples=EXAMPLES)
    add_dataclass(parser, ReferenceConfig)
    add_dataclass(parser, ModelConfig)
    namespace = parser.parse_args(list(words))
    with user_errors(parser.prog), listening():
        reference(from_namespace(ModelConfig, namespace), from_namespace(ReferenceConfig, namespace))


def model_fingerprints(name: str) -> list[dict[str, Any]]:
    """Of a model; of an adapter and the model that it sits on."""
    from drive_vlm.models.lora import base_of
    from drive_vlm.store.fingerprint import model_fingerprint

    adapter = Path(name) / "adapter_config.json"
    base = [base_of(name)] if adapter.is_file() else []
    return [model_fingerprint(path) for path in (name, *base)]


def reference(model: ModelConfig, config: ReferenceConfig) -> None:
    """Compute what is not in the cache yet; each rank appends to a file of its own. Raises ValueError."""
    import torch

    from drive_vlm.data.caches.reference_cache import ReferenceCache, keys_of, reference_settings
    from drive_vlm.data.collate import Collator
    from drive_vlm.data.preference.pair_encoding import EncodedPairs, PairCollator, PairEncoder
    from drive_vlm.data.sources import open_sources
    from drive_vlm.data.table import build_table
    from drive_vlm.launch.topology import read_topology
    from drive_vlm.models import load_family

    topology = read_topology()
    index, count = parse_shard(config.shard)
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", topology.local_rank) if cuda else torch.device("cpu")
    dtype = getattr(torch, model.dtype) if model.dtype != "auto" else torch.bfloat16 if cuda else torch.float32
    family = load_family(model, dtype, for_training=True)
    network = family.model.to(device).eval()
    encoder = PairEncoder(family.tokenizer, family.template, family.vision, config.num_frames, config.max_length)
    sources = open_sources(config.data, config.image_root, config.links)
    table = build_table(sources, encoder, config.on_bad_row, config.max_length, need_answer=False)
    settings = reference_settings(model_fingerprints(model.model), str(dtype).removeprefix("torch."), encoder)
    cache = ReferenceCache.start(config.out, settings)
    keys = keys_of(table, config.num_frames)
    # Dealt out before the known ones are left out: other jobs and ranks are writing meanwhile, and deal the same.
    part = list(first_rows(keys).items())[index::count]
    rows = [i for key, i in part if key not in cache.entries]
    if topology.is_main:
        print(f"{len(part):,} pairs, {len(part) - len(rows):,} known, {len(table.bad)} bad rows", flush=True)
    mine = [i for key, i in part[topology.rank :: topology.world_size] if key not in cache.entries]
    pairs = EncodedPairs(table, encoder)
    collate = PairCollator(Collator(family.tokenizer.pad_token_id, family.vision))
    mine.sort(key=lambda i: -int(table.length[i]))
    batches = [[(i,) for i in mine[at : at + config.batch_size]] for at in range(0, len(mine), config.batch_size)]
    started = time.perf_counter()
    name = f"{index}-of-{count}-rank-{topology.rank}"
    with sole_writer(cache.directory / name), cache.writer(name) as writer:
        for numbers, found in log_probs(network, pairs, collate, batches, device, dtype, config.on_bad_row):
            for i, (chosen, rejected) in zip(numbers, found, strict=True):
                writer.write(keys[i], chosen, rejected)
    if topology.is_main:
        seconds = time.perf_counter() - started
        print(json.dumps({"out": config.out, "computed": len(mine), "seconds": seconds}), flush=True)


def first_rows(keys: Sequence[str]) -> dict[str, int]:
    """Key -> the first row that has it: a pair that comes again is computed once."""
    return {key: i for i, key in reversed(list(enumerate(keys)))}


def log_probs(
    network: Callable[..., "TokenLogProbs"],
    pairs: "EncodedPairs",
    collate: "PairCollator",
    batches: Sequence[Sequence[tuple[int, ...]]],
    device: "torch.device",
    dtype: "torch.dtype | None" = None,
    on_bad_row: str = "error",
) -> Iterator[tuple[list[int], list[list[float]]]]:
    """(rows, [chosen, rejected] of each) of every batch; an empty batch is a forward pass that gives nothing.

    A row that cannot be decoded is raised (BadRow), or left out with on_bad_row "skip": training meets it again and counts it.
    """
    import torch
    from rich.progress import track

    from drive_vlm.data.samples import BadRow
    from drive_vlm.launch.topology import read_topology
    from drive_vlm.stages.preference.loss import answer_log_probs

    # Each pair is on the disk by the time the next batch begins, so a rank may leave without asking the others.
    for batch in until_stopped(track(batches, "reference", disable=not read_topology().is_main, transient=True)):
        rows = [(i, pair) for (i,), pair in zip(batch, [pairs[sequence][0] for sequence in batch], strict=True)]
        bad = [pair for _, pair in rows if isinstance(pair, BadRow)]
        if bad and on_bad_row == "error":
            raise bad[0]
        good = [(i, pair) for i, pair in rows if not isinstance(pair, BadRow)]
        inputs = collate([[pair] for _, pair in good])
        tokens = inputs.pop("answer_tokens").to(device)
        tensors = {name: value.to(device) for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        if dtype is not None:
            tensors = {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}
        with torch.no_grad():
            log_probs_of_tokens = network(**tensors, token_log_probs=True).log_probs
            assert log_probs_of_tokens is not None, "asked for by token_log_probs"
            found = answer_log_probs(log_probs_of_tokens, tokens)
        yield [i for i, _ in good], found.double().view(-1, 2).tolist()


def fill_in_process(trainer: "PreferenceTrainer", cache: "ReferenceCache", keys: dict[str, list[str]]) -> None:
    """Compute the pairs that are not in `cache` with the trainer's model as it stands before its first step.

    All ranks run equally many batches, since ZeRO-3 gathers the weights for each.
    """
    import torch.distributed as dist

    from drive_vlm.data.order import FixedOrder, ShardedBatchSampler

    args = trainer.args
    network = None
    for name, table in trainer.parts.tables.items():
        lengths = table.length
        rows = [i for key, i in first_rows(keys[name]).items() if key not in cache.entries]
        rows.sort(key=lambda i: (-int(lengths[i]), i))
        if not rows:
            continue
        network = network or _frozen_network(trainer)
        pairs = trainer.train_dataset if name == "train" else trainer.eval_dataset
        sampler = ShardedBatchSampler(
            FixedOrder(len(rows)), args.per_device_train_batch_size, 1, args.process_index, args.world_size
        )
        batches = [[(rows[i],) for (i,) in batch] for batch in sampler]
        collate = dataclasses.replace(
            trainer.data_collator, rows=dataclasses.replace(trainer.data_collator.rows, packed=False, flatten=False)
        )
        with cache.writer(f"training-rank-{args.process_index}") as writer:
            found = log_probs(network, pairs, collate, batches, args.device, None, trainer.parts.on_bad_row)
            for numbers, values in found:
                for i, (chosen, rejected) in zip(numbers, values, strict=True):
                    writer.write(keys[name][i], chosen, rejected)
    if dist.is_initialized():
        dist.barrier()
    cache.read()


def _frozen_network(trainer: "PreferenceTrainer") -> Callable[..., "TokenLogProbs"]:
    """The trainer's model for forward passes alone: under DeepSpeed in an engine that shards it as training will."""
    from trl.models import prepare_deepspeed

    if trainer.is_deepspeed_enabled:
        return prepare_deepspeed(trainer.model, trainer.accelerator)
    trainer.model.to(trainer.args.device).eval()

    def forward(**inputs: Any) -> "TokenLogProbs":
        with trainer.accelerator.autocast():
            return trainer.model(**inputs)

    return forward


def missing(values: np.ndarray) -> int:
    """Pairs without log-probabilities among `values float[N, 2]`."""
    return int(np.isnan(values).any(axis=1).sum())
