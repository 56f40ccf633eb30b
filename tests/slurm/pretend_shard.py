"""Stands for a data builder in the fast tests: shard I/N of the numbers 0..79; shard 3 fails while DIR/broken exists."""

import argparse
import os
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path)
parser.add_argument("--shard")
args = parser.parse_args()
index, count = map(int, args.shard.split("/"))
final = args.out / f"rows.shard-{index:02}-of-{count:02}"
if final.exists():
    raise SystemExit(0)
with open(args.out / f"worked-{index}", "a") as log:
    log.write("once\n")
if index == 3 and (args.out / "broken").exists():
    raise SystemExit(5)
part = final.with_suffix(".part")
part.write_text("".join(f"{i}\n" for i in range(80 * index // count, 80 * (index + 1) // count)))
os.replace(part, final)
