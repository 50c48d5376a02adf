"""Training steps a second, against sentence-transformers and transformers with the same weights, batches and dtype.

A step is forwards, backwards, clipping and Adam on one batch of real texts, float32. Before anything is timed, both
sides take a step without dropout, and their losses and gradients must be equal; then they take turns, with the dropout
that the model comes with, and a round's ratio is that of neighbours: what other jobs take from the machine meets both.
A fusion reader is a T5 of the encoder's depth and widths, with random weights. The other side gets the tokens ready, in
columns that are padded to the longest, and Adam in one fused pass. With --memory each side also runs in a process of
its own, and its peak is reported.
"""

from __future__ import annotations

import math
import multiprocessing
import sys
import tempfile
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from rivals.memory import peak_mib
from rivals.rounds import in_turns, medians, ratio_cells
from rivals.training import Figures, Side, contrastive, extractive, fusion, without_dropout

from megatron_retrieval.checkpoint.huggingface.format import ForeignModel
from megatron_retrieval.checkpoint.huggingface.formats import FORMATS
from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.program import run_program
from megatron_retrieval.data.files.training_files import BiencoderExample, read_biencoder
from megatron_retrieval.data.layouts.sequences import (
    TextFormatConfig,
    format_question_and_passage,
    lay_out_passages,
    lay_out_questions,
)
from megatron_retrieval.data.stores.ragged import Ragged, tokenize
from megatron_retrieval.errors import ConfigError, MismatchError
from megatron_retrieval.models.bert import BertConfig, PostNormConfig
from megatron_retrieval.models.dual_encoder import DualEncoder, DualEncoderConfig
from megatron_retrieval.models.t5_config import T5Config
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology, process_topology
from megatron_retrieval.reports.tables import text_table
from megatron_retrieval.tokenizers.vocabularies import open_encoder_vocabulary
from megatron_retrieval.types.contrastive import ContrastiveBatch
from megatron_retrieval.types.extractive import ExtractiveBatch
from megatron_retrieval.types.fusion import FusionBatch

Task = Literal["in-batch", "hard-negative", "cached", "ict", "extractive", "fusion"]
#: difference of losses, relative above 1, that rounding explains; gradients are longer sums
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-6, 1e-4
#: tokens of an answer to write, and of one to find
_ANSWER_TOKENS, _SPAN_TOKENS = 8, 3


@dataclass(kw_only=True, frozen=True)
class TrainingSpeedConfig(Checked):
    """Compare the speed of training steps, round by round."""

    train_data: Path
    """Questions with positive passages, see --train-data of retriever-finetune."""
    model: Path | None = None
    """Encoder as a sentence-transformers folder; default: random weights of the shape that the flags name, [CLS] as
    the vector."""
    vocab_file: Path | None = None
    """WordPiece vocabulary of random weights."""
    shape: BertConfig = field(default_factory=BertConfig)
    """Shape of random weights."""
    tasks: tuple[Task, ...] = ("in-batch", "hard-negative", "cached", "ict", "extractive", "fusion")
    """What is trained: in-batch, hard-negative and cached are DPR's batches; cached encodes twice, so that memory
    grows with the micro-batch only."""
    num_questions: PositiveInt = 16
    """Questions of a batch; a quarter of it for readers."""
    num_passages: PositiveInt = 4
    """Passages that a reader is given with each question."""
    micro_batch_size: PositiveInt = 8
    """Texts at once, ours and those of the other side's caching loss; one question at once for readers."""
    num_rounds: PositiveInt = 4
    """Rounds that are timed."""
    num_threads: PositiveInt = 1
    """Threads of each."""
    clock: Literal["wall", "cpu"] = "wall"
    """Seconds on the wall, or those that the process spends, which other jobs change less."""
    memory: bool = False
    """Measure the peak of each side's steps as well."""


