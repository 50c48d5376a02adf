"""The step of ICT and DPR: two towers, negatives from the global batch, memory bounded by the micro-batch.

With gradient caching (Gao et al. 2021, arXiv 2101.06983) the texts are encoded twice: once without gradient, to get
the loss and its gradient with respect to every vector, and once more micro-batch by micro-batch, to carry that
gradient into the weights. The result is that of one pass over the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.objectives.contrastive import contrastive_loss
from megatron_retrieval.parallel.collectives import gather_rows_with_grad
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.training.steps.scoring import ScoreScalingConfig
from megatron_retrieval.training.steps.step import distinct_texts, start_dropout
from megatron_retrieval.types.contrastive import ContrastiveBatch
from megatron_retrieval.types.losses import LossOutput
from megatron_retrieval.types.tokens import TokenBatch, by_length, in_given_order

#: scores that stand in memory at once, with their mask and their gradient about five times as many numbers
MOST_SCORES = 1 << 19


@dataclass(kw_only=True, frozen=True)
class ContrastiveConfig(ScoreScalingConfig, Checked):
    """The contrastive loss and how its step is computed."""

    micro_batch_size: PositiveInt = 8
    """Texts encoded per forward pass; memory and speed depend on it, the result does not."""
    gradient_caching: bool = True
    """Encode twice so that memory grows with the micro-batch only; off: keep all activations, one forward pass less."""


class ContrastiveStep:
    """Contrastive training of a dual encoder. Dropout depends on (seed, iteration, rank, tower, micro-batch) only."""

    def __init__(self, model: DualEncoder, config: ContrastiveConfig, topology: ProcessTopology, seed: int) -> None:
        self.model, self.config, self.topology, self.seed = model, config, topology, seed
        self._divisor = config.score_divisor(model.dimension)

    def forward_backward(self, batch: ContrastiveBatch, iteration: int, loss_scale: float) -> Mapping[str, Tensor]:
        """See StepModule."""
        self.model.train()
        batch = batch.to(self.topology.device)
        towers = [
            _TowerPass(self.model.encode_queries, batch.questions, self._chunk_seed(iteration, "query"), self.config),
            _TowerPass(self.model.encode_passages, batch.passages, self._chunk_seed(iteration, "passage"), self.config),
        ]
        cached = self.config.gradient_caching and any(len(tower.chunks) > 1 for tower in towers)
        with torch.set_grad_enabled(not cached):
            vectors = [tower.encode() for tower in towers]
        queries, passages = (vector.detach().requires_grad_() for vector in vectors)
        output = self._loss(queries, passages, batch, loss_scale)
        gradients = [leaf.grad for leaf in (queries, passages) if leaf.grad is not None]
        if cached:
            for tower, gradient in zip(towers, gradients, strict=True):
                tower.backward(gradient)
        else:
            torch.autograd.backward(vectors, gradients)
        excluded = torch.tensor(float(batch.num_false_negatives), device=self.topology.device)
        return {**output.metrics, "loss": output.loss, "num_false_negatives": excluded}

    @torch.no_grad()
    def evaluate(self, batch: ContrastiveBatch) -> Mapping[str, Tensor]:
        """See StepModule."""
        self.model.eval()
        batch = batch.to(self.topology.device)
        queries = _TowerPass(self.model.encode_queries, batch.questions, None, self.config).encode()
        passages = _TowerPass(self.model.encode_passages, batch.passages, None, self.config).encode()
        output = self._loss(queries, passages, batch)
        num_questions = batch.question_is_real.sum()
        return {**output.metrics, "loss": output.loss, "num_examples": num_questions, "num_questions": num_questions}

    def _loss(
        self, queries: Tensor, passages: Tensor, batch: ContrastiveBatch, loss_scale: float | None = None
    ) -> LossOutput:
        """This rank's part of the loss over the passages of all data-parallel ranks.

        It is summed over blocks of questions, so that the scores of a batch of thousands never stand in memory whole.

        Args:
            loss_scale: accumulate the gradients of `loss * loss_scale` in `queries` and `passages`; None: no gradient.
        """
        gathered = gather_rows_with_grad(passages, self.topology.groups.dp)
        candidates = gathered.detach().requires_grad_(loss_scale is not None)
        stride = passages.size(0) // queries.size(0)
        first = self.topology.dp_rank * passages.size(0)
        positives = torch.arange(first, first + passages.size(0), stride, device=passages.device)
        outputs = []
        for rows in _row_blocks(queries.size(0), candidates.size(0)):
            output = contrastive_loss(
                queries[rows],
                candidates,
                positives[rows],
                batch.excluded[rows],
                batch.question_is_real[rows],
                batch.num_questions,
                self._divisor,
            )
            if loss_scale is not None:
                (output.loss * loss_scale).backward()
            outputs.append({**output.metrics, "loss": output.loss.detach()})
        if loss_scale is not None:
            gathered.backward(candidates.grad)
        metrics = {name: torch.stack([part[name] for part in outputs]).sum() for name in outputs[0]}
        return LossOutput(metrics.pop("loss"), metrics)

    def _chunk_seed(self, iteration: int, tower: str) -> Callable[[int], None]:
        """A function that starts the dropout streams of a tower's chunk, the same in both passes."""

        def start(chunk: int) -> None:
            start_dropout(self.seed, self.topology, iteration, tower, chunk)

        return start


def _row_blocks(num_questions: int, num_passages: int) -> Iterator[slice]:
    """Blocks of questions with a bounded number of scores each."""
    size = max(1, MOST_SCORES // num_passages)
    return (slice(start, start + size) for start in range(0, num_questions, size))


class _TowerPass:
    """One encoder over its texts, each different text once, in length-sorted chunks that can be encoded twice with
    the same dropout."""

    def __init__(
        self,
        encode: Callable[[TokenBatch], Tensor],
        texts: TokenBatch,
        start_chunk: Callable[[int], None] | None,
        config: ContrastiveConfig,
    ) -> None:
        self._encode, self._start_chunk = encode, start_chunk
        self._texts, self._place_of = distinct_texts(texts)
        self.chunks = by_length(self._texts.lengths, config.micro_batch_size)

    def _encode_chunk(self, number: int) -> Tensor:
        if self._start_chunk is not None:
            self._start_chunk(number)
        return self._encode(self._texts.rows(self.chunks[number]))

    def encode(self) -> Tensor:
        """[n, D] vectors in the order of the texts."""
        vectors = torch.cat([self._encode_chunk(number) for number in range(len(self.chunks))])
        return in_given_order(vectors, self.chunks)[self._place_of]

    def backward(self, gradient: Tensor) -> None:
        """Carry the gradient [n, D] of the vectors into the weights, one chunk at a time."""
        total = gradient.new_zeros(len(self._texts), gradient.size(1)).index_add_(0, self._place_of, gradient)
        for number, chunk in enumerate(self.chunks):
            self._encode_chunk(number).backward(total[chunk])
