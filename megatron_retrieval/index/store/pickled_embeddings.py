"""Embeddings as DPR, Megatron, Contriever and Tevatron pickle them, read in blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from megatron_retrieval.errors import DataError
from megatron_retrieval.utils.array_pickle import PickledArray, read_array_pickle

PickleFormat = Literal["dpr", "megatron", "pair"]
_BLOCK_VECTORS = 1 << 14


@dataclass(frozen=True)
class PickledBlock:
    """Vectors that stand together in a file.

    Attributes:
        ids: n names of passages.
        vectors: [n, D] floats, as they are in the file.
    """

    ids: list[str]
    vectors: NDArray[np.floating[Any]]


def read_pickled_embeddings(path: Path, pickle_format: PickleFormat, dimension: int) -> Iterator[PickledBlock]:
    """Yield the vectors of a file, which is held in memory.

    dpr: a list of (id, float32[D]); megatron: {"embed_data": {id: float16[D]}}; pair: n ids and one [n, D] matrix, in
    either order. Any of float16, 32 and 64 will do.

    Raises:
        DataError: not of the format, or a vector (named by its id) is not D finite numbers.
    """
    content = read_array_pickle(path)
    entries = iter(_rows_of_pair(path, content) if pickle_format == "pair" else _entries(path, content, pickle_format))
    while block := list(islice(entries, _BLOCK_VECTORS)):
        ids = [_checked_id(path, entry) for entry in block]
        vectors = [_checked_vector(path, name, entry[1], dimension) for name, entry in zip(ids, block, strict=True)]
        yield PickledBlock(ids, np.stack(vectors))


def _rows_of_pair(path: Path, content: Any) -> Iterable[Any]:
    """(id, vector) of Contriever's (ids, matrix) and of Tevatron's (matrix, ids)."""
    pair = content if isinstance(content, tuple | list) and len(content) == 2 else ()
    ids, matrix = sorted(pair, key=lambda part: isinstance(part, PickledArray)) if pair else (None, None)
    if not isinstance(ids, list | tuple) or not isinstance(matrix, PickledArray) or matrix.values.ndim != 2:
        raise DataError(path, "expected a pair of ids and one matrix, in either order")
    if len(ids) != len(matrix.values):
        raise DataError(path, f"{len(ids):,} ids, but {len(matrix.values):,} vectors")
    return ((name, PickledArray.of(row)) for name, row in zip(ids, matrix.values, strict=True))


def _entries(path: Path, content: Any, pickle_format: PickleFormat) -> Iterable[Any]:
    if pickle_format == "megatron":
        data = content.get("embed_data") if isinstance(content, dict) else None
        if not isinstance(data, dict):
            raise DataError(path, "expected a dictionary whose 'embed_data' is a dictionary of vectors by id")
        return data.items()
    if isinstance(content, tuple) and any(isinstance(part, PickledArray) for part in content):
        problem = "a pair of ids and one matrix, as Contriever and Tevatron write, where a list of (id, vector) belongs"
        raise DataError(path, problem, hint="Give --format pair.")
    if not isinstance(content, list):
        raise DataError(path, "expected a list of (id, vector)")
    return content


def _checked_id(path: Path, entry: Any) -> str:
    if not isinstance(entry, tuple | list) or len(entry) != 2:
        raise DataError(path, "expected a list of (id, vector)")
    name = entry[0]
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise DataError(path, f"{name!r} is no id, which is a string or a whole number")
    return str(name)


def _checked_vector(path: Path, name: str, vector: Any, dimension: int) -> NDArray[np.floating[Any]]:
    values = vector.values if isinstance(vector, PickledArray) else None
    if values is None or values.dtype.kind != "f" or values.ndim != 1:
        raise DataError(path, f"what stands at the id {name!r} is no vector of floats")
    if len(values) != dimension:
        problem = f"the vector of {name!r} has {len(values)} numbers, but the encoder's have {dimension}"
        raise DataError(path, problem, hint="Give the checkpoint of the encoder that made them.")
    if not np.isfinite(values).all():
        raise DataError(path, f"the vector of {name!r} holds NaN or infinity")
    return values
