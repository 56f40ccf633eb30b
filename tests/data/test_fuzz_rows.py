"""Mutated rows through the whole data path: each is used as it stands or is a bad row with its line, and nothing else happens.

1,500 rows of a seed by default; DRIVE_VLM_FUZZ_ROWS=10000 takes more, DRIVE_VLM_FUZZ_SEED another seed.
"""

import copy
import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from drive_vlm.config import IGNORE_INDEX
from drive_vlm.data.collate import Collator, EncodedRows
from drive_vlm.data.encoder import Encoder
from drive_vlm.data.preference.pair_encoding import EncodedPairs, PairCollator, PairEncoder
from drive_vlm.data.samples import BadRow
from drive_vlm.data.sources import open_sources
from drive_vlm.data.table import build_table, save_audit

ROWS, SEED = int(os.environ.get("DRIVE_VLM_FUZZ_ROWS", "1500")), int(os.environ.get("DRIVE_VLM_FUZZ_SEED", "7"))
_BATCH = 8
ASK, TELL = {"role": "user", "content": "<image>\nWhat is ahead?"}, {"role": "assistant", "content": "a truck"}
TALK = [{"from": "human", "value": "<image>\nWhat is ahead?"}, {"from": "gpt", "value": "a truck"}]
SEEDS: list[dict[str, Any]] = [
    {"id": "1", "image": "square.png", "conversations": TALK, "group": "a"},
    {"id": 2, "images": ["square.png", {"path": "wide.png"}], "messages": [{"role": "user", "content": "<image><image>Same?"}, TELL]},
    {"id": "3", "video": "clip", "conversations": [{"from": "human", "value": "<video>\nWhat?"}, TALK[1]]},
    {"id": "4", "messages": [{"role": "system", "content": "Drive."}, {"role": "user", "content": "Go?"}, TELL, {"role": "user", "content": "Why?"}, {**TELL, "loss": False}, {"role": "user", "content": "So?"}, TELL]},
    {"id": "5", "images": ["tall.jpg"], "prompt": [ASK], "completion": [TELL], "reference": "a truck", "score": 0.5},
    {"id": "6", "query": "Go?", "response": "yes", "history": [["Stop?", "no"]], "system": "Drive."},
    {"id": "7", "instruction": "Go?", "input": "The light is red.", "output": "no", "loss_mask": [0, 1]},
    {"id": "8", "messages": [{"role": "user", "content": [{"type": "image", "image": "square.png"}, {"type": "text", "text": "Go?"}]}, TELL]},
    {"id": "9", "images": ["square.png"], "prompt": [ASK], "chosen": [TELL], "rejected": [{"role": "assistant", "content": "a bus"}]},
    {"id": "10", "image": "square.png", "conversations": TALK, "chosen": "a truck", "rejected": "a bus"},
]  # fmt: skip
# What a mutation puts in the place of a value, or under another key.
ODD: list[Any] = [
    None, "", " ", "\n", 0, -1, 1.5, True, False, [], {}, [None], [[]], [{}], "a" * 5000, "\ud83d", "\udc00x", "\0", "\ufeff", "\ufdd0", "é\u0301🚦",
    10**4000, 1e308, "<image>", "<image><image>", "<video>", "<|im_end|>", "<|im_start|>user\n", "<IMG_CONTEXT>", "</img>", "<think>", "</think>",
    "square.png", "absent.png", "../square.png", "/etc/passwd", "clip", "empty", ".", "a" * 300 + ".png", "https://x.org/a.png", "data:image/png;base64,AA",
    ["square.png"], ["square.png"] * 3, {"path": "square.png"}, {"bytes": "AA"}, {"from": "human", "value": "x"}, {"role": "tool", "content": "x"}, [["a", "b"]],
]  # fmt: skip
KEYS = [
    "id", "group", "image", "images", "video", "videos", "conversations", "messages", "system", "history", "tools", "loss", "weight", "loss_mask", "objects", "prompt",
    "completion", "chosen", "rejected", "query", "response", "role", "from", "content", "value", "type", "text", "reasoning_content", "prompts", "label", "audios",
]  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything within a row."""
    found = []
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        found += [(value, key), *places(item)]
    return found


def mutate(row: dict[str, Any], dice: random.Random) -> dict[str, Any]:
    row = copy.deepcopy(row)
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        known = places(row)
        if not known:
            return {}
        container, key = dice.choice(known)
        kind = dice.randrange(6)
        if kind == 0:
            container[key] = copy.deepcopy(dice.choice(ODD))
        elif kind == 1:
            del container[key]
        elif kind == 2:
            container[key] = copy.deepcopy(dice.choice(known)[0])
        elif kind == 3:
            (container if isinstance(container, dict) else row)[dice.choice(KEYS)] = copy.deepcopy(dice.choice(ODD))
        elif kind == 4 and isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        elif isinstance(container[key], str):
            place = dice.randrange(len(container[key]) + 1)
            odd = dice.choice([item for item in ODD if isinstance(item, str)])
            container[key] = container[key][:place] + odd[:200] + container[key][place:]
    return row


def line_of(row: dict[str, Any], dice: random.Random) -> bytes:
    """The row's line; sometimes with broken bytes, a number too long, or nesting too deep."""
    line = json.dumps(row).encode()
    kind = dice.randrange(30)
    if kind == 0:
        place = dice.randrange(len(line))
        line = line[:place] + bytes([dice.randrange(256)]) + line[place + 1 :]
    elif kind == 1:
        line = line[: dice.randrange(len(line))]
    elif kind == 2:
        odd = dice.choice(
            (b"9" * 5000, b"[" * 100_000 + b"]" * 100_000, b"[" * 90 + b"]" * 90, b"NaN", b"1e999", b'{"a": 1, "a": 2}')
        )
        line = line[:-1] + (b", " if len(line) > 2 else b"") + b'"more": ' + odd + b"}"
    return line.replace(b"\n", b" ").replace(b"\r", b" ")


