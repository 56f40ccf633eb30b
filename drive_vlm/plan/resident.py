"""Memory of a training on a CPU: what its process keeps resident, and what the machine must hold with the loaders; no torch.

The tensors are those of memory_table.py. Next to them lie, measured with tools/bench/bench_plan.py:

- the libraries, and what malloc keeps of the activations when they are released;
- the checkpoint. from_pretrained maps its file, and a weight in the file's dtype is a part of that map. DeepSpeed's stages 1 and
  2 copy the weights that train into a flat buffer, but the map lives on as long as one frozen weight is in it: what trains is resident twice.
  The second copy is the file's and unchanged, so that the system takes it back where memory is short;
- the loader processes. They are forked once the engine is built and see its memory as it was. Pages that the optimizer writes
  (weights, master copy; moments where there were any at the fork) exist twice from then on, once for all loaders of a process.
"""

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

from drive_vlm.launch.machine import knows_memory, machine_memory, slow_bf16
from drive_vlm.launch.manifest import gpus
from drive_vlm.models.lora import base_of
from drive_vlm.plan.activations import Batch
from drive_vlm.plan.bytes import Layout, Peak
from drive_vlm.plan.flags import PlanFlags, memory_bytes
from drive_vlm.plan.memory_table import PlanCase, fixed_of, flag_of, layouts, longest, peak_of, typical, weight_bytes

_MIB = 1 << 20
# Resident of Python, torch and transformers after two steps, and what DeepSpeed adds: measured (docs/plan.md).
LIBRARIES, DEEPSPEED = 700 * _MIB, 80 * _MIB
# glibc gives a block of this size or more back to the system when it is released (the upper end of M_MMAP_THRESHOLD).
RETURNED = 32 * _MIB
# Of activations in smaller blocks, what is lost between them: measured.
FRAGMENTS = 0.15
# Bytes that a loader process does not share with its rank: measured with pictures of 1600 x 900.
LOADER = 100 * _MIB
# Batches that a loader prepares ahead (torch's prefetch_factor).
_AHEAD = 2
# What the machine must have on top: the error of this page against measured runs, and the kernel with other processes (an assumption).
MARGIN, SYSTEM = 0.08, 1 << 30

OF_CPU = [
    "on a CPU: 700 MiB of libraries (780 with DeepSpeed), the checkpoint's file mapped, 100 MiB and two batches a loader process, "
    "8 % for the error of these figures and 1 GiB for the rest of the machine; drive_vlm/plan/resident.py.",
]


@dataclasses.dataclass(frozen=True)
class Resident:
    """Bytes of one process by part (`tensors` at their peak), `process` their sum as the system shows it (RSS), and of a node.

    `mapped` is the second copy of trained weights, `loaders` what the loader processes of one process hold besides it.
    `node` is what all processes of a node hold: the checkpoint's map counts once, the second copy not at all. `needed` is what
    the machine must have for them.
    """

    libraries: float
    tensors: float
    mapped: float
    slack: float
    process: float
    loaders: float
    node: float
    needed: float


def resident(case: PlanCase, layout: Layout, batch: Batch, stored: int | None, local_world: int) -> Resident:
    """What one process keeps while it trains on `batch`, and a node of `local_world` of them.

    `stored` are the bytes of a weight in the checkpoint's files, None where that is not known (counted as copied).
    """
    found = peak_of(case, layout, batch, case.checkpointing())
    each, weights = weight_bytes(case, layout), case.model.weights
    same = stored == each and layout.stage < 3
    trained = sum(weight.elements for weight in weights if weight.trains) * each
    frozen = sum(weight.elements for weight in weights if not weight.trains) * each
    libraries = LIBRARIES + (DEEPSPEED if layout.stage else 0)
    tensors = found.peak + found.cpu
    # The map goes with its last weight: without a frozen one it does not outlive the copy.
    mapped = trained if same and layout.stage and frozen else 0
    slack = kept_by_malloc(case, layout, batch, found)
    process = libraries + tensors + mapped + slack
    held = loaders(case, found, layout, batch, trained, 0 if same and not layout.stage else trained)
    shared = frozen if same else 0
    node = local_world * (process - mapped - shared + held) + shared
    return Resident(libraries, tensors, mapped, slack, process, held, node, node * (1 + MARGIN) + SYSTEM)


