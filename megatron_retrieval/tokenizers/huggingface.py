"""The vocabulary in a folder of Hugging Face's: its files, and how its tokenizer treats text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from tokenizers.implementations import BertWordPieceTokenizer

from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.tokenizers.byte_bpe import ByteBpeTokenizer
from megatron_retrieval.tokenizers.sentencepiece import NUM_SENTINELS, SentencePieceTokenizer
from megatron_retrieval.tokenizers.unigram import UnigramTokenizer
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.tokenizers.wordpiece import BERT_FRAME, WordPieceTokenizer
from megatron_retrieval.utils.files import atomic_file, read_json, read_lines, write_json

#: how BERT's tokenizer treats text unless its folder says otherwise; ours knows nothing else
_FIXED_SETTINGS = {
    "tokenize_chinese_chars": True,
    "handle_chinese_chars": True,
    "clean_text": True,
    "do_basic_tokenize": True,
}
#: tokens that no text becomes: MPNet's release adds one, ColBERT's mark its texts with the others
_UNUSED_ADDED = ("<unk>", "[unused0]", "[unused1]", "[Q]", "[D]", "[Q] ", "[D] ")
#: the parts of a tokenizer.json that ours is equal to
_WORDPIECE_PARTS = {"model": "WordPiece", "normalizer": "BertNormalizer", "pre_tokenizer": "BertPreTokenizer"}
#: classes of tokenizers, without Fast, that give the ids of ours; the last ones are whatever their tokenizer.json says
_OF_ANY_KIND = ("PreTrainedTokenizer", "TokenizersBackend")
_WORDPIECE_CLASSES = (
    "BertTokenizer",
    "DistilBertTokenizer",
    "DPRContextEncoderTokenizer",
    "DPRQuestionEncoderTokenizer",
    "DPRReaderTokenizer",
    "MPNetTokenizer",
)


def read_wordpiece(folder: Path) -> WordPieceTokenizer:
    """The vocabulary of `vocab.txt`, or of the `tokenizer.json` that newer releases save in its place.

    Raises:
        CheckpointError: there is none, or text is treated as ours cannot.
        DataError: it is damaged.
    """
    model = _settings(folder / "tokenizer.json")
    _require_class(folder, _WORDPIECE_CLASSES, has_parts=bool(model))
    _require_parts(folder / "tokenizer.json", model, _WORDPIECE_PARTS)
    settings = {**(model.get("normalizer") or {}), **_settings(folder / "tokenizer_config.json")}
    tokenizer = _open_wordpiece(folder, model, _lower_case(folder, settings))
    _refuse_added_tokens(folder, {*tokenizer.frame.values(), *_UNUSED_ADDED})
    names = {f"{name}_token": token for name, token in tokenizer.frame.items()}
    for key, only in {**_FIXED_SETTINGS, **names}.items():
        value = settings.get(key)
        if (value := value["content"] if isinstance(value, dict) else value) not in (None, only):
            raise CheckpointError(f"{folder}: its tokenizer has {key} {value}, which is not supported.")
    return tokenizer


def _lower_case(folder: Path, settings: Mapping[str, Any]) -> bool:
    lower_case = bool(settings.get("do_lower_case", settings.get("lowercase", True)))
    if (stripped := settings.get("strip_accents")) not in (None, lower_case):
        case = "uncased" if lower_case else "cased"
        raise CheckpointError(
            f"{folder}: its tokenizer is {case} and has strip_accents {stripped}; only uncased ones that strip accents "
            "and cased ones that keep them can be imported."
        )
    return lower_case


def _open_wordpiece(folder: Path, model: Mapping[str, Any], lower_case: bool) -> WordPieceTokenizer:
    pieces = model.get("model", {})
    if (path := folder / "vocab.txt").is_file():
        return WordPieceTokenizer(path, lower_case, tokens=[line.rstrip("\r\n") for line in read_lines(path)])
    if pieces.get("type") != "WordPiece":
        raise CheckpointError(f"{folder}: holds neither vocab.txt nor a tokenizer.json of the kind WordPiece.")
    tokens = sorted(pieces["vocab"], key=pieces["vocab"].__getitem__)
    return WordPieceTokenizer(folder / "tokenizer.json", lower_case, tokens=tokens)


def write_wordpiece(vocabulary: WordPieceTokenizer, folder: Path, max_length: int | None) -> None:
    """Write `vocab.txt` and what transformers' tokenizers, slow and fast, read beside it.

    Args:
        max_length: of a sequence, in tokens; None: any.
    """
    with atomic_file(folder / "vocab.txt") as file:
        file.writelines(f"{token}\n" for token in vocabulary.tokens)
    ids = {token: number for number, token in enumerate(vocabulary.tokens)}
    lower_case = vocabulary.settings()["lower_case"]
    names = {f"{name}_token": token for name, token in vocabulary.frame.items()}
    BertWordPieceTokenizer(ids, lowercase=lower_case, **names).save(str(folder / "tokenizer.json"))
    class_name = "BertTokenizer" if vocabulary.frame is BERT_FRAME else "MPNetTokenizer"
    settings = {"tokenizer_class": class_name, "do_lower_case": lower_case}
    write_json(folder / "tokenizer_config.json", {**settings, **_longest(max_length), **names})


def read_sentencepiece(folder: Path) -> SentencePieceTokenizer:
    """The vocabulary of `spiece.model`.

    Raises:
        CheckpointError: there is none, or its tokenizer is not T5's.
        DataError: it is damaged, or none of T5's kind.
    """
    _require_class(folder, ("T5Tokenizer",), has_parts=False)
    _refuse_added_tokens(folder, {"<pad>", "</s>", "<unk>", *(f"<extra_id_{n}>" for n in range(NUM_SENTINELS))})
    if (number := _settings(folder / "tokenizer_config.json").get("extra_ids", NUM_SENTINELS)) != NUM_SENTINELS:
        raise CheckpointError(f"{folder}: its tokenizer has extra_ids {number}; only {NUM_SENTINELS} can be imported.")
    if not (path := folder / "spiece.model").is_file():
        raise CheckpointError(f"{folder}: holds no spiece.model; copy it there from the model's release.")
    return SentencePieceTokenizer(path)


def write_sentencepiece(vocabulary: SentencePieceTokenizer, folder: Path, max_length: int | None) -> None:
    """Write `spiece.model` and what transformers' tokenizer reads beside it; see `write_wordpiece`."""
    for name, content in vocabulary.assets().items():
        (folder / name).write_bytes(content)
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": NUM_SENTINELS}
    write_json(folder / "tokenizer_config.json", {**settings, **_longest(max_length)})


