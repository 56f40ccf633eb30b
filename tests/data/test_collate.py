"""Batches: padding, packs whose positions restart, pictures in the order of their rows, short and empty steps."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drive_vlm.config import IGNORE_INDEX
from drive_vlm.data.collate import Collator, EncodedRows
from drive_vlm.data.samples import BadRow
from drive_vlm.data.sources import open_sources
from drive_vlm.data.table import build_table
from drive_vlm.models.pixels import joined

PAD = 99


def row(name: str, length: int, tiles: int = 0) -> dict[str, Any]:
    """Token ids that count up from 10 times the name, the last two labelled; tiles filled with the name's number."""
    ids = np.arange(length, dtype=np.int64) + 10 * int(name)
    labels = np.where(np.arange(length) >= length - 2, ids, IGNORE_INDEX)
    vision = {"pixel_values": torch.full((tiles, 3, 2, 2), float(name))} if tiles else {}
    return {"input_ids": ids, "labels": labels, "vision": vision, "sample_id": name}


class Vision:
    def collate_vision(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {"pixel_values": torch.cat([row["pixel_values"] for row in rows])} if rows else {}


def test_unpacked_rows_are_padded_on_the_right() -> None:
    batch = Collator(PAD, Vision(), pad_to_multiple_of=4)(
        [[row("1", 3, tiles=2)], [row("2", 5)], [row("3", 1 + 1, tiles=1)]]
    )
    assert batch["input_ids"].tolist() == [
        [10, 11, 12, *[PAD] * 5],
        [20, 21, 22, 23, 24, PAD, PAD, PAD],
        [30, 31, *[PAD] * 6],
    ]
    assert batch["attention_mask"].sum(1).tolist() == [3, 5, 2] and "position_ids" not in batch
    assert (batch["labels"][0] == torch.tensor([IGNORE_INDEX, 11, 12, *[IGNORE_INDEX] * 5])).all()
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [1, 1, 3]
    assert (batch["num_tokens"], batch["sample_ids"], batch["bad_rows"]) == (10, ["1", "2", "3"], [])


def test_packed_rows_restart_their_positions_and_padding_is_a_segment_of_its_own() -> None:
    batch = Collator(PAD, Vision(), packed=True, pad_to_multiple_of=4)(
        [[row("1", 3, 1), row("2", 2, 2)], [row("3", 4)]]
    )
    assert "attention_mask" not in batch
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 2], [0, 1, 2, 3, 0, 1, 2, 3]]
    assert batch["input_ids"].tolist() == [[10, 11, 12, 20, 21, *[PAD] * 3], [30, 31, 32, 33, *[PAD] * 4]]
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [1, 2, 2] and batch["sample_ids"] == ["1", "2", "3"]


def test_flattened_packs_are_one_sequence() -> None:
    """Flash attention tells segments apart within one sequence only."""
    batch = Collator(PAD, None, packed=True, flatten=True, pad_to_multiple_of=4)(
        [[row("1", 3), row("2", 2)], [row("3", 2)]]
    )
    assert batch["input_ids"].tolist() == [[10, 11, 12, 20, 21, 30, 31, PAD]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 0]]


@pytest.mark.parametrize("packed", [False, True])
def test_an_empty_micro_batch_is_a_forward_pass_without_a_loss(packed: bool) -> None:
    bad = BadRow("image_corrupt", "f:1", "cut", "Replace it")
    for sequences in ([], [[bad]]):
        batch = Collator(PAD, Vision(), packed=packed)(sequences)
        assert batch["input_ids"].tolist() == [[PAD]] and batch["labels"].tolist() == [[IGNORE_INDEX]]
        assert "pixel_values" not in batch and (batch["num_tokens"], batch["sample_ids"]) == (0, [])
        assert [row.reason for row in batch["bad_rows"]] == ["image_corrupt"] * len(sequences)


def test_a_bad_row_leaves_its_neighbours() -> None:
    bad = BadRow("image_corrupt", "f:1", "cut", "Replace it")
    batch = Collator(PAD, Vision(), packed=True)([[row("1", 3, 1), bad], [bad, row("2", 2)]])
    assert batch["sample_ids"] == ["1", "2"] and len(batch["bad_rows"]) == 2 and batch["pixel_values"].shape[0] == 1


def test_rows_of_a_table_and_one_that_cannot_be_decoded(
    write_rows: Callable, good_row: dict, encoder: Any, cache: Any
) -> None:
    path = write_rows(
        [good_row, good_row | {"id": "wide", "image": "wide.png"}, good_row | {"id": "cut", "image": "tall.jpg"}]
    )
    cut = path.with_name("tall.jpg")
    cut.write_bytes(cut.read_bytes()[:1200])  # the header is whole
    rows = EncodedRows(build_table(open_sources([str(path)]), encoder), encoder)
    first, second, third = rows[(1, 0, 2)]
    assert (first["sample_id"], second["sample_id"]) == ("wide", "good") and len(rows) == 3
    assert isinstance(third, BadRow) and third.where == f"{path}:3" and third.reason == "image_corrupt"


def test_a_picture_changed_since_it_was_measured_is_a_bad_row(
    write_rows: Callable, good_row: dict, encoder: Any, cache: Any
) -> None:
    from PIL import Image

    from drive_vlm.data.vision import image_size

    path = write_rows([good_row])
    rows = EncodedRows(build_table(open_sources([str(path)]), encoder), encoder)
    Image.new("RGB", (120, 50)).save(path.with_name("square.png"))
    image_size.cache_clear()
    (found,) = rows[(0,)]
    assert isinstance(found, BadRow) and (found.where, found.reason) == (f"{path}:1", "changed_on_disk")
    assert re.search(r"the row has \d+ tokens now, but had \d+", found.problem)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_worker_joins_pictures_where_they_are_handed_over(layout: torch.memory_format) -> None:
    """The same values in the same order of memory, in shared memory at once: the loader copies them no more."""
    parts = [torch.rand(n, 3, 5, 4).mul(255).byte().to(memory_format=layout) for n in (2, 1)]

    class Joined(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 1

        def __getitem__(self, i: int) -> dict[str, Any]:
            batch = joined(parts)
            return {"batch": batch, "shared": batch.is_shared()}

    here = joined(parts)
    (seen,) = torch.utils.data.DataLoader(Joined(), batch_size=None, num_workers=1)
    assert seen["shared"] and not here.is_shared()
    for batch in (here, seen["batch"]):
        assert torch.equal(batch, torch.cat(parts)) and batch.stride() == torch.cat(parts).stride()


def test_a_worker_does_not_grow_with_the_pictures_that_it_hands_over() -> None:
    """torch notes the last 128 of them; what it notes must not keep the room of each from the next one."""

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 60

        def __getitem__(self, i: int) -> torch.Tensor:
            return torch.full((8, 3, 448, 448), i, dtype=torch.uint8)

    def resident(parts: list[torch.Tensor]) -> tuple[torch.Tensor, int]:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return joined(parts), pages * os.sysconf("SC_PAGESIZE")

    sizes = [size for _, size in torch.utils.data.DataLoader(Rows(), num_workers=1, collate_fn=resident)]
    assert max(sizes) < sizes[1] + 20 * 8 * 3 * 448**2, [size >> 20 for size in sizes]
