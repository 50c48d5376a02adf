"""Imports embeddings that other programs pickled into an embedding store."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megatron_retrieval.checkpoint.kinds.dual_encoder import LoadedDualEncoder, load_encoder_for
from megatron_retrieval.config.checks import Checked, NonNegativeInt
from megatron_retrieval.config.marks import formerly
from megatron_retrieval.config.parser import write_config
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.errors import ConfigError, DataError, MismatchError
from megatron_retrieval.index.store.embedding_store import EmbeddingStore, StorageDtype, StoreIdentity, torch_dtype
from megatron_retrieval.index.store.embedding_writer import EmbeddingWriter
from megatron_retrieval.index.store.pickled_embeddings import PickledBlock, PickleFormat, read_pickled_embeddings
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology
from megatron_retrieval.retrieval.encode_batches import EncodeConfig, encode_sequences
from megatron_retrieval.training.run_record import RunRecord
from megatron_retrieval.utils.disk import allocate
from megatron_retrieval.utils.files import atomic_directory, atomic_file
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.progress import progress_bar

MISSING = "missing.txt"
_ROWS = "rows.tmp"
#: share of a vector's length by which the encoder's own may differ: far above rounding, far below another encoder
_TOLERANCE = 0.1

log = get_logger("index")


@dataclass(kw_only=True, frozen=True)
class ImportEmbeddingsConfig(Checked):
    """Import pickled embeddings; no code of a pickle is executed."""

    format: PickleFormat
    """dpr: files of lists of (id, vector); megatron: files of {"embed_data": {id: vector}}, also EMDR2's."""
    input: tuple[Path, ...]
    """Pickle files, together the vectors of all passages. Each is held in memory while it is read."""
    evidence: Path
    """Folder of the evidence that was embedded (build evidence)."""
    retriever: Path = field(metadata=formerly("load"))
    """Checkpoint of the dual encoder that made the embeddings (import checkpoint), which encodes the questions
    later."""
    output: Path
    """Folder of the embeddings to write."""
    ids: Literal["external", "row"] = "external"
    """Ids in the files: external, the ids of the passage file; row, rows of the evidence from 0."""
    id_prefix: str = ""
    """Prefix of the ids in the files that the passage file lacks, such as wiki: in some of DPR's."""
    embedding_dtype: StorageDtype = "float16"
    """Type in which vectors are stored."""
    max_missing: NonNegativeInt = 0
    """Maximum number of passages without a vector (DPR's release has 24): they get zero vectors, which score 0, and are
    listed in missing.txt."""
    verify_passages: NonNegativeInt = 16
    """Passages of each file to encode again and compare with their vectors: a wrong encoder shows only in bad
    results; 0: none."""
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    """How the encoder is run."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Processes."""


class _Rows:
    """Vectors of all rows in a file, put in any order, and the number of the file that each came from."""

    def __init__(self, path: Path, num_rows: int, dimension: int, dtype: torch.dtype) -> None:
        shape = (num_rows, dimension * dtype.itemsize)
        mapped = np.memmap(allocate(path, math.prod(shape)), np.uint8, "r+", shape=shape)
        self.vectors = torch.from_numpy(mapped).view(dtype)
        self._source = np.full(num_rows, -1, np.int32)

    def put(self, rows: NDArray[np.int64], ids: list[str], vectors: Tensor, paths: tuple[Path, ...], file: int) -> None:
        """Keep the vectors [n, D] of `rows`, which file number `file` names `ids`.

        Raises:
            DataError: a row has a vector already, or a vector does not fit the type.
        """
        earlier = self._source[rows]
        self._source[rows] = file
        first, places = np.unique(rows, return_index=True)
        if (earlier >= 0).any() or len(first) < len(rows):
            taken = np.flatnonzero(earlier >= 0)
            place = int(taken[0]) if len(taken) else int(np.setdiff1d(np.arange(len(rows)), places)[0])
            where = paths[max(earlier[place], 0) if len(taken) else file]
            raise DataError(paths[file], f"the id {ids[place]!r} has a vector already, in {where}")
        stored = vectors.to(self.vectors.dtype)
        unfit = ~torch.isfinite(stored).all(dim=1)
        if unfit.any():
            name, dtype = ids[int(unfit.nonzero()[0])], str(stored.dtype).removeprefix("torch.")
            hint = "Let them be bfloat16 or float32 (--embedding-dtype)."
            raise DataError(paths[file], f"the vector of {name!r} does not fit {dtype}", hint=hint)
        self.vectors[torch.from_numpy(rows)] = stored

    def missing(self) -> NDArray[np.int64]:
        return np.flatnonzero(self._source < 0)


def main(config: ImportEmbeddingsConfig, topology: ProcessTopology) -> None:
    """Import, and leave configuration and run record beside the embeddings."""
    record = RunRecord(config, topology.world_size)
    store = import_embeddings(config, topology)
    write_config(config, config.output / "config.yaml")
    record.write(config.output, num_passages=len(store))
    get_logger().info("%s passages, %d dimensions, in %s", f"{len(store):,}", store.dimension, config.output)


