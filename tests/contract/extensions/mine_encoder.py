"""A family of encoders from outside the package: tokens that see the mean of their text, through one linear layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from megatron_retrieval.checkpoint.huggingface.files import check_settings
from megatron_retrieval.checkpoint.huggingface.formats import FORMATS
from megatron_retrieval.checkpoint.huggingface.towers import body_format
from megatron_retrieval.checkpoint.huggingface.weight_table import WeightEntry
from megatron_retrieval.checkpoint.kinds.encoder_families import ENCODER_FAMILIES, EncoderFamily
from megatron_retrieval.models.encoder import EncoderShape
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.types.tokens import TokenBatch

CONFIG_KEYS = {"hidden_size": "width", "vocab_size": "vocab_size", "init_method_std": "std", "mean_weight": "mean"}
NAMES = {"words.weight": "embed.weight", "dense.weight": "out.weight", "dense.bias": "out.bias"}


@dataclass(kw_only=True, frozen=True)
class MineShape(EncoderShape):
    """Shape of such an encoder."""

    mean_weight: float = 1.0
    """Weight of the text's mean in the state of each of its tokens."""

    @property
    def max_positions(self) -> None:
        """See EncoderShape: there are no positions."""
        return None

    def build_encoder(self, topology: ProcessTopology, dtype: torch.dtype = torch.float32) -> MineEncoder:
        """See EncoderShape; small, hence whole on every tensor-parallel rank."""
        return MineEncoder(self, dtype)


class MineEncoder(nn.Module):
    """See `models.encoder.Encoder`."""

    def __init__(self, shape: MineShape, dtype: torch.dtype) -> None:
        super().__init__()
        self._mean_weight = shape.mean_weight
        self.words = nn.Embedding(shape.vocab_size, shape.hidden_size, dtype=dtype)
        self.dense = nn.Linear(shape.hidden_size, shape.hidden_size, dtype=dtype)
        nn.init.zeros_(self.dense.bias)

    def forward(self, batch: TokenBatch, segments: Tensor | None = None) -> Tensor:
        """[B, T] ids -> [B, T, D]."""
        states = self.words(batch.ids)
        is_real = torch.arange(batch.ids.size(1), device=states.device) < batch.lengths[:, None]
        mean = (states * is_real[:, :, None]).sum(1, keepdim=True) / batch.lengths[:, None, None]
        transformed: Tensor = self.dense(states + self._mean_weight * mean)
        return transformed.tanh()


def _from_huggingface(settings: Mapping[str, Any], source: Path) -> MineShape:
    check_settings(settings, source, "such an encoder", required={"model_type": "mine"}, needed=CONFIG_KEYS.values())
    return MineShape(**{ours: settings[theirs] for ours, theirs in CONFIG_KEYS.items()})


def _to_huggingface(shape: MineShape) -> dict[str, Any]:
    settings = {theirs: getattr(shape, ours) for ours, theirs in CONFIG_KEYS.items()}
    return {**settings, "model_type": "mine", "architectures": ["MineModel"]}


MINE = ENCODER_FAMILIES.add(
    EncoderFamily(
        name="mine",
        about="tokens that see the mean of their text",
        shape=MineShape,
        vocabulary="WordPiece",
        model_type="mine",
        from_huggingface=_from_huggingface,
        to_huggingface=_to_huggingface,
        table=lambda _: [WeightEntry(ours, (theirs,)) for ours, theirs in NAMES.items()],
        current_names=dict,
    )
)
FORMATS.add(body_format("mine", "MineModel; a dual encoder", MINE, ("dual-encoder",)))
