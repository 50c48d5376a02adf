"""Byte-level BPE (GPT-2, RoBERTa, Llama 3, Qwen, SmolLM2): text to token ids and back, the same ids as Hugging Face's
tokenizer with the same `tokenizer.json`, but that special tokens in a text are text."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from megatron_retrieval.errors import DataError
from megatron_retrieval.tokenizers.vocabulary import LineTokens, SpecialIds
from megatron_retrieval.utils.files import open_binary, read_json

SETTINGS_NAME = "tokenizer_config.json"
_HINT = (
    "Give the tokenizer.json of a GPT-2, RoBERTa, Llama 3, Mistral Nemo or Qwen; tokenizer_config.json may stand "
    "beside it."
)


class ByteBpeTokenizer:
    """A `Vocabulary`: byte-level BPE over a `tokenizer.json`.

    A text has other ids behind a space, or behind a prefix, than at the beginning of a sequence. `encode`, and with it
    stores, have those at the beginning; they say the whole text, so that a layout can join texts and encode them anew.

    Args:
        tokenizer_file: of Hugging Face's tokenizers; a tokenizer_config.json beside it names the end token where the
            first frames no text.

    Raises:
        DataError: the file is missing, damaged or of another kind, or no end token is named.

    Attributes:
        ends_texts: Hugging Face's tokenizer writes the end token behind every text, as those of embedders do.
    """

    kind = "byte-level BPE"
    is_reversible = True
    is_separable = False
    sentinel_ids: tuple[int, ...] = ()

    def __init__(self, tokenizer_file: str | Path) -> None:
        self.path = Path(tokenizer_file)
        with open_binary(self.path) as file:
            self._content = file.read()
        settings_path = self.path.with_name(SETTINGS_NAME)
        self._settings_content = settings_path.read_bytes() if settings_path.is_file() else None
        description = _read_description(self.path, self._content)
        self._check_kind(description)
        settings = read_json(settings_path) if settings_path.is_file() else {}
        before, behind, num_between = _template(self.path, description.get("post_processor"))
        names = {name: _content_of(settings.get(f"{name}_token")) for name in ("eos", "pad", "mask")}
        end = behind or names["eos"]
        if end is None:
            raise DataError(self.path, "neither it nor a tokenizer_config.json names an end token", hint=_HINT)
        frame = {before, end, names["pad"]}
        for token in description.get("added_tokens") or ():
            # else tokenizers would find it in texts
            token["special"] = token["special"] or token["content"] in frame
        self._tokenizer = _open(self.path, description)
        self.special = SpecialIds(
            begin=None if before is None else self._id(before),
            end=self._id(end),
            pad=self._id(names["pad"] or end),
            mask=None if names["mask"] is None else self._id(names["mask"]),
            unknown=description["model"].get("unk_id"),
            num_between=num_between,
        )
        self.ends_texts = behind is not None
        tokens = self._tokenizer.get_vocab(with_added_tokens=True)
        #: including tokens that no text becomes
        self.vocab_size = max(tokens.values()) + 1
        self._is_special = np.zeros(self.vocab_size, np.bool_)
        self._is_special[[number for number, token in self._added() if token.special]] = True
        parts = [description.get(part) for part in ("model", "normalizer", "pre_tokenizer", "added_tokens")]
        listing = json.dumps([*parts, before, end], sort_keys=True)
        self.fingerprint = hashlib.sha256(listing.encode()).hexdigest()[:16]

    def assets(self) -> dict[str, bytes]:
        """See `Vocabulary`."""
        settings = {} if self._settings_content is None else {SETTINGS_NAME: self._settings_content}
        return {"tokenizer.json": self._content, **settings}

    def settings(self) -> dict[str, Any]:
        """See `Vocabulary`: nothing, the files say all."""
        return {}

    def continues_word(self) -> NDArray[np.bool_]:
        """[vocab_size] which tokens continue the word of the token before them (those that begin with a letter or
        digit, without white space in front)."""
        return self._where(lambda text: _is_of_word(text[0])) & ~self._is_special

    def closes_word(self) -> NDArray[np.bool_]:
        """[vocab_size] behind which tokens a word begins anew: special ones, and those that end with neither letter nor
        digit."""
        return self._where(lambda text: not _is_of_word(text[-1])) | self._is_special

    def line_tokens(self) -> LineTokens:
        """Which tokens begin, end or make a line of text; a line break of several tokens (U+2028) is not seen."""
        is_text = self._where(lambda text: not text.isspace()) & ~self._is_special
        starts_line = self._where(lambda text: _breaks(text) and not text.splitlines()[0].strip())
        closes_line = self._where(lambda text: _breaks(text.lstrip()))
        return LineTokens(is_text, starts_line & ~self._is_special, closes_line & is_text)

    def num_bytes(self) -> NDArray[np.int64]:
        """[vocab_size] bytes of text that each token stands for; 0 for ids without a token."""
        lengths = np.zeros(self.vocab_size, np.int64)
        for token, number in self._tokenizer.get_vocab(with_added_tokens=True).items():
            lengths[number] = len(token)  # a character of the vocabulary's alphabet stands for a byte
        for number, token in self._added():
            lengths[number] = len(token.content.encode())
        return lengths

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of every text at the beginning of a sequence, without special tokens."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """The text of every sequence up to its end token; other special tokens and ids without a token say nothing."""
        kept = [self.until_end(ids) for ids in sequences]
        texts: list[str] = self._tokenizer.decode_batch(kept, skip_special_tokens=False)
        return texts

    def until_end(self, ids: Sequence[int]) -> list[int]:
        """The ids before the first end token, without other special tokens and ids without a token."""
        before = takewhile(lambda number: number != self.special.end, map(int, ids))
        return [number for number in before if 0 <= number < self.vocab_size and not self._is_special[number]]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """For every token of `text`, the (start, stop) of the characters that it stands for; the space before a word is
        the word's, and tokens that share a character all stand for it."""
        offsets: list[tuple[int, int]] = self._tokenizer.encode(text, add_special_tokens=False).offsets
        return offsets

    def _check_kind(self, description: Mapping[str, Any]) -> None:
        """Refuse the contents of a `tokenizer.json` of another kind."""
        if description["model"].get("type") != "BPE":
            raise DataError(self.path, "no vocabulary of the kind BPE", hint=_HINT)
        if "ByteLevel" not in (part["type"] for part in parts_of(description.get("pre_tokenizer"), "pretokenizers")):
            raise DataError(
                self.path,
                "its BPE is not byte-level but made of SentencePiece's pieces, as those of Mistral-7B (v0.1 to v0.3), "
                "Llama 2 and Gemma are, which cannot be used",
                hint=_HINT,
            )

    def _where(self, holds: Callable[[str], bool]) -> NDArray[np.bool_]:
        """[vocab_size], which tokens stand for a text of which this holds."""
        return np.array([bool(text) and holds(text) for text in self._texts])

    @cached_property
    def _texts(self) -> list[str]:
        """What every token stands for; readers ask for several tables of it when they are opened."""
        ids = [[number] for number in range(self.vocab_size)]
        texts: list[str] = self._tokenizer.decode_batch(ids, skip_special_tokens=False)
        return texts

    def _id(self, token: str) -> int:
        number: int | None = self._tokenizer.token_to_id(token)
        if number is None:
            raise DataError(self.path, f"the special token {token!r} is none of its tokens", hint=_HINT)
        return number

    def _added(self) -> Iterator[tuple[int, Any]]:
        yield from self._tokenizer.get_added_tokens_decoder().items()


