"""Texts with masked spans as inputs, the spans as targets: T5's pretraining (Raffel et al. 2020, arXiv 1910.10683)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from megatron_retrieval.config.checks import Bounds, Checked
from megatron_retrieval.data.examples.batches import Share
from megatron_retrieval.data.layouts.blocks import SHORTEST_SEQUENCE, BlockConfig, BlockRoom, Blocks, make_blocks
from megatron_retrieval.data.layouts.sequences import join_segments, label_rows
from megatron_retrieval.data.stores.corpus import CorpusStore
from megatron_retrieval.data.stores.ragged import Ragged, Rows, to_offsets
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.tokenizers.sentencepiece import NUM_SENTINELS, SentencePieceTokenizer
from megatron_retrieval.types.pretraining import CorruptedBatch
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.seeds import generator

Mask = NDArray[np.bool_]

_LONGEST_TEXT = 1 << 31


@dataclass(frozen=True, kw_only=True)
class SpanCorruptionDataConfig(Checked):
    """Text with masked spans."""

    blocks: BlockConfig
    seq_length: int = 512
    """Maximum encoder length in tokens, after masking, with sentinels and end token; the source text may be longer."""
    decoder_seq_length: int | None = None
    """Maximum target length in tokens, with sentinels and end token; a low one shortens the texts. Default: as
    --seq-length needs."""
    mask_prob: Annotated[float, Bounds(above=0, below=1)] = 0.15
    """Share of a text's tokens to predict."""
    mean_noise_span_length: Annotated[float, Bounds(least=1)] = 3.0
    """Mean length of the spans to predict, in tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        length = self.text_length
        if length < SHORTEST_SEQUENCE:
            also = "" if self.decoder_seq_length is None else f" with --decoder-seq-length {self.decoder_seq_length}"
            raise ConfigError(
                f"--seq-length {self.seq_length}{also} leaves room for texts of {length} tokens; {SHORTEST_SEQUENCE} "
                "is the least."
            )
        _, num_spans = self.noise_of(length)
        if num_spans > NUM_SENTINELS:
            raise ConfigError(
                f"--seq-length {self.seq_length} holds texts of {length} tokens with {num_spans} gaps, and a T5 has "
                f"names for {NUM_SENTINELS}; lower it or --mask-prob, or raise --mean-noise-span-length."
            )

    @property
    def text_length(self) -> int:
        """The most tokens that a text may have, so that neither the text with gaps nor its target is too long."""
        return bisect_left(range(_LONGEST_TEXT), True, 2, key=self._is_too_long) - 1

    def noise_of(self, num_tokens: int) -> tuple[int, int]:
        """How many of a text's tokens (at least 2) are to be predicted, and in how many spans.

        Each span has a token, and a token that stays is before it.
        """
        num_noise = min(max(round(num_tokens * self.mask_prob), 1), num_tokens - 1)
        num_spans = max(round(num_noise / self.mean_noise_span_length), 1)
        return num_noise, min(num_spans, num_tokens - num_noise)

    def _is_too_long(self, num_tokens: int) -> bool:
        """Grows with the number of tokens, from False to True."""
        num_noise, num_spans = self.noise_of(num_tokens)
        longest_target = _LONGEST_TEXT if self.decoder_seq_length is None else self.decoder_seq_length
        return num_tokens - num_noise + num_spans + 1 > self.seq_length or num_noise + num_spans + 1 > longest_target


def random_spans(num_tokens: int, num_noise: int, num_spans: int, random: np.random.Generator) -> Mask:
    """[num_tokens] mask of the tokens to predict.

    Stretches that stay and spans take turns, beginning with one that stays; their lengths are any division of what
    stays and of the noise into `num_spans` parts, all divisions equally likely.
    """
    stays, spans = (_random_parts(total, num_spans, random) for total in (num_tokens - num_noise, num_noise))
    return np.repeat(np.tile([False, True], num_spans), np.stack([stays, spans], 1).ravel())


def _random_parts(total: int, num_parts: int, random: np.random.Generator) -> Rows:
    """Positive numbers that sum up to `total`."""
    cuts = 1 + np.sort(random.permutation(total - 1)[: num_parts - 1])
    return np.diff(cuts, prepend=0, append=total)


def corrupt(texts: Ragged, is_noise: Mask, sentinels: Rows) -> tuple[Ragged, Ragged]:
    """Take spans out of texts.

    As in the code of T5 (its paper draws one more sentinel behind the last span), every span of the target has its
    sentinel before it and nothing closes the last one but the end token, which is not yet there.

    Args:
        texts: n texts.
        is_noise: for all their tokens, one text after another; no text begins with noise.
        sentinels: in the order in which a text uses them.

    Returns:
        The texts with a sentinel in the place of each span, and the targets, spans behind their sentinels.
    """
    begins = is_noise & ~np.r_[False, is_noise[:-1]]
    num_begun = to_offsets(begins)  # before each token
    text_of = np.repeat(np.arange(len(texts)), texts.lengths)[begins]
    of_spans = sentinels[num_begun[:-1][begins] - num_begun[texts.offsets[text_of]]]
    with_gaps = texts.values.astype(sentinels.dtype)
    with_gaps[begins] = of_spans
    stays = begins | ~is_noise
    targets = np.insert(texts.values[is_noise].astype(sentinels.dtype), np.flatnonzero(begins[is_noise]), of_spans)
    num_written = to_offsets(is_noise) + num_begun
    return Ragged(with_gaps[stays], to_offsets(stays)[texts.offsets]), Ragged(targets, num_written[texts.offsets])


class SpanCorruptionDataset:
    """Blocks of the corpus, behind their titles, as texts with gaps; a BatchSource.

    Args:
        corpus: with a SentencePiece vocabulary.
        documents: those to use, ascending. Their blocks of a single token are left out: nothing would stay.
        seed: of the run.

    Raises:
        DataError: there is no text.
        MismatchError: the corpus has another kind of vocabulary.
    """

    def __init__(self, config: SpanCorruptionDataConfig, corpus: CorpusStore, documents: Rows, seed: int) -> None:
        corpus.require_kind(SentencePieceTokenizer.kind)
        self._config, self._corpus, self._seed, self._special = config, corpus, seed, corpus.special
        self._room = BlockRoom(use_titles=config.blocks.use_titles, seq_length=config.text_length)
        self._sentinels = np.array(corpus.vocabulary.sentinel_ids)
        blocks = make_blocks(corpus, documents, self._room)
        num_text_tokens = corpus.sentences.offsets[blocks.end] - corpus.sentences.offsets[blocks.first]
        has_title = self._room.capacity(corpus, blocks.document) < self._room.seq_length
        self._blocks = blocks[num_text_tokens + has_title > 1]
        if not len(self._blocks):
            raise DataError(corpus.folder, "there is no text to train on")
        get_logger("data").info("sequences: %s, of %s documents", f"{len(self):,}", f"{len(documents):,}")

    def __len__(self) -> int:
        return len(self._blocks)

    def batch(
        self, indices: Sequence[int], epoch: int, first_position: int, dp_rank: int = 0, dp_size: int = 1
    ) -> CorruptedBatch:
        """See BatchSource."""
        share = Share.of(len(indices), dp_rank, dp_size)
        texts = self._texts(self._blocks[np.asarray(indices[share.own], np.int64)])
        is_noise = [np.empty(0, np.bool_)]
        for row, length in enumerate(texts.lengths.tolist()):
            random = generator(self._seed, "noise-spans", epoch, first_position + share.first + row)
            is_noise.append(random_spans(length, *self._config.noise_of(length), random))
        with_gaps, targets = corrupt(texts, np.concatenate(is_noise), self._sentinels)
        # fillers are texts without a token
        offsets = np.pad(with_gaps.offsets, (0, share.num_slots - len(texts)), mode="edge")
        end_id, pad_id = self._special.end, self._special.pad
        tokens = join_segments(
            [Ragged(with_gaps.values, offsets)], self._config.seq_length, end_id=end_id, pad_id=pad_id
        )
        return CorruptedBatch(tokens, label_rows(targets, share.num_slots, end_id))

    def _texts(self, blocks: Blocks) -> Ragged:
        """The tokens of titles and blocks."""
        titles = self._corpus.titles.take(blocks.document, self._room.longest_title)
        parts = Ragged.concatenate([titles, blocks.texts(self._corpus)])
        # a title and its text stand side by side, and become one sequence
        in_turn = parts.take(np.arange(2 * len(blocks)).reshape(2, -1).T.ravel())
        first = np.arange(0, 2 * len(blocks), 2)
        return in_turn.join(first, first + 2, self._room.seq_length)
