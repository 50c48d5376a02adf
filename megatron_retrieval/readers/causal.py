"""Causal readers: a language model continues a prompt with passages and question (Lewis et al. 2020, arXiv 2005.11401,
with generators as Lawton et al. use them)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from megatron_retrieval.checkpoint.kinds.causal_lm import CAUSAL_READER
from megatron_retrieval.checkpoint.kinds.kind import AnyDescription
from megatron_retrieval.checkpoint.kinds.reader import ReaderModelKind
from megatron_retrieval.config.marks import INPUT
from megatron_retrieval.data.examples.causal import PromptDataset, RetrievedPrompts
from megatron_retrieval.data.files.passage_questions import ReaderTrainingDataConfig
from megatron_retrieval.data.layouts.joint import JointLayout
from megatron_retrieval.data.layouts.lengths import require_positions
from megatron_retrieval.data.layouts.prompt import PromptFormatConfig, PromptLayout
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.evaluation.causal_answers import CausalAnswerer
from megatron_retrieval.models.answer_lines import AnswerLines
from megatron_retrieval.models.causal_lm import CausalLM
from megatron_retrieval.models.causal_reader import CausalReader
from megatron_retrieval.models.generation import GenerationConfig
from megatron_retrieval.models.passage_scores import PassageScoreConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.readers.finetune import ReaderFinetuneConfig
from megatron_retrieval.readers.kind import OpenReader, ReaderKind
from megatron_retrieval.readers.settings import ReaderSettings
from megatron_retrieval.tokenizers.byte_bpe import ByteBpeTokenizer
from megatron_retrieval.training.steps.causal_readings import CausalReadings
from megatron_retrieval.training.steps.causal_step import CausalStep, CausalStepConfig
from megatron_retrieval.training.steps.readings import Pass


class OpenCausalReader(OpenReader):
    """See OpenReader.

    Attributes:
        reader: the model as it reads prompts.
        layout: for its vocabulary.
    """

    checkpoints: ClassVar[ReaderModelKind[Any, Any, Any]] = CAUSAL_READER
    reader_class: ClassVar[type[CausalReader]] = CausalReader
    model: CausalLM

    def __init__(
        self,
        start: AnyDescription,
        settings: ReaderSettings,
        topology: ProcessTopology,
        dtype: torch.dtype,
        *,
        seed: int = 0,
    ) -> None:
        self.settings, self.topology = settings, topology
        self.vocabulary = start.vocabulary()
        self.layout = self.open_layout()
        special, batch_size = self.vocabulary.special, settings.encode.encode_batch_size
        self.model = self.checkpoints.build(settings.shape, special, topology, dtype, seed=seed)
        assert isinstance(self.vocabulary, ByteBpeTokenizer), "as the kinds of its checkpoints say"
        width, device = self.model.stack.embedding.weight.size(0), topology.device
        lines = AnswerLines.of(self.vocabulary.line_tokens(), special.end, width, topology.groups.tp, device)
        self.reader = self.reader_class(self.model, end_id=special.end, batch_size=batch_size, lines=lines)

    def open_layout(self) -> JointLayout:
        """How question and passages become a text.

        Raises:
            ConfigError: sequences longer than the model reads, or no room for passages.
        """
        settings = self.settings
        longest = settings.layout.reader_seq_length + settings.answers.max_answer_length
        require_positions(settings.shape.max_positions, reader_seq_length=longest)
        return PromptLayout(settings.layout, self.vocabulary)

    def require_room(self, num_passages: int, scores: PassageScoreConfig | None = None) -> None:
        """See OpenReader."""
        answers, max_positions = self.settings.answers, self.settings.shape.max_positions
        if scores is not None and answers.resolved(scores).answer_from != "concatenated":
            return
        longest = self.layout.longest(num_passages) + answers.max_answer_length
        if longest > max_positions:
            raise ConfigError(
                f"a prompt with {num_passages} passages and an answer of --max-answer-length "
                f"{answers.max_answer_length} may have {longest} tokens, but the model has {max_positions} positions; "
                "lower --num-passages or --max-answer-length, or --reader-seq-length in training; --answer-from "
                "sequence reads every passage in a prompt of its own."
            )

    def answerer(self, scores: PassageScoreConfig | None = None, micro_batch_size: int = 128) -> CausalAnswerer:
        """See OpenReader."""
        return CausalAnswerer(
            self.reader,
            self.vocabulary,
            self.layout,
            self.settings.answers,
            self.topology,
            passage_scores=scores,
            micro_batch_size=micro_batch_size,
        )

    def side(self, evidence: EvidenceStore, asked: frozenset[Pass]) -> CausalReadings:
        """See OpenReader."""
        longest = self.settings.answers.max_answer_length
        prompts = RetrievedPrompts(evidence, self.layout, self.vocabulary, max_answer_length=longest)
        return CausalReadings(self.reader, prompts, self.topology)

    def recorded(self, scores: PassageScoreConfig) -> dict[str, Any]:
        """See OpenReader."""
        answers = self.settings.answers.resolved(scores)
        return {name: getattr(answers, name) for name in ("answer_from", "marginal_decoding")}


@dataclass(kw_only=True, frozen=True)
class ContinuationFinetuneConfig(ReaderFinetuneConfig[OpenCausalReader]):
    """What the fine-tuning of readers has in common that continue a text with the answer."""

    answers: GenerationConfig = field(default_factory=GenerationConfig)
    step: CausalStepConfig = field(default_factory=CausalStepConfig)

    def examples(self, reader: OpenCausalReader, data: ReaderTrainingDataConfig) -> PromptDataset:
        """See ReaderFinetuneConfig."""
        longest = self.answers.max_answer_length
        reader.require_room(data.reading.num_read)
        return PromptDataset(data, reader.layout, reader.vocabulary, max_answer_length=longest, seed=self.training.seed)

    def step_module(self, reader: OpenCausalReader) -> CausalStep:
        """See ReaderFinetuneConfig."""
        return CausalStep(reader.reader, self.step, reader.topology, self.training.seed)


@dataclass(kw_only=True, frozen=True)
class CausalFinetuneConfig(ContinuationFinetuneConfig):
    """Fine-tune a causal language model to write answers behind a prompt with the passages of a question."""

    pretrained_checkpoint: str | None = field(default=None, metadata=INPUT)
    """Checkpoint whose weights, shape, vocabulary and, if it is a causal reader, prompt training starts from: of a
    causal language model or of a causal reader."""
    layout: PromptFormatConfig = field(default_factory=PromptFormatConfig)

    @property
    def kind(self) -> ReaderKind:
        """See ReaderFinetuneConfig."""
        return CAUSAL


CAUSAL = ReaderKind(
    name="causal",
    about="continues a prompt with the answer (a causal language model)",
    passes=CausalReadings.passes,
    needs_passages=False,
    layout=PromptFormatConfig,
    answers=GenerationConfig,
    finetune=CausalFinetuneConfig,
    open=OpenCausalReader,
)
