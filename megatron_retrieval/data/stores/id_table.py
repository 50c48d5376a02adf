"""External ids to rows: hashes sorted on disk, so that opening 21 million ids costs nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_retrieval.data.stores.ragged import Ragged, Rows
from megatron_retrieval.utils.disk import allocate

Hashes = NDArray[np.uint64]

#: rows held in memory at a time while the table is sorted; about forty bytes each, so that a large evidence needs no
#: more memory than a small one
BLOCK_ROWS = 1 << 17


def hash_ids(ids: Iterable[bytes]) -> Hashes:
    """A 64-bit hash of every id, equal on every machine."""
    digests = b"".join(hashlib.blake2b(identifier, digest_size=8).digest() for identifier in ids)
    return np.frombuffer(digests, "<u8")


@dataclass(frozen=True)
class IdTable:
    """Rows ordered by the hash of their id.

    Attributes:
        hashes: [N] ascending.
        rows: [N] the row of each hash.
        ids: [N] the ids themselves in row order, to tell true matches from equal hashes.
    """

    hashes: Hashes
    rows: Rows
    ids: Ragged

    def rows_of(self, ids: Sequence[str]) -> Rows:
        """The row of every id, -1 where there is none."""
        encoded = [identifier.encode() for identifier in ids]
        wanted = hash_ids(encoded)
        first, end = (np.searchsorted(self.hashes, wanted, side) for side in ("left", "right"))
        found = np.full(len(encoded), -1, np.int64)
        for query in np.flatnonzero(first < end):
            for row in self.rows[first[query] : end[query]]:
                if self.ids[row].tobytes() == encoded[query]:
                    found[query] = row
                    break
        return found


def sort_id_table(hashes: Hashes, ids: Ragged, hashes_path: Path, rows_path: Path) -> tuple[int, int] | None:
    """Write the table's two files from the hashes in row order, with `BLOCK_ROWS` rows in memory at a time.

    Returns:
        Two rows with the same id, if there are any.
    """
    table_hashes, table_rows, buckets = deal_by_hash(hashes, hashes_path, rows_path)
    duplicates = None
    for bucket in buckets:
        order = np.argsort(table_hashes[bucket], kind="stable")
        table_hashes[bucket], table_rows[bucket] = table_hashes[bucket][order], table_rows[bucket][order]
        duplicates = duplicates or _same_id(table_hashes[bucket], table_rows[bucket], ids)
    table_hashes.flush()
    table_rows.flush()
    return duplicates


def deal_by_hash(
    hashes: Hashes, hashes_path: Path, rows_path: Path
) -> tuple[np.memmap[Any, np.dtype[np.uint64]], np.memmap[Any, np.dtype[np.int64]], list[slice]]:
    """Deal the hashes and their rows into buckets by the leading bits, with `BLOCK_ROWS` rows in memory at a time.

    Returns:
        Maps of the two files that were written, and the places of the buckets, whose hashes ascend from one bucket to
        the next; within a bucket rows ascend.
    """
    bits = max(1, (len(hashes) // BLOCK_ROWS).bit_length() + 1)
    shift = np.uint64(64 - bits)
    blocks = [slice(start, start + BLOCK_ROWS) for start in range(0, len(hashes), BLOCK_ROWS)]
    counts = sum(np.bincount((hashes[block] >> shift).astype(np.int64), minlength=1 << bits) for block in blocks)
    starts = np.concatenate([[0], np.cumsum(counts)])
    table_hashes = np.memmap(allocate(hashes_path, hashes.nbytes), np.uint64, "r+")
    table_rows = np.memmap(allocate(rows_path, hashes.nbytes), np.int64, "r+")  # as wide as hashes
    filled = starts[:-1].copy()
    for block in blocks:
        buckets = (hashes[block] >> shift).astype(np.int64)
        order = np.argsort(buckets, kind="stable")
        in_block = np.bincount(buckets, minlength=1 << bits)
        targets = np.arange(len(order)) + np.repeat(filled - (np.cumsum(in_block) - in_block), in_block)
        table_hashes[targets], table_rows[targets] = hashes[block][order], order + block.start
        filled += in_block
    return table_hashes, table_rows, [slice(start, end) for start, end in pairwise(starts.tolist())]


def _same_id(hashes: Hashes, rows: Rows, ids: Ragged) -> tuple[int, int] | None:
    """Two rows of a sorted bucket whose ids, not only their hashes, are equal."""
    equal = np.flatnonzero(hashes[1:] == hashes[:-1])
    for run in np.split(equal, np.flatnonzero(np.diff(equal) > 1) + 1):
        seen: dict[bytes, int] = {}
        for row in rows[run[0] : run[-1] + 2] if len(run) else ():
            first = seen.setdefault(ids[row].tobytes(), int(row))
            if first != row:
                return first, int(row)
    return None
