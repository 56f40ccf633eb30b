"""Where a builder's rows go: bad ones stop it or are counted, splits are checked for leaks, files are whole or not there."""

import json
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from drive_vlm.builders.splits import SharedValues
from drive_vlm.data.samples import BadRow
from drive_vlm.data.table import audit_bad_rows
from drive_vlm.store.cache import finite

Row = dict[str, Any]


class RowWriter:
    """The JSONL files of one build, in the folder `out`.

        with RowWriter(out, args.on_bad_row) as writer:
            writer.add("train.jsonl", rows, split="train")
            writer.reject(BadRow(...))
        write_json(out / "audit.json", writer.audit())  # of store/cache.py

    1. `add` streams rows into NAME.part, so that a million rows need no memory.
    2. When the block ends, the parts become the files, all of them. Whatever rows refer to (pictures,
       videos) is written inside the block: a file never names what is not there.
    3. When the block fails, the parts are removed and the files of an earlier build stay as they were.
    """

    def __init__(self, out: Path, on_bad_row: str = "error") -> None:
        self.out, self.on_bad_row = out, on_bad_row
        self.counts: Counter[str] = Counter()
        self.bad: list[BadRow] = []
        self._shared = SharedValues()
        self._files: dict[str, BinaryIO] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "RowWriter":
        self.out.mkdir(parents=True, exist_ok=True)
        return self

    def add(self, name: str, rows: Iterable[Row], split: str | None = None) -> None:
        """Append to the file `name`, which exists afterwards even without a row. Rows of a `split` take part in `leaks`."""
        if name not in self._files:
            self._files[name] = self._stack.enter_context(open(self.out / f"{name}.part", "wb"))  # noqa: SIM115 - closed by the stack
        for row in rows:
            self._files[name].write(json.dumps(finite(row), ensure_ascii=False).encode() + b"\n")
            self.counts[name] += 1
            if split is not None:
                self._shared.add(split, row)

    def reject(self, problem: BadRow, skip: bool = False) -> None:
        """Count a row that cannot be used; raises it with on_bad_row "error", unless `skip`."""
        if self.on_bad_row == "error" and not skip:
            raise problem
        self.bad.append(problem)

    def leaks(self) -> list[str]:
        """What the splits share, in words."""
        return [str(leak) for leak in self._shared.leaks()]

    def audit(self) -> dict[str, Any]:
        """{rows by file, bad rows by reason and place, leaks}."""
        return {"rows": dict(self.counts), "bad_rows": audit_bad_rows(self.bad), "leaks": self.leaks()}

    def __exit__(self, kind: type | None, *error: object) -> None:
        self._stack.close()
        for name in sorted(self._files):
            part = self.out / f"{name}.part"
            if kind is None:
                part.replace(self.out / name)
                if not self.counts[name]:
                    print(f"warning: {self.out / name} holds no row", file=sys.stderr, flush=True)
            else:
                part.unlink()


def meta_entry(root: str, name: str, length: int) -> dict[str, Any]:
    """An entry of InternVL's meta form: a file of rows as a source for --data."""
    return {"root": root, "annotation": name, "repeat_time": 1, "length": length}
