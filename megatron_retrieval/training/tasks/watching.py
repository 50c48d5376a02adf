"""What a person watches while a retriever learns from masked sentences: the same sentences whenever the index is new,
with the weights of the moment; in figures, and some of them in words."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_retrieval.config.checks import Checked, NonNegativeInt
from megatron_retrieval.data.examples.batches import Share
from megatron_retrieval.data.examples.masked_sentences import MaskedSentence, MaskedSentences
from megatron_retrieval.data.files.passage_questions import ReaderQuestion
from megatron_retrieval.data.salient.shown import masked_words
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.evidence_sample import spread_rows
from megatron_retrieval.evaluation.answer_matching import AnswerMatchConfig, AnswerMatcher
from megatron_retrieval.evaluation.exact_match import normalized_answer
from megatron_retrieval.evaluation.reader_task import Reader
from megatron_retrieval.objectives.end_to_end import posterior_divergence
from megatron_retrieval.parallel.collectives import all_reduce_sum
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.training.metrics_log import MetricsLog
from megatron_retrieval.training.steps.end_to_end_step import EndToEndStep
from megatron_retrieval.training.steps.observing import Observed
from megatron_retrieval.training.steps.passage_search import PassageSearch
from megatron_retrieval.training.steps.step import evaluation_mode
from megatron_retrieval.training.tasks.refreshed_recall import EvaluateAtRefresh
from megatron_retrieval.training.trainer import Trainer
from megatron_retrieval.types.questions import Passage


@dataclass(kw_only=True, frozen=True)
class WatchConfig(Checked):
    """Sentences to look at before the first step, every --eval-interval, with every new index and after the last."""

    watch_sentences: NonNegativeInt = 64
    """So many, evenly spaced among the sentences, for the figures: retrieval utility in all and by type of span,
    posterior, prior, share of passages that hold the span; 0: none."""
    watch_examples: NonNegativeInt = 10
    """So many of them in words in examples.html of --output-dir, with the passages found and the reader's answer."""


@dataclass(frozen=True)
class WatchedPassage:
    """A passage that was found for a sentence; `holds`: the span."""

    passage: Passage
    prior: float
    posterior: float
    holds: bool


@dataclass(frozen=True)
class WatchedSentence:
    """A masked sentence in words; `utility` is None where the reader has no answer without a passage."""

    masked: str
    hidden: str
    type: str
    prediction: str
    utility: float | None
    passages: tuple[WatchedPassage, ...]

    @property
    def is_right(self) -> bool:
        """Whether the reader's answer is the span, by exact match."""
        return normalized_answer(self.prediction) == normalized_answer(self.hidden)


#: (iteration, examples) to a page
WritePage = Callable[[int, Sequence[WatchedSentence]], None]


class KnownTexts:
    """A vocabulary that knows the ids of some texts already: readers are asked in text, which cannot hold a mask."""

    def __init__(self, vocabulary: Vocabulary, known: dict[str, list[int]]) -> None:
        self._vocabulary, self._known = vocabulary, known

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vocabulary, name)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """See Vocabulary."""
        ids = self._vocabulary.encode(texts)
        return [self._known.get(text, own) for text, own in zip(texts, ids, strict=True)]


