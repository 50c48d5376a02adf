"""WordPiece gives Hugging Face's ids and refuses what is no vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import BertTokenizerFast

from megatron_retrieval.errors import DataError
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["the", "capital", "of", "cafe", "Paris", "paris", "un", "##believ", "##able", ",", ".", "北", "[", "]", "sep"]
TEXTS = ["The capital of\tCafé, Paris.", "unbelievable 北京", "", "x\u200bthe\u00a0of \x00", "un" * 80, "PARIS unxyz"]


@pytest.fixture
def vocab_file(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(SPECIAL + WORDS) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("lower_case", [True, False])
def test_ids_equal_hugging_face(vocab_file: Path, lower_case: bool) -> None:
    reference = BertTokenizerFast(vocab=str(vocab_file), do_lower_case=lower_case)
    tokenizer = WordPieceTokenizer(vocab_file, lower_case)
    assert tokenizer.encode(TEXTS) == [reference.encode(text, add_special_tokens=False) for text in TEXTS]
    assert tokenizer.vocab_size == reference.vocab_size
    special = tokenizer.special
    assert (special.pad, special.begin, special.end, special.mask) == (0, 2, 3, 4)


def test_text_cannot_forge_special_tokens(vocab_file: Path) -> None:
    tokenizer = WordPieceTokenizer(vocab_file)
    assert tokenizer.encode(["[SEP]"]) == [[len(SPECIAL) + WORDS.index(piece) for piece in ("[", "sep", "]")]]


def test_fingerprint_names_vocabulary_and_casing(vocab_file: Path, tmp_path: Path) -> None:
    windows = tmp_path / "windows.txt"
    windows.write_bytes(vocab_file.read_bytes().replace(b"\n", b"\r\n"))
    other = tmp_path / "other.txt"
    other.write_text(vocab_file.read_text(encoding="utf-8") + "more\n", encoding="utf-8")
    fingerprint = WordPieceTokenizer(vocab_file).fingerprint
    assert WordPieceTokenizer(windows).fingerprint == fingerprint
    assert WordPieceTokenizer(other).fingerprint != fingerprint
    assert WordPieceTokenizer(vocab_file, lower_case=False).fingerprint != fingerprint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\n".join(SPECIAL[:3] + WORDS), r"lacks \[SEP\], \[MASK\]"),
        ("\n".join([*SPECIAL, "id\ttext\ttitle"]), r":6: .*white space"),
        ("\n".join([*SPECIAL, "", "the"]), r":6: .*empty line"),
        ("\n".join([*SPECIAL, "the", "[PAD]"]), r":7: .*'\[PAD\]' stands here and in line 1"),
    ],
)
def test_no_vocabulary(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        WordPieceTokenizer(path)


def test_words_of_ids(vocab_file: Path) -> None:
    tokenizer = WordPieceTokenizer(vocab_file)
    special = tokenizer.special
    (ids,) = tokenizer.encode(["unbelievable Café, xyz 北."])
    framed = [special.begin, *ids, special.mask, 10_000, special.end, ids[0], special.pad]
    assert tokenizer.decode([framed, [], ids[1:3]]) == ["unbelievable cafe , 北 .", "", "believable"]
    assert tokenizer.until_end(framed) == [*ids, 10_000]
