"""One run of a stage, from the words of the command line to a saved model."""

import contextlib
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drive_vlm.config import disk_errors, plain, user_errors
from drive_vlm.launch.deepspeed import zero_stage
from drive_vlm.launch.status import RunStatus
from drive_vlm.launch.stop import STOP_FILE, listening
from drive_vlm.launch.topology import read_topology
from drive_vlm.stages.engine.arguments import parse_stage
from drive_vlm.stages.engine.stage import Stage, load
from drive_vlm.store.lock import sole_writer

if TYPE_CHECKING:
    from drive_vlm.stages.engine.faults import StopOnRequest
    from drive_vlm.stages.engine.trainer import DriveTrainerMixin


def run_stage(name: str, stage: Stage, words: Sequence[str]) -> None:
    """`python -m drive_vlm NAME WORDS`. Exits with 2 and one line on stderr for what a user can fix.

    1. Parse the flags and ask the stage what it refuses (parse_stage, StageFlags.checked).
    2. Become the only writer of --output_dir; then open status.json, which holds how the run stands from here on, and listen
       to requests to stop.
    3. Build the Trainer (the stage's `prepare`): model, data, training.
    4. Train and save (run_training).
    """
    with user_errors(f"python -m drive_vlm {name}", main_only=True):
        topology = read_topology()
        flags = parse_stage(name, stage, words).checked(stage, topology.world_size)
        out = Path(flags.training["output_dir"])
        with (
            # Before the status, which is that of the run that holds the folder. The ranks of one that was killed may still end.
            sole_writer(out, "--output_dir", wait=5.0) if topology.is_main else contextlib.nullcontext(),
            RunStatus(out, topology.rank) as status,
            listening(status.directory / STOP_FILE, status.asked, status.is_lost),
        ):
            trainer, facts = load(stage.prepare)(flags)
            # Logs, audit, run.json, tensorboard: whatever is written between two checkpoints.
            with _quiet_writers(), disk_errors(trainer.what_is_safe, f"a file in {out} (tensorboard's, it may be)"):
                run_training(trainer, status, flags.run.hang_timeout, facts)


@contextlib.contextmanager
def _quiet_writers() -> Iterator[None]:
    """Tensorboard writes on a thread of its own, and its main thread raises what that has met: said once is enough."""
    before = threading.excepthook

    def hook(args: Any) -> None:
        if not isinstance(args.exc_value, OSError):
            before(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def run_training(trainer: "DriveTrainerMixin", status: RunStatus, hang_timeout: float, facts: dict[str, Any]) -> None:
    """From a built Trainer to a saved model, as every stage does it: run.json with `facts`, resume, watchdog, stop on request.

    A run that was asked to stop ends with a complete checkpoint and without a final model; status.json says which it was. A
    finished one that is resumed (each later link of a Slurm chain does so) ends at once, its files untouched.
    """
    import torch.distributed as dist

    from drive_vlm.launch.checkpoint import read_complete
    from drive_vlm.launch.manifest import complete_manifest, frames_note, start_manifest
    from drive_vlm.stages.engine.throughput import peak_memory_gib
    from drive_vlm.stages.engine.trackers import SendsFlags, place_tensorboard

    args = trainer.args
    manifest = trainer.out / "run.json"
    trainer.check_resume()
    if steps := finished_steps(trainer, manifest):
        if args.should_save:
            print(
                f"{args.output_dir}: this run finished before, at step {steps}. Nothing is left to train. "
                "To train again from an earlier checkpoint, name it: --resume DIRECTORY.",
                flush=True,
            )
        status.progress(steps)
        status.end("finished")
        if dist.is_initialized():
            dist.destroy_process_group()
        return
    if args.should_save:
        layout = {
            "world_size": args.world_size,
            "zero_stage": zero_stage(args.deepspeed if isinstance(args.deepspeed, dict) else None),
            "resumed_from": args.resume_from_checkpoint,
        }
        start_manifest(manifest, **facts, **layout)
        config = plain(facts["config"])
        print(frames_note(config["model"]["model"], config["data"]["num_frames"]), end="", flush=True)
    if trainer.parts.resume is not None:
        status.progress(read_complete(trainer.parts.resume.checkpoint).step, trainer.parts.resume.checkpoint)
    trainer.begin_files()
    place_tensorboard(trainer.callback_handler.callbacks, str(trainer.out))
    trainer.add_callback(SendsFlags(trainer.callback_handler.callbacks, facts))
    with guarded(trainer, status, hang_timeout) as stop:
        result = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        ended: dict[str, Any] = {"output_dir": args.output_dir, "steps": result.global_step}
        if stop.requested:
            ended["state"] = stop.requested
        else:
            ended |= {"state": "finished", "train_loss": result.metrics.get("train_loss")}
            trainer.heartbeat.beat("save")
            with trainer.explain_write_errors(f"{args.output_dir}: the final model"):
                trainer.save_model()
                trainer.save_state()
        trainer.save_audit()
        if args.should_save:
            best = trainer.state.best_model_checkpoint
            peak = peak_memory_gib()
            state, steps = ended["state"], result.global_step
            complete_manifest(
                manifest,
                state=state,
                steps=steps,
                metrics=result.metrics,
                best_checkpoint=best,
                peak_memory_gib=peak,
                best_metric={
                    "name": args.metric_for_best_model,
                    "value": trainer.state.best_metric,
                    "step": trainer.state.best_global_step,
                },
            )
            print(json.dumps(ended), flush=True)
        if not stop.requested:
            status.progress(result.global_step)
            status.end("finished")
    if dist.is_initialized():
        dist.destroy_process_group()


def finished_steps(trainer: "DriveTrainerMixin", manifest: Path) -> int:
    """Steps of the finished run that --resume auto has found again, if it has all that this one asks for; else 0."""
    if trainer.parts.resume is None or trainer.parts.flags.run.resume not in ("auto", None) or not manifest.is_file():
        return 0
    try:
        before = json.loads(manifest.read_text())
        state, steps = before["state"], int(before["steps"])
    except (ValueError, TypeError, KeyError):
        # A run that has not finished, or a damaged file, which start_manifest replaces.
        return 0
    return steps if state == "finished" and steps >= trainer.steps_of_the_run() else 0


@contextlib.contextmanager
def guarded(trainer: "DriveTrainerMixin", status: RunStatus, hang_timeout: float) -> Iterator["StopOnRequest"]:
    """Around train() and the saving after it: stop requests, broken losses and hanging ranks of a DriveTrainerMixin trainer.

    A hang ends the process with watchdog.HANG_EXIT; `hang_timeout` in seconds, 0 watches nothing.
    """
    from drive_vlm.stages.engine.faults import StopOnRequest
    from drive_vlm.stages.engine.heartbeat import Heartbeats
    from drive_vlm.stages.engine.scores import ScoresInStatus
    from drive_vlm.stages.engine.watchdog import Watchdog

    # A stage that draws its own batches may hold what the rest of a step needs, and no checkpoint does.
    stop = StopOnRequest(status, trainer.losses, trainer.may_save, within_steps=trainer.parts.sampler is not None)
    trainer.add_callback(Heartbeats(trainer.heartbeat))
    if trainer.parts.held_out is not None:
        trainer.add_callback(ScoresInStatus(status, trainer.make_up))
    # Last of all callbacks: it must see what the others, such as GRPO's, have decided about saving.
    trainer.add_callback(stop)
    with Watchdog(trainer.heartbeat, status, trainer.out, hang_timeout):
        yield stop