def main(config: TrainingSpeedConfig) -> None:
    torch.set_num_threads(config.num_threads)
    with tempfile.TemporaryDirectory() as folder:
        if config.model is None:
            config = replace(config, model=_write_random(config, Path(folder)))
        rows = [_compared(config, task) for task in config.tasks]
    header = ["task", "loss, ours", "theirs", "ours, s", "theirs, s", "ratio", "rounds", "peak, ours / theirs, MiB"]
    sys.stdout.write(text_table(header, rows) + "\n")


def _write_random(config: TrainingSpeedConfig, folder: Path) -> Path:
    if config.vocab_file is None:
        raise ConfigError("random weights need a vocabulary: give --vocab-file, or an encoder with --model.")
    vocabulary = open_encoder_vocabulary(str(config.vocab_file))
    shape = DualEncoderConfig(
        encoder=replace(config.shape, vocab_size=vocabulary.vocab_size), biencoder_shared_query_context_model=True
    )
    with process_topology(ParallelConfig(device="cpu")) as topology:
        weights = dict(DualEncoder(shape, topology).named_parameters())
        weights = {name: w[: vocabulary.vocab_size] if "word_emb" in name else w for name, w in weights.items()}
    foreign = ForeignModel(DUAL_ENCODER, shape, weights, vocabulary, TextFormatConfig())
    FORMATS["sentence-transformers"].write(foreign, folder)
    return folder


def _compared(config: TrainingSpeedConfig, task: Task) -> list[str]:
    with process_topology(ParallelConfig(device="cpu")) as topology:
        sides = _sides(config, task, topology)
        first = [_first_step(side) for side in sides]
        _require_equal(task, *first)
        seconds = in_turns([side.step for side in sides], config.num_rounds, config.clock)
    peaks = [_peak(config, task, side) for side in (0, 1)] if config.memory else []
    row = [
        task,
        *(f"{figures.loss:.7f}" for figures in first),
        *(f"{median:.3f}" for median in medians(seconds)),
        *ratio_cells(seconds),
        " / ".join(f"{peak:.0f}" for peak in peaks),
    ]
    sys.stdout.write(f"{' | '.join(row)}\n")
    sys.stdout.flush()
    return row


def _first_step(side: Side) -> Figures:
    with without_dropout(side.model):
        return side.step()


def _require_equal(task: Task, own: Figures, other: Figures) -> None:
    """Raises MismatchError: the two do not compute the same."""
    is_loss = math.isclose(own.loss, other.loss, rel_tol=LOSS_TOLERANCE, abs_tol=LOSS_TOLERANCE)
    if not is_loss or not math.isclose(own.gradient_norm, other.gradient_norm, rel_tol=GRADIENT_TOLERANCE):
        raise MismatchError(f"{task}: ours gives {own}, theirs {other}; their speeds cannot be compared.")


def _peak(config: TrainingSpeedConfig, task: Task, side: int) -> float:
    """MiB that two steps take above the loaded models, in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        peak: float = pool.apply(_measured_peak, (config, task, side))
    return peak


def _measured_peak(config: TrainingSpeedConfig, task: Task, side: int) -> float:
    torch.set_num_threads(config.num_threads)
    with process_topology(ParallelConfig(device="cpu")) as topology:
        measured = _sides(config, task, topology)[side]
        return peak_mib(lambda: [measured.step() for _ in range(2)])


def _sides(config: TrainingSpeedConfig, task: Task, topology: ProcessTopology) -> tuple[Side, Side]:
    assert config.model is not None
    foreign = FORMATS["sentence-transformers"].read([config.model])
    texts = _Texts(config, foreign)
    if task == "extractive":
        return extractive(foreign, config.model, texts.extractive(), topology, micro_batch_size=1)
    if task == "fusion":
        return fusion(_t5_like(foreign.shape.encoder), texts.fusion(), topology, micro_batch_size=1)
    batch = texts.ict() if task == "ict" else texts.dpr(int(task != "in-batch"))
    size = config.micro_batch_size
    return contrastive(foreign, config.model, batch, topology, micro_batch_size=size, cached=task == "cached")


def _t5_like(encoder: PostNormConfig) -> T5Config:
    """Of the encoder's depth and widths."""
    return T5Config(
        num_layers=encoder.num_layers,
        hidden_size=encoder.hidden_size,
        num_attention_heads=encoder.num_attention_heads,
        ffn_hidden_size=encoder.ffn_size,
    )