def kept_by_malloc(case: PlanCase, layout: Layout, batch: Batch, found: Peak) -> float:
    """Bytes above the tensors' peak: fragments, or under ZeRO the blocks of the activations that malloc still keeps in the step.

    The optimizer's flat buffers are large blocks of their own. Without ZeRO it finds room among the blocks that were released.
    Activations are blocks of a hidden state and of the MLP: taken as half and half.
    """
    text, tokens = case.model.text, batch.rows * batch.tokens * (2 if case.half() else 4)
    share = sum(tokens * width < RETURNED for width in (text.width, text.inner)) / 2
    fragments = FRAGMENTS * share * found.activations
    if not layout.stage:
        return fragments
    fixed = fixed_of(case, layout)
    step = fixed.resident + fixed.gradients + fixed.step
    return max(fragments, step + share * found.activations - found.peak)


def loaders(case: PlanCase, found: Peak, layout: Layout, batch: Batch, trained: float, written: float) -> float:
    """Bytes that the loader processes of one process hold: their own, the batches they prepare, and old pages of its weights.

    `written` bytes of trained weights are pages of its own that the optimizer writes. Moments are made in the first step: they
    are there at the fork of the second epoch only.
    """
    flags = case.flags
    number = int(flags.training["dataloader_num_workers"] or 0)
    if not number:
        return 0
    if layout.stage == 3:
        written = trained / flags.plan.world_size
    old = written + found.master + (found.optimizer if several_epochs(case) else 0)
    ahead = _AHEAD * batch.tiles * case.model.pictures.pixels
    return old + number * (LOADER + ahead)


def several_epochs(case: PlanCase) -> bool:
    """Whether loaders are forked again once the optimizer has its moments; --max_steps alone is taken for one epoch."""
    training = case.flags.training
    if int(training["max_steps"] or -1) > 0:
        return False
    return float(training["num_train_epochs"] or 3) > 1


def stored_bytes(model: str) -> int | None:
    """Bytes of a weight in the files of a directory; 2 for a model that ships (published checkpoints are bf16).

    None for a directory without safetensors. The dtype that holds most bytes counts; of an adapter, that of its base. Raises
    ValueError for a damaged file.
    """
    path = Path(model)
    if (path / "adapter_config.json").is_file():
        return stored_bytes(base_of(path))
    if not path.is_dir():
        return 2
    from safetensors import SafetensorError, safe_open

    sizes = {"F32": 4, "BF16": 2, "F16": 2}
    counted: Counter[int] = Counter()
    for name in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(name, framework="np") as file:
                for key in file.keys():  # noqa: SIM118 - no mapping
                    tensor = file.get_slice(key)
                    each = sizes.get(tensor.get_dtype(), 0)
                    counted[each] += each * math.prod(tensor.get_shape())
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{name}: cannot be read ({error}). Copy the file again from where the model came from."
            ) from error
    return max(counted, key=counted.__getitem__) or None if counted else None


def planned_on_cpu(flags: PlanFlags, local_world: int) -> bool | None:
    """True with --use_cpu, False on a GPU.

    None where the run would go to this machine's CPU, because it has no GPU, nothing says which one is meant, and one node runs
    all processes. What trains on GPUs only would not.
    """
    if flags.training["use_cpu"]:
        return True
    if flags.model.quantize == "nf4" or flags.model.attn_implementation in ("flash", "flex"):
        return False
    named = any(flags.resolved[name][1] != "default" for name in ("gpu_memory", "gpu", "peak_flops", "use_cpu"))
    return False if named or flags.plan.world_size > local_world or gpus() else None