def read_byte_bpe(folder: Path) -> ByteBpeTokenizer:
    """The vocabulary of `tokenizer.json`.

    Raises:
        CheckpointError: there is none.
        DataError: it is damaged, or of another kind.
    """
    return ByteBpeTokenizer(_tokenizer_json(folder))


def read_unigram(folder: Path) -> UnigramTokenizer:
    """See `read_byte_bpe`."""
    return UnigramTokenizer(_tokenizer_json(folder))


def _tokenizer_json(folder: Path) -> Path:
    if not (path := folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{folder}: holds no tokenizer.json; open its tokenizer with transformers and save_pretrained it there."
        )
    return path


def write_tokenizer_json(vocabulary: ByteBpeTokenizer, folder: Path, max_length: int | None) -> None:
    """Write the files as they were read, but for the longest sequence; see `write_wordpiece`."""
    for name, content in vocabulary.assets().items():
        (folder / name).write_bytes(content)
    if max_length is not None:
        path = folder / "tokenizer_config.json"
        write_json(path, {**_settings(path), **_longest(max_length)})


def token_id(folder: Path, vocabulary: Vocabulary, token: str) -> int | None:
    """The id of a token that no text becomes, by its name, perhaps with a space behind; None of no name.

    Raises:
        CheckpointError: the folder knows no such token.
    """
    if not token:
        return None
    settings, description = _settings(folder / "tokenizer_config.json"), _settings(folder / "tokenizer.json")
    added = {each["content"]: int(number) for number, each in (settings.get("added_tokens_decoder") or {}).items()}
    known = {**_ids_of(description), **_ids(vocabulary), **_settings(folder / "added_tokens.json"), **added}
    number: int | None = known.get(token, known.get(token.rstrip()))
    if number is None:
        raise CheckpointError(f"{folder}: its tokenizer has no token {token!r}, with which texts are marked.")
    return number


