"""SentencePiece gives Hugging Face's ids, and refuses what is no model of T5's kind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from transformers import T5Tokenizer

from megatron_retrieval.errors import DataError
from megatron_retrieval.testing.tiny_sentencepiece import NUM_PIECES, write_sentencepiece
from megatron_retrieval.tokenizers.sentencepiece import SPECIAL_IDS, SentencePieceTokenizer
from megatron_retrieval.tokenizers.vocabulary import SpecialIds

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("MEGATRON_RETRIEVAL_DATA", ROOT / ".." / "shared" / "data"))
TEXTS = [
    "the capital of Paris, 1889",
    "  white\tspace \n everywhere\u00a0",
    "",
    " ",
    "Ünknown 北京 letters ﬁ ½ e\u0301 🙂🙂",
    "a" * 300,
    "question: where? <mask> the-tower's (city)",
]


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    return write_sentencepiece(tmp_path / "spiece.model")


def _compare(model_file: Path, texts: list[str]) -> SentencePieceTokenizer:
    theirs = T5Tokenizer.from_pretrained(model_file.parent)
    ours = SentencePieceTokenizer(model_file)
    ids = ours.encode(texts)
    assert ids == theirs(texts, add_special_tokens=False).input_ids
    for row, text in zip(ids, ours.decode(ids), strict=True):
        assert text == theirs.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert ours.vocab_size == len(theirs)
    names = [f"<extra_id_{number}>" for number in (0, 1, 99)]
    assert [ours.sentinel_ids[number] for number in (0, 1, 99)] == theirs.convert_tokens_to_ids(names)
    assert ours.special == SpecialIds(begin=None, end=theirs.eos_token_id, pad=theirs.pad_token_id, unknown=2)
    assert (SPECIAL_IDS["unk"], len(ours.sentinel_ids)) == (theirs.unk_token_id, 100)
    return ours


def test_ids_equal_hugging_face(model_file: Path) -> None:
    tokenizer = _compare(model_file, TEXTS)
    assert tokenizer.vocab_size == NUM_PIECES + 100


def test_decoding_ends_at_the_end_token_and_skips_what_is_no_text(model_file: Path) -> None:
    tokenizer = SentencePieceTokenizer(model_file)
    (ids,) = tokenizer.encode(["the capital"])
    noise = [tokenizer.special.pad, tokenizer.sentinel_ids[3], tokenizer.vocab_size + 20]
    assert tokenizer.decode([[*noise, *ids, tokenizer.special.end, *ids], []]) == ["the capital", ""]


def test_text_cannot_forge_special_tokens(model_file: Path) -> None:
    tokenizer = SentencePieceTokenizer(model_file)
    (ids,) = tokenizer.encode(["</s> <pad> <extra_id_0>"])
    assert not {tokenizer.special.end, tokenizer.special.pad, tokenizer.sentinel_ids[0]} & set(ids)


def test_words_and_characters_of_tokens(model_file: Path) -> None:
    tokenizer = SentencePieceTokenizer(model_file)
    text = "the capital \U0001f642 of Paris, e\u0301"
    (ids,) = tokenizer.encode([text])
    offsets = tokenizer.offsets(text)
    assert [stop for _, stop in offsets[:-1]] == [start for start, _ in offsets[1:]]
    assert (offsets[0][0], offsets[-1][1], len(offsets)) == (0, len(text), len(ids))
    continues = tokenizer.continues_word()[ids]
    words = [text[start:stop] for (start, stop), inside in zip(offsets, continues, strict=True) if not inside]
    assert continues.shape == (len(ids),)
    assert [word for word in words if word.startswith(" ")] == words[1:]


def test_fingerprint_names_the_model(model_file: Path, tmp_path: Path) -> None:
    (copy := tmp_path / "copy.model").write_bytes(model_file.read_bytes())
    other = write_sentencepiece(tmp_path / "other.model", model_type="bpe")
    fingerprints = [SentencePieceTokenizer(path).fingerprint for path in (model_file, copy, other)]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "spiece.model"
    for content in (b"", b"no model"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="no SentencePiece model"):
            SentencePieceTokenizer(path)
    write_sentencepiece(path, unk_id=0, bos_id=1, eos_id=2, pad_id=-1)
    with pytest.raises(DataError, match=r"its special tokens are .*'eos': 2.* where T5 has"):
        SentencePieceTokenizer(path)
    with pytest.raises(DataError, match="cannot be read"):
        SentencePieceTokenizer(tmp_path / "missing.model")


@pytest.mark.real_data
def test_ids_equal_hugging_face_on_the_public_model(tmp_path: Path) -> None:
    source = DATA / "tokenizers" / "t5-base-spiece.model"
    if not source.is_file():
        pytest.skip(f"{source} is not here")
    (path := tmp_path / "spiece.model").write_bytes(source.read_bytes())
    texts = [*TEXTS, *(ROOT / "README.md").read_text(encoding="utf-8").splitlines()]
    assert _compare(path, texts).vocab_size == 32100
