"""From flags to transformers' TrainingArguments on DeepSpeed, DDP or one process, on GPUs or a CPU."""

import dataclasses
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from drive_vlm.config import DataConfig, ModelConfig, RunConfig, nearest
from drive_vlm.launch.checkpoint import check_layout, find_checkpoint
from drive_vlm.launch.deepspeed import load_deepspeed_config, zero_stage
from drive_vlm.launch.machine import slow_bf16
from drive_vlm.launch.stop import check_launcher
from drive_vlm.launch.topology import accumulation_steps, read_topology
from drive_vlm.stages.engine.score_flags import ScoreFlags

if TYPE_CHECKING:
    import torch
    from transformers import TrainingArguments

    from drive_vlm.stages.engine.stage import StageFlags

Arguments = TypeVar("Arguments", bound="TrainingArguments")
# What this project chooses where transformers or TRL choose otherwise; the plan shows the same.
TRAINING_DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "output_dir": "runs/sft",
    "logging_steps": 10,
    "save_strategy": "epoch",
}


@dataclasses.dataclass(frozen=True)
class Resume:
    """The checkpoint that a run goes on from.

    Attributes:
        checkpoint: its directory, complete.
        convert: whether DeepSpeed's shards become a universal checkpoint (they are of another number of processes, or the user's
            JSON asks for it) before the engine loads them (saving.py).
    """

    checkpoint: Path
    convert: bool = False


def training_arguments(cls: type[Arguments], flags: "StageFlags") -> tuple[Arguments, Resume | None]:
    """Build `cls` from the user's flags, with what this project fixes, and find the checkpoint of --resume.

    Must run before the model is loaded: under ZeRO-3 it is what makes from_pretrained load shards.
    Raises ValueError when the global batch is not divisible, the DeepSpeed configuration is wrong, the checkpoint cannot be
    resumed with this memory layout, or the attention kernel cannot train here.
    """
    import torch

    from drive_vlm.stages.engine.progress import quiet_bars

    quiet_bars()
    topology = read_topology()
    run, given = flags.run, evaluation_defaults(flags.training, bool(flags.data.eval_data), flags.scores)
    cpu = bool(given.get("use_cpu", not torch.cuda.is_available()))
    extra = TRAINING_DEFAULTS | given
    names = {item.name for item in dataclasses.fields(cls)}
    config = load_deepspeed_config(run.deepspeed, cpu) if run.deepspeed else None
    resume = _find_resume(cls, run, extra, config, topology.world_size)
    if resume and resume.convert and config:
        # DeepSpeed's own key: with it the engine reads a universal checkpoint in place of its shards.
        config["checkpoint"] = {"load_universal": True}
    check_launcher()
    # deepspeed.comm starts before TrainingArguments, which start none with use_cpu.
    if run.deepspeed:
        _start_deepspeed(cpu)
    elif topology.world_size > 1 and cpu:
        extra.setdefault("ddp_backend", "gloo")
    extra.setdefault("report_to", ["tensorboard"])
    check_trackers(extra["report_to"])
    extra.setdefault("ddp_find_unused_parameters", False)
    extra.setdefault("dataloader_pin_memory", not cpu)
    extra.setdefault("gradient_checkpointing_kwargs", {"use_reentrant": False})
    # transformers 5.23 renamed both and warns about the old names.
    for old in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
        new = old.replace("gradient", "activation")
        if old in extra and new in names:
            extra.setdefault(new, extra.pop(old))
    if "num_generations_eval" in names:
        # Held-out rows are answered once; GRPOConfig (trl 1.16) would ask for an evaluation batch of whole groups.
        extra["num_generations_eval"] = 1
    extra["use_cpu"] = cpu
    args = cls(
        **extra,
        deepspeed=config,
        gradient_accumulation_steps=accumulation_steps(
            run.global_batch_size, extra["per_device_train_batch_size"], topology.world_size
        ),
        resume_from_checkpoint=str(resume.checkpoint) if resume else None,
        # The Trainer would drop the columns that the model's forward does not name: ids, bad rows, token counts.
        remove_unused_columns=False,
        # The filter would hide a NaN loss and wait for the GPU at every micro-batch; faults.py looks for it without waiting.
        logging_nan_inf_filter=False,
        label_names=["labels"],
    )
    check_same_checkpoint(resume)
    check_schedule(args)
    check_attention(flags.model, args)
    if topology.is_main:
        warn_of_bf16(flags.model, args)
    if args.should_log and flags.data.packing:
        print_packed_mask(flags.model, flags.data, args)
    return args, resume


