"""Models, steps and batches of `gpu_checks.py`: small ones to compare, and those of the papers to time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from embedding_rate import operations
from torch import Tensor, nn

from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.dual_encoder import DualEncoder, DualEncoderConfig
from megatron_retrieval.models.extractive_reader import ExtractiveReader
from megatron_retrieval.models.fusion_reader import FusionEncodeConfig, FusionReader
from megatron_retrieval.models.masked_lm import MaskedLanguageModel
from megatron_retrieval.models.t5 import T5
from megatron_retrieval.models.t5_config import T5Config
from megatron_retrieval.parallel.data_parallel import DataParallelModel
from megatron_retrieval.parallel.optimizer import Optimizer, OptimizerConfig
from megatron_retrieval.parallel.precision import PrecisionConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.tiny import contrastive_share, random_texts, tiny_dual_encoder_config
from megatron_retrieval.training.steps.contrastive_step import ContrastiveConfig, ContrastiveStep
from megatron_retrieval.training.steps.end_to_end_objectives import OBJECTIVES
from megatron_retrieval.training.steps.extractive_step import ExtractiveStep, ExtractiveStepConfig
from megatron_retrieval.training.steps.fusion_step import FusionStep, FusionStepConfig
from megatron_retrieval.training.steps.masked_lm_step import MaskedLMConfig, MaskedLMStep
from megatron_retrieval.training.steps.objective import ObjectiveConfig
from megatron_retrieval.training.steps.readings import FusionReading, FusionReadings
from megatron_retrieval.training.steps.span_corruption_step import SpanCorruptionConfig, SpanCorruptionStep
from megatron_retrieval.training.trainer import Trainer
from megatron_retrieval.types.contrastive import ContrastiveBatch, SameGroup
from megatron_retrieval.types.extractive import ExtractiveBatch, ExtractivePassages
from megatron_retrieval.types.fusion import FusionBatch
from megatron_retrieval.types.metrics import Mean, Metrics
from megatron_retrieval.types.pretraining import CorruptedBatch, MaskedBatch
from megatron_retrieval.types.tokens import TokenBatch

#: a model, its step and a batch
Paradigm = tuple[nn.Module, Any, Any]

_BERT: BertConfig = replace(tiny_dual_encoder_config().encoder, hidden_size=128, init_method_std=0.05)
_T5 = T5Config(
    num_layers=2,
    hidden_size=128,
    num_attention_heads=4,
    ffn_hidden_size=256,
    vocab_size=100,
    hidden_dropout=0.0,
    attention_dropout=0.0,
)
_NUM_QUESTIONS, _NUM_TEXTS, _NUM_LABELS = 4, 3, 6


def _contrastive(topology: ProcessTopology, dtype: torch.dtype) -> Paradigm:
    model = DualEncoder(DualEncoderConfig(encoder=_BERT), topology, dtype, seed=3)
    return model, ContrastiveStep(model, ContrastiveConfig(), topology, seed=3), contrastive_share(9, 1, 7)


def _masked_lm(topology: ProcessTopology, dtype: torch.dtype) -> Paradigm:
    texts = random_texts(9, 14, seed=5)
    labels = texts.ids.masked_fill(~texts.is_real() | (texts.ids % 4 > 0), -1)
    model = MaskedLanguageModel(_BERT, topology, dtype, seed=3)
    return model, MaskedLMStep(model, MaskedLMConfig(), topology, seed=3), MaskedBatch(texts, labels)


def _fusion_batch(num_questions: int, num_texts: int, texts: TokenBatch, num_labels: int) -> FusionBatch:
    random = torch.Generator().manual_seed(6)
    labels = torch.randint(2, 60, (num_questions, num_labels), generator=random)
    labels[0, num_labels // 2 :] = -1
    is_real = torch.ones(num_questions, num_texts, dtype=torch.bool)
    is_real[-1, 2:] = num_questions == 1
    return FusionBatch(texts, is_real, labels)


def _small_fusion_batch() -> FusionBatch:
    return _fusion_batch(_NUM_QUESTIONS, _NUM_TEXTS, random_texts(_NUM_QUESTIONS * _NUM_TEXTS, 21, seed=5), _NUM_LABELS)


def _t5(topology: ProcessTopology, dtype: torch.dtype) -> Paradigm:
    batch, model = _small_fusion_batch(), T5(_T5, topology, dtype, seed=3)
    texts = batch.texts.rows(torch.arange(_NUM_QUESTIONS))
    step = SpanCorruptionStep(model, SpanCorruptionConfig(), topology, seed=3)
    return model, step, CorruptedBatch(texts, batch.labels)


def _fusion(topology: ProcessTopology, dtype: torch.dtype) -> Paradigm:
    reader = FusionReader(T5(_T5, topology, dtype, seed=3))
    return reader, FusionStep(reader, FusionStepConfig(), topology, seed=3), _small_fusion_batch()


def _extractive(topology: ProcessTopology, dtype: torch.dtype) -> Paradigm:
    texts = random_texts(12, 14, seed=5)
    passages = ExtractivePassages(
        TokenBatch(texts.ids, texts.lengths.clamp(min=8)), torch.full((12,), 2), torch.full((12,), 4)
    )
    batch = ExtractiveBatch(passages, torch.ones(4, 3, dtype=torch.bool), torch.tensor([[[4, 5]]] * 4), 4)
    model = ExtractiveReader(_BERT, topology, dtype, seed=3)
    return model, ExtractiveStep(model, ExtractiveStepConfig(), topology, seed=3), batch


class _ObjectiveStep(nn.Module):
    """An end-to-end objective over scores that are given."""

    def __init__(self, name: str, topology: ProcessTopology, dtype: torch.dtype) -> None:
        super().__init__()
        self._objective, self._device = OBJECTIVES[name], topology.device
        self.reader = FusionReader(T5(_T5, topology, dtype, seed=3))
        random = torch.Generator().manual_seed(2)
        self.scores = nn.Parameter(torch.randn(_NUM_QUESTIONS, _NUM_TEXTS, generator=random).to(topology.device))
        self.score_weight = nn.Parameter(torch.ones(1, device=topology.device))

    def forward_backward(self, batch: FusionBatch, iteration: int, loss_scale: float) -> Metrics:
        """See StepModule."""
        reading = FusionReading(self.reader, batch.texts, batch.is_real, batch.labels, self._device)
        settings = (self.scores, self.score_weight, _NUM_QUESTIONS, ObjectiveConfig())
        output = self._objective.loss(reading, *settings)
        output.loss.backward()
        return {"loss": Mean(output.loss.detach(), _NUM_QUESTIONS)}


def _objective(topology: ProcessTopology, dtype: torch.dtype, *, name: str) -> Paradigm:
    step = _ObjectiveStep(name, topology, dtype)
    return step, step, _small_fusion_batch()


SMALL: Mapping[str, Callable[[ProcessTopology, torch.dtype], Paradigm]] = {
    "contrastive": _contrastive,
    "masked LM": _masked_lm,
    "T5": _t5,
    "fusion": _fusion,
    "extractive": _extractive,
    **{name: partial(_objective, name=name) for name, row in OBJECTIVES.items() if row.needs <= FusionReadings.passes},
}


def numbers(model: nn.Module, step: Any, batch: Any, device: torch.device) -> dict[str, Tensor]:
    """Vectors or logits, the loss, and the gradient of all parameters, each as one vector on the CPU, in float64."""
    with torch.no_grad():
        output = _output(model.eval(), step, batch, device)
    model.train()
    loss = step.forward_backward(batch, 0, 1.0)["loss"].part
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    gradient = torch.cat([gradient.flatten().double() for gradient in gradients])
    found = {"output": output, "loss": loss, "gradient": gradient}
    return {name: values.detach().cpu().double().flatten() for name, values in found.items()}


def _output(model: nn.Module, step: Any, batch: Any, device: torch.device) -> Tensor:
    """What the loss is made of."""
    if isinstance(model, DualEncoder):
        return model.encode_passages(batch.passages.to(device))
    if isinstance(model, ExtractiveReader):
        logits = model(batch.passages.to(device))
        return torch.cat([logits.starts[:, :8], logits.ends[:, :8], logits.selection[:, None]], 1)
    if isinstance(step, _ObjectiveStep):
        return step.reader.score_tokens(batch.texts, batch.is_real, batch.labels)
    places = (batch.labels.flatten() >= 0).nonzero()[:, 0]
    logits = step.logits(batch, places.to(device))
    return logits[:, : min(_BERT.vocab_size, _T5.vocab_size)]


@dataclass(frozen=True)
class Timed:
    """What is timed.

    Attributes:
        operations: of one step without what is computed twice: three times those of the forward pass.
    """

    paradigm: Paradigm
    operations: float


def trainer_of(run: Timed, topology: ProcessTopology) -> tuple[Trainer, Any]:
    """A trainer in bf16, and the batch."""
    model, step, batch = run.paradigm
    parallel = DataParallelModel(model, topology)
    optimizer = Optimizer(parallel, OptimizerConfig(), PrecisionConfig(bf16=True), topology)
    trainer = Trainer(
        model=parallel,
        step=step,
        optimizer=optimizer,
        batches=lambda first: iter([batch]),
        learning_rate=lambda iteration: 1e-5,
        train_iters=1,
        topology=topology,
    )
    return trainer, batch


def _full_texts(num_texts: int, num_tokens: int, vocab_size: int) -> TokenBatch:
    ids = torch.randint(5, vocab_size, (num_texts, num_tokens), generator=torch.Generator().manual_seed(1))
    return TokenBatch(ids, torch.full((num_texts,), num_tokens))


def dpr(topology: ProcessTopology, *, tiny: bool) -> Timed:
    """DPR's batch: 128 questions of 32 tokens, 256 passages of 256, gradient caching in chunks of 128."""
    shape = replace(_BERT, hidden_size=32) if tiny else BertConfig()
    num_questions, question_tokens, passage_tokens = (4, 8, 16) if tiny else (128, 32, 256)
    model = DualEncoder(DualEncoderConfig(encoder=shape), topology, torch.bfloat16, seed=0)
    groups = torch.arange(num_questions)
    batch = ContrastiveBatch(
        _full_texts(num_questions, question_tokens, shape.vocab_size),
        _full_texts(2 * num_questions, passage_tokens, shape.vocab_size),
        torch.ones(num_questions, dtype=torch.bool),
        SameGroup(groups, groups.repeat_interleave(2), 2 * groups),
        num_questions,
    )
    step = ContrastiveStep(model, ContrastiveConfig(micro_batch_size=2 if tiny else 128), topology, seed=0)
    texts = num_questions * operations(shape, question_tokens) + 2 * num_questions * operations(shape, passage_tokens)
    return Timed((model, step, batch), 3.0 * texts)


