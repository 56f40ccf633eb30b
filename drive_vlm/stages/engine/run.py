"""From flags to transformers' TrainingArguments on DeepSpeed, DDP or one process, on GPUs or a CPU."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drive_vlm.config import ModelConfig, RunConfig, plain, user_errors
from drive_vlm.launch.checkpoint import check_layout, find_checkpoint
from drive_vlm.launch.deepspeed import load_deepspeed_config, zero_stage
from drive_vlm.launch.status import RunStatus
from drive_vlm.launch.topology import accumulation_steps, read_topology
from drive_vlm.stages.engine.arguments import parse_stage
from drive_vlm.stages.engine.stage import Stage, load

# Where this project's defaults differ from those of transformers, in every stage. The memory plan shows them too.
TRAINING_DEFAULTS = {
    "per_device_train_batch_size": 8,
    "output_dir": "runs/sft",
    "logging_steps": 10,
    "save_strategy": "epoch",
}


def run_stage(name: str, stage: Stage, words: Sequence[str]) -> None:
    """One run of a stage, from the words of the command line to a saved model.

    Exits with 2 and one line on stderr for what a user can fix.
    """
    topology = read_topology()
    with user_errors(f"python -m drive_vlm {name}"):
        flags = parse_stage(name, stage, words).checked(stage, topology.world_size)
        with RunStatus(flags.training["output_dir"], topology.rank) as status:
            trainer, facts = load(stage.prepare)(flags)
            run_training(trainer, status, flags.run.hang_timeout, facts)


def training_arguments(cls: type, run: RunConfig, extra: dict[str, Any]) -> Any:
    """Build `cls` (TrainingArguments or a subclass) from the user's flags, with what this project fixes.

    Must run before the model is loaded: under ZeRO-3 it is what makes from_pretrained load shards.
    Raises ValueError when the global batch is not divisible or the DeepSpeed configuration is wrong.
    """
    import torch

    from drive_vlm.stages.engine.progress import quiet_bars

    quiet_bars()
    topology = read_topology()
    cpu = bool(extra.get("use_cpu", not torch.cuda.is_available()))
    extra = {**TRAINING_DEFAULTS, **extra}
    found = find_checkpoint(run.resume, Path(extra["output_dir"]))
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", os.path.join(extra["output_dir"], "tensorboard"))
    config = None
    if run.deepspeed:
        config = load_deepspeed_config(run.deepspeed, cpu)
    if found:
        default = next(item.default for item in dataclasses.fields(cls) if item.name == "optim")
        optim = str(extra.get("optim", default))
        if check_layout(*found, zero_stage(config), bool(config), topology.world_size, optim) and config:
            config["checkpoint"] = {"load_universal": True}  # saving.py converts before the engine loads
    if run.deepspeed:
        _start_deepspeed(cpu)
    elif topology.world_size > 1 and cpu:
        extra.setdefault("ddp_backend", "gloo")
    extra.setdefault("report_to", ["tensorboard"])
    extra.setdefault("ddp_find_unused_parameters", False)
    extra.setdefault("dataloader_pin_memory", not cpu)
    extra.setdefault("gradient_checkpointing_kwargs", {"use_reentrant": False})
    for old in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):  # transformers 5.23 has new names for both
        new = old.replace("gradient", "activation")
        if old in extra and new in {item.name for item in dataclasses.fields(cls)}:
            extra.setdefault(new, extra.pop(old))
    extra["use_cpu"] = cpu
    return cls(
        **extra,
        deepspeed=config,
        gradient_accumulation_steps=accumulation_steps(
            run.global_batch_size, extra["per_device_train_batch_size"], topology.world_size
        ),
        resume_from_checkpoint=str(found[0]) if found else None,
        remove_unused_columns=False,
        logging_nan_inf_filter=False,  # it would hide a NaN loss and wait for the GPU at every micro-batch; see faults.py
        label_names=["labels"],
    )


def weights_to_load(model: ModelConfig, checkpoint: str | None) -> ModelConfig:
    """Where a run takes its weights from: a resumed one from its checkpoint, since DeepSpeed's shards hold what trains only and
    --model may hold other frozen weights by now. With adapters the base is not in the checkpoint: it stays --model."""
    if checkpoint is None or not (Path(checkpoint) / "config.json").is_file():
        return model
    return dataclasses.replace(model, model=checkpoint)


def evaluation_defaults(extra: dict[str, Any], has_eval_data: bool) -> dict[str, Any]:
    """With evaluation rows the loss is measured whenever a checkpoint is saved, else each epoch, and the best checkpoint is kept,
    unless the user says otherwise."""
    if not has_eval_data:
        return extra
    save = extra.get("save_strategy", "epoch")
    defaults: dict[str, Any] = {"eval_strategy": save if save in ("epoch", "steps") else "epoch"}
    if save != "no":
        defaults |= {"metric_for_best_model": "eval_loss", "greater_is_better": False}
    return {**defaults, **extra}


def _start_deepspeed(cpu: bool) -> None:
    """Start deepspeed.comm before TrainingArguments would: with use_cpu they do not, and ZeRO-3's loading needs it."""
    if cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if "RANK" not in os.environ:  # plain `python`: a world of one
        os.environ.update(
            RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port())
        )
    import deepspeed

    if cpu:
        # The shared-memory collective is compiled for a minute at first use and gains nothing where gloo is at hand.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo" if cpu else "nccl", auto_mpi_discovery=False, verbose=False)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def check_attention(model: ModelConfig, args: Any) -> None:
    """Raises ValueError for a kernel that cannot train here: on a CPU flash has no implementation and flex no backward pass."""
    if args.use_cpu and model.attn_implementation in ("flash", "flex"):
        raise ValueError(
            f"--attn_implementation {model.attn_implementation} trains on GPUs only. Use sdpa or eager on a CPU."
        )


