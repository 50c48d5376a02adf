"""Masked sequences of BERT's pretraining (Devlin et al. 2019, arXiv 1810.04805, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_retrieval.config.checks import Bounds, Checked
from megatron_retrieval.data.examples.batches import Share
from megatron_retrieval.data.layouts.blocks import BlockConfig, BlockLayout, make_blocks
from megatron_retrieval.data.layouts.sequences import with_fillers
from megatron_retrieval.data.stores.corpus import CorpusStore
from megatron_retrieval.data.stores.ragged import Rows
from megatron_retrieval.errors import DataError
from megatron_retrieval.tokenizers.vocabulary import SpecialIds
from megatron_retrieval.types.pretraining import MaskedBatch
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.seeds import generator

NOT_PREDICTED = -1
#: of the tokens to predict, the share hidden behind [MASK] and the share replaced by a random token; the rest stays
MASKED_SHARE, RANDOM_SHARE = 0.8, 0.1


@dataclass(frozen=True, kw_only=True)
class MaskedLMDataConfig(Checked):
    """Text with masked tokens."""

    blocks: BlockConfig
    seq_length: int = 512
    """Longest sequence, in tokens with title and special tokens."""
    mask_prob: Annotated[float, Bounds(above=0, below=1)] = 0.15
    """Share of a sequence's tokens to predict."""
    whole_word_masking: bool = False
    """Choose whole words instead of single WordPiece tokens."""


class TokenMasker:
    """Chooses the tokens to predict and hides them.

    Args:
        mask_prob: share of the tokens, special ones not counted; at least one a sequence.
        continues_word: [V] bool, tokens that continue the word of the token before them; None: a token is a word.
    """

    def __init__(
        self,
        mask_prob: float,
        special: SpecialIds,
        vocab_size: int,
        continues_word: NDArray[np.bool_] | None = None,
    ) -> None:
        assert special.mask is not None, "the vocabulary has no token that hides others"
        self._mask_prob, self._mask_id, self._vocab_size = mask_prob, special.mask, vocab_size
        self._fixed = np.array([*special.frame, special.pad])
        self._continues_word = continues_word

    def mask(self, ids: Rows, random: np.random.Generator) -> Rows:
        """Hide tokens of the sequence `ids` [T] in place.

        Returns:
            [T] the original ids at the places to predict, `NOT_PREDICTED` elsewhere.
        """
        labels = np.full(len(ids), NOT_PREDICTED, np.int64)
        candidates = np.flatnonzero(~np.isin(ids, self._fixed))
        if not len(candidates):
            return labels
        num_wanted = max(1, round(self._mask_prob * len(candidates)))
        chosen = self._choose(ids, candidates, num_wanted, random)
        labels[chosen] = ids[chosen]
        fate = random.random(len(chosen))
        ids[chosen[fate < MASKED_SHARE]] = self._mask_id
        replaced = chosen[(fate >= MASKED_SHARE) & (fate < MASKED_SHARE + RANDOM_SHARE)]
        ids[replaced] = random.integers(self._vocab_size, size=len(replaced))
        return labels

    def _choose(self, ids: Rows, candidates: Rows, num_wanted: int, random: np.random.Generator) -> Rows:
        """Some of the places `candidates`: whole words in random order while they fit, the first in any case."""
        if self._continues_word is None:
            return candidates[random.permutation(len(candidates))[:num_wanted]]
        starts = ~self._continues_word[ids[candidates]]
        starts |= np.diff(candidates, prepend=-1) > 1
        word_of = np.cumsum(starts)
        order = 1 + random.permutation(word_of[-1])
        num_words = np.searchsorted(np.cumsum(np.bincount(word_of)[order]), num_wanted, side="right")
        return candidates[np.isin(word_of, order[: max(1, num_words)])]


class MaskedLMDataset:
    """Blocks of the corpus as masked sequences; a BatchSource.

    Args:
        documents: those to use, ascending.
        seed: of the run.

    Raises:
        DataError: there is no text.
    """

    def __init__(self, config: MaskedLMDataConfig, corpus: CorpusStore, documents: Rows, seed: int) -> None:
        self._corpus, self._seed = corpus, seed
        use_titles = config.blocks.use_titles
        self._layout = BlockLayout(
            use_titles=use_titles,
            seq_length=config.seq_length,
            passage_format="title-sep-text" if use_titles else "title-text",
            num_between=corpus.special.num_between,
        )
        self._blocks = make_blocks(corpus, documents, self._layout)
        if not len(self._blocks):
            raise DataError(corpus.folder, "there is no text to train on")
        vocabulary = corpus.vocabulary
        continues_word = vocabulary.continues_word() if config.whole_word_masking else None
        self._masker = TokenMasker(config.mask_prob, corpus.special, vocabulary.vocab_size, continues_word)
        get_logger("data").info("sequences: %s, of %s documents", f"{len(self):,}", f"{len(documents):,}")

    def __len__(self) -> int:
        return len(self._blocks)

    def batch(
        self, indices: Sequence[int], epoch: int, first_position: int, dp_rank: int = 0, dp_size: int = 1
    ) -> MaskedBatch:
        """See BatchSource."""
        share = Share.of(len(indices), dp_rank, dp_size)
        blocks = self._blocks[np.asarray(indices[share.own], np.int64)]
        tokens = self._layout.tokens(self._corpus, blocks.document, blocks.texts(self._corpus))
        tokens = with_fillers(tokens, share.num_slots, self._corpus.special)
        ids, labels = tokens.ids.numpy(), np.full(tokens.ids.shape, NOT_PREDICTED, np.int64)
        for row, length in enumerate(tokens.lengths[: share.num_real].tolist()):
            random = generator(self._seed, "masked-tokens", epoch, first_position + share.first + row)
            labels[row, :length] = self._masker.mask(ids[row, :length], random)
        return MaskedBatch(tokens, torch.from_numpy(labels))
