"""A unigram vocabulary of XLM-R's kind gives Hugging Face's ids; special words are text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from megatron_retrieval.data.layouts.sequences import prefix_ids
from megatron_retrieval.errors import DataError
from megatron_retrieval.testing.tiny_byte_bpe import write_byte_bpe, write_unigram
from megatron_retrieval.tokenizers.byte_bpe import ByteBpeTokenizer
from megatron_retrieval.tokenizers.unigram import UnigramTokenizer
from megatron_retrieval.tokenizers.vocabularies import VOCABULARIES, open_encoder_vocabulary
from megatron_retrieval.tokenizers.vocabulary import SpecialIds

TEXTS = ("the capital of France", "", " two  spaces \n\tand a line", "Paris 北京, who?")


@pytest.fixture
def vocabulary(tmp_path: Path) -> UnigramTokenizer:
    found = open_encoder_vocabulary(write_unigram(tmp_path))
    assert isinstance(found, UnigramTokenizer)
    return found


def test_ids_and_texts(vocabulary: UnigramTokenizer) -> None:
    reference = transformers.PreTrainedTokenizerFast(tokenizer_file=str(vocabulary.path))
    ids = vocabulary.encode(TEXTS)
    assert [[0, *own, 2] for own in ids] == reference(list(TEXTS))["input_ids"]
    assert vocabulary.special == SpecialIds(
        begin=0, end=2, pad=1, mask=vocabulary.vocab_size - 1, unknown=3, num_between=2
    )
    assert vocabulary.decode(ids)[:2] == list(TEXTS[:2])
    assert vocabulary.encode([f"{TEXTS[0]} {TEXTS[3]}"])[0] == ids[0] + ids[3]
    assert vocabulary.special.mask not in vocabulary.encode(["the <mask>"])[0]
    kind = VOCABULARIES[vocabulary.kind]
    assert kind.open(vocabulary.path, vocabulary.settings()).fingerprint == vocabulary.fingerprint


def test_a_prefix_where_only_the_mark_of_a_space_parts_words(vocabulary: UnigramTokenizer) -> None:
    """As some releases write the tokenizer: white space at the end of a text is a token there."""
    described = json.loads(vocabulary.path.read_text())
    mark = {"replacement": "\u2581", "prepend_scheme": "always", "split": True}
    described["pre_tokenizer"] = {"type": "Metaspace", **mark}
    vocabulary.path.write_text(json.dumps(described))
    found = UnigramTokenizer(vocabulary.path)
    assert found.encode(["query: "]) != found.encode(["query:"])
    (whole, text) = found.encode(["query: the capital", "the capital"])
    assert prefix_ids("query: ", found) + text == whole


def test_words(vocabulary: UnigramTokenizer) -> None:
    text = "the capital of Paris."
    (ids,), offsets = vocabulary.encode([text]), vocabulary.offsets(text)
    begins = [start == 0 or text[start - 1] == " " or text[start] == "." for start, _ in offsets]
    assert [not continues for continues in vocabulary.continues_word()[ids]] == begins
    assert offsets[-1] == (len(text) - 1, len(text))


def test_other_kinds_are_refused(vocabulary: UnigramTokenizer, tmp_path: Path) -> None:
    assert isinstance(open_encoder_vocabulary(write_byte_bpe(tmp_path / "bpe")), ByteBpeTokenizer)
    with pytest.raises(DataError, match="no vocabulary of the kind Unigram"):
        UnigramTokenizer(tmp_path / "bpe" / "tokenizer.json")
    described = json.loads(vocabulary.path.read_text())
    vocabulary.path.write_text(json.dumps({**described, "pre_tokenizer": {"type": "WhitespaceSplit"}}))
    with pytest.raises(DataError, match="mark of a space"):
        UnigramTokenizer(vocabulary.path)