class _Texts:
    """The batches of all tasks, out of the first questions of the file and their passages."""

    def __init__(self, config: TrainingSpeedConfig, foreign: ForeignModel) -> None:
        self._config, self._vocabulary, self._layout = config, foreign.vocabulary, foreign.layout
        records = [record for record in read_biencoder(config.train_data) if record.positives]
        needed = 2 * config.num_questions
        if len(records) < needed:
            raise ConfigError(f"--train-data {config.train_data} has {len(records)} questions, {needed} are needed.")
        step = len(records) // needed
        self._records: list[BiencoderExample] = list(islice(records, 0, step * needed, step))

    def dpr(self, num_negatives: int) -> ContrastiveBatch:
        """Every question with its passage and, as hard negatives, the passages of questions that are not asked."""
        size = self._config.num_questions
        asked, others = self._records[:size], self._records[size:]
        passages = []
        for record, other in zip(asked, others, strict=True):
            passages += [record.positives[0], *[other.positives[0]] * num_negatives]
        columns = (self._ids([p.title for p in passages]), self._ids([p.text for p in passages]))
        return self._contrastive([record.question for record in asked], *columns)

    def ict(self) -> ContrastiveBatch:
        """The first sentence of every passage asks for what follows it."""
        passages = [record.positives[0] for record in self._records[: self._config.num_questions]]
        parts = [passage.text.partition(". ") for passage in passages]
        columns = self._ids([p.title for p in passages]), self._ids([rest or first for first, _, rest in parts])
        return self._contrastive([first for first, _, _ in parts], *columns)

    def _contrastive(self, questions: list[str], titles: Ragged, texts: Ragged) -> ContrastiveBatch:
        size = len(questions)
        return ContrastiveBatch(
            questions=lay_out_questions(self._ids(questions), self._vocabulary, self._layout),
            passages=lay_out_passages(titles, texts, self._vocabulary, self._layout),
            question_is_real=torch.ones(size, dtype=torch.bool),
            excluded=torch.zeros(size, len(texts), dtype=torch.bool),
            num_questions=size,
        )

    def extractive(self) -> ExtractiveBatch:
        """Questions with their passage and others; three tokens of the passage are the answer."""
        questions, passages, is_real = self._read()
        columns = (self._ids(part) for part in (questions, [p.title for p in passages], [p.text for p in passages]))
        laid_out = format_question_and_passage(*columns, self._vocabulary.special, self._layout.retriever_seq_length)
        starts = laid_out.text_starts[:: self._config.num_passages] + 1
        spans = torch.stack([starts, starts + _SPAN_TOKENS - 1], 1)[:, None]
        return ExtractiveBatch(laid_out, is_real, spans, len(is_real))

    def fusion(self) -> FusionBatch:
        """The same texts, and random answers; the ids are those of the encoder's vocabulary."""
        passages = self.extractive()
        labels = torch.randint(3, 30000, (len(passages.is_real), _ANSWER_TOKENS))
        return FusionBatch(passages.passages.tokens, passages.is_real, labels)

    def _read(self) -> tuple[list[str], list[Any], torch.Tensor]:
        size, depth = max(1, self._config.num_questions // 4), self._config.num_passages
        asked = [record.question for record in self._records[:size] for _ in range(depth)]
        numbers = [question + place * size for question in range(size) for place in range(depth)]
        passages = [self._records[number % len(self._records)].positives[0] for number in numbers]
        return asked, passages, torch.ones(size, depth, dtype=torch.bool)

    def _ids(self, texts: list[str]) -> Ragged:
        return tokenize(self._vocabulary, texts)


if __name__ == "__main__":
    run_program(TrainingSpeedConfig, main)