def fusion(topology: ProcessTopology, *, tiny: bool) -> Timed:
    """Four questions with 50 passages of 200 tokens each, answers of 16 tokens."""
    shape = _T5 if tiny else T5Config()
    num_questions, num_texts, num_tokens, num_labels = (2, 3, 16, 4) if tiny else (4, 50, 200, 16)
    texts = _full_texts(num_questions * num_texts, num_tokens, shape.vocab_size)
    batch = _fusion_batch(num_questions, num_texts, texts, num_labels)
    reader = FusionReader(
        T5(shape, topology, torch.bfloat16, seed=0), FusionEncodeConfig(encode_batch_size=8 if tiny else 50)
    )
    step = FusionStep(reader, FusionStepConfig(), topology, seed=0)
    return Timed(
        (reader, step, batch), 3.0 * num_questions * _reading_operations(shape, num_texts, num_tokens, num_labels)
    )


def _reading_operations(shape: T5Config, num_texts: int, num_tokens: int, num_labels: int) -> float:
    """Multiplications and additions of the matrix products with which a question is read and its answer written."""
    width, heads, inner = shape.hidden_size, shape.num_attention_heads * shape.head_width, shape.ffn_hidden_size
    feed_forward = (3 if shape.gated_linear_unit else 2) * inner
    read = num_texts * num_tokens
    encoder = shape.num_layers * (2 * read * width * (4 * heads + feed_forward) + 4 * read * num_tokens * heads)
    own = 2 * num_labels * width * (6 * heads + feed_forward) + 4 * num_labels * (num_labels + read) * heads
    decoder = shape.num_decoder_layers * (own + 2 * read * width * 2 * heads)
    return encoder + decoder + 2 * num_labels * width * shape.vocab_size
