"""Exact search by inner product, on any device that torch knows."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from megatron_retrieval.errors import MegatronRetrievalError, MismatchError
from megatron_retrieval.index.api import TensorVectors, VectorSource
from megatron_retrieval.index.exact import int8_codes as codes
from megatron_retrieval.index.exact.bounded_products import RoughVectors, of_block, product_dtype
from megatron_retrieval.index.exact.candidate_filter import CandidateFilter, Piece, TooRoughError
from megatron_retrieval.index.exact.hidden_rows import HiddenRows
from megatron_retrieval.index.exact.pair_scores import empty_result
from megatron_retrieval.index.exact.placement import Placement, fits_in_memory
from megatron_retrieval.index.exact.score_tiles import ScoreBuffer
from megatron_retrieval.types.search import SearchResult
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.read_ahead import read_ahead

log = get_logger("index")

#: size, in float32, of the blocks in which the CPU reads vectors from their source
_BLOCK_BYTES = 1 << 26
_ROWS_MEASURED_AT_ONCE = 1 << 14
#: queries searched at once, by device: a GPU reads its rows less often with more, a CPU's caches hold fewer
QUERIES_AT_ONCE = {"cpu": 128, "cuda": 512}
#: rows from which a copy in 8 bits pays
_ROWS_FOR_CODES = 16_384


class FlatIndex:
    """Compares every query with every row; obeys the contract of `SearchIndex`.

    A fast matrix product finds candidates: rows whose rough score lies within its error of the k-th best. Their scores
    are then computed again in one canonical way, so that the answer is bitwise the same for any type, blocks or
    order of the matrix product. On a CPU the product is of 8-bit integers where that is fast; a copy in them is made at
    the first search. Elsewhere, for few rows, or from disk, it is of the vectors as they are kept.

    Args:
        vectors: an `EmbeddingStore`, another source, or a tensor [N, D].
        first_row: evidence row of the first vector.
        device: where to search. On a GPU the vectors are copied there once, in their stored type; on the CPU they
            stay where they are (memory-mapped, for a store).
        placement: whether the CPU may keep the copy in memory, or reads all vectors for each search.
    """

    def __init__(
        self,
        vectors: VectorSource | Tensor,
        first_row: int = 0,
        device: torch.device | str | None = None,
        placement: Placement = "auto",
    ) -> None:
        source = TensorVectors(vectors.detach()) if isinstance(vectors, Tensor) else vectors
        if device is None:
            device = vectors.device if isinstance(vectors, Tensor) else "cpu"
        self._device = torch.device(device)
        if self._device.type != "cpu":
            source = TensorVectors(_copy_to_device(source, self._device))
        self._source = source
        self._first_row = first_row
        # first row of a block -> length of its longest vector, known after the first search
        self._longest: dict[int, float] = {}
        self._codes: RoughVectors | None = None
        self._wants_codes = self._device.type == "cpu" and len(source) >= _ROWS_FOR_CODES and placement != "disk"
        self._placement = placement
        #: of searches that have ended; a search takes one, so that no two at the same time share it
        self._buffers: list[ScoreBuffer] = []

    @property
    def num_rows(self) -> int:
        return len(self._source)

    @property
    def dimension(self) -> int:
        return self._source.dimension

    @torch.no_grad()
    def search(
        self, queries: Tensor, k: int, exclude_rows: Tensor | None = None, exclude_ranges: Tensor | None = None
    ) -> SearchResult:
        """See `SearchIndex.search`.

        Raises:
            MismatchError: the queries have another dimension.
            MegatronRetrievalError: a query or a stored vector holds NaN or infinity, or scores exceed float32.
        """
        asked_on = queries.device
        queries = checked_queries(queries, k, self.dimension).to(self._device)
        if len(queries) == 0:
            return empty_result(0, k, asked_on)
        hidden = HiddenRows.of(len(queries), exclude_rows, exclude_ranges, self._device)
        with _full_precision(self._device), self._buffer() as buffer:
            found = self._search_codes(queries, k, hidden, buffer)
            found = found or self._search_blocks(queries, k, hidden, buffer)
        return SearchResult(found.scores.to(asked_on), found.rows.to(asked_on))

    def vectors_of(self, rows: Tensor) -> Tensor:
        """[n, D] float32 of the evidence rows [n] int64, all of them held here, on the device of the search."""
        return self._source.vectors_of(rows.to(self._device) - self._first_row).float()

    @contextlib.contextmanager
    def _buffer(self) -> Iterator[ScoreBuffer]:
        try:
            buffer = self._buffers.pop()
        except IndexError:
            buffer = ScoreBuffer()
        yield buffer
        self._buffers.append(buffer)

    def _search_codes(
        self, queries: Tensor, k: int, hidden: HiddenRows | None, buffer: ScoreBuffer
    ) -> SearchResult | None:
        """None where there are no codes, or their bounds are too wide."""
        if self._wants_codes:
            self._wants_codes = False
            self._codes = self._make_codes()
        if self._codes is None:
            return None
        piece = Piece(self._codes, self._source.vectors_of, self._first_row)
        try:
            none = empty_result(len(queries), k, self._device)
            return _improved(piece, queries, none, hidden, buffer, patient=False)
        except TooRoughError:
            log.info(
                "index: 8 bits tell too few of these vectors apart; exact search goes on with the vectors themselves"
            )
            self._codes = None
            return None

    def _make_codes(self) -> RoughVectors | None:
        dtype = codes.fastest_codes(self.dimension)
        if dtype is None or not fits_in_memory(self.num_rows * self.dimension, self._placement):
            return None
        start = time.monotonic()
        made = codes.encode(self._source.read, self.num_rows, dtype)
        if made is not None:
            log.info(
                "index: exact search by 8-bit codes, %.1f MB, made in %.1f s",
                made.matrix.nbytes / 1e6,
                time.monotonic() - start,
            )
        return made

    def _search_blocks(self, queries: Tensor, k: int, hidden: HiddenRows | None, buffer: ScoreBuffer) -> SearchResult:
        best = empty_result(len(queries), k, self._device)
        on_cpu, num_rows = self._device.type == "cpu", self.num_rows
        block_rows = max(1, _BLOCK_BYTES // (4 * max(1, self.dimension)) if on_cpu else num_rows)

        def read(start: int) -> Tensor:
            return self._source.read(start, min(start + block_rows, num_rows))

        for start, block in read_ahead(range(0, num_rows, block_rows), read):
            rough = of_block(block, self._longest_vector(block, start), product_dtype(block))
            piece = Piece(rough, block.__getitem__, start + self._first_row)
            best = _improved(piece, queries, best, hidden, buffer)
        return best

    def _longest_vector(self, block: Tensor, start: int) -> float:
        """Euclidean length of the block's longest vector; refuses NaN and infinity."""
        if start not in self._longest:
            parts = block.split(_ROWS_MEASURED_AT_ONCE)
            lengths = torch.cat([torch.linalg.vector_norm(part.float(), dim=1, dtype=torch.float64) for part in parts])
            if not torch.isfinite(lengths).all():
                row = int((~torch.isfinite(lengths)).nonzero()[0]) + start + self._first_row
                raise MegatronRetrievalError(
                    f"The vector of evidence row {row} holds NaN or infinity; embed the evidence again."
                )
            self._longest[start] = float(lengths.max())
        return self._longest[start]


