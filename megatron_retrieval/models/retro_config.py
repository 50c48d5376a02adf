"""Shape of a RETRO: a causal language model that reads its neighbours (Borgeaud et al. 2022, arXiv 2112.04426)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from megatron_retrieval.config.checks import Checked, Fraction, PositiveInt
from megatron_retrieval.config.marks import LATER
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.causal_config import CausalShape

RelativePositions = Literal["exact", "buckets", "none"]


@dataclass(kw_only=True, frozen=True)
class RetroShape(CausalShape, Checked):
    """Shape and regularisation of a causal language model that reads the neighbours of its chunks."""

    retro_chunk_length: PositiveInt = 64
    """Tokens of a chunk, for which neighbours are retrieved; that of the chunk store."""
    retro_num_retrieved_chunks: PositiveInt = 2
    """Chunks that a neighbour consists of: the one that was found, and those behind it in its document."""
    retro_cross_attention_layers: tuple[int, ...] = ()
    """Layers that read neighbours, counted from 1; default: every third from the 6th, in models of fewer than 12 layers
    from half of their layers."""
    retro_encoder_num_layers: PositiveInt = 2
    """Layers of the encoder of neighbours."""
    retro_encoder_cross_attention_layers: tuple[int, ...] = (1,)
    """Layers of that encoder that read the chunk which the neighbours were found for, counted from 1."""
    retro_encoder_hidden_size: PositiveInt | None = None
    """Width of the encoder of neighbours, which then has word embeddings of its own; default: that of the model, whose
    embeddings it shares."""
    retro_encoder_hidden_dropout: Fraction = 0.1
    """Share of hidden activations of that encoder dropped in training."""
    retro_encoder_attention_dropout: Fraction = 0.1
    """Share of attention weights of that encoder dropped in training."""
    retro_relative_positions: RelativePositions = "exact"
    """What the attention between chunks and neighbours knows of distances: a number for each, or for each of 32 ranges
    of them, or nothing."""
    retro_cca_init: Literal["normal", "zero", "self-attention"] = "zero"
    """First weights of the attention to neighbours: random; random with outputs of zero; or those of the layer's own
    self-attention behind a gate that is closed at first, with an encoder that begins as the model's first layers. With
    the last two a model begins as it was without neighbours."""

    retro_null_key: bool = field(default=False, metadata=LATER)
    """Layers that read neighbours have a learned key and value beside theirs, which tokens may read in their place, and
    do where nothing was found; default: nothing is read there."""

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        super().__post_init__()
        for flag, layers, num_layers in (
            ("--retro-cross-attention-layers", self.reading_layers, self.num_layers),
            (
                "--retro-encoder-cross-attention-layers",
                self.retro_encoder_cross_attention_layers,
                self.retro_encoder_num_layers,
            ),
        ):
            if not set(layers) <= set(range(1, num_layers + 1)):
                raise ConfigError(f"{flag} {' '.join(map(str, layers))}: the layers are 1 to {num_layers}.")
        self._require_encoder()

    def _require_encoder(self) -> None:
        size, copies = self.encoder_size, self.retro_cca_init == "self-attention"
        if size % self.head_width:
            raise ConfigError(f"--retro-encoder-hidden-size {size}: heads of {self.head_width} units do not divide it.")
        if copies and size != self.hidden_size:
            raise ConfigError("--retro-cca-init self-attention: leave out --retro-encoder-hidden-size.")
        if copies and (self.add_qkv_bias or self.qk_layernorm):
            raise ConfigError(
                "--retro-cca-init self-attention: there is no copy of biases and norms of queries and keys."
            )
        if copies and self.retro_encoder_num_layers > self.num_layers:
            raise ConfigError(
                f"--retro-cca-init self-attention: --retro-encoder-num-layers {self.retro_encoder_num_layers} are more "
                f"than the model's {self.num_layers} layers."
            )

    @property
    def reading_layers(self) -> tuple[int, ...]:
        """Layers that read neighbours, counted from 1, ascending."""
        if self.retro_cross_attention_layers:
            return tuple(sorted(set(self.retro_cross_attention_layers)))
        first = 6 if self.num_layers >= 12 else -(-self.num_layers // 2)
        return tuple(range(first, self.num_layers + 1, 3))

    @property
    def neighbour_length(self) -> int:
        """Tokens of a neighbour."""
        return self.retro_chunk_length * self.retro_num_retrieved_chunks

    @property
    def encoder_size(self) -> int:
        """Width of the encoder of neighbours."""
        return self.retro_encoder_hidden_size or self.hidden_size

    @property
    def encoder_shape(self) -> CausalShape:
        """The shape of that encoder's layers; where it has a width of its own, as deep heads as the model's."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(CausalShape)}
        own: dict[str, object] = {
            "num_layers": self.retro_encoder_num_layers,
            "hidden_dropout": self.retro_encoder_hidden_dropout,
            "attention_dropout": self.retro_encoder_attention_dropout,
        }
        if self.encoder_size != self.hidden_size:
            own |= {
                "hidden_size": self.encoder_size,
                "kv_channels": self.head_width,
                "num_attention_heads": self.encoder_size // self.head_width,
                "num_query_groups": None,
                "ffn_hidden_size": self.ffn_hidden_size * self.encoder_size // self.hidden_size,
            }
        return CausalShape(**{**fields, **own})
