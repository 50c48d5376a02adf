"""The step of ICT and DPR: two towers, negatives from the global batch, memory bounded by the micro-batch.

With gradient caching (Gao et al. 2021, arXiv 2101.06983) the texts are encoded twice: once without gradient, to get
the loss and its gradient with respect to every vector, and once more micro-batch by micro-batch, to carry that
gradient into the weights. The result is that of one pass over the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.choices import OneOf
from megatron_retrieval.config.marks import INPUT
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.objectives.contrastive import Scores, contrastive_loss, inner_products
from megatron_retrieval.parallel.collectives import gather_rows_with_grad
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.late_encoder import LateEncoder
from megatron_retrieval.training.steps.batch_losses import BatchVectors, losses_of_rows, row_blocks
from megatron_retrieval.training.steps.contrastive_losses import CONTRASTIVE_LOSSES
from megatron_retrieval.training.steps.dropout import start_dropout
from megatron_retrieval.training.steps.scoring import ScoreScalingConfig
from megatron_retrieval.training.steps.step import distinct_texts
from megatron_retrieval.types.contrastive import ContrastiveBatch
from megatron_retrieval.types.losses import LossOutput
from megatron_retrieval.types.metrics import Count, Mean, Metrics
from megatron_retrieval.types.tokens import TokenBatch, by_length, in_given_order, to_device


@dataclass(kw_only=True, frozen=True)
class ContrastiveConfig(ScoreScalingConfig, Checked):
    """The contrastive loss and how its step is computed."""

    contrastive_loss: Annotated[str, OneOf(CONTRASTIVE_LOSSES)] = "nll"
    """Loss of a question, given the scores of passages of the global batch."""
    guide: Path | None = field(default=None, metadata=INPUT)
    """gist: checkpoint of a dual encoder with the same vocabulary, which says what is no negative."""
    micro_batch_size: PositiveInt = 8
    """Texts encoded per forward pass; memory and speed depend on it, the result does not."""
    gradient_caching: bool = True
    """Encode twice so that memory grows with the micro-batch only; off: keep all activations, one forward pass less."""


class ContrastiveStep:
    """Contrastive training of a dual encoder, or of late interaction. Dropout depends on (seed, iteration, rank, tower,
    micro-batch) only.

    Args:
        guide: in evaluation mode, where the loss has one.

    Raises:
        ConfigError: the loss needs cosines or a guide, or has no use for one.
    """

    def __init__(
        self,
        model: DualEncoder | LateEncoder,
        config: ContrastiveConfig,
        topology: ProcessTopology,
        seed: int,
        guide: DualEncoder | None = None,
    ) -> None:
        self.model, self.config, self.topology, self.seed = model, config, topology, seed
        self._divisor = config.score_divisor(model.dimension)
        self._loss, self._guide = CONTRASTIVE_LOSSES[config.contrastive_loss], guide
        self._score: Scores = inner_products
        self._numbers_per_score = 1
        if isinstance(model, LateEncoder):
            self._score, self._numbers_per_score = model.scores, model.numbers_per_score
            if self._loss.over != "batch":
                raise ConfigError(
                    f"--contrastive-loss {self._loss.name} compares single vectors; late interaction learns by nll, "
                    "or another loss over the scores of the batch."
                )
        if (self._loss.over == "guided") != (guide is not None):
            raise ConfigError(f"--guide and --contrastive-loss {self._loss.name}: gist needs a guide, and others none.")
        is_cosine = isinstance(model, DualEncoder) and model.config.normalize_embeddings and self._divisor == 1
        if "pairs" in self._loss.over and not is_cosine:
            raise ConfigError(
                f"--contrastive-loss {self._loss.name} compares cosines: give --normalize-embeddings, "
                "--no-retriever-score-scaling and no --temperature."
            )

    def forward_backward(self, batch: ContrastiveBatch, iteration: int, loss_scale: float) -> Metrics:
        """See StepModule."""
        self.model.train()
        batch = batch.to(self.topology.device)
        query_seed, passage_seed = (self._chunk_seed(iteration, tower) for tower in ("query", "passage"))
        encodings = [
            self._encoding(self.model.encode_queries, batch.questions, query_seed),
            self._encoding(self.model.encode_passages, batch.passages, passage_seed),
        ]
        cached = self.config.gradient_caching and any(len(encoding.chunks) > 1 for encoding in encodings)
        with torch.set_grad_enabled(not cached):
            vectors = [encoding.vectors() for encoding in encodings]
        metrics, gradients = self._vector_gradients(vectors[0].detach(), vectors[1].detach(), batch, loss_scale)
        if cached:
            for encoding, gradient in zip(encodings, gradients, strict=True):
                encoding.backward(gradient)
        else:
            trained = [place for place, own in enumerate(vectors) if own.requires_grad]
            torch.autograd.backward([vectors[n] for n in trained], [gradients[n] for n in trained])
        excluded = torch.full((), float(batch.num_false_negatives), device=self.topology.device)
        return {**metrics, "num_false_negatives": Count(excluded)}

    @torch.no_grad()
    def evaluate(self, batch: ContrastiveBatch) -> Metrics:
        """See StepModule."""
        self.model.eval()
        batch = batch.to(self.topology.device)
        queries = self._encoding(self.model.encode_queries, batch.questions, None).vectors()
        passages = self._encoding(self.model.encode_passages, batch.passages, None).vectors()
        vectors = self._gathered(queries, passages)
        outputs = list(self._block_losses(vectors, batch))
        return {**_sum_of_blocks(outputs, batch), "num_questions": Count(batch.question_is_real.sum())}

    def _vector_gradients(
        self, queries: Tensor, passages: Tensor, batch: ContrastiveBatch, loss_scale: float
    ) -> tuple[Metrics, tuple[Tensor, Tensor]]:
        """The metrics, and the gradients of `loss * loss_scale` with respect to queries and passages."""
        queries, passages = queries.requires_grad_(), passages.requires_grad_()
        gathered = self._gathered(queries, passages)
        # the blocks' gradients add up here, and go on to all ranks at once
        leaves = replace(
            gathered,
            all_queries=gathered.all_queries.detach().requires_grad_(),
            passages=gathered.passages.detach().requires_grad_(),
        )
        outputs = []
        for output in self._block_losses(leaves, batch):
            (output.loss * loss_scale).backward()
            outputs.append(LossOutput(output.loss.detach(), output.metrics))
        gathered.passages.backward(leaves.passages.grad)
        if leaves.all_queries.grad is not None:
            gathered.all_queries.backward(leaves.all_queries.grad)
        assert queries.grad is not None
        assert passages.grad is not None
        return _sum_of_blocks(outputs, batch), (queries.grad, passages.grad)

    def _gathered(self, queries: Tensor, passages: Tensor) -> BatchVectors:
        """Of this rank's vectors those that the loss sees."""
        is_guided, dp_group = self._loss.over == "guided", self.topology.groups.dp
        all_queries = gather_rows_with_grad(queries, dp_group) if is_guided else queries
        return BatchVectors(queries, all_queries, gather_rows_with_grad(passages, dp_group))

    @torch.no_grad()
    def _guided(self, batch: ContrastiveBatch) -> BatchVectors | None:
        """What the guide makes of the batch, of length 1."""
        if self._guide is None:
            return None
        queries = self._encoding(self._guide.encode_queries, batch.questions, None).vectors()
        passages = self._encoding(self._guide.encode_passages, batch.passages, None).vectors()
        return self._gathered(F.normalize(queries, dim=1), F.normalize(passages, dim=1))

    def _block_losses(self, vectors: BatchVectors, batch: ContrastiveBatch) -> Iterator[LossOutput]:
        """The losses of blocks of questions, whose sum is this rank's part of the loss; so the scores of a batch of
        thousands never stand in memory whole."""
        queries, candidates = vectors.queries, vectors.passages
        num_passages = candidates.size(0) // self.topology.dp_size
        first, stride = self.topology.dp_rank * num_passages, num_passages // queries.size(0)
        positives = torch.arange(first, first + num_passages, stride, device=candidates.device)
        blocks = row_blocks(queries.size(0), candidates.size(0) * self._numbers_per_score)
        losses = losses_of_rows(
            self._loss,
            vectors,
            self._guided(batch),
            batch,
            divisor=self._divisor,
            dp_group=self.topology.groups.dp,
            blocks=blocks,
        )
        for rows in blocks:
            yield contrastive_loss(
                queries[rows],
                candidates,
                positives[rows],
                batch.excluded[rows],
                batch.question_is_real[rows],
                batch.num_questions,
                self._divisor,
                losses(rows),
                self._score,
            )

    def _encoding(
        self, encode: Callable[[TokenBatch], Tensor], texts: TokenBatch, start_chunk: Callable[[int], None] | None
    ) -> _RepeatableEncoding:
        return _RepeatableEncoding(encode, texts, start_chunk, self.config.micro_batch_size, self.topology.device)

    def _chunk_seed(self, iteration: int, tower: str) -> Callable[[int], None]:
        """A function that starts the dropout streams of a tower's chunk, the same in both passes."""

        def start(chunk: int) -> None:
            start_dropout(self.seed, self.topology, iteration, tower, chunk)

        return start