class WatchTask:
    """See MeasuredTask.

    Args:
        step: over retriever, reader and index of the moment.
        answerer: what answers with the weights of the moment, in this vocabulary.

    Attributes:
        examples: those of the last measurement in words, on the first rank.
    """

    name = "watching"

    def __init__(
        self,
        config: WatchConfig,
        source: MaskedSentences,
        step: EndToEndStep,
        evidence: EvidenceStore,
        answerer: Callable[[Vocabulary], Reader],
        vocabulary: Vocabulary,
    ) -> None:
        self._source, self._step, self._evidence = source, step, evidence
        self._answerer, self._vocabulary = answerer, vocabulary
        rows = spread_rows(len(source), config.watch_sentences).tolist()
        self._sentences = [source.draw(row, 0, row) for row in rows]
        self._num_shown = min(config.watch_examples, len(rows))
        self._matcher = AnswerMatcher(AnswerMatchConfig())
        self.examples: list[WatchedSentence] = []

    def measure(self, topology: ProcessTopology) -> dict[str, Any]:
        """`masked_log_likelihood` log sum_z p(z | x) p(span | x, z); `retrieval_utility` of it over what the reader
        makes of the sentence alone, in all and by type (REALM, arXiv 2002.08909, section 4.4); `prior_entropy`;
        `posterior_divergence`, of p(z | x, span) from p(z | x), in nats; `holding_passages`, the share of passages that
        hold the span; `span_exact_match` of the examples. Likelihoods are of the span's tokens, without sentinels and
        the end; of sentences without a chance in any passage, nothing is counted but the share. A collective over all
        ranks."""
        share = Share.of(len(self._sentences), topology.dp_rank, topology.dp_size)
        own = self._sentences[share.own] or self._sentences[:1]
        with evaluation_mode(self._step.model):
            batch = self._source.asked(own, len(self._sentences))
            seen = self._step.observe(batch, self._vocabulary.sentinel_ids)
            self.examples = self._examples(own[: self._num_shown], seen) if topology.dp_rank == 0 else []
        types = self._source.store.types
        parts = self._sums(own, seen)
        sums = torch.stack(list(parts.values())) * bool(share.num_real)
        totals = dict(zip(parts, all_reduce_sum(sums, topology.groups.dp).tolist(), strict=True))
        figures: dict[str, Any] = {"num_sentences": len(self._sentences)}
        for name in ("masked_log_likelihood", "prior_entropy", "posterior_divergence"):
            figures[name] = totals[name] / totals["readable"] if totals["readable"] else 0.0
        figures["holding_passages"] = totals["holding"] / totals["passages"] if totals["passages"] else 0.0
        if totals["shown"]:
            figures["span_exact_match"] = totals["right"] / totals["shown"]
        for suffix in ("", *(f"_{name}" for name in types)):
            if count := totals[f"comparable{suffix}"]:
                figures[f"retrieval_utility{suffix}"] = totals[f"utility{suffix}"] / count
        return figures

    def _sums(self, own: Sequence[MaskedSentence], seen: Observed) -> dict[str, Tensor]:
        """This rank's, float64."""
        marginal = seen.marginal
        readable = marginal > -torch.inf
        comparable = readable & (seen.alone > -torch.inf)
        utility = (marginal - seen.alone).where(comparable, 0.0)
        sums = {
            "readable": readable.sum(),
            "masked_log_likelihood": marginal.where(readable, 0.0).sum(),
            "prior_entropy": torch.special.entr(seen.priors.exp()).sum(1).where(readable, 0.0).sum(),
            "posterior_divergence": posterior_divergence(seen.priors, seen.likelihoods).sum(),
            "holding": torch.tensor(sum(sum(held) for held in self._holding(own, seen))),
            "passages": (seen.rows >= 0).sum(),
            "shown": torch.tensor(len(self.examples)),
            "right": torch.tensor(sum(shown.is_right for shown in self.examples)),
            "comparable": comparable.sum(),
            "utility": utility.sum(),
        }
        kinds = [sentence.spans[0].type for sentence in own]
        for name in self._source.store.types:
            mine = torch.tensor([kind == name for kind in kinds], device=utility.device)
            sums |= {f"comparable_{name}": (comparable & mine).sum(), f"utility_{name}": utility[mine].sum()}
        return {name: value.double().to(utility.device) for name, value in sums.items()}

    def _holding(self, own: Sequence[MaskedSentence], seen: Observed) -> list[list[bool]]:
        """Which of the passages of each sentence hold its span."""
        held = []
        for sentence, rows in zip(own, seen.rows.tolist(), strict=False):  # the shown ones are the first
            passages = self._evidence.passages([row for row in rows if row >= 0])
            held.append(self._matcher.hits([self._text(sentence)[1]], passages))
        return held

    def _text(self, sentence: MaskedSentence) -> tuple[str, str]:
        """The sentence, and the span that is hidden first."""
        text, span = self._source.store.sentence(sentence.row)[0], sentence.spans[0]
        return text, text[span.start : span.end]

    def _examples(self, own: Sequence[MaskedSentence], seen: Observed) -> list[WatchedSentence]:
        questions, known = [], {}
        for number, (sentence, rows) in enumerate(zip(own, seen.rows.tolist(), strict=False)):
            name = f"\0{number}"  # no text of a passage is this
            known[name] = sentence.question.ids
            found = self._evidence.passages([row for row in rows if row >= 0])
            scores = (seen.scores[number, : len(found)] * self._step.score_divisor).tolist()  # a reader divides itself
            questions.append(ReaderQuestion(name, name, (), tuple(found), tuple(scores)))
        vocabulary: Any = KnownTexts(self._vocabulary, known)
        predictions = self._answerer(vocabulary).answer(questions) if questions else []
        held, examples = self._holding(own, seen), []
        for number, (sentence, question, prediction) in enumerate(zip(own, questions, predictions, strict=True)):
            text, hidden = self._text(sentence)
            priors, posterior = seen.priors[number].exp().tolist(), seen.posterior[number].tolist()
            passages = zip(question.passages, priors, posterior, held[number], strict=False)
            utility = float(seen.marginal[number] - seen.alone[number])
            examples.append(
                WatchedSentence(
                    masked_words(text, sentence.spans[0]),
                    hidden,
                    sentence.spans[0].type,
                    prediction.text,
                    utility if abs(utility) < float("inf") else None,
                    tuple(WatchedPassage(*found) for found in passages),
                )
            )
        return examples


def in_vocabulary(reader: Any, vocabulary: Vocabulary) -> Any:
    """The same reader, which takes its texts' ids from another vocabulary."""
    twin = copy.copy(reader)
    twin.vocabulary = vocabulary
    return twin


class WatchSentences(EvaluateAtRefresh):
    """Has sentences measured as EvaluateAtRefresh does, and their page written anew each time."""

    def __init__(
        self,
        task: WatchTask,
        search: PassageSearch,
        interval: int,
        metrics_log: MetricsLog,
        write_page: WritePage | None,
    ) -> None:
        super().__init__(task, search, interval, metrics_log)
        self._watched, self._write_page = task, write_page

    def _evaluate(self, trainer: Trainer) -> None:
        super()._evaluate(trainer)
        if self._write_page is not None and trainer.topology.is_main:
            self._write_page(trainer.iteration, self._watched.examples)
