"""Compressed and approximate indexes by the faiss library, which is known to this file alone."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import faiss
import torch
from torch import Tensor

from megatron_retrieval.errors import ConfigError, DataError

#: training vectors for each cluster, below which faiss calls the clusters poor
MIN_POINTS_PER_CENTROID = 39


class FaissIndex:
    """Rows 0, 1, 2, ... in the order in which they are added, searched by inner product.

    faiss has no one index that keeps a setting: lists to visit and links to follow lie at different depths of what a
    factory string stands for, and this class finds them.
    """

    def __init__(self, index: Any, source: str) -> None:
        self._index, self._source = index, source

    @classmethod
    def from_factory(cls, factory: str, dimension: int) -> FaissIndex:
        """What a factory string stands for, without training or vectors.

        Raises:
            ConfigError: faiss does not know the string, or not for inner products of this dimension.
        """
        try:
            return cls(
                faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT), f"--index-factory {factory}"
            )
        except RuntimeError as error:
            raise ConfigError(
                f"--index-factory {factory}: faiss makes no such index of inner products of {dimension} dimensions "
                f"({_reason(error)})."
            ) from error

    @classmethod
    def read(cls, path: Path) -> FaissIndex:
        """Load a file that `write` wrote.

        Raises:
            DataError: it is missing, cut off, or no index.
        """
        if not path.is_file():
            raise DataError(path, "the index is missing", hint="Build it again (megatron-retrieval build index).")
        try:
            return cls(faiss.read_index(str(path)), str(path))
        except RuntimeError as error:
            problem = f"faiss cannot read it ({_reason(error)})"
            raise DataError(path, problem, hint="Build it again (megatron-retrieval build index).") from error

    def write(self, path: Path) -> None:
        """Write a file; it has reached the disk on return."""
        faiss.write_index(self._index, str(path))
        with open(path, "rb") as file:
            os.fsync(file.fileno())

    @property
    def num_rows(self) -> int:
        return int(self._index.ntotal)

    @property
    def is_trained(self) -> bool:
        return bool(self._index.is_trained)

    @property
    def num_lists(self) -> int | None:
        """Inverted lists; None where the index has none."""
        ivf = faiss.try_extract_index_ivf(self._index)
        return None if ivf is None else int(ivf.nlist)

    @property
    def has_links(self) -> bool:
        """Whether rows are found by following links from row to row (HNSW)."""
        return isinstance(_innermost(self._index), faiss.IndexHNSW)

    @property
    def num_centroids(self) -> int:
        """The largest number of clusters that training learns; 0 without training."""
        parts = [_innermost(self._index)]
        if isinstance(parts[0], faiss.IndexHNSW):
            parts.append(faiss.downcast_index(parts[0].storage))
        codebooks = [int(part.pq.ksub) for part in parts if hasattr(part, "pq")]
        return max(self.num_lists or 0, *codebooks, 0)

    def set_seed(self, seed: int) -> None:
        """Name the random choices of training; to be called before it."""
        ivf = faiss.try_extract_index_ivf(self._index)
        for part in (ivf, getattr(_innermost(self._index), "pq", None)):
            if part is not None:
                part.cp.seed = seed & 0x7FFFFFFF

    def train(self, vectors: Tensor) -> None:
        """Learn clusters and codes from [n, D].

        Raises:
            ConfigError: faiss cannot train with these.
        """
        try:
            self._index.train(_array(vectors))
        except RuntimeError as error:
            raise ConfigError(f"{self._source}: faiss cannot train it ({_reason(error)}).") from error

    def add(self, vectors: Tensor) -> None:
        """Append [n, D] as the next rows."""
        self._index.add(_array(vectors))

    def set_effort(self, *, num_probes: int | None = None, num_followed: int | None = None) -> None:
        """How much of the index a search looks at: lists (`num_lists`), and candidates among links (`has_links`)."""
        space = faiss.ParameterSpace()
        if num_probes is not None:
            space.set_index_parameter(self._index, "nprobe", num_probes)
        if num_followed is not None:
            space.set_index_parameter(self._index, "efSearch", num_followed)

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Scores and rows [B, k] on the CPU, best first; row -1 where nothing more was found."""
        scores, rows = self._index.search(_array(queries), k)
        return torch.from_numpy(scores), torch.from_numpy(rows)

    def stored_bytes(self, num_rows: int) -> int:
        """Approximate size of the index with `num_rows` rows, in memory and on disk."""
        return round(_stored_bytes(self._index, num_rows))


def use_threads(num_threads: int) -> None:
    """Set the number of faiss threads, for all indexes of this process."""
    faiss.omp_set_num_threads(num_threads)


def _array(vectors: Tensor) -> Any:
    return vectors.detach().to("cpu", torch.float32).contiguous().numpy()


def _innermost(index: Any) -> Any:
    """What lies behind rotations of the vectors."""
    index = faiss.downcast_index(index)
    return _innermost(index.index) if isinstance(index, faiss.IndexPreTransform) else index


def _stored_bytes(index: Any, num_rows: float) -> float:
    index = faiss.downcast_index(index)
    codebook = 4 * index.d * index.pq.ksub if hasattr(index, "pq") else 0
    if isinstance(index, faiss.IndexPreTransform):
        chain: Any = index.chain
        rotations = [chain.at(number) for number in range(chain.size())]
        return sum(4 * rotation.d_in * rotation.d_out for rotation in rotations) + _stored_bytes(index.index, num_rows)
    if isinstance(index, faiss.IndexIVF):  # a code and a 64-bit row each
        return _stored_bytes(index.quantizer, index.nlist) + codebook + num_rows * (index.code_size + 8)
    if isinstance(index, faiss.IndexHNSW):
        # 2 M links at the lowest level; one row in M stands on each further level, with M links; a level, an offset
        hnsw: Any = index.hnsw
        num_links = hnsw.nb_neighbors(1)
        links = hnsw.nb_neighbors(0) + num_links / max(1, num_links - 1)
        return _stored_bytes(index.storage, num_rows) + num_rows * (4 * links + 12)
    if isinstance(index, faiss.IndexRefine):
        return sum(_stored_bytes(part, num_rows) for part in (index.base_index, index.refine_index))
    return codebook + num_rows * float(index.sa_code_size())


def _reason(error: RuntimeError) -> str:
    """The sentence of a faiss error, without the place in its source."""
    return re.sub(r"^Error in .*? at \S+:\d+: (Error: )?", "", " ".join(str(error).split())).rstrip(".")
