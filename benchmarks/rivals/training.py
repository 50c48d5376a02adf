"""The two sides of each task of training_speed.py: the project's step, and the loop that a user of transformers or
sentence-transformers writes, with the same weights and the same batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.util import cos_sim, dot_score
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from megatron_retrieval.checkpoint.huggingface.format import ForeignModel
from megatron_retrieval.checkpoint.huggingface.t5 import import_t5, t5_config_from_hf, t5_config_to_hf
from megatron_retrieval.checkpoint.store.reader import fill_model
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.models.extractive_reader import ExtractiveReader
from megatron_retrieval.models.fusion_reader import FusionReader
from megatron_retrieval.models.t5 import T5
from megatron_retrieval.models.t5_config import T5Config
from megatron_retrieval.objectives.extractive import extractive_loss
from megatron_retrieval.parallel.data_parallel import DataParallelModel
from megatron_retrieval.parallel.optimizer import Optimizer, OptimizerConfig
from megatron_retrieval.parallel.precision import PrecisionConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.tiny_hf import attention_mask
from megatron_retrieval.training.steps.contrastive_step import ContrastiveConfig, ContrastiveStep
from megatron_retrieval.training.steps.extractive_step import ExtractiveStep, ExtractiveStepConfig
from megatron_retrieval.training.steps.fusion_step import FusionStep, FusionStepConfig
from megatron_retrieval.training.steps.step import StepModule
from megatron_retrieval.training.trainer import reduce_metrics
from megatron_retrieval.types.contrastive import ContrastiveBatch
from megatron_retrieval.types.extractive import ExtractiveBatch, SpanLogits
from megatron_retrieval.types.fusion import FusionBatch
from megatron_retrieval.types.tokens import TokenBatch

#: so small that the weights of both sides stay alike over all rounds
RATE = 1e-7
_SEED = 1


class Figures(NamedTuple):
    """What a step gives."""

    loss: float
    #: before clipping
    gradient_norm: float


@dataclass(frozen=True)
class Side:
    """A model and the step that trains it: forwards, backwards, clipping and Adam."""

    model: nn.Module
    step: Callable[[], Figures]


def ours(model: nn.Module, step: StepModule, batch: Any, topology: ProcessTopology) -> Side:
    """The project's side: what `Trainer` does in a step."""
    parallel = DataParallelModel(model, topology)
    optimizer = Optimizer(parallel, OptimizerConfig(lr=RATE), PrecisionConfig(), topology)

    def run() -> Figures:
        parallel.zero_gradients()
        parts = step.forward_backward(batch, 0, optimizer.loss_scale)
        parallel.reduce_gradients()
        loss = reduce_metrics(parts, topology)["loss"]
        norm = optimizer.step(RATE).grad_norm
        assert norm is not None
        return Figures(loss, norm)

    return Side(model, run)


def theirs(model: nn.Module, losses: Callable[[], Iterator[Tensor]]) -> Side:
    """The other side.

    Args:
        losses: the parts of the loss, each of a graph of its own.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.1, fused=True)

    def run() -> Figures:
        model.train()
        optimizer.zero_grad()
        total = 0.0
        for part in losses():
            part.backward()
            total += part.item()
        norm = clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return Figures(total, float(norm))

    return Side(model, run)


@contextlib.contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """The model with dropout of share 0, in whichever mode it is."""
    held: list[tuple[nn.Module, str, float]] = []
    for module in model.modules():
        name = "p" if isinstance(module, nn.Dropout) else "dropout"
        if isinstance(share := getattr(module, name, None), float):
            held.append((module, name, share))
            setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, share in held:
            setattr(module, name, share)


def contrastive(
    foreign: ForeignModel,
    folder: Path,
    batch: ContrastiveBatch,
    topology: ProcessTopology,
    *,
    micro_batch_size: int,
    cached: bool,
) -> tuple[Side, Side]:
    """A shared dual encoder, against sentence-transformers' loss of the same formula."""
    model: DualEncoder = foreign.build(topology)
    normalised = model.config.normalize_embeddings
    config = ContrastiveConfig(
        micro_batch_size=micro_batch_size,
        gradient_caching=cached,
        retriever_score_scaling=False,
    )
    other = SentenceTransformer(str(folder), device="cpu")
    # no temperature: the loss of a trained encoder would be next to nothing, and what rounding makes of it
    settings = {"scale": 1.0, "similarity_fct": cos_sim if normalised else dot_score}
    loss: nn.Module = MultipleNegativesRankingLoss(other, **settings)
    if cached:
        loss = CachedMultipleNegativesRankingLoss(other, mini_batch_size=micro_batch_size, **settings)
    columns = _columns(batch)

    def losses() -> Iterator[Tensor]:
        yield loss([dict(column) for column in columns], torch.zeros(0))

    step = ContrastiveStep(model, config, topology, _SEED)
    return ours(model, step, batch, topology), theirs(other, losses)


