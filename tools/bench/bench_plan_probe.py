"""The measured process of bench_plan.py: one run of sft or grpo that notes what its last step takes."""

import contextlib
import gc
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import measure

# Of a step of grpo; what lies outside of both is learning.
PHASES = ("sampling", "scoring")


def measure_stage(
    out: Path,
    stage: str,
    words: list[str],
    found: dict[str, Any],
    change: Callable[[Any], None],
    phases: Sequence[str] = (),
) -> None:
    """Run the command `stage` with `words`; rank 0 writes `found` to `out`.

    1. `change(trainer)` wraps what the tool wants to note of the trainer.
    2. Before the last step: found["static"], the bytes that stay between steps.
       Also found["resident"], the peak RSS so far, and found["together"], what the process and its loaders hold.
    3. After it: found["peak"], {phase: most bytes during it}, "" outside of all phases.
    """

    def metered(trainer: Any) -> None:
        trainer.add_callback(meter(found, phases))
        change(trainer)

    measure.run_stage(stage, words, metered)
    if os.environ.get("RANK", "0") == "0":
        out.write_text(json.dumps({name: value for name, value in found.items() if name != "profiler"}))


def meter(found: dict[str, Any], phases: Sequence[str]) -> Any:
    """A callback that measures the last step. "profiler" is in `found` while it runs."""
    import torch
    from transformers import TrainerCallback

    from drive_vlm.launch.manifest import peak_resident_bytes

    cuda = torch.cuda.is_available()

    class Meter(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step != args.max_steps - 1:
                return
            # Before the profiler, whose own records are resident too.
            found["resident"] = peak_resident_bytes()
            found["together"] = together()
            gc.collect()
            found["static"] = torch.cuda.memory_allocated() if cuda else storages()
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            else:
                found["profiler"] = torch.profiler.profile(profile_memory=True)
                found["profiler"].__enter__()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step != args.max_steps:
                return
            if cuda:
                found["peak"] = {"": torch.cuda.max_memory_allocated()}
            else:
                profiler = found.pop("profiler")
                profiler.__exit__(None, None, None)
                found["peak"] = {name: found["static"] + size for name, size in largest_sums(profiler, phases).items()}

    return Meter()


def together() -> int:
    """Bytes that this process and its loader processes hold now; what they share counts once, files as this process has them."""
    fields = ("Pss_Anon:", "Pss_Shmem:")
    own = str(os.getpid())
    processes = [own, *Path(f"/proc/self/task/{own}/children").read_text().split()]
    lines = [line for process in processes for line in _proc(process, "smaps_rollup") if line[0] in fields]
    lines += [line for line in _proc(own, "status") if line[0] == "RssFile:"]
    return sum(int(line[1]) * 1024 for line in lines)


def _proc(process: str, name: str) -> list[list[str]]:
    """The words of each line of a file of /proc/PROCESS."""
    return [line.split() for line in Path(f"/proc/{process}/{name}").read_text().splitlines()]


def storages() -> int:
    """Bytes of all storages that a tensor in Python holds."""
    import torch

    sizes = {}
    for item in gc.get_objects():
        if isinstance(item, torch.Tensor) and item.device.type == "cpu":
            storage = item.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def largest_sums(profiler: Any, phases: Sequence[str] = ()) -> dict[str, int]:
    """{phase: the largest sum of what was allocated during the profile and not yet released}; "" outside of all phases.

    `phases` are names of torch.profiler.record_function. What gloo copies before it sends is left out: its own threads release
    that at their own time, where the profiler does not look, and NCCL makes no such copies.
    """
    from torch._C._profiler import _EventType

    # (nanosecond, address, bytes (negative: released), whether gloo's)
    allocations: list[tuple[int, int, int, bool]] = []
    spans: list[tuple[int, int, str]] = []
    todo = [(event, False) for event in profiler.profiler.kineto_results.experimental_event_tree()]
    while todo:
        event, sends = todo.pop()
        if event.tag == _EventType.Allocation:
            allocations.append((event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size, sends))
        if event.name in phases:
            spans.append((event.start_time_ns, event.end_time_ns, event.name))
        todo += [(child, sends or event.name.startswith("c10d::")) for child in event.children]
    most, now = dict.fromkeys(["", *phases], 0), 0
    held: dict[int, int] = {}
    for at, address, size, sends in sorted(allocations):
        if size > 0:
            # An address that is given out again was released by a thread that the profiler does not watch.
            now -= held.pop(address, 0)
            held[address] = 0 if sends else size
            now += held[address]
        else:
            now -= held.pop(address, -size)
        phase = next((name for first, last, name in spans if first <= at <= last), "")
        most[phase] = max(most[phase], now)
    return most


def measure_sft(out: Path, words: list[str]) -> None:
    """Run sft with `words` and write what its last step took to `out` (rank 0)."""
    found: dict[str, Any] = {}

    def change(trainer: Any) -> None:
        step = trainer.training_step

        def training_step(model: Any, inputs: dict[str, Any], *rest: Any, **kwargs: Any) -> Any:
            if trainer.state.global_step == trainer.args.max_steps - 1:
                rows, tokens = inputs["input_ids"].shape
                tiles = inputs["pixel_values"].shape[0] if inputs.get("pixel_values") is not None else 0
                found["batch"] = [rows, tokens, tiles, int((inputs["labels"] != -100).sum())]
            return step(model, inputs, *rest, **kwargs)

        trainer.training_step = training_step

    measure_stage(out, "sft", words, found, change)


def measure_grpo(out: Path, words: list[str]) -> None:
    """The same of grpo, with the most bytes of each phase."""
    import torch

    found: dict[str, Any] = {}

    def marked(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def inside(*args: Any, **kwargs: Any) -> Any:
            # Learning calls the function of scoring as well, with gradients.
            if name == "scoring" and torch.is_grad_enabled():
                return call(*args, **kwargs)
            with torch.profiler.record_function(name) if "profiler" in found else contextlib.nullcontext():
                return call(*args, **kwargs)

        return inside

    def change(trainer: Any) -> None:
        trainer._generate = marked("sampling", trainer._generate)
        trainer._get_per_token_logps_and_entropies = marked("scoring", trainer._get_per_token_logps_and_entropies)
        score = trainer._generate_and_score_completions

        def generate_and_score(inputs: Any) -> Any:
            output = score(inputs)
            if trainer.state.global_step == 1:
                pictures = output["pictures"]
                found["batch"] = {
                    "prompt": output["prompt_ids"].shape[1],
                    "completion": output["completion_ids"].shape[1],
                    "tiles": sum(len(one.get("pixel_values", ())) for one in pictures) / len(pictures),
                }
            return output

        trainer._generate_and_score_completions = generate_and_score

    measure_stage(out, "grpo", words, found, change, PHASES)
