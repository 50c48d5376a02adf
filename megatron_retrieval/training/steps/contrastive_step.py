"""The step of ICT and DPR: two towers, negatives from the global batch, memory bounded by the micro-batch.

With gradient caching (Gao et al. 2021, arXiv 2101.06983) the texts are encoded twice: once without gradient, to get
the loss and its gradient with respect to every vector, and once more micro-batch by micro-batch, to carry that
gradient into the weights. The result is that of one pass over the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from megatron_retrieval.config.checks import PositiveInt
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.objectives.contrastive import Scores, contrastive_loss, inner_products
from megatron_retrieval.parallel.collectives import gather_rows_with_grad
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.late_encoder import LateEncoder
from megatron_retrieval.training.passage_memory import PassageMemory
from megatron_retrieval.training.steps.batch_losses import losses_of_rows, row_blocks, sum_of_blocks
from megatron_retrieval.training.steps.batch_vectors import BatchVectors, Remembered
from megatron_retrieval.training.steps.contrastive_losses import CONTRASTIVE_LOSSES, ContrastiveLossConfig
from megatron_retrieval.training.steps.dropout import start_dropout
from megatron_retrieval.training.steps.repeatable_encoding import RepeatableEncoding
from megatron_retrieval.types.contrastive import ContrastiveBatch
from megatron_retrieval.types.losses import LossOutput
from megatron_retrieval.types.metrics import Count, Metrics
from megatron_retrieval.types.tokens import TokenBatch


@dataclass(kw_only=True, frozen=True)
class ContrastiveConfig(ContrastiveLossConfig):
    """The contrastive loss and how its step is computed."""

    micro_batch_size: PositiveInt = 8
    """Texts encoded per forward pass; memory and speed depend on it, the result does not."""
    gradient_caching: bool = True
    """Encode twice so that memory grows with the micro-batch only; off: keep all activations, one forward pass less."""


Vectors = TypeVar("Vectors", BatchVectors, Remembered)


class ContrastiveStep:
    """Contrastive training of a dual encoder, or of late interaction. Dropout depends on (seed, iteration, rank, tower,
    micro-batch) only.

    Args:
        guide: in evaluation mode, where the loss has one.
        memory: further negatives, where there are any.

    Raises:
        ConfigError: the loss needs cosines or a guide, or has no use for one; or a prefix is longer than the vectors.
    """

    def __init__(
        self,
        model: DualEncoder | LateEncoder,
        config: ContrastiveConfig,
        topology: ProcessTopology,
        seed: int,
        guide: DualEncoder | None = None,
        memory: PassageMemory | None = None,
    ) -> None:
        self._is_unit = isinstance(model, DualEncoder) and model.config.normalize_embeddings
        self.model, self.config, self.topology, self.seed = model, config.over(self._is_unit), topology, seed
        self._sizes = config.prefix_weights(model.dimension)
        self._loss, self._guide, self._memory = CONTRASTIVE_LOSSES[config.contrastive_loss], guide, memory
        self._score: Scores = inner_products
        self._numbers_per_score = 1
        if isinstance(model, LateEncoder):
            self._score, self._numbers_per_score = model.scores, model.numbers_per_score
            self._require_for_tokens()
        if (self._loss.over == "guided") != (guide is not None):
            raise ConfigError(f"--guide and --contrastive-loss {self._loss.name}: gist needs a guide, and others none.")
        if "pairs" in self._loss.over and not (self._is_unit and self.config.score_divisor(model.dimension) == 1):
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
        remembered = self._remembered(batch, iteration)
        queries, passages = (own.detach() for own in vectors)
        metrics, gradients = self._vector_gradients(queries, passages, batch, remembered, loss_scale)
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
        vectors, guide = self._gathered(queries, passages), self._guided(batch)
        outputs = [
            output
            for size in self._sizes
            for output in self._block_losses(self._prefix(vectors, size), guide, batch, None, size)
        ]
        return {**sum_of_blocks(outputs, batch), "num_questions": Count(batch.question_is_real.sum())}

    def _vector_gradients(
        self,
        queries: Tensor,
        passages: Tensor,
        batch: ContrastiveBatch,
        remembered: Remembered | None,
        loss_scale: float,
    ) -> tuple[Metrics, tuple[Tensor, Tensor]]:
        """The metrics, and the gradients of `loss * loss_scale` with respect to queries and passages."""
        queries, passages = queries.requires_grad_(), passages.requires_grad_()
        gathered, guide, outputs = self._gathered(queries, passages), self._guided(batch), list[LossOutput]()
        # the blocks' gradients add up in leaves, and go on to all ranks at once
        whole = gathered.leaves()
        for size in self._sizes:
            part = self._prefix(whole, size)
            leaves = part.leaves()
            for output in self._block_losses(leaves, guide, batch, remembered, size):
                (output.loss * loss_scale).backward()
                outputs.append(LossOutput(output.loss.detach(), output.metrics))
            part.backward(leaves)
        gathered.backward(whole)
        if self._memory is not None:
            self._memory.add(whole.passages, batch)
        assert queries.grad is not None
        assert passages.grad is not None
        return sum_of_blocks(outputs, batch), (queries.grad, passages.grad)

    def _require_for_tokens(self) -> None:
        """Refuse what compares single vectors, where every token has one."""
        if self._loss.over not in ("batch", "teacher"):
            raise ConfigError(
                f"--contrastive-loss {self._loss.name} compares single vectors; late interaction learns by nll, "
                "or another loss over the scores of the batch, or from a teacher."
            )
        if self.config.matryoshka_dims or self.config.memory_batches:
            raise ConfigError("--matryoshka-dims and --memory-batches are of single vectors, not of late interaction.")

    def _prefix(self, vectors: Vectors, size: int) -> Vectors:
        """See `BatchVectors.prefix`; whole vectors are as they are, be they of one text or of its tokens."""
        return vectors if size == self.model.dimension else vectors.prefix(size, self._is_unit)

    def _remembered(self, batch: ContrastiveBatch, iteration: int) -> Remembered | None:
        """Passages of batches before."""
        if self._memory is None or not len(vectors := self._memory.vectors(iteration)):
            return None
        assert batch.numbers is not None
        return Remembered(vectors, self._memory.excluded(batch.numbers))

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

    def _block_losses(
        self,
        vectors: BatchVectors,
        guide: BatchVectors | None,
        batch: ContrastiveBatch,
        remembered: Remembered | None,
        size: int,
    ) -> Iterator[LossOutput]:
        """The losses of blocks of questions, whose sum is this rank's part of the loss; so the scores of a batch of
        thousands never stand in memory whole.

        Args:
            vectors: of `size` numbers; prefixes have no metrics but their part of the loss.
        """
        queries, candidates = vectors.queries, vectors.passages
        positives = batch.positive_columns(self.topology.dp_rank)
        further = None if remembered is None else self._prefix(remembered, size)
        num_passages = candidates.size(0) + (0 if further is None else len(further.vectors))
        blocks = row_blocks(queries.size(0), num_passages * self._numbers_per_score)
        divisor, weight, is_whole = self.config.score_divisor(size), self._sizes[size], size == self.model.dimension
        losses = losses_of_rows(
            self._loss,
            vectors,
            guide,
            batch,
            self.config,
            divisor=divisor,
            dp_group=self.topology.groups.dp,
            blocks=blocks,
        )
        for rows in blocks:
            excluded, passages = batch.excluded[rows], candidates
            if further is not None:
                passages = torch.cat([candidates, further.vectors])
                excluded = torch.cat([excluded, further.excluded[rows]], 1)
            output = contrastive_loss(
                queries[rows],
                passages,
                positives[rows],
                excluded,
                batch.question_is_real[rows],
                batch.num_questions,
                divisor,
                losses(rows),
                self._score,
            )
            yield LossOutput(output.loss * weight, output.metrics if is_whole else {})

    def _encoding(
        self, encode: Callable[[TokenBatch], Tensor], texts: TokenBatch, start_chunk: Callable[[int], None] | None
    ) -> RepeatableEncoding:
        return RepeatableEncoding(encode, texts, start_chunk, self.config.micro_batch_size, self.topology.device)

    def _chunk_seed(self, iteration: int, tower: str) -> Callable[[int], None]:
        """A function that starts the dropout streams of a tower's chunk, the same in both passes."""

        def start(chunk: int) -> None:
            start_dropout(self.seed, self.topology, iteration, tower, chunk)

        return start
