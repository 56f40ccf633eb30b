"""Measure how many synthetic pictures a second this machine renders, with one process for each core."""

import json
import os
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from drive_vlm.builders import synthetic
from drive_vlm.config import CommandParser

EXAMPLES = """
python tools/bench/bench_synthetic.py
python tools/bench/bench_synthetic.py --scenes 4000 --size 448 --json runs/bench/synthetic.json
"""


def make_parser() -> CommandParser:
    """The command line of this tool."""
    parser = CommandParser(description="Measure the speed of the synthetic renderer.", examples=EXAMPLES)
    parser.add_argument("--scenes", type=int, default=1000, help="pictures to render")
    parser.add_argument("--size", type=int, default=224, help="width and height in pixels")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that render")
    parser.add_argument("--json", type=Path, default=None, help="file for the machine-readable result")
    return parser


def render_one(size: int, index: int) -> int:
    """Draw, render and describe one scene, as a build does; return its number of pixels."""
    scene = synthetic.make_scene(0, index, (size, size))
    synthetic.questions(scene)
    return synthetic.render(scene).size


def measure(scenes: int, size: int, workers: int) -> float:
    """Pictures a second over `workers` processes; starting them is not counted."""
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(partial(render_one, size), range(4 * workers)))
        start = time.perf_counter()
        list(pool.map(partial(render_one, size), range(scenes), chunksize=16))
        return scenes / (time.perf_counter() - start)


def main() -> None:
    parser = make_parser()
    args = parser.parse_args()
    try:
        if min(args.scenes, args.workers) < 1:
            raise ValueError("--scenes and --workers must be at least 1")
        rate = measure(args.scenes, args.size, args.workers)
    except ValueError as error:
        parser.error(str(error))
    print(f"{rate:.0f} images/s at {args.size} x {args.size} on {args.workers} processes ({args.scenes} scenes)")
    if args.json:
        import numpy
        import PIL

        versions = {"python": platform.python_version(), "numpy": numpy.__version__, "pillow": PIL.__version__}
        machine = {
            "cpu_count": os.cpu_count(),
            "platform": platform.platform(),
            "workers": args.workers,
            "size": args.size,
        }
        result = {
            "ours": rate,
            "peer": None,
            "ratio": None,
            "unit": "images/s",
            "machine": machine,
            "versions": versions,
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