def model_dtype(model: ModelConfig, args: Any) -> Any:
    """dtype of the weights in memory: DeepSpeed keeps fp32 masters of its own, plain bf16 training autocasts fp32 weights."""
    import torch

    return getattr(torch, weight_dtype(model, args.bf16, bool(args.deepspeed)))


def weight_dtype(model: ModelConfig, half: bool, deepspeed: bool) -> str:
    """Name of the dtype of the weights in memory, with --bf16 (`half`) or without it; the memory plan asks as well."""
    if model.dtype != "auto":
        return model.dtype
    return "bfloat16" if half and deepspeed else "float32"


def run_training(trainer: Any, status: Any, hang_timeout: float, facts: dict[str, Any]) -> None:
    """From a built Trainer to a saved model, as every stage does it: run.json with `facts`, resume, watchdog, stop on request.

    A run that was asked to stop ends with a complete checkpoint and without a final model; status.json says which it was.
    """
    import torch.distributed as dist

    from drive_vlm.launch.manifest import complete_manifest, frames_note, start_manifest
    from drive_vlm.stages.engine.faults import guarded
    from drive_vlm.stages.engine.throughput import peak_memory_gib

    args = trainer.args
    manifest = Path(args.output_dir) / "run.json"
    if args.should_save:
        layout = {
            "world_size": args.world_size,
            "zero_stage": zero_stage(args.deepspeed if isinstance(args.deepspeed, dict) else None),
            "resumed_from": args.resume_from_checkpoint,
        }
        start_manifest(manifest, **facts, **layout)
        config = plain(facts["config"])
        print(frames_note(config["model"]["model"], config["data"]["num_frames"]), end="", flush=True)
    trainer.prepare_start()
    with guarded(trainer, status, hang_timeout) as stop:
        result = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        ended: dict[str, Any] = {"output_dir": args.output_dir, "steps": result.global_step}
        if stop.requested:
            ended["state"] = stop.requested
        else:
            ended |= {"state": "finished", "train_loss": result.metrics["train_loss"]}
            trainer.heartbeat.beat("save")
            with trainer.told_when_writing_fails(f"{args.output_dir}: the final model"):
                trainer.save_model()
                trainer.save_state()
        trainer.save_audit()
        if args.should_save:
            best = trainer.state.best_model_checkpoint
            peak = peak_memory_gib()
            complete_manifest(
                manifest, state=ended["state"], metrics=result.metrics, best_checkpoint=best, peak_memory_gib=peak
            )
            print(json.dumps(ended), flush=True)
        if not stop.requested:
            status.progress(result.global_step)
            status.end("finished")
    if dist.is_initialized():
        dist.destroy_process_group()
