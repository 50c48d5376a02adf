"""Blocks against packing one sentence after another in plain Python, and their ids against those of their text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_corpus import Document, FakeCorpus
from hypothesis import given
from hypothesis import strategies as st

from megatron_retrieval.data.layouts.blocks import BlockConfig, BlockLayout, make_blocks, split_documents
from megatron_retrieval.data.stores.corpus import CorpusStore
from megatron_retrieval.data.stores.corpus_builder import CorpusBuilderConfig, build_corpus
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.testing.tiny_byte_bpe import write_roberta_bpe


def _pack(document: Document, room: int, longest_title: int) -> list[list[int]]:
    """The sentence lengths of each block."""
    title, lengths = document
    blocks: list[list[int]] = []
    for length in lengths:
        if blocks and sum(blocks[-1]) + length <= room - min(title, longest_title):
            blocks[-1].append(length)
        else:
            blocks.append([length])
    return blocks


DOCUMENTS = st.lists(
    st.tuples(st.integers(0, 12), st.lists(st.integers(1, 25), min_size=1, max_size=20)), min_size=1, max_size=12
)


@given(DOCUMENTS, st.integers(8, 40), st.booleans(), st.sampled_from(["title-sep-text", "title-text"]), st.data())
def test_blocks_are_packed_greedily(
    documents: list[Document], seq_length: int, use_titles: bool, passage_format: str, data: st.DataObject
) -> None:
    corpus = FakeCorpus.of(documents)
    chosen = sorted(data.draw(st.sets(st.integers(0, len(documents) - 1))))
    layout = BlockLayout(use_titles=use_titles, seq_length=seq_length, passage_format=passage_format)  # type: ignore[arg-type]
    blocks = make_blocks(corpus, np.array(chosen, np.int64), layout)
    room = seq_length - (3 if passage_format == "title-sep-text" else 2)
    place = 0
    for number in chosen:
        sentence = int(corpus.documents[number])
        for expected in _pack(documents[number], room, seq_length // 4 if use_titles else 0):
            assert (blocks.first[place], blocks.end[place]) == (sentence, sentence + len(expected))
            assert blocks.document[place] == number
            sentence += len(expected)
            place += 1
    assert len(blocks) == place
    texts = blocks.texts(corpus)
    assert texts.values.tolist() == [token for number in chosen for token in _tokens(corpus, number)]
    batch = layout.tokens(corpus, blocks.document, texts)
    assert batch.ids.size(1) <= seq_length
    whole = texts.lengths <= layout.capacity(corpus, blocks.document)
    assert (whole | (blocks.end - blocks.first == 1)).all()
    for row in np.flatnonzero(whole):
        ids = batch.ids[row, : batch.lengths[row]].tolist()
        assert [token for token in ids if token >= 100] == texts[row].tolist()


def _tokens(corpus: FakeCorpus, document: int) -> list[int]:
    first, end = corpus.documents[document : document + 2]
    return list(range(100 + int(corpus.sentences.offsets[first]), 100 + int(corpus.sentences.offsets[end])))


def test_layout_of_a_block() -> None:
    corpus = FakeCorpus.of([(9, [2, 3, 30])])
    layout = BlockLayout(use_titles=True, seq_length=12, passage_format="title-sep-text")
    blocks = make_blocks(corpus, np.array([0]), layout)
    batch = layout.tokens(corpus, blocks.document, blocks.texts(corpus))
    assert batch.ids.tolist() == [
        [1, 50, 50, 50, 2, 100, 101, 102, 103, 104, 2, 0],
        [1, 50, 50, 50, 2, 105, 106, 107, 108, 109, 110, 2],
    ]


def test_held_out_documents() -> None:
    train, held_out = split_documents(20000, 0.1, seed=3)
    assert np.array_equal(np.sort(np.concatenate([train, held_out])), np.arange(20000))
    assert 0.09 < len(held_out) / 20000 < 0.11
    assert np.array_equal(split_documents(500, 0.1, seed=3)[1], held_out[held_out < 500])
    assert not np.array_equal(split_documents(20000, 0.1, seed=4)[1], held_out)
    assert not len(split_documents(20000, 0.0, seed=3)[1])


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="--valid-fraction"):
        BlockConfig(data_path="x", valid_fraction=1.0)
    with pytest.raises(ConfigError, match="too short"):
        BlockLayout(use_titles=True, seq_length=7, passage_format="title-text")


@pytest.mark.parametrize("use_titles", [True, False])
@pytest.mark.parametrize("passage_format", ["title-sep-text", "title-text"])
def test_ids_are_those_of_the_text_where_a_word_has_others_behind_a_space(
    tmp_path: Path, use_titles: bool, passage_format: str
) -> None:
    """Byte-level BPE."""
    (tmp_path / "text.jsonl").write_text('{"title": "The river", "text": "The tower stands. Who ran by the river?"}\n')
    settings = {"input": (str(tmp_path / "text.jsonl"),), "vocab_file": str(write_roberta_bpe(tmp_path))}
    build_corpus(CorpusBuilderConfig(output=str(tmp_path / "corpus"), **settings))  # type: ignore[arg-type]
    corpus = CorpusStore(tmp_path / "corpus")
    assert len(corpus.sentences) == 2
    layout = BlockLayout(use_titles=use_titles, seq_length=200, passage_format=passage_format, num_between=2)  # type: ignore[arg-type]
    blocks = make_blocks(corpus, np.arange(1), layout)
    batch = layout.tokens(corpus, blocks.document, blocks.texts(corpus))
    title, text = "The river" if use_titles else "", "The tower stands. Who ran by the river?"
    begin, end = corpus.special.frame
    parts = [title, text] if passage_format == "title-sep-text" else [" ".join(filter(None, (title, text)))]
    ids = [corpus.vocabulary.encode([part])[0] for part in parts]
    expected = [begin, *ids[0], *([end, end, *ids[1]] if len(ids) == 2 else []), end]
    assert batch.ids[0, : batch.lengths[0]].tolist() == expected
