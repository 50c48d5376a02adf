"""The step of end-to-end training: retrieve, encode what was found anew, read it, and let retriever and reader learn
from the answer (Sachan et al. 2021, arXiv 2101.00408, section 3)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated

import torch
from torch import Tensor

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.choices import OneOf
from megatron_retrieval.config.marks import FREE
from megatron_retrieval.data.examples.open_questions import AskedBatch
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.end_to_end import EndToEndModel
from megatron_retrieval.objectives.end_to_end import early_loss, log_priors
from megatron_retrieval.parallel.collectives import all_reduce_sum
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.training.steps.dropout import start_dropout
from megatron_retrieval.training.steps.end_to_end_objectives import OBJECTIVES
from megatron_retrieval.training.steps.extractive_readings import ExtractiveReadings
from megatron_retrieval.training.steps.memoised_readings import MemoisedReadings
from megatron_retrieval.training.steps.objective import ObjectiveConfig
from megatron_retrieval.training.steps.observing import Observed, answer_likelihoods
from megatron_retrieval.training.steps.passage_search import PassageSearch
from megatron_retrieval.training.steps.readings import ReaderSide
from megatron_retrieval.training.steps.scoring import ScoreScalingConfig
from megatron_retrieval.types.losses import LossOutput
from megatron_retrieval.types.metrics import Count, Mean, Metric, Metrics, add_metrics
from megatron_retrieval.types.search import FILLER_ROW, NULL_ROW
from megatron_retrieval.types.tokens import to_device
from megatron_retrieval.utils.stopwatch import Stopwatch


@dataclass(kw_only=True, frozen=True)
class EndToEndStepConfig(Checked):
    """The objective and how its step is computed."""

    objective: Annotated[str, OneOf(OBJECTIVES)] = "individual-topk"
    """What reader and retriever learn from."""
    score_weight: float = field(default=1.0, metadata=FREE)
    """What log p(z | q) is multiplied with in the reader's attention at the start (joint-topk); it is learned, see
    --score-weight-lr."""
    early_loss: bool = False
    """Let the retriever learn, beside the objective, which of all --num-candidates hold the answer, read or not (ORQA);
    with an extractive or span reader and --freeze-passage-encoder, so that their vectors are those of the index."""
    of_objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    scaling: ScoreScalingConfig = field(default_factory=ScoreScalingConfig)
    micro_batch_size: PositiveInt = 1
    """Questions per forward pass, each with all of its passages; memory and speed depend on it, the result does not."""
    passage_batch_size: PositiveInt = 32
    """Passages that go through the retriever's encoder together; memory and speed depend on it, the result does not."""


@dataclass(frozen=True)
class _Chunk:
    """The questions of one forward pass.

    Attributes:
        asked: m questions.
        rows: [m, K] on the CPU, see `PassageSearch.find`.
        vectors: [m, K, D] of the passages as the index has them; None: they are encoded anew.
        early: rows [m, C] on the CPU and vectors [m, C, D] of all candidates, for the early loss.
    """

    asked: AskedBatch
    rows: Tensor
    vectors: Tensor | None
    early: tuple[Tensor, Tensor] | None = None


