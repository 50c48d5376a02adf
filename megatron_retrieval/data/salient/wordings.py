"""Which passages hold a sentence: runs of token ids compared by their hashes, for any number of either.

A passage holds a sentence if the sentence's token ids stand in its text, one after another; letter case and accents are
the vocabulary's to judge, and white space counts as one space. Where words have other ids behind a space than at the
beginning of a text (byte-level BPE), the ids count that a sentence has in both places: those behind its first word, as
a rule. Of a sentence longer than `MAX_TOKENS`, its first `MAX_TOKENS` count. Equal runs have equal hashes, so no holder
is missed; two different runs have the same one with a probability of 2^-64.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.id_table import deal_by_hash
from megatron_retrieval.data.stores.ragged import Ragged, Rows, tokenize
from megatron_retrieval.tokenizers.vocabulary import Vocabulary

Hashes = NDArray[np.uint64]

#: shorter sentences are not masked: little is left to search with, and many passages hold them by chance
MIN_TOKENS = 8
MAX_TOKENS = 64
#: odd, so that its powers can be divided by
_BASE = 0x9E3779B97F4A7C15
_BLOCK = 1 << 16


def sentence_ids(vocabulary: Vocabulary, sentences: Sequence[str]) -> list[list[int]]:
    """The token ids of each sentence that a passage which holds it has in any case, wherever the sentence stands."""
    ids = vocabulary.encode(sentences)
    if vocabulary.is_separable:
        return ids
    behind_space = vocabulary.encode([f" {sentence}" for sentence in sentences])
    return [own[len(own) - _num_equal_at_end(own, other) :] for own, other in zip(ids, behind_space, strict=True)]


def passage_ids(evidence: EvidenceStore, rows: range) -> Ragged:
    """The token ids of the texts of passages, in which those of sentences are looked for."""
    if evidence.vocabulary.is_separable:
        return evidence.token_columns(rows)[1]
    # a sentence has single spaces, and line breaks would change the ids around them
    return tokenize(evidence.vocabulary, [" ".join(passage.text.split()) for passage in evidence.passages(rows)])


def sentence_hashes(sentences: Ragged) -> Hashes:
    """[n, 2] hashes of the first `MIN_TOKENS` tokens of each sentence, and of all of them."""
    rolling = _Rolling(sentences)
    starts, lengths = sentences.offsets[:-1], np.minimum(sentences.lengths, MAX_TOKENS)
    return np.stack([rolling.windows(starts, MIN_TOKENS), rolling.windows(starts, lengths)], axis=1).astype("<u8")


def find_held(texts: Ragged, beginnings: Hashes, wordings: Hashes) -> tuple[Rows, Rows]:
    """Which wordings the texts hold.

    Args:
        texts: token ids of the texts of passages.
        beginnings: ascending and distinct hashes of the beginnings of sentences.
        wordings: the same of whole sentences.

    Returns:
        Places in `wordings`, and numbers of texts, each pair once, ordered by text.
    """
    rolling, ends = _Rolling(texts), texts.offsets[1:]
    owner = np.repeat(np.arange(len(texts)), texts.lengths)
    places = np.arange(len(texts.values))
    places = places[places + MIN_TOKENS <= ends[owner]]
    places = places[_place_of(rolling.windows(places, MIN_TOKENS), beginnings) >= 0]
    pairs = [np.empty((0, 2), np.int64)]
    for length in range(MIN_TOKENS, MAX_TOKENS + 1):
        places = places[places + length <= ends[owner[places]]]
        found = _place_of(rolling.windows(places, length), wordings)
        held = found >= 0
        pairs.append(np.stack([owner[places[held]], found[held]], axis=1))
    distinct = np.unique(np.concatenate(pairs), axis=0)
    return distinct[:, 1], distinct[:, 0]


def write_distinct(hashes: Hashes, path: Path) -> None:
    """Write the distinct values of `hashes` in ascending order, a bucket of them in memory at a time."""
    table, rows = path.with_suffix(".dealt"), path.with_suffix(".dealt-rows")
    dealt, _, buckets = deal_by_hash(hashes, table, rows)
    with open(path, "wb") as file:
        for bucket in buckets:
            file.write(np.unique(dealt[bucket]).tobytes())
    table.unlink()
    rows.unlink()


def _num_equal_at_end(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = zip(reversed(first), reversed(second), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _place_of(wanted: Hashes, table: Hashes) -> Rows:
    """The place of each value in an ascending table, -1 where it is not there."""
    if not len(table):
        return np.full(len(wanted), -1, np.int64)
    places = np.searchsorted(table, wanted).clip(max=len(table) - 1)
    return np.where(table[places] == wanted, places, -1)


class _Rolling:
    """Hashes of runs of token ids: sum over i of mixed(id_i) * BASE^i modulo 2^64, which differences of one running sum
    give."""

    def __init__(self, tokens: Ragged) -> None:
        self._powers, self._inverses = _powers(-(-(len(tokens.values) + 1) // _BLOCK) * _BLOCK)
        mixed = _mixed(tokens.values.astype(np.uint64) + np.uint64(1)) * self._powers[: len(tokens.values)]
        self._sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed, dtype=np.uint64)])

    def windows(self, starts: Rows, lengths: Rows | int) -> Hashes:
        """Of the runs of `lengths` tokens that begin at `starts`; the length counts as well."""
        run = (self._sums[starts + lengths] - self._sums[starts]) * self._inverses[starts]
        return _mixed(run + np.asarray(lengths, np.uint64))


@lru_cache(maxsize=2)
def _powers(count: int) -> tuple[Hashes, Hashes]:
    """BASE^0 to BASE^(count - 1), and their inverses, modulo 2^64."""
    columns = []
    for base in (_BASE, pow(_BASE, -1, 1 << 64)):
        factors = np.full(count, base, np.uint64)
        factors[0] = 1
        columns.append(np.cumprod(factors, dtype=np.uint64))
    return columns[0], columns[1]


def _mixed(values: Hashes) -> Hashes:
    """splitmix64's output function: near values far apart."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
