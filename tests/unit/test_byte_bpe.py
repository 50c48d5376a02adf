"""Byte-level BPE gives Hugging Face's ids; special words are text; texts behind a space have their own ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers
from tokenizers import Tokenizer, processors

from megatron_retrieval.data.layouts.extractive import ExtractiveFormatConfig
from megatron_retrieval.data.layouts.sequences import TextFormatConfig, lay_out_passages, lay_out_questions
from megatron_retrieval.data.stores.ragged import tokenize
from megatron_retrieval.errors import DataError
from megatron_retrieval.testing.tiny_byte_bpe import END, write_byte_bpe, write_roberta_bpe
from megatron_retrieval.testing.tiny_sentencepiece import SENTENCES
from megatron_retrieval.tokenizers.byte_bpe import ByteBpeTokenizer
from megatron_retrieval.tokenizers.vocabularies import VOCABULARIES
from megatron_retrieval.tokenizers.vocabulary import SpecialIds

TEXTS = (*SENTENCES, "", " two  spaces \n\tand a line", "naïve Łódź 北京 🙂🙃", "it's 1889's", "x" * 30)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> ByteBpeTokenizer:
    return ByteBpeTokenizer(write_byte_bpe(tmp_path_factory.mktemp("bpe")))


def test_ids_and_texts(vocabulary: ByteBpeTokenizer) -> None:
    reference = transformers.PreTrainedTokenizerFast(tokenizer_file=str(vocabulary.path))
    ids = vocabulary.encode(TEXTS)
    assert ids == reference(list(TEXTS))["input_ids"]
    assert vocabulary.decode(ids) == list(TEXTS)
    assert max(map(max, filter(None, ids))) < vocabulary.vocab_size == 300
    assert vocabulary.decode([[*ids[0], vocabulary.special.end, 9], [vocabulary.special.pad, 999]]) == [TEXTS[0], ""]


def test_no_text_forges_a_frame(vocabulary: ByteBpeTokenizer) -> None:
    (ids,) = vocabulary.encode([f"the {END} of"])
    assert vocabulary.special.end not in ids
    assert vocabulary.decode([ids]) == [f"the {END} of"]


def test_texts_are_joined_as_they_would_be_written(vocabulary: ByteBpeTokenizer) -> None:
    layout = TextFormatConfig(
        passage_format="title-text", query_prefix="Find: the ", passage_prefix="Query:", retriever_seq_length=30
    )
    titles, texts = ["Paris", "", "the tower"], ["the capital of France", "a river runs", "stands in Paris " * 9]
    columns = tokenize(vocabulary, titles), tokenize(vocabulary, texts)
    passages = lay_out_passages(*columns, vocabulary, layout)
    written = [f"Query:{title} {text}".replace(": ", ":") for title, text in zip(titles, texts, strict=True)]
    assert written[1] == "Query:a river runs"
    for ids, length, own in zip(passages.ids, passages.lengths, vocabulary.encode(written), strict=True):
        assert ids[:length].tolist() == [*own[:29], vocabulary.special.end]
    questions = lay_out_questions(columns[1], vocabulary, layout)
    for ids, length, own in zip(
        questions.ids, questions.lengths, vocabulary.encode([f"Find: the {text}" for text in texts]), strict=True
    ):
        assert ids[:length].tolist() == [*own[:63], vocabulary.special.end]
    plain = lay_out_passages(*columns, vocabulary, TextFormatConfig())
    first = [*columns[0][0].tolist(), vocabulary.special.end, *columns[1][0].tolist(), vocabulary.special.end]
    assert plain.ids[0, : plain.lengths[0]].tolist() == first


def test_offsets_are_of_characters(vocabulary: ByteBpeTokenizer) -> None:
    for text in TEXTS:
        offsets = vocabulary.offsets(text)
        assert len(offsets) == len(vocabulary.encode([text])[0])
        assert {place for start, stop in offsets for place in range(start, stop)} == set(range(len(text)))
    assert vocabulary.offsets("of Paris")[-1][1] == 8


def test_words(vocabulary: ByteBpeTokenizer) -> None:
    continues = vocabulary.continues_word()
    text = "the capital of Denmark"
    begins = [text[start:].startswith(" ") for start, _ in vocabulary.offsets(text)]
    assert [not continues[number] for number in vocabulary.encode([text])[0]] == begins


def test_it_is_kept_in_its_own_files(vocabulary: ByteBpeTokenizer, tmp_path: Path) -> None:
    for name, content in vocabulary.assets().items():
        (tmp_path / name).write_bytes(content)
    kind = VOCABULARIES[vocabulary.kind]
    again = kind.open(tmp_path / kind.file_name, vocabulary.settings())
    assert (again.special, again.fingerprint) == (vocabulary.special, vocabulary.fingerprint)


def test_a_frame_is_found(tmp_path: Path) -> None:
    vocabulary = ByteBpeTokenizer(write_byte_bpe(tmp_path, ends_texts=True))
    assert vocabulary.ends_texts
    assert vocabulary.special.frame == [0]
    assert vocabulary.special.num_between == 1


@pytest.mark.parametrize("is_template", [False, True])
def test_two_texts_are_framed_as_roberta_does(tmp_path: Path, is_template: bool) -> None:
    path = write_roberta_bpe(tmp_path)
    if is_template:
        template = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> </s> $B </s>", [("<s>", 0), ("</s>", 2)])
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.post_processor = template
        tokenizer.save(str(path))
    reference = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))
    vocabulary = ByteBpeTokenizer(path)
    assert vocabulary.special == SpecialIds(begin=0, end=2, pad=1, mask=4, num_between=2)
    titles, texts = ["Paris", "", "the tower"], ["the capital of France", "a river", "stands in Paris " * 9]
    columns = tokenize(vocabulary, titles), tokenize(vocabulary, texts)
    for length in (64, 5):
        passages = lay_out_passages(*columns, vocabulary, TextFormatConfig(retriever_seq_length=length))
        for row, pair in enumerate(zip(titles, texts, strict=True)):
            whole = reference(*pair)["input_ids"]
            expected = whole if len(whole) <= length else [*whole[: length - 1], 2]
            assert passages.ids[row, : passages.lengths[row]].tolist() == expected
    for has_title in (True, False):
        layout = ExtractiveFormatConfig(question_seq_length=8, reader_seq_length=30, passage_title=has_title)
        read = layout.lay_out(columns[1], *columns, vocabulary.special)
        for row, (title, text) in enumerate(zip(titles, texts, strict=True)):
            own = vocabulary.encode([text, title])
            start = 1 + min(len(own[0]), 8) + 2 + (len(own[1]) + 2 if has_title else 0)
            room = layout.room_for_text(len(own[0]), len(own[1]), vocabulary.special)
            assert int(read.text_starts[row]) == start
            assert read.tokens.ids[row, start : read.tokens.lengths[row] - 1].tolist() == own[0][:room]
            assert read.tokens.ids[row, start - 2 : start].tolist() == [2, 2]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"model": {"type": "WordPiece"}}, "no vocabulary of the kind BPE"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, r"not byte-level .* Mistral-7B \(v0.1 to v0.3\), Llama 2 and Gemma"),
        ({"pre_tokenizer": None}, r"not byte-level .* Mistral-7B \(v0.1 to v0.3\), Llama 2 and Gemma"),
        ({"model": {"type": "BPE", "vocab": 3}}, "damaged"),
    ],
)
def test_other_kinds_are_refused(tmp_path: Path, change: dict[str, object], problem: str) -> None:
    path = write_byte_bpe(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=problem):
        ByteBpeTokenizer(path)


def test_one_without_an_end_is_refused(tmp_path: Path) -> None:
    path = write_byte_bpe(tmp_path)
    path.with_name("tokenizer_config.json").unlink()
    with pytest.raises(DataError, match="names an end token"):
        ByteBpeTokenizer(path)