def _columns(batch: ContrastiveBatch) -> Sequence[dict[str, Tensor]]:
    """Questions, positives and hard negatives, each column padded to its longest text."""
    stride = len(batch.passages) // len(batch.questions)
    rows = torch.arange(len(batch.passages))
    texts = [batch.questions, *(batch.passages.rows(rows[first::stride]) for first in range(stride))]
    return [_features(part) for part in texts]


def _features(texts: TokenBatch) -> dict[str, Tensor]:
    width = int(texts.lengths.max())
    cut = TokenBatch(texts.ids[:, :width], texts.lengths)
    return {"input_ids": cut.ids, "attention_mask": attention_mask(cut), "token_type_ids": torch.zeros_like(cut.ids)}


class _HuggingFaceReader(nn.Module):
    """An encoder of transformers with an extractive reader's heads."""

    def __init__(self, encoder: nn.Module, reader: ExtractiveReader) -> None:
        super().__init__()
        self.encoder = encoder
        self.span, self.selection = (
            nn.Linear(head.in_features, head.out_features) for head in (reader.span, reader.selection)
        )
        self.span.load_state_dict(reader.span.state_dict())
        self.selection.load_state_dict(reader.selection.state_dict())

    def forward(self, **features: Tensor) -> SpanLogits:
        states = self.encoder(**features).last_hidden_state
        starts, ends = self.span(states).unbind(2)
        return SpanLogits(starts, ends, self.selection(states[:, 0])[:, 0])


def extractive(
    foreign: ForeignModel, folder: Path, batch: ExtractiveBatch, topology: ProcessTopology, *, micro_batch_size: int
) -> tuple[Side, Side]:
    """An extractive reader, against transformers' encoder under the same loss."""
    dual: DualEncoder = foreign.build(topology)
    reader = ExtractiveReader(foreign.shape.encoder, topology)
    reader.bert.load_state_dict(dual.tower_of("passage").bert.state_dict())
    other = _HuggingFaceReader(transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False), reader)

    def losses() -> Iterator[Tensor]:
        for rows in torch.arange(len(batch.is_real)).split(micro_batch_size):
            part = batch.questions(rows)
            passages = part.passages
            features = _features(passages.tokens) | {"token_type_ids": passages.segments}
            width = features["input_ids"].size(1)
            features["token_type_ids"] = features["token_type_ids"][:, :width]
            logits = other(**features)
            yield extractive_loss(
                logits, passages.is_text[:, :width], part.is_real, part.spans, part.num_questions
            ).loss

    step = ExtractiveStep(reader, ExtractiveStepConfig(micro_batch_size=micro_batch_size), topology, _SEED)
    return ours(reader, step, batch, topology), theirs(other, losses)


def fusion(
    shape: T5Config, batch: FusionBatch, topology: ProcessTopology, *, micro_batch_size: int
) -> tuple[Side, Side]:
    """A fusion reader, against transformers' T5 that reads the states of all texts, as FiD's code does."""
    torch.manual_seed(0)
    other = transformers.T5ForConditionalGeneration(transformers.T5Config(**t5_config_to_hf(shape)))
    model = T5(t5_config_from_hf(other.config.to_dict(), "the random T5"), topology)
    full = import_t5(other.state_dict(), model.config, "the random T5")
    fill_model(model, full.keys(), full.__getitem__, topology, source="the random T5")
    num_labels = int((batch.labels >= 0).sum())

    def losses() -> Iterator[Tensor]:
        for rows in torch.arange(len(batch.is_real)).split(micro_batch_size):
            part = batch.questions(rows)
            features = _features(part.texts)
            mask = features["attention_mask"]
            states = other.encoder(input_ids=features["input_ids"], attention_mask=mask).last_hidden_state
            labels = part.labels.masked_fill(part.labels < 0, -100)
            found = other(
                encoder_outputs=(states.view(len(rows), -1, states.size(2)),),
                attention_mask=mask.view(len(rows), -1),
                labels=labels,
            )
            yield found.loss * (labels >= 0).sum() / num_labels

    reader = FusionReader(model)
    step = FusionStep(reader, FusionStepConfig(micro_batch_size=micro_batch_size), topology, _SEED)
    return ours(reader, step, batch, topology), theirs(other, losses)
