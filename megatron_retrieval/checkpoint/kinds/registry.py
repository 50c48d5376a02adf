"""All kinds of models by the names that manifests give them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from megatron_retrieval.checkpoint.kinds.causal_lm import CAUSAL_LM, CAUSAL_READER
from megatron_retrieval.checkpoint.kinds.cross_encoder import CROSS_ENCODER
from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.checkpoint.kinds.extractive_reader import EXTRACTIVE_READER, SPAN_READER
from megatron_retrieval.checkpoint.kinds.fusion_reader import FUSION_READER
from megatron_retrieval.checkpoint.kinds.kind import AnyDescription, ModelKind, require_kind
from megatron_retrieval.checkpoint.kinds.late_interaction import LATE_INTERACTION
from megatron_retrieval.checkpoint.kinds.masked_lm import MASKED_LM
from megatron_retrieval.checkpoint.kinds.retro import RETRO, RETRO_READER
from megatron_retrieval.checkpoint.kinds.t5 import T5_KIND
from megatron_retrieval.checkpoint.store.folders import resolve_checkpoint
from megatron_retrieval.utils.registry import Registry

MODEL_KINDS: Registry[ModelKind[Any, Any, Any]] = Registry("kind of model")
for _kind in (
    DUAL_ENCODER,
    CROSS_ENCODER,
    LATE_INTERACTION,
    MASKED_LM,
    T5_KIND,
    CAUSAL_LM,
    RETRO,
    EXTRACTIVE_READER,
    SPAN_READER,
    FUSION_READER,
    CAUSAL_READER,
    RETRO_READER,
):
    MODEL_KINDS.add(_kind)


def describe(path: str | Path, kinds: Collection[str]) -> AnyDescription:
    """Read what a checkpoint of one of these kinds says of itself, without its weights.

    Raises:
        CheckpointError: no checkpoint here, one of another kind, or one without its vocabulary.
    """
    folder = resolve_checkpoint(path)
    return MODEL_KINDS[require_kind(folder, kinds).kind].describe(folder)
