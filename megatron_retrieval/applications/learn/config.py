"""Settings of `learn`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from megatron_retrieval.applications.learn import masked, written  # noqa: F401, register their ways
from megatron_retrieval.applications.learn.ways import WAYS
from megatron_retrieval.config.checks import Checked, PositiveFloat, PositiveInt
from megatron_retrieval.config.choices import OneOf
from megatron_retrieval.data.documents.cutting import CutConfig
from megatron_retrieval.index.bm25 import LexicalConfig
from megatron_retrieval.parallel.topology import ParallelConfig
from megatron_retrieval.retrieval.encode_batches import EncodePassagesConfig


@dataclass(kw_only=True, frozen=True)
class AdaptConfig(Checked):
    """How the encoder is adapted to the documents, once; later runs keep what came out."""

    adapt: tuple[Annotated[str, OneOf(WAYS)], ...] = ()
    """Ways in which the encoder learns from the documents without labels, one after another. The result of each is kept
    only if held-out retrieval gets better; default: none."""
    question_writer: Path | None = None
    """Language model that writes the questions of --adapt written-questions: a causal one (Hugging Face's folder or a
    checkpoint), or a checkpoint of another reader that was trained to write questions."""
    question_reranker: Path | None = None
    """Cross-encoder, or late interaction, that sorts what is found for the questions of --adapt written-questions:
    those whose passage is not the first then teach nothing."""
    adapt_steps: PositiveInt = 60
    """Training steps of each way."""
    adapt_batch_size: PositiveInt = 128
    """Examples per step."""
    adapt_lr: PositiveFloat = 2e-5
    """Peak learning rate."""
    scratch_steps: PositiveInt = 400
    """Training steps of an encoder that starts from nothing."""
    scratch_lr: PositiveFloat = 5e-4
    """Peak learning rate of an encoder that starts from nothing."""
    questions: Path | None = None
    """Questions about the documents, to fine-tune the encoder with: training data (DPR and others), or questions with
    answers, for which the best passage that BM25 finds and that holds an answer is taken. A fifth of them is held out;
    the result is kept only if they find more."""
    max_held_out: PositiveInt = 500
    """Greatest number of held-out questions, made of sentences where --questions gives none."""
    seed: int = 1234
    """Names what is held out, the order of training and first weights."""

    def num_encoded(self, num_passages: int) -> int:
        """How many times, about, a passage is encoded: a training step is as long as four times its batch, and what was
        trained embeds all passages."""
        num_runs = len(self.adapt) + (self.questions is not None)
        return num_runs * (4 * self.adapt_steps * self.adapt_batch_size + num_passages)


@dataclass(kw_only=True, frozen=True)
class LearnConfig(Checked):
    """Learn a folder of documents: read them, index their words and vectors, and adapt the encoder to them if asked to.
    Run it again after a stop, which continues, or after documents changed, which embeds what is new."""

    folder: tyro.conf.Positional[Path]
    """Folder of the documents: text, Markdown, HTML, PDF, Word, JSON (lines), CSV, in it and in folders below."""
    output: Path | None = None
    """Folder that search, ask and serve open with --evidence; default: FOLDER.learned."""
    encoder: Path | None = None
    """Encoder of questions and passages: a checkpoint, or a folder of sentence-transformers or Hugging Face. Default:
    one is trained from nothing, on these documents alone, which finds less than BM25 does."""
    cutting: CutConfig = field(default_factory=CutConfig)
    """Where documents are cut into passages."""
    max_file_megabytes: PositiveInt = 100
    """Largest PDF, Word or HTML file that is read, in MiB; text, tables and JSON may have any size."""
    workers: PositiveInt = 1
    """Processes that read documents."""
    lexical: LexicalConfig = field(default_factory=LexicalConfig)
    """How words are indexed."""
    encode: EncodePassagesConfig = field(default_factory=EncodePassagesConfig)
    """How the encoder is run."""
    adaptation: AdaptConfig = field(default_factory=AdaptConfig)
    """How the encoder is adapted."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Device; there is one process."""

    @property
    def learned(self) -> Path:
        """The folder that is kept."""
        folder = self.folder.resolve()
        return folder.with_name(folder.name + ".learned") if self.output is None else self.output