class EndToEndStep:
    """Losses are means over the questions of the global batch. Dropout depends on (seed, iteration, rank, chunk) only.

    Attributes:
        score_divisor: what scores are divided by before they weigh passages.

    Args:
        readings: over `model.reader`.
        search: over the index of the moment.
    """

    def __init__(
        self,
        model: EndToEndModel,
        readings: ReaderSide,
        search: PassageSearch,
        config: EndToEndStepConfig,
        topology: ProcessTopology,
        seed: int,
    ) -> None:
        self.model, self.search, self.config = model, search, config
        self._readings, self._topology, self._seed = readings, topology, seed
        self._objective = OBJECTIVES[config.objective]
        scaling = config.scaling.over(model.retriever.config.normalize_embeddings)
        self.score_divisor = scaling.score_divisor(model.retriever.dimension)
        self._side = readings.side if isinstance(readings, MemoisedReadings) else readings
        if config.early_loss and not (search.frozen and isinstance(self._side, ExtractiveReadings)):
            raise ConfigError(
                "--early-loss asks which of many candidates hold the answer as a span, and takes their vectors from "
                "the index: give it with an extractive or span reader and --freeze-passage-encoder."
            )

    def forward_backward(self, batch: AskedBatch, iteration: int, loss_scale: float) -> Metrics:
        """See StepModule; `best_passage_changed`: by fresh scores it is not the one that the index put first;
        `null_prior`: p(z | q) of the null passage, where it is a candidate; `seconds_...`: of the parts of the step,
        gradients included, means over ranks; `num_passages_asked`, `num_passages_read`: of a reader that remembers
        what it has read."""
        watch = Stopwatch("searching", "encoding", "reading", device=self._topology.device)
        batch = self._counted(batch)
        with watch("searching"):
            chunks = list(self._chunks(batch))
        self.model.train()
        sums: dict[str, Metric] = {}
        for number, chunk in enumerate(chunks):
            start_dropout(self._seed, self._topology, iteration, number)
            with watch("encoding"):
                scores, early_scores = self._fresh_scores(chunk)
            encoded = [scores] if early_scores is None else [scores, early_scores]
            leaves = [part.detach().requires_grad_(part.requires_grad) for part in encoded]
            with watch("reading"):
                output = self._loss(chunk, leaves[0], leaves[1] if len(leaves) > 1 else None)
                # with a frozen retriever, passages without an answer leave nothing to learn from
                if output.loss.requires_grad:
                    (output.loss * (0 if batch.is_filler else loss_scale)).backward()
            with watch("encoding"):  # the gradient goes on into the retriever
                if trained := [place for place, leaf in enumerate(leaves) if leaf.grad is not None]:
                    torch.autograd.backward([encoded[n] for n in trained], [leaves[n].grad for n in trained])
            self._add(sums, chunk, output, scores)
        if isinstance(self._readings, MemoisedReadings):
            for name, count in self._readings.take_counts().items():
                sums[name] = Count(self._zero() + count)
        num_copies = self._topology.dp_size
        for name, seconds in watch.seconds().items():
            sums[f"seconds_{name}"] = Mean(self._zero() + seconds / num_copies, num_copies)
        sums["score_weight"] = Mean(self.model.score_weight.detach()[0] / num_copies, num_copies)
        return sums

    @torch.no_grad()
    def evaluate(self, batch: AskedBatch) -> Metrics:
        """See StepModule; beside it what the reader makes of questions without any passage."""
        batch = self._counted(batch)
        chunks = list(self._chunks(batch))
        self.model.eval()
        sums: dict[str, Metric] = {}
        for chunk in chunks:
            scores, early_scores = self._fresh_scores(chunk)
            self._add(sums, chunk, self._loss(chunk, scores, early_scores), scores)
            for name, value in self._readings.without_passages(chunk.asked).items():
                part = value * (not batch.is_filler) / batch.num_questions
                add_metrics(sums, {name: Mean(part, batch.num_questions)})
        return {**sums, "num_questions": Count(self._zero() + len(batch) * (not batch.is_filler))}

    @torch.no_grad()
    def observe(self, batch: AskedBatch, skipped: Collection[int] = ()) -> Observed:
        """What the model as it stands thinks of the questions of this rank; a collective over all ranks.

        Args:
            skipped: see `answer_likelihoods`.
        """
        parts, by_token = [], "each_token" in self._readings.passes
        for chunk in self._chunks(batch):
            alone = torch.full((len(chunk.rows), 1), NULL_ROW)
            likelihoods = [
                answer_likelihoods(self._readings.reading(chunk.asked, rows), chunk.asked, skipped, by_token=by_token)
                for rows in (chunk.rows, alone)
            ]
            parts.append((chunk.rows, self._fresh_scores(chunk)[0], likelihoods[0], likelihoods[1][:, 0]))
        return Observed(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def _counted(self, batch: AskedBatch) -> AskedBatch:
        """With the number of target tokens of all ranks, where the objective needs it."""
        if not self._objective.counts_tokens:
            return batch
        own = torch.tensor(float(batch.targets.lengths.sum()) * (not batch.is_filler))
        total = all_reduce_sum(to_device(own, self._topology.device), self._topology.groups.dp)
        return replace(batch, num_target_tokens=total)

    def _chunks(self, batch: AskedBatch) -> Iterator[_Chunk]:
        """The questions with what the index holds for them."""
        candidates = self.search.candidates(batch)
        rows = self.search.to_read(candidates).rows.cpu()
        # for the whole batch at once: ranks may have different numbers of chunks
        vectors = self.search.stored_vectors(rows) if self.search.frozen else None
        every = (candidates.rows.cpu(), self.search.stored_vectors(candidates.rows)) if self.config.early_loss else None
        for places in torch.arange(len(batch)).split(self.config.micro_batch_size):
            own = slice(int(places[0]), int(places[-1]) + 1)
            yield _Chunk(
                batch.questions(places),
                rows[own],
                None if vectors is None else vectors[own],
                None if every is None else (every[0][own], every[1][own]),
            )

    def _fresh_scores(self, chunk: _Chunk) -> tuple[Tensor, Tensor | None]:
        """[m, K] s(q, z) / tau of what was found, by the encoders as they are now; where that of passages is frozen,
        its vectors are those of the index. And [m, C] of all candidates for the early loss."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._objective.trains_retriever):
            queries = self.model.retriever.encode_queries(chunk.asked.retriever_queries.to(self._topology.device))
            if chunk.vectors is None:
                return self.search.fresh_scores(queries, chunk.rows) / self.score_divisor, None
            scores, early = (
                None if vectors is None else torch.einsum("nd,nkd->nk", queries, vectors) / self.score_divisor
                for vectors in (chunk.vectors, chunk.early and chunk.early[1])
            )
            assert scores is not None
            return scores, early

    def _loss(self, chunk: _Chunk, scores: Tensor, early_scores: Tensor | None) -> LossOutput:
        reading = self._readings.reading(chunk.asked, chunk.rows)
        weight, num_questions = self.model.score_weight, chunk.asked.num_questions
        output = self._objective.loss(reading, scores, weight, num_questions, self.config.of_objective)
        if chunk.early is None or early_scores is None:
            return output
        assert isinstance(self._side, ExtractiveReadings)
        holds = self._side.holds(chunk.asked, chunk.early[0])
        early = early_loss(early_scores, to_device(chunk.early[0] != FILLER_ROW, holds.device), holds, num_questions)
        return LossOutput(output.loss + early.loss, {**output.metrics, **early.metrics})

    def _add(self, sums: dict[str, Metric], chunk: _Chunk, output: LossOutput, scores: Tensor) -> None:
        """Add a chunk's numbers; those of fillers are nothing, but have the same names."""
        num_questions = chunk.asked.num_questions
        is_none = to_device(chunk.rows < 0, scores.device)
        best = scores.detach().masked_fill(is_none, float("-inf")).argmax(1)
        means = {"loss": output.loss.detach(), "best_passage_changed": (best > 0).sum() / num_questions}
        if self.search.config.null_passage:
            priors = log_priors(scores.detach(), to_device(chunk.rows != FILLER_ROW, scores.device)).exp()
            is_null = to_device(chunk.rows == NULL_ROW, scores.device)
            means["null_prior"] = priors.masked_fill(~is_null, 0).sum() / num_questions
        metrics = {**output.metrics, **{name: Mean(part, num_questions) for name, part in means.items()}}
        add_metrics(sums, {name: metric * (not chunk.asked.is_filler) for name, metric in metrics.items()})

    def _zero(self) -> Tensor:
        return torch.zeros((), device=self._topology.device)
