"""A late-interaction model over texts: which of their tokens have vectors, and scores of their pairs."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from megatron_retrieval.data.layouts.late import LateFormatConfig
from megatron_retrieval.models.late_interaction import LateInteraction, max_sim
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.types.tokens import TokenBatch

#: products that are computed at once for each score that a loss keeps: larger blocks take more memory and less time
_PRODUCTS_AT_ONCE = 16


class LateEncoder(nn.Module):
    """Texts laid out to the vectors of the tokens that count; the others are zero.

    `encode_queries` and `encode_passages` lay the vectors of a text one behind the other, of all texts in as many
    columns, so that texts can be gathered and trained as those of a dual encoder are; `scores` compares such rows.

    Args:
        model: encodes.
        layout: of the texts.
        vocabulary: of the model.

    Raises:
        ConfigError: the vocabulary lacks what the layout needs.
    """

    def __init__(self, model: LateInteraction, layout: LateFormatConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        layout.require_mask(vocabulary)
        self.model, self.layout, self._mask = model, layout, vocabulary.special.mask
        left_out = layout.is_left_out(vocabulary, model.config.encoder.vocab_size)
        self._is_left_out = left_out.to(next(model.parameters()).device)

    @property
    def dimension(self) -> int:
        """Width of the vectors."""
        return self.model.config.colbert_dim

    @property
    def numbers_per_score(self) -> int:
        """How many scores of a dual encoder the products of one score stand for, where a loss bounds its memory."""
        return max(1, self.layout.query_seq_length * self.layout.retriever_seq_length // _PRODUCTS_AT_ONCE)

    def question_vectors(self, questions: TokenBatch) -> Tensor:
        """[B, T] -> [B, L, C] float32, L being `query_seq_length` where questions are filled up."""
        if self._mask is not None and self.layout.query_augmentation:
            vectors: Tensor = self.model(self.layout.augmented(questions, self._mask))
            return vectors
        return _zero_unless(questions.is_real(), self.model(questions))

    def passage_vectors(self, passages: TokenBatch) -> Tensor:
        """[P, T] -> [P, T, C] float32."""
        return _zero_unless(passages.is_real() & ~self._is_left_out[passages.ids], self.model(passages))

    def encode_queries(self, questions: TokenBatch) -> Tensor:
        """[B, T] -> [B, query_seq_length * C]."""
        return _in_columns(self.question_vectors(questions), self.layout.query_seq_length)

    def encode_passages(self, passages: TokenBatch) -> Tensor:
        """[P, T] -> [P, retriever_seq_length * C]."""
        return _in_columns(self.passage_vectors(passages), self.layout.retriever_seq_length)

    def scores(self, questions: Tensor, passages: Tensor) -> Tensor:
        """[n, L * C] and [P, T * C] -> [n, P], see `max_sim`."""
        width = self.dimension
        return max_sim(questions.unflatten(1, (-1, width)), passages.unflatten(1, (-1, width)))


def _zero_unless(counts: Tensor, vectors: Tensor) -> Tensor:
    return vectors.masked_fill(~counts[..., None], 0)


def _in_columns(vectors: Tensor, num_tokens: int) -> Tensor:
    """[B, T, C] -> [B, num_tokens * C], zeros behind the last."""
    vectors = vectors[:, :num_tokens]
    return F.pad(vectors, (0, 0, 0, num_tokens - vectors.size(1))).flatten(1)
