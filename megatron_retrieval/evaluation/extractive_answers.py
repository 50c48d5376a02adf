"""Answers of an extractive reader: the text of the best span over all passages of a question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.data.files.passage_questions import ReaderQuestion
from megatron_retrieval.data.layouts.extractive import ExtractiveFormatConfig
from megatron_retrieval.data.stores.ragged import to_offsets, tokenize
from megatron_retrieval.evaluation.exact_match import normalized_answer
from megatron_retrieval.evaluation.likeliest_answer import likeliest_answer
from megatron_retrieval.evaluation.predictions import Prediction
from megatron_retrieval.models.extractive_reader import ExtractiveReader
from megatron_retrieval.models.passage_scores import PassageScoreConfig
from megatron_retrieval.models.span_reader import SpanReader
from megatron_retrieval.objectives.extractive import span_log_sums
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.types.extractive import ExtractivePassages, PairLogits, SpanLogits
from megatron_retrieval.types.tokens import by_length, in_given_order


@dataclass(kw_only=True, frozen=True)
class SpanChoiceConfig:
    """Which of the passages' best spans is the answer."""

    answer_choice: Literal["joint", "passage"] = "joint"
    """For extractive readers. joint: the span of the highest likelihood times that of its passage; where the retriever
    weighs the passages, spans that are equal by exact match are summed. passage: the best span of the likeliest
    passage, as in DPR."""


@dataclass(kw_only=True, frozen=True)
class ExtractiveAnswerConfig(SpanChoiceConfig, Checked):
    """How an answer is chosen; recorded in every result."""

    max_answer_length: PositiveInt = 10
    """Longest answer, in tokens."""


@dataclass(frozen=True)
class BestSpans:
    """The best span of each of P passages.

    Attributes:
        scores: [P] float32, log P_start + log P_end.
        first: [P] int64, column.
        last: [P] int64, column.
        selection: [P] float32, logits of the passages.
    """

    scores: Tensor
    first: Tensor
    last: Tensor
    selection: Tensor


class ExtractiveAnswerer:
    """See Reader in `evaluation.reader_task`.

    Args:
        model: in evaluation mode.
        layout: of question and passage, as in training.
        passage_scores: marginal: the retriever's scores weigh the passages; default: the reader's own do. Passages of
            questions without scores have equal weights.
        micro_batch_size: passages in one forward pass.
    """

    def __init__(
        self,
        model: ExtractiveReader | SpanReader,
        tokenizer: Vocabulary,
        layout: ExtractiveFormatConfig,
        config: ExtractiveAnswerConfig,
        *,
        device: torch.device,
        passage_scores: PassageScoreConfig | None = None,
        micro_batch_size: int = 128,
    ) -> None:
        self._model, self._tokenizer, self._layout, self._config = model, tokenizer, layout, config
        self._scores = passage_scores or PassageScoreConfig()
        self._device, self._micro_batch_size = device, micro_batch_size
        tables = tokenizer.continues_word(), tokenizer.closes_word()
        self._continues_word, self._closes_word = (torch.from_numpy(table).to(device) for table in tables)

    @torch.no_grad()
    def answer(self, questions: Sequence[ReaderQuestion]) -> list[Prediction]:
        """See Reader; the score is log(p(z) P_start P_end), or the log of its sum over passages."""
        passages = self._lay_out(questions)
        best = self._best_spans(passages)
        offsets = to_offsets(np.array([len(question.passages) for question in questions], np.int64)).tolist()
        return [
            self._choose(question, passages, best, slice(*offsets[number : number + 2]))
            for number, question in enumerate(questions)
        ]

    def num_long(self, answers: Sequence[str]) -> int:
        """See Reader."""
        return sum(len(ids) > self._config.max_answer_length for ids in self._tokenizer.encode(answers))

    def _lay_out(self, questions: Sequence[ReaderQuestion]) -> ExtractivePassages:
        read = [passage for question in questions for passage in question.passages]
        owner = np.repeat(np.arange(len(questions)), [len(question.passages) for question in questions])
        asked = tokenize(self._tokenizer, [question.text for question in questions])
        titles = tokenize(self._tokenizer, [passage.title for passage in read])
        texts = tokenize(self._tokenizer, [passage.text for passage in read])
        return self._layout.lay_out(asked.take(owner), titles, texts, self._tokenizer.special)

    def _best_spans(self, passages: ExtractivePassages) -> BestSpans:
        """Batches hold passages of similar length."""
        batches = by_length(passages.tokens.lengths, self._micro_batch_size, longest_first=True)
        parts = [self._best_of(passages.rows(rows).to(self._device)) for rows in batches if len(rows)]
        if not parts:
            return BestSpans(*(torch.zeros(0) for _ in range(4)))
        columns = (torch.cat([getattr(part, name).cpu() for part in parts]) for name in BestSpans.__dataclass_fields__)
        return BestSpans(*(in_given_order(column, batches) for column in columns))

    def _best_of(self, passages: ExtractivePassages) -> BestSpans:
        logits: SpanLogits | PairLogits = self._model(passages)
        ids = passages.tokens.ids.clamp(max=len(self._continues_word) - 1)
        continues = self._continues_word[ids] & ~F.pad(self._closes_word[ids[:, :-1]], (1, 0))
        best = best_spans(logits, passages.is_text, continues, self._config.max_answer_length)
        if self._scores.passage_score_use != "logit":
            return best
        no_spans = best.first.new_full((len(passages), 1, 2), -1)
        return replace(best, scores=best.scores + span_log_sums(logits, passages.is_text, no_spans)[1])

    def _choose(
        self, question: ReaderQuestion, passages: ExtractivePassages, best: BestSpans, rows: slice
    ) -> Prediction:
        """The answer from the passages `rows`; empty where none has text."""
        scores = best.scores[rows].double()
        has_span = scores > float("-inf")
        if not bool(has_span.any()):
            return Prediction("")
        weights = self._log_weights(question, best.selection[rows])
        total = scores + weights
        if self._config.answer_choice == "passage":
            place = int(weights.masked_fill(~has_span, float("-inf")).argmax())
        elif self._scores.passage_score_use == "marginal":
            places = has_span.nonzero()[:, 0].tolist()
            answers = [self._text(question, passages, best, rows.start, place) for place in places]
            forms = [normalized_answer(answer) or answer for answer in answers]
            which, score = likeliest_answer(forms, total[places].tolist())
            return Prediction(answers[which], score, places[which])
        else:
            place = int(total.argmax())
        return Prediction(self._text(question, passages, best, rows.start, place), float(total[place]), place)

    def _log_weights(self, question: ReaderQuestion, selection: Tensor) -> Tensor:
        """[K] float64 log p(z | q) of a question's passages, from the retriever's or the reader's scores."""
        if self._scores.passage_score_use not in ("marginal", "logit"):
            return selection.double().log_softmax(0)
        scores = torch.tensor(question.scores or (0.0,) * len(question.passages), dtype=torch.float64)
        return (scores / self._scores.passage_score_divisor).log_softmax(0)

    def _text(
        self, question: ReaderQuestion, passages: ExtractivePassages, best: BestSpans, first_row: int, place: int
    ) -> str:
        """The text of the best span of a question's passage."""
        row, text = first_row + place, question.passages[place].text
        start, offsets = int(passages.text_starts[row]), self._tokenizer.offsets(text)
        first, last = int(best.first[row]) - start, int(best.last[row]) - start
        return text[offsets[first][0] : offsets[last][1]].strip()


