"""Builds an approximate index of embeddings: train on a sample, then add shard by shard."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.index.approximate.faiss import MIN_POINTS_PER_CENTROID, FaissIndex, use_threads
from megatron_retrieval.index.approximate.manifest import INDEX_FILE, ApproximateManifest, IndexedVectors
from megatron_retrieval.index.store.embedding_store import EmbeddingStore
from megatron_retrieval.utils.files import file_fingerprint
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.partial_folder import PartialFolder, partial_folder
from megatron_retrieval.utils.progress import progress_bar
from megatron_retrieval.utils.seeds import generator

#: default size of the training sample: per cluster, and at least
_POINTS_PER_CENTROID, _FEWEST_POINTS = 64, 1 << 16
#: saves of a growing index; a stop costs at most a tenth of the work
_SAVES = 10

log = get_logger("index")


@dataclass(kw_only=True, frozen=True)
class IndexBuilderConfig(Checked):
    """Build an approximate index (faiss) of embeddings; run again to continue after a stop."""

    embeddings: Path
    """Folder of the embeddings (embed)."""
    index_factory: str
    """faiss index factory string: "IVF4096,Flat" (4096 inverted lists), "OPQ48_192,IVF4096,PQ48" (48 bytes a passage),
    "HNSW32" (a graph). Scores are inner products; indexes for Euclidean distances only are refused."""
    output: Path
    """Folder of the index to write."""
    training_sample: PositiveInt | None = None
    """Vectors to train clusters and codes on, drawn at random; default: 64 per cluster, at least 65,536, or all."""
    seed: int = 1234
    """Seed of the sample and of training."""
    num_threads: PositiveInt | None = None
    """CPU threads; default: as many as torch uses."""


def build_index(config: IndexBuilderConfig) -> ApproximateManifest:
    """Write the folder of an index, which appears when it is complete; a stopped build continues from its last save.

    Raises:
        ConfigError: faiss does not know the factory string, or there are too few vectors to train with.
        DataError: the embeddings cannot be used, or the output exists.
    """
    embeddings = EmbeddingStore(config.embeddings)
    if not len(embeddings):
        raise DataError(config.embeddings, "holds no vectors")
    use_threads(config.num_threads or torch.get_num_threads())
    vectors = IndexedVectors.of(embeddings)
    untrained = FaissIndex.from_factory(config.index_factory, vectors.dimension)
    sample_size = _sample_size(config, untrained, len(embeddings))  # refused before a folder is begun
    names = ("index_factory", "training_sample", "seed")
    settings = {**vars(vectors), **{name: getattr(config, name) for name in names}}
    with partial_folder(config.output, settings) as folder:
        if folder.is_published:
            folder.discard()
            return ApproximateManifest.read(config.output)
        return _Builder(config, embeddings, folder, sample_size).build()


class _Builder:
    """A partial index; the folder's journal names what is saved."""

    def __init__(
        self, config: IndexBuilderConfig, embeddings: EmbeddingStore, folder: PartialFolder, sample_size: int
    ) -> None:
        self._config, self._embeddings, self._folder, self._sample_size = config, embeddings, folder, sample_size

    def build(self) -> ApproximateManifest:
        index = self._trained() if not self._folder.state else self._saved()
        self._add_all(index)
        path = self._folder.contents / self._folder.state["file"]
        path = path.rename(path.with_name(INDEX_FILE))
        self._folder.save({**self._folder.state, "file": INDEX_FILE})
        manifest = ApproximateManifest(
            vectors=IndexedVectors.of(self._embeddings),
            index_factory=self._config.index_factory,
            training_sample=self._folder.state["training_sample"],
            seed=self._config.seed,
            index_bytes=path.stat().st_size,
            index_checksum=file_fingerprint(path),
        )
        manifest.write(self._folder.contents)
        self._folder.publish()
        return manifest

    def _saved(self) -> FaissIndex:
        """The index that an earlier attempt got to."""
        path = self._folder.contents / self._folder.state["file"]
        renamed = path.with_name(INDEX_FILE)  # killed between renaming and saying so
        index = FaissIndex.read(path if path.exists() else renamed)
        if index.num_rows:
            log.info("continuing: %s of %s vectors are indexed", f"{index.num_rows:,}", f"{len(self._embeddings):,}")
        if not path.exists():
            self._folder.save({**self._folder.state, "file": INDEX_FILE})
        return index

    def _trained(self) -> FaissIndex:
        config = self._config
        index, num_vectors = FaissIndex.from_factory(config.index_factory, self._embeddings.dimension), 0
        if not index.is_trained:
            index.set_seed(config.seed)
            num_vectors = self._sample_size
            log.info("learning from %s vectors", f"{num_vectors:,}")
            index.train(self._sample())
        self._save(index, num_vectors)
        return index

    def _sample(self) -> Tensor:
        """[n, D] drawn without repetition, in the order of their rows."""
        random = generator(self._config.seed, "index sample")
        rows = random.choice(len(self._embeddings), self._sample_size, replace=False)
        return self._embeddings.vectors_of(torch.from_numpy(rows).sort().values)

    def _add_all(self, index: FaissIndex) -> None:
        num_rows, step = len(self._embeddings), self._embeddings.manifest.rows_per_shard
        save_rows = math.ceil(num_rows / _SAVES)
        with progress_bar("index", "vectors", num_rows) as progress:
            progress.update(index.num_rows)
            for start in range(index.num_rows, num_rows, step):
                stop = min(start + step, num_rows)
                index.add(self._embeddings.vectors(start, stop))
                progress.update(stop - start)
                if stop == num_rows or stop // save_rows > start // save_rows:
                    self._save(index, self._folder.state["training_sample"])

    def _save(self, index: FaissIndex, training_sample: int) -> None:
        """Write the index as it is, then forget the one before."""
        before, name = self._folder.state.get("file"), f"index-{index.num_rows}.faiss"
        index.write(self._folder.contents / name)
        self._folder.save({"file": name, "training_sample": training_sample})
        if before not in (None, name):
            (self._folder.contents / before).unlink(missing_ok=True)


def _sample_size(config: IndexBuilderConfig, index: FaissIndex, num_rows: int) -> int:
    """Vectors to learn from; few are warned of, and too few refused."""
    num_centroids = index.num_centroids
    size = min(num_rows, config.training_sample or max(_POINTS_PER_CENTROID * num_centroids, _FEWEST_POINTS))
    advice = "choose fewer clusters" + (", or a larger --training-sample" if size < num_rows else "")
    if size < num_centroids:
        raise ConfigError(
            f"--index-factory {config.index_factory} learns {num_centroids:,} clusters, and {size:,} vectors are too "
            f"few for them; {advice}."
        )
    if size < MIN_POINTS_PER_CENTROID * num_centroids:
        log.warning(
            "%s vectors are few for %s clusters, less than %d for each; %s",
            f"{size:,}",
            f"{num_centroids:,}",
            MIN_POINTS_PER_CENTROID,
            advice,
        )
    return size