def token_of(vocabulary: Vocabulary, number: int) -> str:
    """The inverse of `token_id`.

    Raises:
        CheckpointError: the vocabulary has no such token.
    """
    names = {other: token for token, other in _ids(vocabulary).items()}
    if number not in names:
        raise CheckpointError(
            f"texts are marked with the token {number}, which the vocabulary has no name for: no export."
        )
    return names[number]


def _ids(vocabulary: Vocabulary) -> dict[str, int]:
    """The names of all tokens of a vocabulary."""
    if isinstance(vocabulary, WordPieceTokenizer):
        return {token: number for number, token in enumerate(vocabulary.tokens)}
    content = vocabulary.assets().get("tokenizer.json")
    return {} if content is None else _ids_of(json.loads(content))


def _ids_of(description: Mapping[str, Any]) -> dict[str, int]:
    """Those of a `tokenizer.json`."""
    pieces = (description.get("model") or {}).get("vocab") or {}
    listed = pieces if isinstance(pieces, dict) else {piece[0]: number for number, piece in enumerate(pieces)}
    return {**listed, **{token["content"]: token["id"] for token in description.get("added_tokens") or ()}}


def _require_class(folder: Path, classes: Sequence[str], *, has_parts: bool) -> None:
    """Refuse a tokenizer that is not one of these classes, nor, where its parts can be compared, of any."""
    for file in ("tokenizer_config.json", "config.json"):
        name = _settings(folder / file).get("tokenizer_class")
        known = (*classes, *_OF_ANY_KIND) if has_parts else classes
        if name is not None and str(name).removesuffix("Fast") not in known:
            raise CheckpointError(
                f"{folder / file}: the tokenizer is a {name}, which splits text otherwise; only that of "
                f"{' or '.join(classes)} can be imported here."
            )


def _require_parts(path: Path, tokenizer: Mapping[str, Any], parts: Mapping[str, str]) -> None:
    """Refuse a `tokenizer.json` with other parts."""
    for part, kind in parts.items():
        found = (tokenizer.get(part) or {}).get("type")
        # the first releases name no kind of model
        if tokenizer and found != kind and not (part == "model" and found is None):
            raise CheckpointError(f"{path}: its {part} is {found}; only {kind} can be imported.")


def _refuse_added_tokens(folder: Path, known: Set[str]) -> None:
    """Refuse tokens that were added behind or beside a vocabulary: they are found in the text before it is split."""
    settings = _settings(folder / "tokenizer_config.json")
    special = {**_settings(folder / "special_tokens_map.json"), **settings}
    found = set(_settings(folder / "added_tokens.json"))
    found |= {token["content"] for token in (settings.get("added_tokens_decoder") or {}).values()}
    found |= {token["content"] for token in _settings(folder / "tokenizer.json").get("added_tokens") or ()}
    for key in ("additional_special_tokens", "extra_special_tokens"):
        named = special.get(key) or ()
        named = named.values() if isinstance(named, dict) else named
        found |= {token["content"] if isinstance(token, dict) else token for token in named}
    if added := sorted(found - known):
        raise CheckpointError(
            f"{folder}: its tokenizer has the added token {added[0]!r} ({len(added)} in all); a vocabulary with added "
            "tokens cannot be imported."
        )


def _settings(path: Path) -> dict[str, Any]:
    """The contents of a JSON file that holds an object; a missing file has none."""
    settings = read_json(path) if path.is_file() else {}
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path}: expected an object of settings.")
    return settings


def _longest(max_length: int | None) -> dict[str, int]:
    return {} if max_length is None else {"model_max_length": max_length}