def cpu_memory(case: PlanCase, local_world: int) -> dict[str, Any] | None:
    """The plan of a training on a CPU: {layout: parts, node, fits}, the verdict, and the first way out; None on a GPU.

    Raises ValueError where the memory of this machine is not known and --cpu_memory does not say it, and for --cpu_memory of a GPU.
    """
    asked, given = planned_on_cpu(case.flags, local_world), case.flags.plan.cpu_memory
    if asked is False and given is not None:
        raise ValueError(f"--cpu_memory {given}: this plan is that of a GPU. Add --use_cpu, or leave it out.")
    if asked is False or (asked is None and given is None and not knows_memory()):
        return None
    flags = dataclasses.replace(case.flags, training={**case.flags.training, "use_cpu": True})
    case, stored = dataclasses.replace(case, flags=flags), stored_bytes(flags.model.model)
    all_layouts, chosen = layouts(flags)
    machine = machine_bytes(given)
    table: dict[str, Any] = {}
    for layout in all_layouts:
        found, usual = (resident(case, layout, rows, stored, local_world) for rows in _batches(case))
        table[layout.name] = {
            **dataclasses.asdict(found),
            "process_typical_row": usual.process,
            "needed_typical_row": usual.needed,
            "fits": found.needed <= machine,
        }
    fits = table[chosen]["fits"]
    return {
        "asked": bool(asked),
        "machine": machine,
        "chosen": chosen,
        "processes": local_world,
        "layouts": table,
        "fits": fits,
        "way_out": None if fits else way_out(case, all_layouts, chosen, stored, local_world, machine),
        "slow_bf16": slow_bf16() if case.half() else None,
    }


def _batches(case: PlanCase) -> tuple[Batch, Batch]:
    micro = int(case.flags.training["per_device_train_batch_size"])
    return longest(case, micro), typical(case, micro)


def machine_bytes(text: str | None) -> int:
    """--cpu_memory as bytes, or what this machine has and its control group allows."""
    if text is not None:
        return memory_bytes(text, "--cpu_memory")
    try:
        return machine_memory().usable
    except OSError as error:
        raise ValueError(f"the memory of this machine is not known ({error}). Give it: --cpu_memory 32GB.") from error


def way_out(
    case: PlanCase, all_layouts: list[Layout], chosen: str, stored: int | None, local_world: int, machine: int
) -> str:
    """The first change of flags after which the run fits, each step with the ones before it; in words where none helps."""
    given, steps = case.flags.training, []
    if int(given["dataloader_num_workers"] or 0):
        steps.append(("--dataloader_num_workers 0", {"dataloader_num_workers": 0}))
    if not case.checkpointing():
        steps.append(("--gradient_checkpointing", {"gradient_checkpointing": True}))
    if int(given["per_device_train_batch_size"]) > 1:
        steps.append(("--per_device_train_batch_size 1", {"per_device_train_batch_size": 1}))
    own = next(layout for layout in all_layouts if layout.name == chosen)
    words, least = "", math.inf
    for layout in (own, *(other for other in all_layouts if other.name != chosen)):
        said, changed = [] if layout is own else [flag_of(layout.name)], case
        for flag, change in ((None, {}), *steps):
            training = {**changed.flags.training, **change}
            changed = dataclasses.replace(case, flags=dataclasses.replace(changed.flags, training=training))
            said += [flag] if flag else []
            now = resident(changed, layout, _batches(changed)[0], stored, local_world).needed
            if now <= machine:
                return f"With {' and '.join(said)} it fits ({now / 2**30:.1f} GiB)."
            if now < least:
                words, least = " and ".join(said), now
    best = f"{words} still needs" if words else "It needs"
    return f"{best} {least / 2**30:.1f} GiB: lower --max_length, adapt with --lora_rank, start fewer processes, or take a larger machine."
