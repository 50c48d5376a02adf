"""T5's SentencePiece: text to token ids and back, the same ids as Hugging Face's T5 tokenizer with the same model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from megatron_retrieval.errors import DataError
from megatron_retrieval.utils.files import open_binary

NUM_SENTINELS = 100
#: where T5 has them
SPECIAL_IDS = {"pad": 0, "eos": 1, "unk": 2}


class SentencePieceTokenizer:
    """SentencePiece over a `spiece.model`, and behind its pieces the sentinels <extra_id_99> to <extra_id_0>.

    The words "</s>", "<extra_id_0>" and so on inside a text are text: no document can forge a sequence's end or gaps.

    Args:
        model_file: a SentencePiece model with T5's special tokens.

    Raises:
        DataError: the file is no such model.
    """

    pad_id, eos_id, unk_id = SPECIAL_IDS.values()
    #: what texts begin (with nothing) and end with
    begin_id, end_id = None, eos_id

    def __init__(self, model_file: str | Path) -> None:
        self.model_file = Path(model_file)
        with open_binary(self.model_file) as file:
            content = file.read()
        self._model = _read_model(self.model_file, content)
        self.num_pieces = len(self._model)
        #: pieces and sentinels; public models have more rows of word embeddings than that
        self.vocab_size = self.num_pieces + NUM_SENTINELS
        #: names the model; equal fingerprints give equal ids
        self.fingerprint = hashlib.sha256(content).hexdigest()[:16]

    def sentinel_id(self, number: int) -> int:
        """The id of <extra_id_`number`>, which marks a gap in a text; they count down from the vocabulary's end."""
        if not 0 <= number < NUM_SENTINELS:
            raise ValueError(f"sentinel {number}: there are {NUM_SENTINELS}, from 0")
        return self.vocab_size - 1 - number

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of every text, without special tokens."""
        ids: list[list[int]] = self._model.encode(list(texts))
        return ids

    def decode(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """The text of every sequence up to its end token; padding, unknowns, sentinels and ids without a piece say
        nothing."""
        return [self._model.decode(self._pieces(ids)) for ids in sequences]

    def _pieces(self, ids: Sequence[int]) -> list[int]:
        pieces: list[int] = []
        for number in map(int, ids):
            if number == self.eos_id:
                break
            if number not in (self.pad_id, self.unk_id) and 0 <= number < self.num_pieces:
                pieces.append(number)
        return pieces


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