def best_spans(logits: SpanLogits | PairLogits, is_text: Tensor, continues: Tensor, max_length: int) -> BestSpans:
    """The likeliest span of each passage: whole words of the text, at most `max_length` tokens.

    Args:
        is_text: [P, T] bool.
        continues: [P, T] bool, tokens that continue the word before them.
    """
    lowest = float("-inf")
    if isinstance(logits, PairLogits):
        return _best_pairs(logits, is_text, continues, max_length)
    follows = F.pad(continues[:, 1:] & is_text[:, 1:], (0, 1))
    starts = logits.starts.masked_fill(~is_text, lowest).log_softmax(1).masked_fill(continues, lowest)
    ends = logits.ends.masked_fill(~is_text, lowest).log_softmax(1).masked_fill(follows, lowest)
    # the softmax of a passage without text is NaN
    starts, ends = (values.masked_fill(~is_text, lowest) for values in (starts, ends))
    width = starts.size(1)
    scores = starts.new_full((len(starts),), lowest)
    first = torch.zeros(len(starts), dtype=torch.int64, device=starts.device)
    last = first.clone()
    for extra in range(min(max_length, width)):
        value, place = (starts[:, : width - extra] + ends[:, extra:]).max(1)
        is_better = value > scores
        scores, first = torch.where(is_better, value, scores), torch.where(is_better, place, first)
        last = torch.where(is_better, place + extra, last)
    return BestSpans(scores, first, last, logits.selection)


def _best_pairs(logits: PairLogits, is_text: Tensor, continues: Tensor, max_length: int) -> BestSpans:
    """See `best_spans`; log P of a span among all of its passage."""
    width = logits.spans.size(2)
    follows = F.pad(continues[:, 1:] & is_text[:, 1:], (0, 1))
    may_end = torch.stack([F.pad((is_text & ~follows)[:, more:], (0, more)) for more in range(width)], 2)
    is_short = torch.arange(width, device=is_text.device) < max_length
    may_be = (is_text & ~continues)[:, :, None] & may_end & is_short
    _, total = span_log_sums(logits, is_text, is_text.new_full((len(is_text), 1, 2), -1, dtype=torch.int64))
    scores, place = logits.spans.masked_fill(~may_be, float("-inf")).flatten(1).max(1)
    first = place // width
    normal = torch.where(scores == float("-inf"), scores, scores - total)
    return BestSpans(normal, first, first + place % width, torch.zeros_like(scores))