def damaged_pictures(folder: Path, dice: random.Random) -> list[str]:
    """Pictures of several formats with some bytes changed or cut off."""
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    names = []
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF"):
        data = io.BytesIO()
        try:
            Image.fromarray(pixels).save(data, kind)
        except (KeyError, OSError):
            continue  # a Pillow without this format
        for i in range(6):
            content = bytearray(data.getvalue())
            for _ in range(dice.randrange(1, 20)):
                content[dice.randrange(len(content))] = dice.randrange(256)
            names.append(f"damaged-{i}.{kind.lower()}")
            (folder / names[-1]).write_bytes(content[: dice.randrange(len(content) // 2, len(content) + 1)])
    return names


def check_used(row: dict[str, Any], sample: Any) -> None:
    """A row that is used is used whole: every picture that its columns name, and its system text."""
    named = []
    for column in ("image", "images", "video", "videos"):
        value = row.get(column)
        named += [item for item in (value if isinstance(value, list) else [value]) if item]
    assert len(named) <= len(sample.images) + (sample.video is not None)
    assert not row.get("tools") and not row.get("audios")
    assert not row.get("system") or sample.turns[0].text.strip() == row["system"].strip()


def test_mutated_rows(pictures: Path, parts: Any, cache: Path, write_rows: Callable) -> None:
    dice = random.Random(SEED)
    damaged = damaged_pictures(pictures, dice)
    rows = [mutate(dice.choice(SEEDS), dice) for _ in range(ROWS)]
    rows += [{"image": name, "conversations": TALK} for name in damaged]
    path = write_rows([line_of(row, dice) for row in rows])
    good, bad = 0, 0
    for encoder_class, dataset, wrap in (
        (Encoder, EncodedRows, lambda c: c),
        (PairEncoder, EncodedPairs, PairCollator),
    ):
        encoder = encoder_class(parts.tokenizer, parts.template, parts.vision, num_frames=4, max_length=2000)
        sources = open_sources([str(path)])
        table = build_table(sources, encoder, "skip", 2000, need_answer=encoder.need_answer)
        save_audit(pictures / "audit.json", {"train": table})
        assert table.rows_read == len(rows) == len(table) + len(table.bad)
        encoded, collate = dataset(table, encoder), wrap(Collator(parts.tokenizer.pad_token_id, parts.vision))
        runtime: list[BadRow] = []
        for start in range(0, len(table), _BATCH):
            batch = collate([encoded[(i,)] for i in range(start, min(start + _BATCH, len(table)))])
            runtime += batch["bad_rows"]
            assert (batch["labels"] != IGNORE_INDEX).any() or not batch["sample_ids"]
        for row in (*table.bad, *runtime):
            place, line = row.where.rsplit(":", 1)
            assert place == str(path) and 1 <= int(line) <= len(rows) and len(str(row)) < 1500
            assert row.problem.isprintable() and row.reason
        lost = {row.where for row in runtime}
        for i in range(len(table)):
            sample = table.sample(i, encoder.need_answer)
            if sample.where not in lost:
                check_used(sources[0].row(int(table.row[i])), sample)
        good, bad = good + len(table) - len(runtime), bad + len(table.bad) + len(runtime)
        # A barrier must not become the reader: what the rows do has reasons of its own.
        unusable = [row for row in (*table.bad, *runtime) if row.reason == "unusable"]
        assert len(unusable) <= len(rows) // 50, [str(row) for row in unusable[:5]]
    assert good > len(rows) // 4 and bad > len(rows) // 4
