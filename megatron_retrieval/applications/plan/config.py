"""What is planned, with what, and at which rates."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import psutil  # type: ignore[import-untyped]

from megatron_retrieval.checkpoint.kinds.dual_encoder import describe_dual_encoder
from megatron_retrieval.config.checks import Checked, NonNegativeInt, PositiveFloat, PositiveInt
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.index.store.embedding_store import StorageDtype
from megatron_retrieval.models.dual_encoder import DualEncoderConfig
from megatron_retrieval.models.t5_config import T5Config
from megatron_retrieval.retrieval.batches import EncodePassagesConfig

GB = 10**9

ReaderName = Literal["none", "t5-small", "t5-base", "t5-large"]
READERS: dict[ReaderName, T5Config] = {
    "t5-small": T5Config(num_layers=6, hidden_size=512, num_attention_heads=8, ffn_hidden_size=2048),
    "t5-base": T5Config(),
    "t5-large": T5Config(num_layers=24, hidden_size=1024, num_attention_heads=16, ffn_hidden_size=4096),
}


@dataclass(kw_only=True, frozen=True)
class PassageSizeConfig:
    """What a passage is like; measured where --measure is given. The defaults are those of Wikipedia in 100 words."""

    mean_text_bytes: float = 660.0
    """UTF-8 bytes of a passage's id, title and text, on average."""
    mean_tokens: float = 140.0
    """WordPiece tokens of a passage's title and text, on average."""


