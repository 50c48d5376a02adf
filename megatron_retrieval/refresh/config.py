"""Settings of index refresh during training."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from megatron_retrieval.config.checks import Bounds, Checked, PositiveFloat, PositiveInt
from megatron_retrieval.config.marks import FREE, INPUT
from megatron_retrieval.index.store.embedding_store import StorageDtype


@dataclass(kw_only=True, frozen=True)
class IndexRefreshConfig(Checked):
    """The index that is searched, and its refresh."""

    embeddings: Path | None = field(default=None, metadata=INPUT)
    """Embeddings of the evidence by the initial retriever (embed); default: the evidence is embedded
    before the first step."""
    index_refresh_interval: PositiveInt | None = None
    """Steps between two refreshes of the index, each by the current encoder; default: the index is never refreshed."""
    index_refresh_mode: Literal["in-place", "background"] = "in-place"
    """in-place: training waits while all ranks embed; background: a process beside rank 0 embeds while training
    continues with the old index. On GPUs it shares that of rank 0; prefer --num-embedding-ranks there."""
    index_dir: Path | None = field(default=None, metadata=FREE)
    """Folder of the index versions; default: the folder index in --output-dir."""
    keep_index_versions: Annotated[int, Bounds(least=2)] = 2
    """Finished index versions kept on disk, including the one in use and the one before. When a checkpoint is resumed
    whose version is gone, its encoder embeds the evidence again."""
    embedding_dtype: StorageDtype = "float16"
    """Type in which vectors are stored; scores are computed from them in float32."""
    index_micro_batch_size: PositiveInt = 128
    """Passages encoded at once by each copy of the model when it embeds the evidence."""
    embedding_threads: PositiveInt = 1
    """CPU threads of each process that embeds beside training."""
    embedding_timeout_minutes: PositiveFloat = 30.0
    """Restart a process that embeds beside training after this many minutes without a new vector."""

    def folder(self, output_dir: str | Path) -> Path:
        """Folder of the index versions."""
        return self.index_dir or Path(output_dir) / "index"
