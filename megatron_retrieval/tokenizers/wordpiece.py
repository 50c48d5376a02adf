"""BERT's WordPiece: text to token ids, the same ids as Hugging Face's BERT tokenizer with the same vocabulary."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from megatron_retrieval.errors import DataError
from megatron_retrieval.tokenizers.vocabulary import SpecialIds
from megatron_retrieval.utils.files import read_lines

UNKNOWN_TOKEN = "[UNK]"
CONTINUATION = "##"
#: names of special tokens: BERT's, and MPNet's, whose vocabulary holds unused ones of BERT as well, and whose texts
#: stand two ends apart
BERT_FRAME = {"pad": "[PAD]", "unk": UNKNOWN_TOKEN, "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
MPNET_FRAME = {"pad": "<pad>", "unk": UNKNOWN_TOKEN, "cls": "<s>", "sep": "</s>", "mask": "<mask>"}


class WordPieceTokenizer:
    """A `Vocabulary`: WordPiece over a `vocab.txt`.

    Args:
        vocab_file: one token a line; the id of a token is its line number, from 0.
        lower_case: lower-case the text and strip its accents, as uncased checkpoints need.
        tokens: the vocabulary, where the file holds it in another form.

    Raises:
        DataError: the file is no such vocabulary or lacks a special token.
    """

    kind = "WordPiece"
    #: letter case, accents and the spaces around punctuation are lost
    is_reversible = False
    is_separable = True
    sentinel_ids: tuple[int, ...] = ()

    def __init__(self, vocab_file: str | Path, lower_case: bool = True, *, tokens: Sequence[str] | None = None) -> None:
        self.path, self._lower_case = Path(vocab_file), lower_case
        vocabulary = _read_vocabulary(self.path, read_lines(self.path) if tokens is None else tokens)
        self._content = self.path.read_bytes() if tokens is None else "".join(f"{name}\n" for name in tokens).encode()
        #: in the order of their ids
        self.tokens = tuple(vocabulary)
        self.vocab_size = max(vocabulary.values()) + 1
        #: names of the special tokens
        self.frame = _frame_of(vocabulary)
        begin, end, pad, mask = (vocabulary[self.frame[name]] for name in ("cls", "sep", "pad", "mask"))
        num_between = 2 if self.frame is MPNET_FRAME else 1
        unknown = vocabulary[UNKNOWN_TOKEN]
        self.special = SpecialIds(begin=begin, end=end, pad=pad, mask=mask, unknown=unknown, num_between=num_between)
        listing = "\n".join(vocabulary) + f"\n{'uncased' if lower_case else 'cased'}"
        self.fingerprint = hashlib.sha256(listing.encode()).hexdigest()[:16]
        self._vocabulary = vocabulary
        self._tokens = {number: token for token, number in vocabulary.items()}
        self._tokenizer = Tokenizer(WordPiece(vocabulary, unk_token=UNKNOWN_TOKEN, max_input_chars_per_word=100))
        self._tokenizer.normalizer = BertNormalizer(lowercase=lower_case)
        self._tokenizer.pre_tokenizer = BertPreTokenizer()

    def assets(self) -> dict[str, bytes]:
        """See `Vocabulary`."""
        return {"vocab.txt": self._content}

    def settings(self) -> dict[str, Any]:
        """See `Vocabulary`."""
        return {"lower_case": self._lower_case}

    def continues_word(self) -> NDArray[np.bool_]:
        """[vocab_size] which tokens continue the word of the token before them (those that begin with ##)."""
        is_piece = np.zeros(self.vocab_size, np.bool_)
        is_piece[[number for token, number in self._vocabulary.items() if token.startswith(CONTINUATION)]] = True
        return is_piece

    def closes_word(self) -> NDArray[np.bool_]:
        """[vocab_size] see `Vocabulary`: none."""
        return np.zeros(self.vocab_size, np.bool_)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of every text, without special tokens."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """The words of every sequence up to its [SEP], joined by spaces: punctuation stands apart, and what
        normalisation took away is lost. Other special tokens, unknowns and ids without a token say nothing."""
        return [self._words(self.until_end(ids)) for ids in sequences]

    def until_end(self, ids: Sequence[int]) -> list[int]:
        """The ids before the first [SEP], without padding, [CLS] and [MASK]."""
        before = takewhile(lambda number: number != self.special.end, map(int, ids))
        return [number for number in before if number not in (self.special.pad, self.special.begin, self.special.mask)]

    def _words(self, ids: Sequence[int]) -> str:
        tokens = [self._tokens.get(number, UNKNOWN_TOKEN) for number in ids]
        joined = " ".join(token for token in tokens if token != UNKNOWN_TOKEN)
        return joined.replace(f" {CONTINUATION}", "").removeprefix(CONTINUATION)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """For every token of `text`, the (start, stop) of the characters that it stands for, accents included."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return [(start, _end_of_accents(text, stop)) for start, stop in encoding.offsets]


def _end_of_accents(text: str, stop: int) -> int:
    """Combining marks belong to the character before them; normalisation drops them."""
    while stop < len(text) and unicodedata.combining(text[stop]):
        stop += 1
    return stop


def _frame_of(vocabulary: Mapping[str, int]) -> dict[str, str]:
    """The special tokens that a vocabulary has."""
    return MPNET_FRAME if set(MPNET_FRAME.values()) <= vocabulary.keys() else BERT_FRAME


def _read_vocabulary(path: Path, lines: Iterable[str]) -> dict[str, int]:
    vocabulary: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        token = line.rstrip("\r\n")
        if not token or " " in token or "\t" in token:
            problem = "an empty line" if not token else "white space inside a token"
            hint = "A WordPiece vocabulary (vocab.txt) has one token a line."
            raise DataError(path, f"no WordPiece vocabulary: {problem}", line=number, hint=hint)
        if token in vocabulary:
            first = vocabulary[token] + 1
            raise DataError(path, f"the token {token!r} stands here and in line {first}", line=number)
        vocabulary[token] = number - 1
    missing = [token for token in _frame_of(vocabulary).values() if token not in vocabulary]
    if missing:
        raise DataError(path, f"the vocabulary lacks {', '.join(missing)}", hint="Give the vocab.txt of a BERT model.")
    return vocabulary
