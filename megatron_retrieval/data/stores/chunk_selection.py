"""Which documents of a chunk store are held out, and which chunks are searched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from megatron_retrieval.config.checks import Bounds, Checked, NonNegativeInt
from megatron_retrieval.data.stores.chunks import ChunkStore, Mask, SectionChoice
from megatron_retrieval.data.stores.ragged import Rows, to_offsets
from megatron_retrieval.utils.seeds import fractions


@dataclass(frozen=True, kw_only=True)
class ChunkSelectionConfig(Checked):
    """The database: the chunks that are searched."""

    valid_fraction: Annotated[float, Bounds(least=0, below=1)] = 0.005
    """Share of the groups of documents held out for evaluation, which are not searched. Chosen by --seed; 0: none."""
    seed: int = 1234
    """Seed of the choice of groups."""
    valid_inputs: tuple[NonNegativeInt, ...] | None = None
    """Input files of the chunks, by number from 0, whose groups are held out as well."""
    retro_search_valid: bool = False
    """Search documents held out as well: of texts cut by --retro-section-length, other pieces than those evaluated."""
    retro_database_share: Annotated[float, Bounds(above=0, most=1)] = 1.0
    """Share of the other groups whose chunks are searched; a larger share holds every smaller one."""
    retro_database_sections: SectionChoice = "all"
    """Of texts cut by --retro-section-length, search all pieces, or those with even or odd numbers, from 0; a text of
    one piece is always searched."""
    retro_require_continuation: bool = False
    """Search only chunks behind which their document goes on."""

    def is_held_out(self, chunks: ChunkStore) -> Mask:
        """[num_documents] those held out for evaluation, whole groups of them."""
        groups = np.asarray(chunks.groups, np.int64)
        is_drawn: Mask = fractions(groups, self.seed, "held-out-documents") < self.valid_fraction
        return is_drawn | np.isin(groups, groups[np.isin(chunks.sources, self.valid_inputs or ())])

    def ranges(self, chunks: ChunkStore, database: ChunkStore) -> Rows:
        """[R, 2] first row and end of the ranges of rows of the database that are searched, ascending and apart.

        Args:
            chunks: the corpus; documents of it that are held out are not searched.
        """
        is_same = database.fingerprint == chunks.fingerprint
        is_held_out = self.is_held_out(database) & (is_same and not self.retro_search_valid)
        shares = fractions(np.asarray(database.groups, np.int64), self.seed, "database")
        is_searched = (shares < self.retro_database_share) & database.in_sections(self.retro_database_sections)
        searched = np.flatnonzero(is_searched & ~is_held_out)
        starts, ends = database.documents[searched], database.documents[searched + 1]
        if self.retro_require_continuation:
            ends = ends - 1
        return _joined(np.stack([starts, ends], 1)[starts < ends])


OwnRule = Literal["group", "document", "none"]


class OwnRows:
    """The rows that a chunk must not be served, since they are of its own document, or of a document of its group.

    Without it a chunk's nearest neighbour is the one before it, which gives the chunk itself as its continuation
    (Borgeaud et al. 2022, arXiv 2112.04426, section 2.3).
    """

    def __init__(self, chunks: ChunkStore, rule: OwnRule) -> None:
        self._chunks = chunks
        count = chunks.num_documents
        unit = np.asarray(chunks.groups, np.int64) if rule == "group" else np.arange(count)
        self._unit = np.zeros(count, np.int64) if rule == "none" else unit
        order = np.argsort(self._unit, kind="stable")
        ranges = np.stack([chunks.documents[order], chunks.documents[order + 1]], 1)
        begins = np.r_[True, (ranges[1:, 0] != ranges[:-1, 1]) | (np.diff(self._unit[order]) > 0)]
        self._ranges = np.stack([ranges[begins, 0], ranges[np.r_[begins[1:], True], 1]], 1)
        #: [units + 1] the ranges of each unit
        self._offsets = to_offsets(np.bincount(self._unit[order][begins], minlength=1))
        if rule == "none":
            self._ranges, self._offsets = self._ranges[:0], np.zeros(2, np.int64)

    def num_ranges(self, rows: Rows) -> Rows:
        """[n] how many ranges each of the rows must not be served."""
        unit = self._unit[self._chunks.document_of(rows)]
        return self._offsets[unit + 1] - self._offsets[unit]

    def ranges(self, rows: Rows) -> Rows:
        """[n, R, 2] those ranges; empty ones behind the last."""
        counts, unit = self.num_ranges(rows), self._unit[self._chunks.document_of(rows)]
        places = np.arange(int(counts.max(initial=0)))
        is_range = places < counts[:, None]
        ranges = self._ranges[np.where(is_range, self._offsets[unit][:, None] + places, 0)]
        return np.where(is_range[..., None], ranges, 0)


def _joined(ranges: Rows) -> Rows:
    """The ranges with those that touch made one."""
    if not len(ranges):
        return ranges
    begins = np.r_[True, ranges[1:, 0] != ranges[:-1, 1]]
    return np.stack([ranges[begins, 0], ranges[np.r_[begins[1:], True], 1]], 1)
