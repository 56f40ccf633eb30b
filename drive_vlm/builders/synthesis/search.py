"""Exact search for the nearest of many vectors by their cosine similarity: one matrix product, no index.

A data base of named crops is small (1e3 to 1e7 rows) and its queries are many, so that a product is quicker than anything that has to
be built first. Products of float32 differ in their last bits with the shapes of the matrices, so that they only choose candidates;
these are scored again in double precision, which is the same in every block, shard, rank and on every device. Equal scores stand in
the order of rows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

# More than the float32 product of two vectors of length 1 and of up to 4,096 float16 numbers is wrong by.
_SLACK = 1e-4
_BLOCK = 1 << 15
# Bytes up to which float32 copies of the vectors are kept between searches.
_KEPT = 1 << 31
_EXTRA = 32


class VectorIndex:
    """Vectors float16[N, D] in one or several shards, numbered through.

    `faiss`: candidates come from faiss's Flat index (pip install drive-vlm[retrieval]) in place of numpy's product; hits are the same.
    """

    def __init__(self, shards: Sequence[np.ndarray], faiss: bool = False) -> None:
        self.shards = [shard for shard in shards if len(shard)]
        widths = {shard.shape[1] for shard in self.shards}
        if len(widths) != 1:
            raise ValueError(
                f"the vectors have {sorted(widths) or 'no'} numbers: a data base has one width, and at least one row."
            )
        self.width = widths.pop()
        self.starts = np.cumsum([0, *(len(shard) for shard in self.shards)])
        self._kept: list[np.ndarray] | None = None
        self._faiss: Any = _faiss_index(self.shards, self.width) if faiss else None

    def __len__(self) -> int:
        return int(self.starts[-1])

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(scores float64[Q, k] from high to low, rows int64[Q, k]) of queries float[Q, D]; k is at most N. Raises ValueError for queries
        of another width."""
        queries = np.asarray(queries)
        if queries.ndim != 2 or (len(queries) and queries.shape[1] != self.width):
            raise ValueError(
                f"queries of {list(queries.shape)} numbers, the data base has {self.width} a row. Use one embedder for both."
            )
        k = min(k, len(self))
        scores, rows = np.zeros((len(queries), k)), np.zeros((len(queries), k), dtype=np.int64)
        if not len(queries):
            return scores, rows
        wanted = np.ascontiguousarray(queries, dtype=np.float32)
        found = self._candidates(wanted, k) if self._faiss is None else self._faiss_candidates(wanted, k)
        for i, candidates in enumerate(found):
            exact = self._rows(candidates).astype(np.float64) @ queries[i].astype(np.float64)
            # Rounded: the order of a sum in double precision moves its 16th digit.
            exact = np.round(exact, 12)
            order = np.lexsort((candidates, -exact))[:k]
            scores[i], rows[i] = exact[order], candidates[order]
        return scores, rows

    def _blocks(self) -> list[np.ndarray]:
        """The vectors in blocks of float16, or of float32 where they are kept."""
        if self._kept is not None:
            return self._kept
        blocks = [shard[i : i + _BLOCK] for shard in self.shards for i in range(0, len(shard), _BLOCK)]
        if len(self) * self.width * 4 <= _KEPT:
            self._kept = [np.asarray(block, dtype=np.float32) for block in blocks]
            return self._kept
        return blocks

    def _candidates(self, wanted: np.ndarray, k: int) -> list[np.ndarray]:
        """Rows that may be among the k nearest of each query: all that are not worse than the k-th by more than rounding."""
        least = np.full(len(wanted), -np.inf, dtype=np.float32)
        rows: list[np.ndarray] = []
        owners: list[np.ndarray] = []
        values: list[np.ndarray] = []
        first = 0
        for block in self._blocks():
            scores = wanted @ np.asarray(block, dtype=np.float32).T
            if scores.shape[1] >= k:
                # Of a block alone, the k-th best is a bound for the k-th best of all.
                least = np.maximum(least, np.partition(scores, -k, axis=1)[:, -k])
            owner, row = np.nonzero(scores >= least[:, None] - _SLACK)
            owners.append(owner)
            rows.append(row + first)
            values.append(scores[owner, row])
            first += len(block)
        owner, row, value = (np.concatenate(parts) for parts in (owners, rows, values))
        keep = value >= least[owner] - _SLACK
        return _by_owner(owner[keep], row[keep], len(wanted))

    def _faiss_candidates(self, wanted: np.ndarray, k: int) -> list[np.ndarray]:
        """As `_candidates`. Where more rows are as good as the k-th than were asked for, more are asked for."""
        many = min(len(self), k + _EXTRA)
        while True:
            scores, rows = self._faiss.search(wanted, many)
            if many == len(self) or (scores[:, -1] < scores[:, k - 1] - _SLACK).all():
                keep = scores >= scores[:, k - 1 : k] - _SLACK
                owner, place = np.nonzero(keep)
                return _by_owner(owner, rows[owner, place], len(wanted))
            many = min(len(self), 4 * many)

    def _rows(self, numbers: np.ndarray) -> np.ndarray:
        """float16[len(numbers), D]."""
        shard = np.searchsorted(self.starts, numbers, side="right") - 1
        found = np.empty((len(numbers), self.width), dtype=np.float16)
        for i in np.unique(shard):
            at = shard == i
            found[at] = self.shards[i][numbers[at] - self.starts[i]]
        return found


def _by_owner(owner: np.ndarray, row: np.ndarray, count: int) -> list[np.ndarray]:
    """The rows of each of `count` owners."""
    order = np.argsort(owner, kind="stable")
    return np.split(row[order].astype(np.int64), np.searchsorted(owner[order], np.arange(1, count)))


def _faiss_index(shards: Sequence[np.ndarray], width: int) -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ValueError(f"no faiss ({error}). Install the optional extra: pip install drive-vlm[retrieval]") from error
    index = faiss.IndexFlatIP(width)
    for shard in shards:
        for start in range(0, len(shard), _BLOCK):
            index.add(np.ascontiguousarray(shard[start : start + _BLOCK], dtype=np.float32))
    return index