def _sum_of_blocks(outputs: Sequence[LossOutput], batch: ContrastiveBatch) -> Metrics:
    """The metrics of a batch, `loss` among them."""
    blocks = [{**output.metrics, "loss": Mean(output.loss, batch.num_questions)} for output in outputs]
    return {
        name: replace(metric, part=torch.stack([block[name].part for block in blocks]).sum())
        for name, metric in blocks[0].items()
    }


class _RepeatableEncoding:
    """Texts to encode, each different text once, in length-sorted chunks that can be encoded twice with the same
    dropout.

    Args:
        texts: on the CPU.
        start_chunk: starts the dropout of a chunk, given its number; None: there is no dropout.
        device: where texts are encoded.
    """

    def __init__(
        self,
        encode: Callable[[TokenBatch], Tensor],
        texts: TokenBatch,
        start_chunk: Callable[[int], None] | None,
        micro_batch_size: int,
        device: torch.device,
    ) -> None:
        self._encode, self._start_chunk, self._device = encode, start_chunk, device
        self._texts, place_of = distinct_texts(texts)
        self._place_of = to_device(place_of, device)
        self.chunks = by_length(self._texts.lengths, micro_batch_size)

    def _encode_chunk(self, number: int) -> Tensor:
        if self._start_chunk is not None:
            self._start_chunk(number)
        return self._encode(self._texts.rows(self.chunks[number]).to(self._device))

    def vectors(self) -> Tensor:
        """[n, D] vectors in the order of the texts."""
        vectors = torch.cat([self._encode_chunk(number) for number in range(len(self.chunks))])
        return in_given_order(vectors, self.chunks)[self._place_of]

    def backward(self, gradient: Tensor) -> None:
        """Carry the gradient [n, D] of the vectors into the weights, one chunk at a time; none of a frozen encoder."""
        total = gradient.new_zeros(len(self._texts), gradient.size(1)).index_add_(0, self._place_of, gradient)
        for number, chunk in enumerate(self.chunks):
            vectors = self._encode_chunk(number)
            if not vectors.requires_grad:
                return
            vectors.backward(total[to_device(chunk, self._device)])
