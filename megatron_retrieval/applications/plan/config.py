"""Settings of a plan: evidence, hardware, training and rates."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import psutil  # type: ignore[import-untyped]

from megatron_retrieval.applications.plan.retro_plan import RetroPlanConfig
from megatron_retrieval.applications.plan.units import GB
from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.config.checks import Bounds, Checked, NonNegativeInt, PositiveFloat, PositiveInt
from megatron_retrieval.config.marks import formerly
from megatron_retrieval.config.parser import overlaid
from megatron_retrieval.data.layouts.sequences import TextSizesConfig
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.index.store.embedding_store import StorageDtype
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.causal_lm import CausalConfig
from megatron_retrieval.models.dual_encoder import DualEncoderConfig
from megatron_retrieval.models.t5_config import T5Config
from megatron_retrieval.parallel import machine
from megatron_retrieval.retrieval.encode_batches import EncodePassagesConfig

ReaderName = Literal["none", "t5-small", "t5-base", "t5-large", "t5-3b", "smollm2-135m", "bert-base"]
READERS: dict[ReaderName, T5Config | CausalConfig | BertConfig] = {
    "t5-small": T5Config(num_layers=6, hidden_size=512, num_attention_heads=8, ffn_hidden_size=2048),
    "t5-base": T5Config(),
    "t5-large": T5Config(num_layers=24, hidden_size=1024, num_attention_heads=16, ffn_hidden_size=4096),
    "t5-3b": T5Config(num_layers=24, hidden_size=1024, num_attention_heads=32, kv_channels=128, ffn_hidden_size=16384),
    "smollm2-135m": CausalConfig(num_query_groups=3),
    "bert-base": BertConfig(),
}


@dataclass(kw_only=True, frozen=True)
class PassageSizeConfig:
    """Size of passages; measured with --measure. Defaults: Wikipedia in passages of 100 words."""

    mean_text_bytes: float = 660.0
    """UTF-8 bytes of a passage's id, title and text, on average."""
    mean_tokens: float = 140.0
    """WordPiece tokens of a passage's title and text, on average."""


@dataclass(kw_only=True, frozen=True)
class HardwareConfig(Checked):
    """Hardware. GB are 10^9 bytes."""

    gpus: NonNegativeInt = 1
    """GPUs over all nodes, one process each; 0: one CPU process per node."""
    nodes: PositiveInt = 1
    """Machines."""
    gpu_memory_gb: PositiveFloat = 80.0
    """Memory of a GPU."""
    host_memory_gb: PositiveFloat | None = None
    """Memory of a node; default: this machine's."""
    disk_gb: PositiveFloat | None = None
    """Disk space for evidence and embeddings; default: the free space here."""
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
        return self.workers or machine.cores()


@dataclass(kw_only=True, frozen=True)
class PlannedTrainingConfig(Checked):
    """End-to-end training of retriever and reader with index refresh."""

    reader: ReaderName = "t5-base"
    """Reader to train with the retriever; bert-base: a masked language model (REALM); none: plan no training."""
    num_passages: PositiveInt = 50
    """Passages read per question."""
    questions_per_gpu: PositiveInt = 1
    """Questions of a micro-batch."""
    global_batch_size: PositiveInt | None = None
    """Questions of a step over all GPUs; default: a micro-batch on each that trains. With --reader none: the batch of a
    dual encoder's training (gradient caching, one hard negative a question); default: plan no training."""
    tensor_model_parallel_size: PositiveInt = 1
    """GPUs that share every layer of the models in training."""
    passage_batch_size: PositiveInt = 32
    """Passages that the retriever encodes at once."""
    reader_seq_length: PositiveInt = 512
    """Tokens of a question with a passage as the reader's input."""
    max_answer_length: PositiveInt = 32
    """Tokens of an answer, or masked tokens of a text."""
    num_embedding_ranks: NonNegativeInt = 0
    """GPUs that embed for the next index while the others train; 0: all GPUs embed, and training waits."""
    salient_spans: bool = False
    """Retriever and reader learn from masked salient spans (pretrain_mss.py): plan the folder of the spans as well."""
    keep_index_versions: Annotated[int, Bounds(least=2)] = 2
    """Finished index versions kept on disk; another one is being made."""
    keep_last: PositiveInt | None = None
    """Checkpoints kept on disk; another one is being written. Default: all, of which the plan counts one."""

    @property
    def num_checkpoints(self) -> int:
        """Checkpoints on the disk at the same time."""
        return 0 if self.reader == "none" else (self.keep_last or 1) + 1