def _improved(
    piece: Piece,
    queries: Tensor,
    best: SearchResult,
    hidden: HiddenRows | None,
    buffer: ScoreBuffer,
    patient: bool = True,
) -> SearchResult:
    """`best` updated with the rows of one piece, some queries at a time."""
    largest = float(torch.linalg.vector_norm(queries, dim=1, dtype=torch.float64).max()) * piece.rough.reach
    if largest > torch.finfo(torch.float32).max / 2:
        raise MegatronRetrievalError(
            f"Scores up to {largest:.1e} do not fit into float32; normalise or scale the embeddings."
        )
    parts, at_once = [], QUERIES_AT_ONCE[queries.device.type]
    for start in range(0, len(queries), at_once):
        some = slice(start, start + at_once)
        known = SearchResult(best.scores[some], best.rows[some])
        hidden_of_some = None if hidden is None else hidden.of_queries(some)
        parts.append(CandidateFilter(piece, queries[some], known, hidden_of_some, buffer, patient).search())
    return SearchResult(torch.cat([part.scores for part in parts]), torch.cat([part.rows for part in parts]))


def checked_queries(queries: Tensor, k: int, dimension: int) -> Tensor:
    """Queries as [B, D] float32; raises where they have another shape or are not finite."""
    if k < 1:
        raise ValueError(f"k = {k}: at least one row must be asked for")
    if queries.dim() != 2 or queries.size(1) != dimension:
        raise MismatchError(
            f"Queries of shape {list(queries.shape)} were given to an index of dimension {dimension}; were the "
            "evidence and the questions embedded by different encoders?"
        )
    queries = queries.detach().float()
    finite = torch.isfinite(queries).all(dim=1)
    if not finite.all():
        raise MegatronRetrievalError(
            f"The vector of query {int((~finite).nonzero()[0])} holds NaN or infinity; has training diverged?"
        )
    return queries


def _copy_to_device(source: VectorSource, device: torch.device, step: int = 1 << 18) -> Tensor:
    if isinstance(source, TensorVectors):
        return source.values.to(device)
    if len(source) == 0:
        return torch.empty(0, source.dimension, device=device)
    target = torch.empty(len(source), source.dimension, dtype=source.vectors(0, 1).dtype, device=device)
    for start in range(0, len(source), step):
        stop = min(start + step, len(source))
        target[start:stop] = source.read(start, stop).to(device)
    return target


@contextlib.contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Matrix products in full float32, without autocast and TF32."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
