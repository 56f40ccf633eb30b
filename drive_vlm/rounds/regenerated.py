"""The rows of a round that the model of the round before has written: taken from the gate step, with what to watch of them.

Every round has the same share of human rows, which the gate step mixes in: a model that learns from its own texts alone drifts away
from the world (Shumailov et al. 2024, Gerstgrasser et al. 2024). The figures say whether it does: fewer different words, longer or
shorter answers, objects that nothing has seen, rows that no longer change.
"""

import os
from pathlib import Path
from typing import Any

from drive_vlm.config import plain
from drive_vlm.data.jsonl import JsonlFile
from drive_vlm.data.samples import IMAGE, Sample, media_of, parse_row
from drive_vlm.evaluation.synthesis import RowFacts, changed
from drive_vlm.evaluation.text_overlap import tokenize
from drive_vlm.rounds.chain import Chain, read_json
from drive_vlm.store.cache import write_json
from drive_vlm.store.fingerprint import model_fingerprint
from drive_vlm.store.forms import part
from drive_vlm.store.keyed_lines import write_lines

ROWS = "rows.jsonl"
_WAY_OUT = "Run tools/synthesize.py with the step gate again."
# round-1 / synthetic / gate / images / ...: what stands before a picture's own name.
_DEPTH = 3
FIGURES = ("distinct_1", "distinct_2", "answer_words", "hallucinated", "rows_hallucinated")


def take_rows(chain: Chain, number: int, model: str, gate: Path) -> dict[str, Any]:
    """Write round-`number`/rows.jsonl from the folder `gate` of the gate step, whose rows `model` has written; returns its audit.

    The pictures of all rounds then start from the folder of the chain, so that the pairs of two rounds can be learned together.
    Raises ValueError for a chain that regenerates nothing, a folder that is not of a gate step, and a share of human rows other than
    the chain's.
    """
    if not chain.settings.get("regenerate"):
        raise ValueError(f"{chain.path}: this chain was started without --synth: its rounds write no rows again")
    if not (gate / ROWS).is_file():
        raise ValueError(f"{gate / ROWS}: no such file. {_WAY_OUT}")
    rows = [row for _, row in JsonlFile(gate / ROWS).places()]
    human = sum(row.get("origin") == "human" for row in rows)
    _check_share(chain, gate, human, len(rows))
    folder = chain.folder(str(number))
    before = chain.folder(str(number - 1)) / ROWS
    moved = [_moved(row, os.path.relpath(gate, chain.out), f"{gate / ROWS}: row {i}") for i, row in enumerate(rows)]
    audit = {
        "rows": len(rows),
        "human": human,
        "synthetic": len(rows) - human,
        "human_share": human / len(rows),
        "model": model_fingerprint(model),
        "gate": _gate_facts(gate),
        "changed": plain(changed(facts_of(before), _facts(moved))) if before.is_file() else None,
    }
    folder.mkdir(parents=True, exist_ok=True)
    # The audit first: rows without one would look like a finished step.
    write_json(folder / f"{ROWS}.audit.json", audit)
    write_lines(folder / ROWS, moved)
    return audit


def _check_share(chain: Chain, gate: Path, human: int, rows: int) -> None:
    """A row more or less of one side is what rounding does."""
    share = chain.settings["human_share"]
    if not rows or abs(human - share * rows) > 1:
        found = f"{human:,} of {rows:,} rows" if rows else "there is no row"
        raise ValueError(
            f"{gate / ROWS}: every round of this chain has a human share of {share:g}, here {found}. {_WAY_OUT}"
        )


def _moved(row: dict[str, Any], folder: str, where: str) -> dict[str, Any]:
    """The row with its pictures below the chain's folder."""
    images, _ = media_of(row, where)
    paths = [os.path.join(folder, image) for image in images]
    if "image" in row:
        return row | {"image": paths[0] if len(paths) == 1 else paths}
    return row | {"images": paths} if paths else row


def _gate_facts(gate: Path) -> dict[str, Any]:
    """{"given", "used", "rejected": {gate: count}, "figures": {"given", "used"}} of data_audit.json."""
    path = gate / "data_audit.json"
    audit = read_json(path)
    counts = {name: part(audit, name, int, path, _WAY_OUT) for name in ("given", "used")}
    gates = part(audit, "gates", dict[str, dict], path, _WAY_OUT)
    rejected = {name: sum(entry["rejected"].values()) for name, entry in gates.items()}
    found = part(audit, "figures", dict | None, path, _WAY_OUT) or {}
    figures = {name: {key: found[name][key] for key in FIGURES} for name in ("given", "used") if found.get(name)}
    return {**counts, "rejected": rejected, "figures": figures}


def facts_of(path: Path) -> list[RowFacts]:
    """Of a round's rows, for `changed`: those that a model wrote."""
    return _facts([row for _, row in JsonlFile(path).places()])


def _facts(rows: list[dict[str, Any]]) -> list[RowFacts]:
    samples = [parse_row(row, str(row.get("id")), "") for row in rows if row.get("origin") != "human"]
    return [RowFacts(_asked(one), str(one.group), tuple(tokenize(one.reference)), 0, 0) for one in samples]


def _asked(sample: Sample) -> tuple[str, ...]:
    """The picture and the question; each round keeps its pictures in a folder of its own, behind which a picture's own name stands."""
    pictures = [os.sep.join(Path(image).parts[_DEPTH:]) for image in sample.images]
    return (*pictures, *(turn.text.replace(IMAGE, "").strip() for turn in sample.turns if turn.role == "user"))
