"""Speed of finding names: the exact search of synth_retrieve.py next to faiss's Flat index, over the same float16 vectors.

Random vectors of length 1, --names of them with --width numbers, searched with --batch queries at a time for the --k nearest. The sides
are taken in turns; building an index, and reading the vectors, does not count. ours: the product with scores in double precision, as
synth_retrieve.py has it. faiss: its own search alone, which scores in single precision. checked: ours with candidates from faiss. The
hits of all sides must be equal. Without faiss (extra `retrieval`) ours is measured alone.
"""

import importlib.util
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import measure

if TYPE_CHECKING:
    import numpy as np

EXAMPLES = """
python tools/bench/bench_retrieval.py --json runs/bench_retrieval.json
python tools/bench/bench_retrieval.py --names 1000000 --batch 256 --threads 8
"""
NUMBERS = {
    "names": (100_000, 1, "rows of the data base"),
    "width": (512, 1, "numbers of a vector"),
    "batch": (64, 1, "queries at a time"),
    "k": (5, 1, "neighbours of a query"),
    "repeats": (5, 1, "searches of each side"),
    "threads": (os.cpu_count() or 1, 1, "threads of numpy and of faiss"),
}


def make_parser() -> Any:
    return measure.bench_parser("bench_retrieval", __doc__, EXAMPLES, NUMBERS)


def vectors(count: int, width: int, seed: int) -> "np.ndarray":
    """float16[count, width], each of length 1."""
    import numpy as np

    from drive_vlm.builders.synthesis.embedders import unit

    drawn = np.random.default_rng(seed).standard_normal((count, width), dtype=np.float32)
    return unit(drawn).astype(np.float16)


def run(args: Any, work: Path) -> dict[str, Any]:
    """Search in turns; what --json holds."""
    import numpy as np

    from drive_vlm.builders.synthesis.search import VectorIndex

    rows, queries = vectors(args.names, args.width, 0), vectors(args.batch, args.width, 1)
    sides: dict[str, Callable[[Any, int], Any]] = {"ours": VectorIndex([rows]).search}
    if importlib.util.find_spec("faiss"):
        import faiss

        faiss.omp_set_num_threads(args.threads)
        index = faiss.IndexFlatIP(args.width)
        index.add(rows.astype(np.float32))
        sides |= {"faiss": lambda wanted, k: index.search(wanted.astype(np.float32), k)}
        sides |= {"checked": VectorIndex([rows], faiss=True).search}
    hits = {}

    def timed(side: str, repeat: int) -> dict[str, float]:
        started = time.perf_counter()
        hits[side] = sides[side](queries, args.k)[1]
        return {"seconds": time.perf_counter() - started}

    runs = measure.in_turns({side: partial(timed, side) for side in sides}, args.repeats, warm_up=1)
    differing = {side: int((found != hits["ours"]).sum()) for side, found in hits.items()}
    return measure.compare(runs, "faiss" if "faiss" in runs else "ours") | {"other_hits_than_ours": differing}


def show(result: dict[str, Any], args: Any) -> str | None:
    """Print the seconds; the exit status where the sides do not agree."""
    title = f"{args.names:,} names x {args.width}, {args.batch} queries, {args.k} neighbours, {args.threads} threads"
    names = {"ours": "product, scored again", "faiss": "faiss Flat", "checked": "faiss Flat, scored again"}
    names = {side: name for side, name in names.items() if side in result}
    measure.print_sides(title, result, names, {"seconds": ("s a batch", ".3f")})
    differing = {side: count for side, count in result["other_hits_than_ours"].items() if count}
    return f"other hits than ours: {differing}" if differing else None


def main() -> None:
    import sys

    # numpy's threads are counted when it is imported.
    words = sys.argv[1:]
    threads = words[words.index("--threads") + 1] if "--threads" in words[:-1] else str(os.cpu_count() or 1)
    os.environ |= {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
    measure.run_bench(make_parser(), run, show, peers=("faiss-cpu",) if importlib.util.find_spec("faiss") else ())


if __name__ == "__main__":
    main()
