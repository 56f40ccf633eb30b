"""The plan for people: the same content as --json, as tables."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from drive_vlm.plan.rows import audit_line

_PARTS = {
    "weights": "weights",
    "gradients": "grads",
    "master": "master",
    "optimizer": "optim",
    "activations": "activ",
    "logits": "logits",
    "buffers": "buffers",
    "cache": "kv",
    "sampling": "sample",
    "scoring": "score",
    "learning": "learn",
    "peak": "peak",
    "needed": "needed",
}
# What lies next to the tensors on a CPU.
_RESIDENT = {
    "tensors": "peak",
    "libraries": "libs",
    "mapped": "file",
    "slack": "slack",
    "process": "resident",
    "loaders": "loaders",
    "needed": "machine",
}


def gib(number: float) -> str:
    return f"{number / 2**30:,.1f}"


def show(plan: dict[str, Any]) -> None:
    """Print everything."""
    console = Console(width=132, highlight=False, markup=False, emoji=False, soft_wrap=True)
    model = plan["model"]
    console.print(Text.assemble((model["name"], "bold"), f" (exact): {model['note']}"))
    cpu, asked = plan["cpu"], _on_cpu(plan)
    for table in (_configuration(plan), _parameters(plan), _cpu_memory(plan) if asked else _memory(plan)):
        console.print(table)
    console.print(_batch(plan))
    if not asked:
        console.print(_memory_words(plan))
    if cpu:
        console.print(_cpu_words(cpu))
    console.print(_cost(plan))
    if plan["batch"]["world_size"] > 1:
        console.print(_wire(plan))
    console.print(_disk(plan))
    console.print(_data(plan["data"]))
    console.print("Assumed: " + " ".join(plan["assumptions"]))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    return table


def _configuration(plan: dict[str, Any]) -> Table:
    table = _table(
        "configuration (what was given, and the defaults that decide memory and time)", "flag", "value", "origin"
    )
    for name, entry in plan["configuration"].items():
        if entry["origin"] != "default" or name in plan["shown_defaults"]:
            table.add_row(f"--{name}", str(entry["value"]), entry["origin"])
    return table


def _parameters(plan: dict[str, Any]) -> Table:
    table = _table("parameters", "part", "total", "trainable")
    for part, count in plan["parameters"].items():
        table.add_row(part, f"{count['total']:,}", f"{count['trainable']:,}")
    return table


def _memory(plan: dict[str, Any]) -> Table:
    memory = plan["memory"]
    title = (
        f"GiB of one GPU for {memory['micro_batch']} x {plan['batch']['longest_row']:,} tokens "
        f"({'with' if plan['batch']['gradient_checkpointing'] else 'without'} gradient checkpointing)"
    )
    hidden = ("activations", "logits") if plan["batch"]["generation"] else ("cache", "sampling", "scoring", "learning")
    parts = [part for part in _PARTS if part not in hidden]
    columns = [_PARTS[part] for part in parts]
    table = _table(title, "layout", *columns, "CPU/node", f"fits {memory['limit'] / 2**30:.0f}", "micro")
    for name, row in memory["layouts"].items():
        mark = Text(f"> {name}", "bold") if name == memory["chosen"] else Text(f"  {name}")
        fit = Text("yes", "green") if row["fits"] else Text("no", "red")
        table.add_row(
            mark, *(gib(row[part]) for part in parts), gib(row["cpu_a_node"]), fit, str(row["largest_micro_batch"])
        )
    return table


def _on_cpu(plan: dict[str, Any]) -> bool:
    """Whether the user asked for the plan of a CPU (--use_cpu); else a line about it stands below the GPU's table."""
    return bool(plan["cpu"] and plan["cpu"]["asked"])


def _batch(plan: dict[str, Any]) -> str:
    batch, groups = plan["batch"], plan["batch"]["generation"]
    one, all_ = ("process", "processes") if _on_cpu(plan) else ("GPU", "GPUs")
    line = (
        f"Batch: {batch['global']} {batch['unit']} a step = {batch['micro']} a {one} x {batch['accumulation']} accumulation x "
        f"{batch['world_size']} {all_}; typical row {batch['typical_row']:,} tokens ({plan['data']['source']})"
    )
    if groups is None:
        return line
    return (
        f"{line}\nGeneration batch: {groups['prompts']} prompts x {groups['generations']} completions of at most {groups['length']:,} tokens "
        f"= {groups['rows']} a {one} x {batch['world_size']} {all_}, learned from in {groups['steps']} micro batches x "
        f"{groups['iterations']} iterations, scored {groups['passes']} times"
    )


