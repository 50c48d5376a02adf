"""The vocabulary in a folder of Hugging Face's: its files, and how its tokenizer treats text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers.implementations import BertWordPieceTokenizer

from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.tokenizers.sentencepiece import NUM_SENTINELS, SentencePieceTokenizer
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer
from megatron_retrieval.utils.files import atomic_file, read_json, read_lines, write_json

#: how BERT's tokenizer treats text unless its folder says otherwise; ours knows nothing else
_FIXED_SETTINGS = {"tokenize_chinese_chars": (True,), "strip_accents": (None, True)}


def read_wordpiece(folder: Path) -> WordPieceTokenizer:
    """The vocabulary of `vocab.txt`, or of the `tokenizer.json` that newer releases save in its place.

    Raises:
        CheckpointError: there is none, or text is treated as ours cannot.
        DataError: it is damaged.
    """
    model = _settings(folder / "tokenizer.json")
    settings = {**(model.get("normalizer") or {}), **_settings(folder / "tokenizer_config.json")}
    for key, allowed in _FIXED_SETTINGS.items():
        if settings.get(key, allowed[0]) not in allowed:
            raise CheckpointError(f"{folder}: its tokenizer has {key} {settings[key]}, which is not supported.")
    lower_case = bool(settings.get("do_lower_case", settings.get("lowercase", True)))
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
    BertWordPieceTokenizer(ids, lowercase=lower_case).save(str(folder / "tokenizer.json"))
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": lower_case}
    write_json(folder / "tokenizer_config.json", {**settings, **_longest(max_length), **names})


def read_sentencepiece(folder: Path) -> SentencePieceTokenizer:
    """The vocabulary of `spiece.model`.

    Raises:
        CheckpointError: there is none.
        DataError: it is damaged, or none of T5's kind.
    """
    if not (path := folder / "spiece.model").is_file():
        raise CheckpointError(f"{folder}: holds no spiece.model; copy it there from the model's release.")
    return SentencePieceTokenizer(path)


def write_sentencepiece(vocabulary: SentencePieceTokenizer, folder: Path, max_length: int | None) -> None:
    """Write `spiece.model` and what transformers' tokenizer reads beside it; see `write_wordpiece`."""
    for name, content in vocabulary.assets().items():
        (folder / name).write_bytes(content)
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": NUM_SENTINELS}
    write_json(folder / "tokenizer_config.json", {**settings, **_longest(max_length)})


def _settings(path: Path) -> dict[str, Any]:
    """The contents of a JSON file that holds an object; a missing file has none."""
    settings = read_json(path) if path.is_file() else {}
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path}: expected an object of settings.")
    return settings


def _longest(max_length: int | None) -> dict[str, int]:
    return {} if max_length is None else {"model_max_length": max_length}
