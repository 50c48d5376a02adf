"""T5's SentencePiece: text to token ids and back, the same ids as Hugging Face's T5 tokenizer with the same model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentencepiece import SentencePieceProcessor

from megatron_retrieval.errors import DataError
from megatron_retrieval.tokenizers.vocabulary import SpecialIds
from megatron_retrieval.utils.files import open_binary

NUM_SENTINELS = 100
#: what the model puts in the place of spaces
SPACE = "\u2581"
#: where T5 has them
SPECIAL_IDS = {"pad": 0, "eos": 1, "unk": 2}


class SentencePieceTokenizer:
    """A `Vocabulary`: SentencePiece over a `spiece.model`, and behind its pieces the sentinels <extra_id_99> to
    <extra_id_0>.

    Args:
        model_file: a SentencePiece model with T5's special tokens.

    Raises:
        DataError: the file is no such model.
    """

    kind = "SentencePiece"
    is_reversible = True
    is_separable = True
    special = SpecialIds(begin=None, end=SPECIAL_IDS["eos"], pad=SPECIAL_IDS["pad"], unknown=SPECIAL_IDS["unk"])

    def __init__(self, model_file: str | Path) -> None:
        self.path = Path(model_file)
        with open_binary(self.path) as file:
            self._content = file.read()
        self._model = _read_model(self.path, self._content)
        self._num_pieces = len(self._model)
        #: pieces and sentinels; public models have more rows of word embeddings than that
        self.vocab_size = self._num_pieces + NUM_SENTINELS
        #: those of <extra_id_0>, <extra_id_1> and so on: they count down from the vocabulary's end
        self.sentinel_ids = range(self.vocab_size - 1, self._num_pieces - 1, -1)
        self.fingerprint = hashlib.sha256(self._content).hexdigest()[:16]

    def assets(self) -> dict[str, bytes]:
        """See `Vocabulary`."""
        return {"spiece.model": self._content}

    def settings(self) -> dict[str, Any]:
        """See `Vocabulary`: nothing, the model knows for itself."""
        return {}

    def continues_word(self) -> NDArray[np.bool_]:
        """[vocab_size] which tokens continue the word of the token before them (those without a space in front)."""
        is_piece = np.zeros(self.vocab_size, np.bool_)
        pieces = self._model.id_to_piece(list(range(self._num_pieces)))
        is_piece[: self._num_pieces] = [not piece.startswith(SPACE) for piece in pieces]
        is_piece[[SPECIAL_IDS["pad"], SPECIAL_IDS["eos"]]] = False
        return is_piece

    def closes_word(self) -> NDArray[np.bool_]:
        """[vocab_size] see `Vocabulary`: none."""
        return np.zeros(self.vocab_size, np.bool_)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of every text, without special tokens."""
        ids: list[list[int]] = self._model.encode(list(texts))
        return ids

    def decode(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """The text of every sequence up to its end token; padding, unknowns, sentinels and ids without a piece say
        nothing."""
        return [self._model.decode(self.until_end(ids)) for ids in sequences]

    def until_end(self, ids: Sequence[int]) -> list[int]:
        """The ids before the first end token, without padding, unknowns, sentinels and ids without a piece."""
        before = takewhile(lambda number: number != SPECIAL_IDS["eos"], map(int, ids))
        return [number for number in before if 0 <= number < self._num_pieces and number not in SPECIAL_IDS.values()]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """For every token of `text`, the (start, stop) of the characters that it stands for; the space before a word
        is the word's."""
        offsets: list[tuple[int, int]] = self._model.encode(text, out_type="offset_mapping")["offsets"]
        return offsets


def _read_model(path: Path, content: bytes) -> SentencePieceProcessor:
    hint = "Give the spiece.model of a T5."
    model = SentencePieceProcessor()
    try:
        model.load_from_serialized_proto(content)
    except RuntimeError as error:
        raise DataError(path, "no SentencePiece model, or a damaged one", hint=hint) from error
    found = {"pad": model.pad_id(), "eos": model.eos_id(), "unk": model.unk_id()}
    if found != SPECIAL_IDS:
        raise DataError(path, f"its special tokens are {found}, where T5 has {SPECIAL_IDS}", hint=hint)
    return model
