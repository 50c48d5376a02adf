"""One of each paradigm: a model, its step, and this rank's share of a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import test_causal_reader as causal
import test_end_to_end_extractive as extractive_setting
import test_end_to_end_step as fusion_setting
import test_extractive_step as extractive
import test_fusion_reader as fusion
import test_masked_lm_step as masked
import test_orqa_step as orqa_setting
import test_realm_step as realm_setting
import test_retro_step as retro
import torch
from torch import nn

from megatron_retrieval.data.layouts.late import LateFormatConfig
from megatron_retrieval.models.adapters import LoraConfig, adapt
from megatron_retrieval.models.causal_lm import CausalLM
from megatron_retrieval.models.causal_reader import CausalReader
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.models.extractive_reader import ExtractiveReader
from megatron_retrieval.models.late_interaction import LateInteraction, LateInteractionConfig
from megatron_retrieval.models.masked_lm import MaskedLanguageModel
from megatron_retrieval.models.modernbert import ModernBertConfig
from megatron_retrieval.models.retro import Retro
from megatron_retrieval.models.t5 import T5
from megatron_retrieval.parallel.precision import PrecisionConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.late_encoder import LateEncoder
from megatron_retrieval.testing.tiny import (
    contrastive_share,
    tiny_dual_encoder_config,
)
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer
from megatron_retrieval.training.steps.causal_step import CausalStep, CausalStepConfig
from megatron_retrieval.training.steps.contrastive_step import ContrastiveConfig, ContrastiveStep
from megatron_retrieval.training.steps.end_to_end_step import EndToEndStep, EndToEndStepConfig
from megatron_retrieval.training.steps.extractive_step import ExtractiveStep, ExtractiveStepConfig
from megatron_retrieval.training.steps.fusion_step import FusionStep, FusionStepConfig
from megatron_retrieval.training.steps.masked_lm_step import MaskedLMConfig, MaskedLMStep
from megatron_retrieval.training.steps.retro_step import RetroStep, RetroStepConfig
from megatron_retrieval.training.steps.span_corruption_step import SpanCorruptionConfig, SpanCorruptionStep
from megatron_retrieval.training.steps.step import StepModule
from megatron_retrieval.types.causal import continued
from megatron_retrieval.types.pretraining import CorruptedBatch

MODERNBERT = ModernBertConfig(
    num_layers=3,
    hidden_size=32,
    num_attention_heads=4,
    ffn_hidden_size=48,
    max_position_embeddings=16,
    vocab_size=64,
    local_attention=6,
    init_method_std=0.2,
)

#: a model, its step, and this rank's share of a batch
Paradigm = tuple[nn.Module, StepModule, Any]


def _contrastive(topology: ProcessTopology, dtype: torch.dtype) -> Paradigm:
    model = DualEncoder(tiny_dual_encoder_config(), topology, dtype, seed=3)
    step = ContrastiveStep(model, ContrastiveConfig(micro_batch_size=4), topology, seed=3)
    return model, step, contrastive_share(7, 1, 7, topology.dp_rank, topology.dp_size)


def _late_interaction(topology: ProcessTopology, folder: str) -> Paradigm:
    """Over a ModernBERT."""
    model = LateInteraction(LateInteractionConfig(encoder=MODERNBERT, colbert_dim=8), topology, seed=3)
    layout = LateFormatConfig(query_seq_length=10, retriever_seq_length=14)
    encoder = LateEncoder(model, layout, WordPieceTokenizer(f"{folder}/vocab.txt"))
    step = ContrastiveStep(encoder, ContrastiveConfig(micro_batch_size=4), topology, seed=3)
    return model, step, contrastive_share(7, 1, 7, topology.dp_rank, topology.dp_size)


def _adapters(topology: ProcessTopology) -> Paradigm:
    """A row is as wide as a block of four-bit weights."""
    config = tiny_dual_encoder_config()
    config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, hidden_size=64))
    model = DualEncoder(config, topology, seed=3)
    adapt(model, LoraConfig(lora_rank=2, lora_base_dtype="nf4"), topology, seed=3)
    step = ContrastiveStep(model, ContrastiveConfig(micro_batch_size=4), topology, seed=3)
    return model, step, contrastive_share(7, 1, 7, topology.dp_rank, topology.dp_size)


def _masked_lm(topology: ProcessTopology) -> Paradigm:
    model = MaskedLanguageModel(masked.SHAPE, topology, seed=3)
    step = MaskedLMStep(model, MaskedLMConfig(micro_batch_size=4), topology, seed=3)
    return model, step, masked._share(topology)


def _fusion_share(topology: ProcessTopology) -> Any:
    slots = -(-fusion.NUM_QUESTIONS // topology.dp_size)
    own = torch.arange(topology.dp_rank * slots, (topology.dp_rank + 1) * slots)
    return fusion._whole_batch(slots * topology.dp_size).questions(own)


def _span_corruption(topology: ProcessTopology) -> Paradigm:
    model = T5(fusion.SHAPES["t5"], topology, seed=3)
    step = SpanCorruptionStep(model, SpanCorruptionConfig(micro_batch_size=4), topology, seed=3)
    share = _fusion_share(topology)
    texts = share.texts.rows(torch.arange(len(share.labels)) * fusion.NUM_TEXTS)
    return model, step, CorruptedBatch(texts, share.labels)


def _fusion(topology: ProcessTopology, form: str) -> Paradigm:
    reader = fusion._reader(topology, fusion.SHAPES["t5"], form=form)
    return reader, FusionStep(reader, FusionStepConfig(), topology, seed=3), _fusion_share(topology)


def _extractive(topology: ProcessTopology) -> Paradigm:
    model = ExtractiveReader(extractive.SHAPE, topology, seed=3)
    step = ExtractiveStep(model, ExtractiveStepConfig(), topology, seed=3)
    return model, step, extractive._share(topology)


def _causal(topology: ProcessTopology, dtype: torch.dtype) -> Paradigm:
    reader = CausalReader(CausalLM(causal.SHAPE, topology, dtype, seed=3), end_id=causal.END, batch_size=2)
    step = CausalStep(reader, CausalStepConfig(micro_batch_size=2), topology, seed=3)
    prompts, _, labels = causal._prompts()
    batch = continued(prompts, labels.repeat_interleave(causal.K, 0))
    return reader, step, batch.rows(torch.arange(len(prompts)).chunk(topology.dp_size)[topology.dp_rank])


def _retro(topology: ProcessTopology, dtype: torch.dtype) -> Paradigm:
    model = Retro(retro.SHAPE, topology, dtype, seed=3)
    step = RetroStep(model, RetroStepConfig(micro_batch_size=2), topology, seed=3)
    return model, step, retro._texts().rows(torch.arange(len(retro.LENGTHS)).chunk(topology.dp_size)[topology.dp_rank])


def _end_to_end(topology: ProcessTopology, folder: str, objective: str, reads: str) -> Paradigm:
    setting: Any = (
        fusion_setting.FusionSetting(topology, f"{folder}/writing", 4)
        if reads == "writing"
        else extractive_setting.ExtractiveSetting(topology, f"{folder}/extractive")
    )
    config = EndToEndStepConfig(objective=objective, micro_batch_size=2, passage_batch_size=4)
    step = EndToEndStep(setting.model, setting.readings, setting.search, config, topology, seed=3)
    return setting.model, step, setting.batch()


def _realm(topology: ProcessTopology, folder: str) -> Paradigm:
    setting = realm_setting.RealmSetting(topology, f"{folder}/writing")
    config = EndToEndStepConfig(objective="realm", micro_batch_size=2, passage_batch_size=4)
    step = EndToEndStep(setting.model, setting.readings, setting.search, config, topology, seed=3)
    return setting.model, step, setting.batch()


def _orqa(topology: ProcessTopology, folder: str) -> Paradigm:
    setting = orqa_setting.SpanSetting(topology, f"{folder}/extractive")
    config = EndToEndStepConfig(objective="orqa", early_loss=True, micro_batch_size=2)
    step = EndToEndStep(setting.model, setting.readings, setting.search, config, topology, seed=3)
    return setting.model, step, setting.batch()


def paradigms(folder: str) -> dict[str, tuple[Callable[[ProcessTopology], Paradigm], PrecisionConfig]]:
    fp32, bf16, fp16 = PrecisionConfig(), PrecisionConfig(bf16=True), PrecisionConfig(fp16=True)
    return {
        "contrastive": (lambda topology: _contrastive(topology, torch.float32), fp32),
        "contrastive, bf16": (lambda topology: _contrastive(topology, torch.bfloat16), bf16),
        "contrastive, QLoRA": (_adapters, fp32),
        "contrastive, fp16": (lambda topology: _contrastive(topology, torch.float16), fp16),
        "late interaction": (lambda topology: _late_interaction(topology, folder), fp32),
        "masked LM": (_masked_lm, fp32),
        "T5": (_span_corruption, fp32),
        "fusion, mask": (lambda topology: _fusion(topology, "mask"), fp32),
        "fusion, feature": (lambda topology: _fusion(topology, "feature"), fp32),
        "extractive": (_extractive, fp32),
        "causal": (lambda topology: _causal(topology, torch.float32), fp32),
        "causal, bf16": (lambda topology: _causal(topology, torch.bfloat16), bf16),
        "retro, bf16": (lambda topology: _retro(topology, torch.bfloat16), bf16),
        **{
            name: (lambda topology, name=name: _end_to_end(topology, folder, name, "writing"), fp32)
            for name in fusion_setting.WRITERS
        },
        "realm": (lambda topology: _realm(topology, folder), fp32),
        "orqa": (lambda topology: _orqa(topology, folder), fp32),
        "extractive end to end": (
            lambda topology: _end_to_end(topology, folder, "individual-topk", "extractive"),
            fp32,
        ),
    }