def import_embeddings(config: ImportEmbeddingsConfig, topology: ProcessTopology) -> EmbeddingStore:
    """Write the store; its folder appears whole or not at all, and needs twice the room of the vectors meanwhile.

    Raises:
        DataError: a file is malformed, or passages are unknown, missing, or there twice.
        MismatchError: the checkpoint's encoder makes other vectors, or has another vocabulary than the evidence.
    """
    if topology.world_size > 1:
        raise ConfigError("Embeddings are imported by one process; start the program without torchrun.")
    evidence = EvidenceStore(config.evidence)
    encoder = load_encoder_for(evidence, config.retriever, topology, config.encode.on(topology.device))
    identity = StoreIdentity(
        evidence.fingerprint, encoder.description.fingerprint, len(evidence), config.embedding_dtype
    )
    with atomic_directory(config.output) as folder:
        dimension = encoder.model.dimension
        rows = _Rows(folder / _ROWS, len(evidence), dimension, torch_dtype(config.embedding_dtype))
        with progress_bar("embeddings", "vectors", len(evidence)) as progress:
            verified = -1 if config.verify_passages else len(config.input)
            for block, places, file in _blocks(config, evidence, dimension):
                vectors = torch.from_numpy(block.vectors.astype(np.float32))
                if file > verified:
                    _verify(config, file, evidence, encoder, topology, places, vectors)
                    verified = file
                rows.put(places, block.ids, vectors, config.input, file)
                progress.update(len(places))
        _check_missing(config, evidence, rows.missing(), folder)
        writer = EmbeddingWriter(folder, identity)
        for shard in writer.unfinished_shards():
            part = writer.rows(shard)
            writer.write(shard, rows.vectors[part.start : part.stop])
        writer.finish()
        (folder / _ROWS).unlink()
    return EmbeddingStore(config.output)


def _blocks(
    config: ImportEmbeddingsConfig, evidence: EvidenceStore, dimension: int
) -> Iterator[tuple[PickledBlock, NDArray[np.int64], int]]:
    """Yield the vectors of all files with their rows and the number of the file."""
    for number, path in enumerate(config.input):
        for block in read_pickled_embeddings(path, config.format, dimension):
            rows = _rows_of(block.ids, config, evidence)
            unknown = np.flatnonzero(rows < 0)
            if len(unknown):
                problem = f"the evidence has no passage {block.ids[unknown[0]]!r}"
                raise DataError(path, problem, hint="Is it another evidence, or are --ids or --id-prefix to be given?")
            yield block, rows, number


def _rows_of(ids: list[str], config: ImportEmbeddingsConfig, evidence: EvidenceStore) -> NDArray[np.int64]:
    """The row of each id, -1 where there is none."""
    if config.ids == "external":
        return evidence.rows_of([name.removeprefix(config.id_prefix) for name in ids])
    rows = [int(name) if name.isdecimal() else -1 for name in ids]
    return np.array([row if row < len(evidence) else -1 for row in rows], np.int64)


def _verify(
    config: ImportEmbeddingsConfig,
    file: int,
    evidence: EvidenceStore,
    encoder: LoadedDualEncoder,
    topology: ProcessTopology,
    rows: NDArray[np.int64],
    vectors: Tensor,
) -> None:
    """Encode some of the `rows` that begin a file and compare with their `vectors` [n, D].

    Raises:
        MismatchError: half of them differ by more than a tenth of their length.
    """
    path = config.input[file]
    chosen = np.unique(np.linspace(0, len(rows) - 1, config.verify_passages).astype(np.int64))
    tokens = evidence.tokens(rows[chosen], encoder.description.layout)
    own = encode_sequences(tokens, encoder.model.encode_passages, config.encode.micro_batch_size, topology.device)
    difference = ((vectors[chosen] - own).norm(dim=1) / own.norm(dim=1)).median().item()
    if not difference <= _TOLERANCE:
        raise MismatchError(
            f"The vectors in {path} are not those of the encoder in {config.retriever}: of {len(chosen)} passages "
            f"encoded anew, half differ by {difference:.0%} of their length or more. Give the checkpoint, the evidence "
            "and the way of naming passages (--ids) that they belong to; --verify-passages 0 takes them as they are."
        )
    log.info("%s: %s passages encoded anew differ by %.2f %% (median)", path, len(chosen), 100 * difference)


def _check_missing(
    config: ImportEmbeddingsConfig, evidence: EvidenceStore, missing: NDArray[np.int64], folder: Path
) -> None:
    if not len(missing):
        return
    names = [passage.id for passage in evidence.passages(missing[: max(config.max_missing, 3)])]
    if len(missing) > config.max_missing:
        problem = f"{len(missing):,} of {len(evidence):,} passages have no vector in the files, among them "
        problem += ", ".join(map(repr, names[:3]))
        hint = "Give all files, or accept missing vectors with --max-missing."
        raise DataError(config.input[-1], problem, hint=hint)
    with atomic_file(folder / MISSING) as file:
        file.writelines(f"{name}\n" for name in names)
    log.warning(
        "%s passages have no vector and get zeros; they are listed in %s", len(missing), config.output / MISSING
    )
