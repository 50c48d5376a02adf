"""SentencePiece's unigram model in a `tokenizer.json` (XLM-R): text to token ids and back, the same ids as Hugging
Face's tokenizer with the same file, but that special tokens in a text are text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_retrieval.errors import DataError
from megatron_retrieval.tokenizers.byte_bpe import ByteBpeTokenizer, parts_of
from megatron_retrieval.utils.files import read_json

_HINT = "Give the tokenizer.json of an XLM-R; tokenizer_config.json may stand beside it."


def is_unigram(path: str | Path) -> bool:
    """Whether a `tokenizer.json` holds a unigram model.

    Raises:
        DataError: the file is damaged.
    """
    description = read_json(Path(path))
    return isinstance(description, dict) and (description.get("model") or {}).get("type") == "Unigram"


class UnigramTokenizer(ByteBpeTokenizer):
    """A `Vocabulary`: a unigram model whose words all begin with the mark of a space; see `ByteBpeTokenizer`."""

    kind = "unigram"
    is_reversible = False
    is_separable = True

    def _where(self, holds: Callable[[str], bool]) -> NDArray[np.bool_]:
        """[vocab_size], of which tokens this holds as they are written, with the mark of a space."""
        tokens = (self._tokenizer.id_to_token(number) or "" for number in range(self.vocab_size))
        return np.array([bool(token) and holds(token) for token in tokens])

    def _check_kind(self, description: Mapping[str, Any]) -> None:
        if description["model"].get("type") != "Unigram":
            raise DataError(self.path, "no vocabulary of the kind Unigram", hint=_HINT)
        marks = [
            part for part in parts_of(description.get("pre_tokenizer"), "pretokenizers") if part["type"] == "Metaspace"
        ]
        if not marks or marks[0].get("prepend_scheme", "always") != "always" or not marks[0].get("split", True):
            raise DataError(
                self.path, "it does not begin every word with the mark of a space, as XLM-R's does", hint=_HINT
            )
