"""Retriever and reader as one model (Sachan et al. 2021, arXiv 2101.00408, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.dual_encoder import DualEncoder


@dataclass(kw_only=True, frozen=True)
class FreezeConfig:
    """Parts that are not trained; frozen encoders run without dropout."""

    freeze_query_encoder: bool = False
    """Do not train the encoder of questions."""
    freeze_passage_encoder: bool = False
    """Do not train the encoder of passages: the index never gets stale, and training reads passages' vectors from it
    instead of encoding passages again."""
    freeze_reader: bool = False
    """Do not train the reader; what it makes of a passage that is read for itself is remembered."""

    def __post_init__(self) -> None:
        if self.freeze_query_encoder and self.freeze_passage_encoder and self.freeze_reader:
            raise ConfigError("--freeze-query-encoder --freeze-passage-encoder --freeze-reader leave nothing to train.")


class EndToEndModel(nn.Module):
    """Holds all parameters of end-to-end training; steps call the forward passes of the parts.

    Attributes:
        score_weight: [1] float32, lambda: factor of log p(z | q) in the decoder's cross-attention (eq. 7).

    Args:
        first_score_weight: initial lambda.

    Raises:
        ConfigError: one of the towers is frozen where both share an encoder.
    """

    def __init__(
        self,
        retriever: DualEncoder,
        reader: nn.Module,
        freeze: FreezeConfig,
        *,
        first_score_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.retriever, self.reader, self._freeze = retriever, reader, freeze
        device = next(retriever.parameters()).device
        self.score_weight = nn.Parameter(torch.full((1,), first_score_weight, device=device))
        is_shared = retriever.config.biencoder_shared_query_context_model
        if is_shared and freeze.freeze_query_encoder != freeze.freeze_passage_encoder:
            raise ConfigError(
                "questions and passages share one encoder: give both --freeze-query-encoder and "
                "--freeze-passage-encoder, or neither."
            )
        for part in self._frozen():
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> EndToEndModel:
        """As nn.Module's; frozen parts stay in evaluation mode."""
        super().train(mode)
        for part in self._frozen():
            part.eval()
        return self

    def _frozen(self) -> list[nn.Module]:
        freeze, towers = self._freeze, self.retriever.towers
        names = {"query": freeze.freeze_query_encoder, "passage": freeze.freeze_passage_encoder}
        frozen: list[nn.Module] = []
        for name, is_frozen in names.items():
            if is_frozen:
                frozen.append(towers[name if name in towers else "shared"])
        return [*frozen, self.reader] if freeze.freeze_reader else frozen