def check_same_checkpoint(resume: Resume | None) -> None:
    """Raises ValueError where ranks go on from different checkpoints. Each looks by itself, before it knows the others; the
    ranks of a killed run may have completed one in between."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, resume.checkpoint.name if resume else "none")
    if len(set(found)) > 1:
        each = ", ".join(f"rank {rank} {name}" for rank, name in enumerate(found))
        raise ValueError(
            f"--resume: ranks found different checkpoints ({each}): an earlier run was still writing. Start again with --resume auto."
        )


def check_trackers(report_to: str | list[str]) -> None:
    """Raises ValueError for a tracker of --report_to that transformers does not know, or that is not installed: its callback
    would fail when the Trainer is built, after the weights are loaded."""
    from transformers.integrations import integration_utils

    known = ["none", "all", *integration_utils.INTEGRATION_TO_CALLBACK]
    for name in [report_to] if isinstance(report_to, str) else report_to:
        if name not in known:
            raise ValueError(f"--report_to {name} is not known (known: {', '.join(known)}).{nearest(name, known)}")
        if name not in ("none", "all", *integration_utils.get_available_reporting_integrations()):
            raise ValueError(f"--report_to {name}: it is not installed (pip install {name}). Or give --report_to none.")


def check_schedule(args: "TrainingArguments") -> None:
    """Raises ValueError where --lr_scheduler_kwargs are not those of --lr_scheduler_type: the Trainer would find out when it
    begins."""
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    kwargs: Any = args.lr_scheduler_kwargs
    try:
        get_scheduler(args.lr_scheduler_type, optimizer, 1, 10, scheduler_specific_kwargs=dict(kwargs or {}))
    except (TypeError, ValueError) as error:
        kind = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
        raise ValueError(f"--lr_scheduler_kwargs {kwargs} with --lr_scheduler_type {kind}: {error}.") from error


def _find_resume(
    cls: type, run: RunConfig, extra: dict[str, Any], config: dict[str, Any] | None, world_size: int
) -> Resume | None:
    found = find_checkpoint(run.resume, Path(extra["output_dir"]))
    if not found:
        return None
    default = next(item.default for item in dataclasses.fields(cls) if item.name == "optim")
    optim = str(extra.get("optim", default))
    other_world_size = check_layout(*found, zero_stage(config), bool(config), world_size, optim)
    # A JSON file of the user's own may ask for it, whatever the number of processes.
    asked = bool(config and config.get("checkpoint", {}).get("load_universal"))
    return Resume(found[0], convert=bool(other_world_size and config) or asked)


def evaluation_defaults(extra: dict[str, Any], has_eval_data: bool, scores: ScoreFlags | None = None) -> dict[str, Any]:
    """The flags, with an evaluation where there are rows for it, unless the user says otherwise: whenever a checkpoint is
    saved, else each epoch, and the best checkpoint is kept: by the first --eval_metric, else by the loss."""
    best = scores.best if scores else {}
    if not has_eval_data and not best:
        return extra
    if best and "eval_steps" in extra and not {"save_strategy", "save_steps"} & extra.keys():
        # Else checkpoints of an epoch would stand between two scores.
        extra = {"save_strategy": "steps", "save_steps": extra["eval_steps"]} | extra
    save = extra.get("save_strategy", "epoch")
    defaults: dict[str, Any] = {"eval_strategy": save if save in ("epoch", "steps") else "epoch"}
    if defaults["eval_strategy"] == "steps":
        # Without it transformers would evaluate every --logging_steps; 500 is its own --save_steps.
        defaults["eval_steps"] = extra.get("save_steps", 500)
    if save != "no":
        metric = extra.get("metric_for_best_model", next(iter(best), "eval_loss"))
        name = f"eval_{metric.removeprefix('eval_')}"
        defaults |= {
            "metric_for_best_model": metric,
            "greater_is_better": best.get(name, not metric.endswith("loss")),
        }
    return {**defaults, **extra}


def check_attention(model: ModelConfig, args: "TrainingArguments") -> None:
    """Raises ValueError for a kernel that cannot train here: on a CPU flash has no implementation and flex no backward pass."""
    if args.use_cpu and model.attn_implementation in ("flash", "flex"):
        raise ValueError(
            f"--attn_implementation {model.attn_implementation} trains on GPUs only. Use sdpa or eager on a CPU."
        )


def warn_of_bf16(model: ModelConfig, args: "TrainingArguments") -> None:
    """A line where bf16 runs on a processor that has no units for it: a step would take minutes and nothing would say why."""
    if args.use_cpu and (args.bf16 or model.dtype == "bfloat16") and (slow := slow_bf16()):
        print(f"warning: {slow}", file=sys.stderr, flush=True)


def print_packed_mask(model: ModelConfig, data: DataConfig, args: "TrainingArguments") -> None:
    """A line where packs on a GPU pass eager, which takes a dense mask: what it holds, and which kernels take none."""
    if args.use_cpu or model.attn_implementation != "eager":
        return
    tokens = data.max_length or 0
    share = args.per_device_train_batch_size * tokens**2 / 2**20
    print(
        f"attention: eager keeps the rows of a pack apart by a dense mask of {tokens:,} x {tokens:,} "
        f"({share:,.0f} MiB a micro-batch); --attn_implementation sdpa (or flash, flex) takes where they end instead.",
        flush=True,
    )


def model_dtype(model: ModelConfig, args: "TrainingArguments") -> "torch.dtype":
    """dtype of the weights in memory: DeepSpeed keeps fp32 masters of its own, plain bf16 training autocasts fp32 weights."""
    import torch

    return getattr(torch, weight_dtype(model, bool(args.bf16), bool(args.deepspeed)))


def weight_dtype(model: ModelConfig, half: bool, deepspeed: bool) -> str:
    """Name of the dtype of the weights in memory, with --bf16 (`half`) or without it; the memory plan asks as well."""
    if model.dtype != "auto":
        return model.dtype
    return "bfloat16" if half and deepspeed else "float32"


def _start_deepspeed(cpu: bool) -> None:
    """Start deepspeed.comm before TrainingArguments would: with use_cpu they do not, and ZeRO-3's loading needs it."""
    if cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # Plain `python` is a world of one.
    if "RANK" not in os.environ:
        os.environ.update(
            RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port())
        )
    import deepspeed

    # The Trainer accumulates itself and gives accelerate 1; accelerate then warns that DeepSpeed's own number, the right one, differs.
    logging.getLogger("accelerate.accelerator").addFilter(_is_no_mismatch)
    if cpu:
        # The shared-memory collective is compiled for a minute at first use and gains nothing where gloo is at hand.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo" if cpu else "nccl", auto_mpi_discovery=False, verbose=False)


def _is_no_mismatch(record: logging.LogRecord) -> bool:
    return "Gradient accumulation steps mismatch" not in record.getMessage()


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
