"""Late interaction: a vector for every token, compared one by one (ColBERT, Khattab & Zaharia 2020, arXiv 2004.12832;
ColBERTv2, Santhanam et al. 2022, arXiv 2112.01488)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.encoder import EncoderShape
from megatron_retrieval.models.initialise import initialise_normal
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.types.tokens import TokenBatch


@dataclass(kw_only=True, frozen=True)
class LateInteractionConfig(Checked):
    """How a text becomes vectors of its tokens."""

    encoder: EncoderShape = field(default_factory=BertConfig)
    """The encoder of questions and passages."""
    colbert_dim: PositiveInt = 128
    """Width of the tokens' vectors."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder.is_causal:
            raise ConfigError("late interaction needs an encoder whose tokens see one another, not a causal one.")


class LateInteraction(nn.Module):
    """One encoder for questions and passages, and a linear layer over each of its states.

    Args:
        config: shape of the model.
        topology: parameters are sharded over its tensor-parallel group, on its device.
        dtype: of parameters and activations; vectors are always float32.
        seed: of the initial weights, which are equal at any tensor-parallel size.
    """

    def __init__(
        self,
        config: LateInteractionConfig,
        topology: ProcessTopology,
        dtype: torch.dtype = torch.float32,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        # the name is that of its parameters in checkpoints, whatever the family
        self.bert = config.encoder.build_encoder(topology, dtype)
        # small, hence replicated on all tensor-parallel ranks
        self.linear = nn.Linear(config.encoder.hidden_size, config.colbert_dim, bias=False, dtype=dtype)
        initialise_normal(self, topology, std=config.encoder.init_method_std, seed=seed)
        self.to(topology.device)

    def forward(self, texts: TokenBatch) -> Tensor:
        """[B, T] -> [B, T, C] float32 of length 1; those of padding are of tokens that see the text, unseen by it."""
        vectors: Tensor = F.normalize(self.linear(self.bert(texts)).float(), dim=2)
        return vectors


def max_sim(questions: Tensor, passages: Tensor) -> Tensor:
    """The sum over a question's tokens of their greatest product with a token of the passage.

        s(q, d) = sum_i max_j q_i . d_j

    (ColBERT, arXiv 2004.12832, equation 3.)

    Args:
        questions: [n, L, C]; zero vectors count nothing.
        passages: [P, T, C]; zero vectors are no tokens.

    Returns:
        [n, P]
    """
    products = questions.flatten(0, 1) @ passages.flatten(0, 1).t()
    products = products.view(*questions.shape[:2], *passages.shape[:2])
    is_token = passages.detach().ne(0).any(2)
    nearest = products.masked_fill(~is_token, -torch.inf).max(3).values
    # a zero vector of the question has the product 0 with all of them
    return nearest.sum(1)
