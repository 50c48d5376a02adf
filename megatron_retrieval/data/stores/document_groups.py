"""Groups of documents that must not serve one another: the same text, or texts under the same title.

Near duplicates have a Jaccard similarity of 13-grams of 0.8 or more, as in Borgeaud et al. 2022 (RETRO, arXiv
2112.04426, section 2.1); MinHash (Broder 1997) in bands finds candidates, which are compared exactly.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from megatron_retrieval.data.stores.ragged import Array, Ragged, Rows
from megatron_retrieval.utils.seeds import mixed

#: of the rules below; groups of another version are other groups
GROUP_VERSION = 1
GRAM_TOKENS = 13
LEAST_SIMILARITY = 0.8
#: texts of similarity 0.8 share a band with probability 1 - (1 - 0.8^4)^16 = 0.9998
NUM_BANDS, ROWS_OF_A_BAND = 16, 4
_BASE = np.uint64(0x9E3779B97F4A7C15)
#: what grams are multiplied with, a factor for each of their orders
_FACTORS = mixed(np.arange(1, NUM_BANDS * ROWS_OF_A_BAND + 1, dtype=np.uint64) * _BASE) | np.uint64(1)
_GRAMS_AT_ONCE = 1 << 13
#: members of a bucket that each document is compared with: of thousands of copies, those nearest in order
_COMPARED = 8

Hashes = NDArray[np.uint64]


def group_documents(titles: Iterable[str], sections: Rows, signatures: Hashes, tokens: Ragged) -> Rows:
    """[D] the group of each document, numbered in the order in which they begin.

    Args:
        titles: of the documents; equal ones, but for case and punctuation, make a group, unless they are empty.
        sections: above 0 where a document continues the one before it.
        signatures: [D, NUM_BANDS] of the documents.
        tokens: of the documents.
    """
    parents = np.arange(len(tokens))
    for document in np.flatnonzero(np.asarray(sections) > 0).tolist():
        _unite(parents, document - 1, document)
    known: dict[str, int] = {}
    for document, title in enumerate(map(plain_title, titles)):
        if title:
            _unite(parents, known.setdefault(title, document), document)
    for first, second in near_duplicates(signatures, tokens):
        _unite(parents, first, second)
    roots = np.array([_root(parents, document) for document in range(len(parents))], np.int64)
    return np.unique(roots, return_inverse=True)[1].astype(np.int64)


def plain_title(title: str) -> str:
    """A title without case and punctuation, underscores included."""
    return re.sub(r"[\W_]+", " ", title.casefold()).strip()


def near_duplicates(signatures: Hashes, tokens: Ragged) -> Iterator[tuple[int, int]]:
    """Pairs of documents whose 13-grams have a Jaccard similarity of 0.8 or more; of many equal ones enough pairs to
    connect them."""
    compared: set[tuple[int, int]] = set()
    for band in range(NUM_BANDS):
        for pair in _in_one_bucket(signatures[:, band]):
            if pair not in compared:
                compared.add(pair)
                if similarity(*(grams(tokens[document]) for document in pair)) >= LEAST_SIMILARITY:
                    yield pair


def signature(tokens: Array) -> Hashes:
    """[NUM_BANDS] of a document: documents whose 13-grams are alike have an equal number at one place at least."""
    hashes, minima = grams(tokens), np.full(len(_FACTORS), np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(hashes), _GRAMS_AT_ONCE):
        some = hashes[start : start + _GRAMS_AT_ONCE]
        np.minimum(minima, (some * _FACTORS[:, None]).min(1), out=minima)
    bands = minima.reshape(NUM_BANDS, ROWS_OF_A_BAND)
    return mixed(_polynomial([bands[:, row] for row in range(ROWS_OF_A_BAND)]))


def grams(tokens: Array) -> Hashes:
    """Hashes of the distinct 13-grams of a document, ascending; a shorter document is one gram."""
    values = mixed(tokens.astype(np.uint64) + np.uint64(1))
    length = min(GRAM_TOKENS, len(values))
    end = len(values) - length + 1
    return np.unique(mixed(_polynomial([values[place : place + end] for place in range(length)])))


def similarity(first: Hashes, second: Hashes) -> float:
    """The Jaccard similarity of two ascending sets."""
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / (len(first) + len(second) - shared)


def _polynomial(digits: Sequence[Hashes]) -> Hashes:
    """One number for each row of digits, modulo 2^64."""
    total = np.zeros_like(digits[0])
    for digit in digits:
        total = total * _BASE + digit
    return total


def _in_one_bucket(values: Hashes) -> Iterator[tuple[int, int]]:
    """Pairs of documents, the earlier one first, with equal values."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    for step in range(1, _COMPARED + 1):
        places = np.flatnonzero(ordered[step:] == ordered[:-step])
        yield from zip(order[places].tolist(), order[places + step].tolist(), strict=True)


def _root(parents: Rows, document: int) -> int:
    while parents[document] != document:
        parents[document] = document = int(parents[parents[document]])
    return document


def _unite(parents: Rows, first: int, second: int) -> None:
    """The earlier document stands for both."""
    first, second = sorted((_root(parents, first), _root(parents, second)))
    parents[second] = first