@dataclass(kw_only=True, frozen=True)
class HardwareConfig(Checked):
    """What there is to compute with. GB are 10^9 bytes."""

    gpus: NonNegativeInt = 1
    """GPUs of all nodes, one process each; 0: one process on the CPU of every node."""
    nodes: PositiveInt = 1
    """Machines."""
    gpu_memory_gb: PositiveFloat = 80.0
    """Memory of a GPU."""
    host_memory_gb: PositiveFloat | None = None
    """Memory of a node; default: this machine's."""
    disk_gb: PositiveFloat | None = None
    """Room on the disk for evidence and embeddings; default: what is free here."""
    workers: PositiveInt | None = None
    """Processes that tokenize when the evidence is built; default: this machine's cores."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gpus % self.nodes:
            raise ConfigError(
                f"--gpus {self.gpus} and --nodes {self.nodes}: every node needs equally many GPUs, or none."
            )

    @property
    def num_ranks(self) -> int:
        """Processes."""
        return self.gpus or self.nodes

    @property
    def device_bytes(self) -> int:
        """Memory of a GPU."""
        return round(self.gpu_memory_gb * GB)

    @property
    def host_bytes(self) -> int:
        """Memory of a node."""
        return psutil.virtual_memory().total if self.host_memory_gb is None else round(self.host_memory_gb * GB)

    @property
    def disk_bytes(self) -> int:
        """Room on the disk."""
        return shutil.disk_usage(".").free if self.disk_gb is None else round(self.disk_gb * GB)

    @property
    def num_workers(self) -> int:
        """Processes that build the evidence."""
        return self.workers or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)


@dataclass(kw_only=True, frozen=True)
class PlannedTrainingConfig(Checked):
    """Retriever and reader trained end to end, with an index that follows them."""

    reader: ReaderName = "t5-base"
    """The reader that is trained with the retriever; none: no such training is planned."""
    num_passages: PositiveInt = 50
    """Passages that are read for a question."""
    questions_per_gpu: PositiveInt = 1
    """Questions of a micro-batch."""
    passage_batch_size: PositiveInt = 32
    """Passages that the retriever encodes at once."""
    reader_seq_length: PositiveInt = 512
    """Tokens of a question with a passage, for the reader."""
    max_answer_length: PositiveInt = 32
    """Tokens of an answer."""
    num_embedding_ranks: NonNegativeInt = 0
    """So many of the GPUs embed for the next index while the others train; 0: all of them, and training waits."""


@dataclass(kw_only=True, frozen=True)
class RatesConfig(Checked):
    """How fast the work goes. A rate that is given wins over one that is measured, and that over an assumed one."""

    measure: bool = False
    """Measure the rates of this machine for about a minute, with the first passages of --input."""
    input: tuple[str, ...] = ()
    """Passage files, for --measure: psgs_w100.tsv or JSONL."""
    vocab_file: Path | None = None
    """WordPiece vocabulary, for --measure; default: that of --load."""
    lower_case: bool = True
    """Lower-case the text, as uncased vocabularies need."""
    build_passages_per_second: PositiveFloat | None = None
    """Passages that one process tokenizes and writes; otherwise 2,500 are assumed."""
    encode_passages_per_second: PositiveFloat | None = None
    """Passages that one GPU (or process on CPU) encodes."""
    search_rows_per_second: PositiveFloat | None = None
    """Rows that one GPU (or process on CPU) compares with the questions of a search."""
    disk_megabytes_per_second: PositiveFloat | None = None
    """Speed of the disk; otherwise 1,000 are assumed."""
    peak_teraflops: PositiveFloat = 312.0
    """Operations of a GPU in 16 bit (an A100's), where no rate of encoding is known; a tenth of a teraflop is assumed
    of a CPU."""
    utilisation: PositiveFloat = 0.35
    """Share of them that encoding makes use of."""
    fp32_teraflops: PositiveFloat = 19.5
    """Operations of a GPU in float32 (an A100's), where no rate of searching is known."""
    memory_gb_per_second: PositiveFloat = 1555.0
    """Speed of a GPU's memory (an A100's), where no rate of searching is known."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.measure and not self.input:
            raise ConfigError("--measure needs passages: give --input, psgs_w100.tsv or JSONL.")


@dataclass(kw_only=True, frozen=True)
class PlanConfig(Checked):
    """Say what a run takes on disk, in memory and in hours, and what does not fit, before anything runs."""

    passages: PositiveInt
    """Passages of the evidence."""
    sizes: PassageSizeConfig = field(default_factory=PassageSizeConfig)
    """What a passage is like."""
    load: Path | None = None
    """Checkpoint of a dual encoder whose shape is taken; default: BERT-base, or as the flags say."""
    encoder: DualEncoderConfig = field(default_factory=DualEncoderConfig)
    """Shape of the dual encoder."""
    text_format: TextFormatConfig = field(default_factory=TextFormatConfig)
    """Layout of questions and passages."""
    embedding_dtype: StorageDtype = "float16"
    """Type in which vectors are stored."""
    index_factory: str | None = None
    """An approximate index (see tools/build_index.py) to answer questions with; default: exact search."""
    num_queries: PositiveInt = 64
    """Questions that are searched at once, over all processes."""
    topk: PositiveInt = 100
    """Passages that are found for each."""
    encode: EncodePassagesConfig = field(default_factory=EncodePassagesConfig)
    """How the encoder is run."""
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    """What there is to compute with."""
    training: PlannedTrainingConfig = field(default_factory=PlannedTrainingConfig)
    """What is trained."""
    rates: RatesConfig = field(default_factory=RatesConfig)
    """How fast."""
    output_dir: Path | None = None
    """Folder for plan.json; default: the plan is only printed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.training.num_embedding_ranks >= self.hardware.num_ranks:
            number = f"{self.training.num_embedding_ranks} of {self.hardware.num_ranks} processes"
            raise ConfigError(f"--num-embedding-ranks {number} leave none that trains.")
        if self.rates.measure and self.rates.vocab_file is None and self.load is None:
            raise ConfigError("--measure needs a vocabulary: give --vocab-file, or --load.")

    @property
    def num_training_ranks(self) -> int:
        """Processes that train, and hold the vectors that are searched."""
        return self.hardware.num_ranks - self.training.num_embedding_ranks

    def with_artefact_defaults(self) -> PlanConfig:
        """The shape and the layout of --load."""
        if self.load is None:
            return self
        found = describe_dual_encoder(self.load)
        vocab_file = self.rates.vocab_file or found.vocabulary().path
        rates = replace(self.rates, vocab_file=vocab_file, lower_case=found.lower_case)
        return replace(self, encoder=found.config, text_format=found.text_format, rates=rates)
