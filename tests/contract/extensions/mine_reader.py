"""A kind of reader from outside of the package: it answers with one word of a passage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from megatron_retrieval.checkpoint.kinds.kind import AnyDescription
from megatron_retrieval.checkpoint.kinds.one_encoder import OneEncoderKind
from megatron_retrieval.checkpoint.kinds.reader import ReaderModelKind
from megatron_retrieval.checkpoint.kinds.registry import MODEL_KINDS
from megatron_retrieval.data.examples.extractive import ExtractiveDataset
from megatron_retrieval.data.examples.extractive_examples import ExtractiveDataConfig
from megatron_retrieval.data.examples.open_questions import AskedBatch
from megatron_retrieval.data.examples.retrieved_extractive import AnswerPassages, RetrievedAnswers
from megatron_retrieval.data.files.passage_questions import ReaderQuestion, ReaderTrainingDataConfig
from megatron_retrieval.data.layouts.extractive import ExtractiveFormatConfig
from megatron_retrieval.data.layouts.lengths import require_positions
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.ragged import tokenize
from megatron_retrieval.evaluation.predictions import Prediction
from megatron_retrieval.models.bert import BertConfig, BertEncoder
from megatron_retrieval.models.initialise import initialise_normal
from megatron_retrieval.models.passage_scores import PassageScoreConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.readers.finetune import ReaderFinetuneConfig
from megatron_retrieval.readers.kind import OpenReader, ReaderKind
from megatron_retrieval.readers.registry import READERS
from megatron_retrieval.readers.settings import ReaderSettings
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.training.steps.dropout import start_dropout
from megatron_retrieval.training.steps.readings import Pass
from megatron_retrieval.types.extractive import ExtractiveBatch, ExtractivePassages
from megatron_retrieval.types.metrics import Mean, Metrics

ONE_WORD = 1  # token
LOWEST = torch.finfo(torch.float32).min


class WordReader(nn.Module):
    """BERT with a head that says which word of a passage is the answer."""

    def __init__(self, config: BertConfig, topology: ProcessTopology, dtype: torch.dtype, *, seed: int = 0) -> None:
        super().__init__()
        self.bert = BertEncoder(config, topology, dtype)
        self.word = nn.Linear(config.hidden_size, 1, dtype=dtype)
        nn.init.zeros_(self.word.bias)
        initialise_normal(self, topology, std=config.init_method_std, seed=seed)
        self.to(topology.device)

    def forward(self, passages: ExtractivePassages) -> Tensor:
        """[P, T] float32 logits of words; very low outside of the text."""
        scores = self.word(self.bert(passages.tokens, passages.segments)).float()[:, :, 0]
        return scores.masked_fill(~passages.is_text, LOWEST)


class WordReaderKind(
    ReaderModelKind[BertConfig, ExtractiveFormatConfig, WordReader],
    OneEncoderKind[BertConfig, ExtractiveFormatConfig, WordReader],
):
    """See ModelKind."""

    name = "word-reader"
    about = "a BERT that points to one word"
    starts_from = ("dual-encoder", "masked-lm", "word-reader")
    reads = ("word-reader",)
    shape_class, layout_class, model_class = BertConfig, ExtractiveFormatConfig, WordReader
    vocabulary_name = "WordPiece"

    def shape_from(self, source: AnyDescription) -> Any:
        """See ReaderModelKind."""
        return source.encoder.shape


WORD_READER = WordReaderKind()
MODEL_KINDS.add(WORD_READER)


def answer_scores(words: Tensor, spans: Tensor) -> Tensor:
    """[P] logits of answers that occur at `spans` [P, A, 2], -1 where there are fewer, given those of words [P, T]."""
    places = spans[:, :, 0]
    return words.gather(1, places.clamp(min=0)).masked_fill(places < 0, -torch.inf).logsumexp(1)


class WordStep:
    """See StepModule: the likelihood of the answer in a passage that holds it, among the words of all passages."""

    def __init__(self, model: WordReader, topology: ProcessTopology, seed: int) -> None:
        self._model, self._topology, self._seed = model, topology, seed

    def forward_backward(self, batch: ExtractiveBatch, iteration: int, loss_scale: float) -> Metrics:
        self._model.train()
        start_dropout(self._seed, self._topology, iteration)
        loss = self._loss(batch)
        if loss.requires_grad:
            (loss * loss_scale).backward()
        return {"loss": Mean(loss.detach(), batch.num_questions)}

    @torch.no_grad()
    def evaluate(self, batch: ExtractiveBatch) -> Metrics:
        self._model.eval()
        return {"loss": Mean(self._loss(batch), batch.num_questions)}

    def _loss(self, batch: ExtractiveBatch) -> Tensor:
        batch = batch.to(self._topology.device)
        questions = batch.is_real[:, 0].nonzero()[:, 0]
        if not len(questions):
            return torch.zeros((), device=self._topology.device)
        words = self._model(batch.passages).view(*batch.is_real.shape, -1)
        words = words.masked_fill(~batch.is_real[:, :, None], LOWEST)[questions]
        answers = answer_scores(words[:, 0], batch.spans[questions])
        return (words.flatten(1).logsumexp(1) - answers).sum() / batch.num_questions


class WordAnswerer:
    """See evaluation.reader_task.Reader."""

    def __init__(
        self,
        model: WordReader,
        vocabulary: Vocabulary,
        layout: ExtractiveFormatConfig,
        scores: PassageScoreConfig,
        device: torch.device,
    ) -> None:
        self._model, self._vocabulary, self._layout, self._scores = model, vocabulary, layout, scores
        self._device = device

    def answer(self, questions: Sequence[ReaderQuestion]) -> list[Prediction]:
        return [self._answer(question) if question.passages else Prediction("") for question in questions]

    def num_long(self, answers: Sequence[str]) -> int:
        return sum(len(ids) > ONE_WORD for ids in self._vocabulary.encode(answers))

    @torch.no_grad()
    def _answer(self, question: ReaderQuestion) -> Prediction:
        num_passages = len(question.passages)
        columns = (
            [question.text] * num_passages,
            [passage.title for passage in question.passages],
            [passage.text for passage in question.passages],
        )
        asked, titles, texts = (tokenize(self._vocabulary, column) for column in columns)
        passages = self._layout.lay_out(asked, titles, texts, self._vocabulary.special)
        words = self._model(passages.to(self._device)).cpu()
        scores = torch.tensor(question.scores or (0.0,) * num_passages) / self._scores.passage_score_divisor
        if self._scores.passage_score_use == "marginal":
            words = words.log_softmax(1) + scores.log_softmax(0)[:, None]
        place, column = divmod(int(words.argmax()), words.size(1))
        text = question.passages[place].text
        start, stop = self._vocabulary.offsets(text)[column - int(passages.text_starts[place])]
        return Prediction(text[start:stop], float(words.max()), place)


@dataclass(frozen=True)
class WordReading:
    """See Reading."""

    model: WordReader
    found: AnswerPassages
    is_real: Tensor

    def each(self) -> Tensor:
        likelihoods = torch.full((self.is_real.numel(),), -torch.inf, device=self.is_real.device)
        if len(self.found.slots):
            own = answer_scores(self.model(self.found.passages).log_softmax(1), self.found.spans)
            likelihoods = likelihoods.index_copy(0, self.found.slots, own)
        return likelihoods.view_as(self.is_real)


class WordReadings:
    """See ReaderSide."""

    passes: ClassVar[frozenset[Pass]] = frozenset({"each"})

    def __init__(self, model: WordReader, answers: RetrievedAnswers, device: torch.device) -> None:
        self._model, self._answers, self._device = model, answers, device

    def reading(self, batch: AskedBatch, rows: Tensor) -> WordReading:
        found = self._answers.find(batch.reader_questions, batch.answers, rows.cpu().numpy())
        return WordReading(self._model, found.to(self._device), rows.to(self._device) >= 0)

    def without_passages(self, batch: AskedBatch) -> Mapping[str, Tensor]:
        return {}


class OpenWordReader(OpenReader):
    """See OpenReader."""

    checkpoints = WORD_READER
    model: WordReader

    def __init__(
        self,
        start: AnyDescription,
        settings: ReaderSettings,
        topology: ProcessTopology,
        dtype: torch.dtype,
        *,
        seed: int = 0,
    ) -> None:
        require_positions(settings.shape.max_positions, reader_seq_length=settings.layout.reader_seq_length)
        self.settings, self.topology = settings, topology
        self.vocabulary = start.vocabulary()
        self.model = WordReader(settings.shape, topology, dtype, seed=seed)

    def answerer(self, scores: PassageScoreConfig | None = None, micro_batch_size: int = 128) -> WordAnswerer:
        return WordAnswerer(
            self.model, self.vocabulary, self.settings.layout, scores or PassageScoreConfig(), self.topology.device
        )

    def side(self, evidence: EvidenceStore, asked: frozenset[Pass]) -> WordReadings:
        answers = RetrievedAnswers(evidence, self.settings.layout, self.vocabulary, max_answer_length=ONE_WORD)
        return WordReadings(self.model, answers, self.topology.device)


@dataclass(kw_only=True, frozen=True)
class WordAnswerConfig:
    """One word: there is nothing to choose."""


@dataclass(kw_only=True, frozen=True)
class WordFinetuneConfig(ReaderFinetuneConfig[OpenWordReader]):
    """Fine-tune a reader that answers with one word."""

    layout: ExtractiveFormatConfig = field(default_factory=ExtractiveFormatConfig)
    answers: WordAnswerConfig = field(default_factory=WordAnswerConfig)
    draw: ExtractiveDataConfig = field(default_factory=ExtractiveDataConfig)

    @property
    def kind(self) -> ReaderKind:
        return MINE

    def examples(self, reader: OpenWordReader, data: ReaderTrainingDataConfig) -> ExtractiveDataset:
        return ExtractiveDataset(
            data, self.draw, self.layout, reader.vocabulary, max_answer_length=ONE_WORD, seed=self.training.seed
        )

    def step_module(self, reader: OpenWordReader) -> WordStep:
        return WordStep(reader.model, reader.topology, self.training.seed)


MINE = READERS.add(
    ReaderKind(
        name="mine",
        about="answers with one word of a passage",
        passes=WordReadings.passes,
        needs_passages=True,
        layout=ExtractiveFormatConfig,
        answers=WordAnswerConfig,
        finetune=WordFinetuneConfig,
        open=OpenWordReader,
    )
)
