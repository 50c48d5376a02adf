"""Dual encoders: questions and passages to vectors whose product is their relevance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from megatron_retrieval.config.checks import Bounds, Checked
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.encoder import Encoder, EncoderShape, first_states, mean_states
from megatron_retrieval.models.initialise import initialise_normal
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.types.tokens import TokenBatch, to_device

Pooling = Literal["cls", "mean", "last"]
#: as in BERT's norms
_NORM_EPSILON = 1e-12


@dataclass(kw_only=True, frozen=True)
class DualEncoderConfig(Checked):
    """How two texts become two vectors."""

    encoder: EncoderShape = field(default_factory=BertConfig)
    """The encoder of both towers."""
    pooling: Pooling = "cls"
    """A text's vector: the hidden state of [CLS], the mean over its tokens, or the state of its last token, which alone
    has seen all others in a causal language model."""
    biencoder_shared_query_context_model: bool = False
    """Questions and passages share one encoder."""
    biencoder_projection_dim: int = 0
    """Width of a linear layer after pooling; 0: none."""
    biencoder_projection_norm: bool = False
    """Normalise what the linear layer gives (LayerNorm), as ORQA and REALM do."""
    biencoder_projection_dropout: Annotated[float, Bounds(least=0, below=1)] = 0.0
    """Share of the normalised numbers that training drops (ORQA: 0.1)."""
    normalize_embeddings: bool = False
    """Scale vectors to length 1, so that scores are cosines."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder.is_causal and self.pooling == "cls":
            raise ConfigError(
                "--pooling cls: the first token of a causal language model sees no other; give --pooling last, or mean."
            )
        if self.biencoder_projection_norm and not self.biencoder_projection_dim:
            raise ConfigError("--biencoder-projection-norm follows a projection: give --biencoder-projection-dim.")
        if self.biencoder_projection_dropout and not self.biencoder_projection_norm:
            raise ConfigError("--biencoder-projection-dropout follows --biencoder-projection-norm: give it as well.")

    @property
    def dimension(self) -> int:
        """Width of the vectors."""
        return self.biencoder_projection_dim or self.encoder.hidden_size


class DualEncoder(nn.Module):
    """Two towers, or a shared one.

    Args:
        config: shape of the model.
        topology: parameters are sharded over its tensor-parallel group, on its device.
        dtype: of parameters and activations; vectors are always float32.
        seed: of the initial weights, which are equal at any tensor-parallel size.
    """

    def __init__(
        self,
        config: DualEncoderConfig,
        topology: ProcessTopology,
        dtype: torch.dtype = torch.float32,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config, self._frozen, self._size = config, tuple[str, ...](), config.dimension
        names = ["shared"] if config.biencoder_shared_query_context_model else ["query", "passage"]
        self.towers = nn.ModuleDict({name: Tower(config, topology, dtype) for name in names})
        initialise_normal(self, topology, std=config.encoder.init_method_std, seed=seed)
        self.to(topology.device)

    @property
    def dimension(self) -> int:
        """Width of the vectors."""
        return self._size

    def cut(self, size: int | None) -> None:
        """Keep the first `size` numbers of every vector, scaled to length 1 again where vectors are; None: all of them
        (Kusupati et al. 2022, arXiv 2205.13147).

        Raises:
            ConfigError: vectors have fewer.
        """
        if size is not None and size > self.config.dimension:
            raise ConfigError(f"--embedding-size {size}: the encoder's vectors have {self.config.dimension} numbers.")
        self._size = size or self.config.dimension

    def freeze_passages(self) -> None:
        """Train the encoder of questions alone; that of passages has no gradient and no dropout.

        Raises:
            ConfigError: they are one.
        """
        if "passage" not in self.towers:
            raise ConfigError(
                "questions and passages share one encoder: --freeze-passage-encoder needs "
                "--no-biencoder-shared-query-context-model, which trains two that begin as copies of it."
            )
        self.towers["passage"].requires_grad_(False)
        self._frozen = ("passage",)

    def train(self, mode: bool = True) -> DualEncoder:
        """As nn.Module's; frozen towers stay in evaluation mode."""
        super().train(mode)
        for name in self._frozen:
            self.towers[name].eval()
        return self

    def forward(self, queries: TokenBatch, passages: TokenBatch) -> tuple[Tensor, Tensor]:
        """The vectors of both: [B, D] and [P, D], float32."""
        return self.encode_queries(queries), self.encode_passages(passages)

    def encode_queries(self, queries: TokenBatch) -> Tensor:
        """[B, T] -> [B, D] float32."""
        return self._encode("query", queries)

    def encode_passages(self, passages: TokenBatch) -> Tensor:
        """[P, T] -> [P, D] float32."""
        return self._encode("passage", passages)

    def _encode(self, name: Literal["query", "passage"], batch: TokenBatch) -> Tensor:
        vectors: Tensor = self.tower_of(name)(batch)
        if self._size == self.config.dimension:
            return vectors
        vectors = vectors[:, : self._size]
        return F.normalize(vectors, dim=1) if self.config.normalize_embeddings else vectors.contiguous()

    def tower_of(self, name: Literal["query", "passage"]) -> nn.Module:
        """What encodes questions or passages; both, where they share it."""
        return self.towers[name if name in self.towers else "shared"]


class Tower(nn.Module):
    """One encoder with pooling and projection: [B, T] -> [B, D] float32. A norm behind the projection, with dropout, is
    ORQA's (Lee et al. 2019, arXiv 1906.00300, section 5.1)."""

    def __init__(self, config: DualEncoderConfig, topology: ProcessTopology, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        # of whatever family; the name is that of its parameters in checkpoints
        self.bert = config.encoder.build_encoder(topology, dtype)
        # small, hence replicated on all tensor-parallel ranks
        self.projection = (
            nn.Linear(config.encoder.hidden_size, config.biencoder_projection_dim, dtype=dtype)
            if config.biencoder_projection_dim
            else None
        )
        if self.projection is not None:
            nn.init.zeros_(self.projection.bias)
        self.projection_norm: nn.Module | None = None
        if config.biencoder_projection_norm:
            self.projection_norm = nn.LayerNorm(config.dimension, _NORM_EPSILON, dtype=dtype)

    def forward(self, batch: TokenBatch) -> Tensor:
        vectors = _POOLINGS[self.config.pooling](self.bert, batch)
        if self.projection is not None:
            vectors = self.projection(vectors.to(self.projection.weight.dtype))
            if self.projection_norm is not None:
                vectors = self.projection_norm(vectors)
                vectors = F.dropout(vectors, self.config.biencoder_projection_dropout, self.training)
            vectors = vectors.float()
        return F.normalize(vectors, dim=1) if self.config.normalize_embeddings else vectors


def _first(encoder: Encoder, batch: TokenBatch) -> Tensor:
    """[B, T] -> [B, D], the first token's state."""
    return first_states(encoder, batch).float()


def _last(encoder: Encoder, batch: TokenBatch) -> Tensor:
    """[B, T] -> [B, D], the last real token's state."""
    states = encoder(batch)
    columns = to_device(batch.lengths - 1, states.device)
    return states[torch.arange(len(states), device=states.device), columns].float()


_POOLINGS: dict[Pooling, Callable[[Encoder, TokenBatch], Tensor]] = {"cls": _first, "mean": mean_states, "last": _last}
