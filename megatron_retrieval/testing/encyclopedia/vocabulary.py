"""A small trainer of WordPiece vocabularies whose result depends on the text alone.

The `tokenizers` library breaks ties between equally frequent pairs in an order that changes from run to run; here
ties go to the alphabet.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise

from tokenizers.normalizers import BertNormalizer

SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = re.compile(r"\w+|[^\w\s]")

Pair = tuple[str, str]


def train_wordpiece(lines: Iterable[str], *, size: int, min_count: int) -> list[str]:
    """The pieces of a lower-case WordPiece vocabulary, in the order of their ids.

    Args:
        lines: the text to learn from.
        size: pieces at most.
        min_count: a pair of pieces is joined only if the text holds it this many times.
    """
    words = Counter(
        word for line in lines for word in WORDS.findall(BertNormalizer(lowercase=True).normalize_str(line))
    )
    spellings = [[word[0], *(f"##{letter}" for letter in word[1:])] for word in words]
    letters = sorted({piece for spelling in spellings for piece in spelling})
    alphabet = sorted({f"{mark}{letter.removeprefix('##')}" for letter in letters for mark in ("", "##")})
    pieces = [*SPECIAL_PIECES, *alphabet]
    known = set(pieces)
    for joined in _joins(spellings, list(words.values()), min_count):
        if len(pieces) >= size:
            break
        if joined not in known:
            known.add(joined)
            pieces.append(joined)
    return pieces


def _joins(spellings: list[list[str]], counts: list[int], min_count: int) -> Iterator[str]:
    """Join the most frequent pair again and again, yielding each new piece; rewrites `spellings`."""
    pair_counts: Counter[Pair] = Counter()
    pair_words: defaultdict[Pair, set[int]] = defaultdict(set)
    for word, spelling in enumerate(spellings):
        for pair in pairwise(spelling):
            pair_counts[pair] += counts[word]
            pair_words[pair].add(word)
    queue = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(queue)
    while queue:
        count, pair = heapq.heappop(queue)
        if -count != pair_counts[pair]:  # an entry from before other joins; a fresh one stands in the queue
            continue
        if -count < min_count:
            return
        joined = pair[0] + pair[1].removeprefix("##")
        changed: set[Pair] = set()
        for word in pair_words.pop(pair):
            before, after = spellings[word], _join(spellings[word], pair, joined)
            for sign, spelling in ((-1, before), (1, after)):
                for neighbours in pairwise(spelling):
                    pair_counts[neighbours] += sign * counts[word]
                    pair_words[neighbours].add(word)
                    changed.add(neighbours)
            spellings[word] = after
        for neighbours in changed:
            if pair_counts[neighbours] > 0:
                heapq.heappush(queue, (-pair_counts[neighbours], neighbours))
        yield joined


def _join(spelling: list[str], pair: Pair, joined: str) -> list[str]:
    result: list[str] = []
    for piece in spelling:
        if result and (result[-1], piece) == pair:
            result[-1] = joined
        else:
            result.append(piece)
    return result