def _memory_words(plan: dict[str, Any]) -> str:
    row = plan["memory"]["layouts"][plan["memory"]["chosen"]]
    return (
        f"Memory: {plan['memory']['advice']} Activations {gib(row['activations_with_checkpointing'])} GiB with checkpointing, "
        f"{gib(row['activations_without_checkpointing'])} GiB without; peak with typical rows {gib(row['peak_typical_row'])} GiB"
    )


def _cpu_memory(plan: dict[str, Any]) -> Table:
    """What a process keeps resident on a CPU: parts of the tensors, then what lies next to them, then the machine's share."""
    cpu, memory = plan["cpu"], plan["memory"]
    title = (
        f"GiB resident of one process on a CPU for {memory['micro_batch']} x {plan['batch']['longest_row']:,} tokens "
        f"({'with' if plan['batch']['gradient_checkpointing'] else 'without'} gradient checkpointing); the node holds {cpu['processes']}"
    )
    parts = ("weights", "gradients", "master", "optimizer", "activations", "buffers")
    columns = (*(_PARTS[part] for part in parts), *_RESIDENT.values(), f"fits {cpu['machine'] / 2**30:.1f}")
    table = _table(title, "layout", *columns)
    for name, row in cpu["layouts"].items():
        mark = Text(f"> {name}", "bold") if name == cpu["chosen"] else Text(f"  {name}")
        fit = Text("yes", "green") if row["fits"] else Text("no", "red")
        tensors = [gib(memory["layouts"][name][part]) for part in parts]
        table.add_row(mark, *tensors, *(gib(row[part]) for part in _RESIDENT), fit)
    return table


def _cpu_words(cpu: dict[str, Any]) -> str:
    """Whether a training on the CPU fits, in words, with the way out; and whether bf16 is slow there."""
    row = cpu["layouts"][cpu["chosen"]]
    first = "CPU:" if cpu["asked"] else "CPU: this machine has no GPU, so the command would train on its CPU."
    who = f"each of {cpu['processes']} processes" if cpu["processes"] > 1 else "the process"
    verdict = "it fits." if cpu["fits"] else f"it does NOT fit, and the kernel would kill it. {cpu['way_out']}"
    slow = f"\nbf16: {cpu['slow_bf16']}" if cpu["slow_bf16"] else ""
    return (
        f"{first} With {cpu['chosen']} {who} keeps up to {gib(row['process'])} GiB resident; the machine needs {gib(row['needed'])} GiB "
        f"(with typical rows {gib(row['needed_typical_row'])}) and has {gib(cpu['machine'])}: {verdict}{slow}"
    )


def _cost(plan: dict[str, Any]) -> str:
    cost = plan["cost"]
    work = f"Time: {cost['tokens_a_step']:,} tokens and {cost['flops_a_step']:.3g} FLOPs a step"
    if _on_cpu(plan) and cost["device"] != "--peak_flops":
        return f"{work}; for hours on a CPU give its --peak_flops"
    line = f"{work}, {cost['seconds_a_step']:.2f} s on {plan['batch']['world_size']} x {cost['device']} at MFU {cost['mfu']}"
    if cost["hours"] is None:
        return line + "; hours unknown: give --data or --rows"
    return f"{line}; {cost['steps']:,} steps = {cost['hours']:.1f} h, {cost['gpu_hours']:,.1f} GPU-hours"


def _wire(plan: dict[str, Any]) -> str:
    """What one GPU sends in a step under every layout, next to the time of computing."""
    layouts = plan["memory"]["layouts"]
    sent = ", ".join(
        f"{name} {gib(row['sent_a_step'])} GiB ({row['link_seconds']:.3g} s)" for name, row in layouts.items()
    )
    row = layouts[plan["memory"]["chosen"]]
    return (
        f"Wire: one GPU sends in a step: {sent}, over {row['link']} with nothing hidden; computing takes "
        f"{plan['cost']['seconds_a_step']:.3g} s"
    )


def _disk(plan: dict[str, Any]) -> str:
    disk = plan["disk"]
    verdict = "enough" if disk["total_bytes"] <= disk["free_bytes"] else "NOT ENOUGH"
    return (
        f"Disk: {disk['checkpoints']} checkpoints of {gib(disk['checkpoint_bytes'])} GiB, their frozen weights once {gib(disk['frozen_bytes'])}, "
        f"final model {gib(disk['final_model_bytes'])}: {gib(disk['total_bytes'])} GiB; free at {disk['place']}: {gib(disk['free_bytes'])} GiB, {verdict}"
    )


def _data(data: dict[str, Any]) -> str | Text:
    if data["audit"]:
        return f"Data: {audit_line(data['audit'])}"
    if data["missing"]:
        missing = (f"not here: {', '.join(data['missing'])}", "red")
        return Text.assemble("Data: ", missing, "; the run would stop, sizes are assumed")
    return "Data: no --data given; sizes are assumed"
