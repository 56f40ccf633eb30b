"""The measurements of bench_launch.py as tables."""

from typing import Any


def print_tables(result: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(width=120)
    names = {"cold": "ours, rows measured anew", "warm": "ours, row lengths cached", "peer": "bare torchrun script"}
    names |= {"peer_python": "the same by plain python", "ours": "ours"}
    for title, part in (("start to the first step", "start"), ("resume to the first step", "resume")):
        for processes, sides in result[part].items():
            console.print(_times(f"{title}, {processes} process(es)", names, sides))
    for processes, save in result["save"].items():
        for side in ("ours", "peer"):
            size = save[side]["bytes_on_disk"]
            print(
                f"save, {processes} process(es), {names[side]}: {save[side]['seconds']:.2f} s; "
                f"{size['whole'] / 2**20:.0f} MiB, {size['added'] / 2**20:.0f} MiB of them new on the disk"
            )
        print(f"  ratio {save['ratio']:.2f}; flush and rename {save['ours']['of_it_flush_and_rename']:.2f} s of ours")
    for processes, models in result["overhead"].items():
        for model, found in models.items():
            console.print(_parts(f"our part of a step, {processes} process(es), {model} model", found))
    sizes = ", ".join(f"{name} {count / 1e6:.1f} M" for name, count in result["parameters"].items())
    load = result["load_average"]
    print(f"parameters: {sizes}; load average {load['before'][0]:.1f} before, {load['after'][0]:.1f} after")


def _times(title: str, names: dict[str, str], sides: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in ("", "seconds", "least to most", "CPU seconds", "ratio", "in CPU"):
        table.add_column(column, justify="left" if not column else "right")
    for side, row in sides.items():
        if side == "ratio":
            continue
        to_peer = sides["ratio"] if side == "ours" else sides["ratio"].get(side)
        ratios = (
            (f"{to_peer['seconds']:.2f}", f"{to_peer['cpu_seconds']:.2f}") if to_peer and side != "peer" else ("", "")
        )
        low, high = row["spread"]["seconds"]
        table.add_row(
            names[side], f"{row['seconds']:.2f}", f"{low:.2f} - {high:.2f}", f"{row['cpu_seconds']:.2f}", *ratios
        )
    return table


def _parts(title: str, found: dict[str, Any]) -> Any:
    from rich.table import Table

    wall, cpu = found["wall"], found["cpu"]
    caption = (
        f"median step {wall['step_ms']:.2f} ms with, {wall['step_ms_without']:.2f} ms without our parts; "
        f"CPU {cpu['step_ms']:.2f} and {cpu['step_ms_without']:.2f} ms"
    )
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for column in ("", "us a step", "share of a step", "mean us", "CPU us"):
        table.add_column(column, justify="left" if not column else "right")
    for name, part in found["parts"].items():
        share = part["wall_us"] / 1e3 / wall["step_ms"]
        table.add_row(
            name, f"{part['wall_us']:.0f}", f"{share:.3%}", f"{part['mean_wall_us']:.0f}", f"{part['cpu_us']:.0f}"
        )
    mean = sum(part["mean_wall_us"] for part in found["parts"].values())
    table.add_row("all", f"{wall['total_us']:.0f}", f"{wall['share']:.3%}", f"{mean:.0f}", f"{cpu['total_us']:.0f}")
    return table