@dataclass(kw_only=True, frozen=True)
class RatesConfig(Checked):
    """Speed of the work. Given rates take precedence over measured ones, and those over assumed ones."""

    measure: bool = False
    """Measure the rates of this machine for about a minute, with the first passages of --input."""
    input: tuple[str, ...] = ()
    """Passage files, for --measure: psgs_w100.tsv or JSONL."""
    vocab_file: Path | None = None
    """WordPiece vocabulary, for --measure; default: that of --retriever."""
    lower_case: bool = True
    """Lower-case the text, as uncased vocabularies need."""
    build_passages_per_second: PositiveFloat | None = None
    """Passages tokenized and written per second and process; assumed: 2,500."""
    tag_passages_per_second: PositiveFloat = 80.0
    """Passages in which salient spans are found per second and process; the default is of a small pipeline of spaCy."""
    encode_passages_per_second: PositiveFloat | None = None
    """Passages encoded per second and GPU (or CPU process)."""
    train_passages_per_second: PositiveFloat | None = None
    """Passages that the encoder is trained on per second and GPU (or CPU process), forward and backward; assumed: a
    third of those encoded."""
    search_rows_per_second: PositiveFloat | None = None
    """Rows compared per second and GPU (or CPU process) with the questions of a search."""
    disk_megabytes_per_second: PositiveFloat | None = None
    """Disk speed; assumed: 1,000."""
    peak_teraflops: PositiveFloat = 312.0
    """Peak of a GPU in 16 bit (default: A100), used where no encoding rate is known; for a CPU, 0.1 teraflops are
    assumed."""
    utilisation: PositiveFloat = 0.35
    """Share of the peak that encoding reaches."""
    fp32_teraflops: PositiveFloat = 19.5
    """Peak of a GPU in float32 (default: A100), used where no search rate is known."""
    memory_gb_per_second: PositiveFloat = 1555.0
    """Memory bandwidth of a GPU (default: A100), used where no search rate is known."""
    network_gb_per_second: PositiveFloat = 200.0
    """Network of a node, in one direction; the default is assumed: eight adapters of 200 Gb/s (A100)."""
    nvlink_gb_per_second: PositiveFloat = 300.0
    """Between the GPUs of a node, in one direction; the default is assumed: A100."""

    @property
    def gpu_operations_per_second(self) -> float:
        """Of a GPU in 16 bit, in forward and backward passes."""
        return self.peak_teraflops * 1e12 * self.utilisation

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.measure and not self.input:
            raise ConfigError("--measure needs passages: give --input, psgs_w100.tsv or JSONL.")


@dataclass(kw_only=True, frozen=True)
class PlanConfig(Checked):
    """Estimate disk, memory and time of a run, and say what does not fit."""

    passages: PositiveInt
    """Passages of the evidence."""
    sizes: PassageSizeConfig = field(default_factory=PassageSizeConfig)
    """Size of passages."""
    retriever: Path | None = field(default=None, metadata=formerly("load"))
    """Checkpoint of a dual encoder to take the shape from; default: BERT-base, or as the flags say."""
    encoder: DualEncoderConfig = field(default_factory=DualEncoderConfig)
    """Shape of the dual encoder."""
    text_format: TextSizesConfig = field(default_factory=TextSizesConfig)
    """Layout of questions and passages."""
    embedding_dtype: StorageDtype = "float16"
    """Type in which vectors are stored."""
    index_factory: str | None = None
    """Approximate index (build index) for search; default: exact search."""
    num_queries: PositiveInt = 64
    """Questions searched at once, over all processes."""
    topk: PositiveInt = 100
    """Passages retrieved per question."""
    encode: EncodePassagesConfig = field(default_factory=EncodePassagesConfig)
    """How the encoder is run."""
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    """Hardware."""
    training: PlannedTrainingConfig = field(default_factory=PlannedTrainingConfig)
    """Training."""
    retro: RetroPlanConfig = field(default_factory=RetroPlanConfig)
    """A RETRO."""
    rates: RatesConfig = field(default_factory=RatesConfig)
    """Rates."""
    output_dir: Path | None = None
    """Folder for plan.json; default: the plan is only printed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.training.num_embedding_ranks >= self.hardware.num_ranks:
            number = f"{self.training.num_embedding_ranks} of {self.hardware.num_ranks} processes"
            raise ConfigError(f"--num-embedding-ranks {number} leave none that trains.")
        if self.num_training_ranks % (size := self.training.tensor_model_parallel_size):
            number = f"{self.num_training_ranks} processes that train"
            raise ConfigError(f"--tensor-model-parallel-size {size} does not divide {number}.")
        if self.rates.measure and self.rates.vocab_file is None and self.retriever is None:
            raise ConfigError("--measure needs a vocabulary: give --vocab-file, or --retriever.")

    @property
    def num_training_ranks(self) -> int:
        """Processes that train, and hold the vectors that are searched."""
        return self.hardware.num_ranks - self.training.num_embedding_ranks

    def with_artefact_defaults(self) -> PlanConfig:
        """The shape and the layout of --retriever."""
        if self.retriever is None:
            return self
        found = DUAL_ENCODER.describe(self.retriever)
        vocabulary = found.vocabulary()
        lower_case = vocabulary.settings().get("lower_case", self.rates.lower_case)
        rates = replace(self.rates, vocab_file=self.rates.vocab_file or vocabulary.path, lower_case=lower_case)
        return replace(self, encoder=found.shape, text_format=overlaid(self.text_format, found.layout), rates=rates)
