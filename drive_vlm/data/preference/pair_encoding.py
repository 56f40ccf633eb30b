"""Preference pairs: one prompt with its pictures, a chosen and a rejected answer. Row -> two encoded rows -> batch.

A pair is a row of the data contract with the texts `chosen` and `rejected` next to its conversation. An answer that ends
the conversation is not part of the prompt: it is the chosen one where the row has no `chosen`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from drive_vlm.config import IGNORE_INDEX
from drive_vlm.data.collate import Collator, EncodedRows
from drive_vlm.data.encoder import Encoder
from drive_vlm.data.samples import IMAGE, VIDEO, BadRow, Sample, Turn
from drive_vlm.data.table import RowTable
from drive_vlm.models.vision import Layout


def answers_of(sample: Sample) -> tuple[str, str]:
    """(chosen, rejected) texts of a row. Raises BadRow: missing_field, empty_answer, not_learned, image_count, identical."""
    if sample.turns[-1].role == "assistant" and not sample.turns[-1].learned:
        problem = "the answer of the pair is marked as not learned"
        raise BadRow("not_learned", sample.where, problem, "Take the pair out")
    given = {"chosen": sample.reference or None, **sample.columns}
    texts = []
    for side in ("chosen", "rejected"):
        text = given.get(side)
        if not isinstance(text, str):
            way_out = "A pair needs chosen and rejected texts"
            raise BadRow("missing_field", sample.where, f"the row has no text {side!r}", way_out)
        if not text.strip():
            raise BadRow("empty_answer", sample.where, f"the {side} answer is empty", "Remove the pair")
        if IMAGE in text or VIDEO in text:
            raise BadRow("image_count", sample.where, f"the {side} answer holds a picture placeholder", "Fix the row")
        texts.append(text)
    if texts[0].split() == texts[1].split():
        raise BadRow("identical", sample.where, "chosen equals rejected, so there is nothing to prefer", "Remove it")
    return texts[0], texts[1]


def sides_of(sample: Sample) -> tuple[Sample, Sample]:
    """The row as it would be with the chosen answer, and with the rejected one."""
    chosen, rejected = (
        dataclasses.replace(sample, turns=(*sample.prompt_turns(), Turn("assistant", (text,))))
        for text in answers_of(sample)
    )
    return chosen, rejected


class PairEncoder(Encoder):
    """Encodes pairs. Only the two answers are labelled, not the turns before; the length of a pair is that of its longer side."""

    need_answer = False

    def fingerprint(self) -> str:
        return f"pair-{super().fingerprint()}"

    def texts(self, sample: Sample, layouts: Sequence[Layout], prompt: bool = False) -> list[str]:
        return [self.render(side, layouts).text for side in sides_of(sample)]

    def length(self, encoded: dict[str, Any]) -> int:
        return max(len(side["input_ids"]) for side in encoded["sides"])

    def encode(self, sample: Sample, max_tiles: int | None = None, prompt: bool = False) -> dict[str, Any]:
        """`sides`: chosen and rejected as Encoder.encode gives a row, with the same vision tensors. Raises BadRow."""
        both = sides_of(sample)
        # Decoded once: the two sides share their pictures.
        vision, tiles = self.load_vision(sample, max_tiles)
        sides = []
        for side in both:
            rendered = self.render(side, tiles)
            last = dataclasses.replace(rendered, spans=rendered.spans[-1:])
            ids, labels = self.tokens(sample, last, tiles)
            sides.append({"input_ids": ids, "labels": labels, "vision": vision, "sample_id": sample.id})
        return {"sides": sides}


class EncodedPairs(EncodedRows):
    """`dataset[(3, 17)] -> [pair 3, pair 17]`, each with its `reference float[2]` where `reference float[N, 2]` is given."""

    def __init__(self, table: RowTable, encoder: Encoder) -> None:
        super().__init__(table, encoder)
        self.reference: np.ndarray | None = None

    def _row(self, i: int) -> dict[str, Any] | BadRow:
        encoded = super()._row(i)
        if self.reference is not None and not isinstance(encoded, BadRow):
            if np.isnan(self.reference[i]).any():
                where, problem = (
                    self.table.sample(i, False).where,
                    "the pair can be read now, but could not when the reference was computed",
                )
                way_out = "Start again in another --output_dir, or add the pair: python -m drive_vlm reference"
                return BadRow("no_reference", where, problem, way_out)
            encoded["reference"] = self.reference[i]
        return encoded


@dataclasses.dataclass
class PairCollator:
    """Joins pairs into the tensors of `rows`, each pair as two rows: chosen, rejected, chosen, rejected ...

    `rows` is the collator of single rows. Unpacked, each side is a row of the batch; packed, both sides of a pair are in the same
    sequence. The batch also has `answer_tokens int64[2 n]` (labelled tokens of each side in that order) and, where the pairs have it,
    `reference float[n, 2]` (log-probabilities of chosen and rejected under the reference).
    """

    rows: Collator

    def __call__(self, sequences: Sequence[Sequence[dict[str, Any] | BadRow]]) -> dict[str, Any]:
        import torch

        bad = [pair for sequence in sequences for pair in sequence if isinstance(pair, BadRow)]
        whole = [[pair for pair in sequence if not isinstance(pair, BadRow)] for sequence in sequences]
        packs = [[side for pair in sequence for side in pair["sides"]] for sequence in whole]
        batch = self.rows([pack for pack in packs if pack] if self.rows.packed else [[s] for p in packs for s in p])
        pairs = [pair for sequence in whole for pair in sequence]
        counts = [int((side["labels"] != IGNORE_INDEX).sum()) for pair in pairs for side in pair["sides"]]
        batch["answer_tokens"] = torch.tensor(counts, dtype=torch.int64)
        if any("reference" in pair for pair in pairs):
            batch["reference"] = torch.tensor(np.stack([pair["reference"] for pair in pairs]), dtype=torch.float32)
        return batch | {"sample_ids": batch["sample_ids"][::2], "bad_rows": bad}
