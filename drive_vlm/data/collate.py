"""Steps 5 and 9 of the flow in data/__init__.py: sequences of row numbers -> encoded rows -> one batch. Packed rows share a
sequence but never see each other."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from drive_vlm.config import IGNORE_INDEX, ROW_ENDS
from drive_vlm.data.encoder import Encoder
from drive_vlm.data.samples import BadRow
from drive_vlm.data.table import RowTable


class EncodedRows(Dataset):
    """`dataset[(3, 17)] -> [encoded row 3, encoded row 17]`; decoding happens here, in the loader's workers.

    The index is a sequence of row numbers: one row, or a pack. Each item is what Encoder.encode returns: `input_ids int64[T]`,
    `labels int64[T]`, `vision` tensors, `sample_id`. A row that cannot be decoded stands in the list as a BadRow object, and the
    trainer stops or counts it. Its length is that of the table, in rows: how many sequences there are is the sampler's affair.
    """

    def __init__(self, table: RowTable, encoder: Encoder) -> None:
        self.table, self.encoder = table, encoder

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, sequence: tuple[int, ...]) -> list[dict[str, Any] | BadRow]:
        return [self._row(i) for i in sequence]

    def _row(self, i: int) -> dict[str, Any] | BadRow:
        # Returned, not raised: DataLoader raises what a worker raised again as a new exception made of the traceback's text.
        try:
            sample = self.table.sample(i, self.encoder.need_answer)
            encoded = self.encoder.encode(sample, self.table.sources[self.table.source[i]].max_tiles)
        except BadRow as error:
            return error
        measured, length = int(self.table.length[i]), self.encoder.length(encoded)
        if length != measured:
            problem = f"the row has {length} tokens now, but had {measured} when the lengths were measured: a picture changed on disk"
            return BadRow("changed_on_disk", sample.where, problem, "Touch the data file so that it is measured again")
        return encoded


@dataclasses.dataclass
class Collator:
    """Joins sequences into `input_ids int64[B, T]`, `labels int64[B, T]`, the family's vision tensors (or
    cached `vision_features float[P, L, Dv]`) and `sample_ids`.

    Unpacked: right padding and `attention_mask int64[B, T]`. Packed: `position_ids int64[B, T]` that restart at 0 for
    each row, no attention mask, and the trailing padding is a segment of its own. With `flatten` the packs are laid end
    to end in one sequence (B = 1): sdpa and flash separate rows in a batch of one only. Where they end is said too
    (ROW_ENDS: `int32[S + 1]` and the longest, a plain number): from the positions every layer would work it out, and ask the
    device for it.
    An empty list of sequences (a short last step) gives one token with no label: a forward pass without a loss.
    """

    pad_id: int
    vision: Any = None
    packed: bool = False
    flatten: bool = False
    pad_to_multiple_of: int = 8

    def __call__(self, sequences: Sequence[Sequence[dict[str, Any] | BadRow]]) -> dict[str, Any]:
        import torch

        from drive_vlm.models.pixels import joined

        # Bad rows leave the batch here, and a sequence of nothing else leaves with them.
        bad = [row for sequence in sequences for row in sequence if isinstance(row, BadRow)]
        rows = [[row for row in sequence if not isinstance(row, BadRow)] for sequence in sequences]
        rows = [sequence for sequence in rows if sequence]
        if self.flatten and len(rows) > 1:
            rows = [[row for sequence in rows for row in sequence]]
        arrays = self._join(rows) if rows else self._filler()
        batch: dict[str, Any] = {key: torch.from_numpy(value) for key, value in arrays.items()}
        pictures = [row["vision"] for sequence in rows for row in sequence if row["vision"]]
        if pictures and "vision_features" in pictures[0]:
            batch |= {name: joined([row[name] for row in pictures]) for name in pictures[0]}
        elif self.vision is not None:
            batch |= self.vision.collate_vision(pictures)
        if self.flatten:
            batch |= self._row_ends(batch["position_ids"].numpy())
        batch["num_tokens"] = sum(len(row["input_ids"]) for sequence in rows for row in sequence)
        batch["sample_ids"] = [row["sample_id"] for sequence in rows for row in sequence]
        batch["bad_rows"] = bad
        return batch

    def _join(self, rows: list[list[dict[str, Any]]]) -> dict[str, np.ndarray]:
        """Lay the rows of each sequence end to end and pad on the right: arrays int64[B, T]."""
        longest = max(sum(len(row["input_ids"]) for row in sequence) for sequence in rows)
        width = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        shape = (len(rows), width)
        input_ids, labels = np.full(shape, self.pad_id, dtype=np.int64), np.full(shape, IGNORE_INDEX, dtype=np.int64)
        positions, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for b, sequence in enumerate(rows):
            end = 0
            for row in sequence:
                start, end = end, end + len(row["input_ids"])
                input_ids[b, start:end], labels[b, start:end] = row["input_ids"], row["labels"]
                positions[b, start:end], mask[b, start:end] = np.arange(end - start), 1
            # The padding of a pack counts from 0 again: attention that finds segments by restarting positions keeps it apart.
            positions[b, end:] = np.arange(width - end)
        side = {"position_ids": positions} if self.packed else {"attention_mask": mask}
        return {"input_ids": input_ids, "labels": labels, **side}

    def _row_ends(self, positions: np.ndarray) -> dict[str, Any]:
        """ROW_ENDS of `positions int64[1, T]`, which restart at 0 for each row and for the padding."""
        import torch

        ends = np.append(np.flatnonzero(positions[0] == 0), positions.shape[1]).astype(np.int32)
        where, longest = torch.from_numpy(ends), int(np.diff(ends).max())
        return dict(zip(ROW_ENDS, (where, where, longest, longest), strict=True))

    def _filler(self) -> dict[str, np.ndarray]:
        """One unlabelled token, int64[1, 1]. A rank without rows must still run the forward pass: ZeRO-3 gathers weights in it."""
        one = np.zeros((1, 1), dtype=np.int64)
        side = {"position_ids": one} if self.packed else {"attention_mask": one + 1}
        return {"input_ids": one + self.pad_id, "labels": one + IGNORE_INDEX, **side}
