"""The settings of an index that follows the encoder in training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from megatron_retrieval.config.checks import Bounds, Checked, PositiveFloat, PositiveInt
from megatron_retrieval.index.store.embedding_store import StorageDtype


@dataclass(kw_only=True, frozen=True)
class IndexRefreshConfig(Checked):
    """The index that is searched, and how it follows the encoder."""

    embeddings: Path | None = None
    """Embeddings of the evidence by the retriever that training starts from (tools/embed_evidence.py); default: they
    are made before the first step."""
    index_refresh_interval: PositiveInt | None = None
    """Steps between two encoders that embed the evidence anew; default: the index stays that of the start."""
    index_refresh_mode: Literal["in-place", "background"] = "in-place"
    """in-place: training waits while all ranks embed; background: a process beside rank 0 embeds while training goes on
    with the index before."""
    index_dir: Path | None = None
    """Folder of the index's versions; default: index in --output-dir."""
    keep_index_versions: Annotated[int, Bounds(least=2)] = 2
    """Finished versions of the index kept on disk, the one in use and the one before among them; a checkpoint whose
    version is gone has its encoder embed the evidence again when it is resumed."""
    embedding_dtype: StorageDtype = "float16"
    """Type in which vectors are stored; scores are computed in float32 from what is stored."""
    index_micro_batch_size: PositiveInt = 128
    """Passages encoded at once by each copy of the model where the evidence is embedded."""
    embedding_threads: PositiveInt = 1
    """CPU threads of each process that embeds beside training."""
    embedding_timeout_minutes: PositiveFloat = 30.0
    """A process that embeds beside training is started again after so many minutes without a further vector."""

    def folder(self, output_dir: str | Path) -> Path:
        """Where the versions stand."""
        return self.index_dir or Path(output_dir) / "index"