def _is_of_word(character: str) -> bool:
    """Letters, digits and marks; not what stands for part of a character, which is punctuation more often than not."""
    return character.isalnum() or unicodedata.category(character).startswith("M")


def _breaks(text: str) -> bool:
    """Whether there is a line break."""
    return len(f"{text}.".splitlines()) > 1


def _read_description(path: Path, content: bytes) -> dict[str, Any]:
    """The contents of a `tokenizer.json`."""
    try:
        description = json.loads(content)
    except ValueError as error:
        raise DataError(path, "not JSON, or cut off", hint=_HINT) from error
    if not isinstance(description, dict) or not isinstance(description.get("model"), dict):
        raise DataError(path, "it describes no tokenizer", hint=_HINT)
    return description


def _open(path: Path, description: Mapping[str, Any]) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(json.dumps({**description, "post_processor": None}))
    except Exception as error:  # the library raises nothing narrower
        raise DataError(path, f"damaged: {error}", hint=_HINT) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _template(path: Path, processor: Mapping[str, Any] | None) -> tuple[str | None, str | None, int]:
    """The tokens that Hugging Face's tokenizer writes before and behind every text (None: none), and how many end
    tokens between two."""
    before: list[str] = []
    behind: list[str] = []
    num_between = 1
    for part in parts_of(processor, "processors"):
        if part["type"] in ("RobertaProcessing", "BertProcessing"):
            before, behind = [part["cls"][0]], [part["sep"][0]]
            num_between = 2 if part["type"] == "RobertaProcessing" else 1
        elif part["type"] == "TemplateProcessing":
            names = [piece.get("SpecialToken", {}).get("id") for piece in part["single"]]
            before, behind = names[: names.index(None)], names[names.index(None) + 1 :]
            pair = [piece.get("SpecialToken", {}).get("id") for piece in part["pair"]]
            texts = [place for place, name in enumerate(pair) if name is None]
            between = pair[min(texts, default=0) : max(texts, default=0)]
            num_between = max(sum(between.count(end) for end in behind), 1)
    if len(before) > 1 or len(behind) > 1:
        raise DataError(
            path, f"frames a text with {[*before, *behind]}; one token on each side can be used", hint=_HINT
        )
    return before[0] if before else None, behind[0] if behind else None, num_between


def parts_of(part: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    """A part of a tokenizer, or those that it is a sequence of."""
    if not part:
        return []
    return list(part[key]) if part["type"] == "Sequence" else [part]


def _content_of(token: Any) -> str | None:
    """The text of a special token, which is written as such or with its properties."""
    content: str | None = token["content"] if isinstance(token, Mapping) else token
    return content
