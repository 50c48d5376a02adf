"""A prefix stands before every question and before the title of every passage, wherever texts become tokens."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from fake_corpus import FakeCorpus
from transformers import BertTokenizerFast

from megatron_retrieval.data.examples.dpr import DprDataConfig, DprDataset
from megatron_retrieval.data.examples.ict import IctDataConfig, ict_datasets
from megatron_retrieval.data.examples.open_questions import AskedQuestions
from megatron_retrieval.data.files.question_files import AskedQuestionsConfig
from megatron_retrieval.data.layouts.blocks import BlockConfig
from megatron_retrieval.data.layouts.sequences import TextFormatConfig, prefix_ids, read_text_format
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.question_writer import QuestionSource, write_question_store
from megatron_retrieval.data.stores.questions import QuestionStore
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.retrieval.retriever import tokenize_questions
from megatron_retrieval.testing.tiny import write_tiny_evidence
from megatron_retrieval.types.tokens import TokenBatch

QUERY, PASSAGE = "the room: ", "in the box: "
PREFIXED = TextFormatConfig(query_seq_length=30, retriever_seq_length=40, query_prefix=QUERY, passage_prefix=PASSAGE)
PLAIN = dataclasses.replace(PREFIXED, query_prefix="", passage_prefix="")


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> EvidenceStore:
    folder = tmp_path_factory.mktemp("prefixes")
    write_tiny_evidence(folder, num_distractors=20)
    return EvidenceStore(folder / "evidence")


def _rows(batch: TokenBatch) -> list[list[int]]:
    return [ids[:length].tolist() for ids, length in zip(batch.ids, batch.lengths, strict=True)]


def _with(ids: list[int], batch: TokenBatch) -> list[list[int]]:
    return [[row[0], *ids, *row[1:]] for row in _rows(batch)]


@pytest.mark.parametrize("passage_format", ["title-sep-text", "title-text"])
@pytest.mark.parametrize("length", [40, 7, 3])
def test_tokens_are_those_of_the_texts_with_their_prefixes(
    evidence: EvidenceStore, passage_format: str, length: int
) -> None:
    reference = BertTokenizerFast(vocab=str(evidence.vocabulary.path))
    layout = dataclasses.replace(
        PREFIXED, passage_format=passage_format, retriever_seq_length=length, query_seq_length=length
    )
    rows, separator = [3, 9, 4], " " if passage_format == "title-text" else "[SEP]"
    texts = [f"{PASSAGE}{passage.title}{separator}{passage.text}" for passage in evidence.passages(rows)]
    assert _rows(evidence.tokens(rows, layout)) == reference(texts, truncation=True, max_length=length).input_ids
    asked = ["where is key0", ""]
    expected = reference([QUERY + text for text in asked], truncation=True, max_length=length).input_ids
    assert _rows(tokenize_questions(asked, evidence.vocabulary, layout)) == expected
    assert evidence.tokens([], layout).ids.shape[0] == 0


def test_training_puts_them_before_its_texts(evidence: EvidenceStore, tmp_path: Path) -> None:
    vocabulary, folder = evidence.vocabulary, evidence.folder.parent
    query, passage = prefix_ids(QUERY, vocabulary), prefix_ids(PASSAGE, vocabulary)
    config = DprDataConfig(train_data=(str(folder / "biencoder.json"),))
    with_, without = (
        DprDataset(config, layout, vocabulary, seed=1).batch(range(4), 0, 0) for layout in (PREFIXED, PLAIN)
    )
    assert _rows(with_.questions) == _with(query, without.questions)
    assert _rows(with_.passages) == _with(passage, without.passages)

    files, asked = [str(folder / "biencoder.json")], AskedQuestionsConfig()
    source = QuestionSource(files=files, asked=asked, retriever=vocabulary, reader=vocabulary)
    write_question_store(tmp_path / "questions", source)
    store = QuestionStore(tmp_path / "questions")
    queries = [AskedQuestions(store, layout, vocabulary, seed=1).queries(np.arange(3)) for layout in (PREFIXED, PLAIN)]
    assert _rows(queries[0]) == _with(query, queries[1])


def test_pretraining_leaves_room_for_them(evidence: EvidenceStore) -> None:
    corpus = dataclasses.replace(FakeCorpus.of([(2, [5] * 12)] * 3), vocabulary=evidence.vocabulary)
    query, passage = prefix_ids(QUERY, evidence.vocabulary), prefix_ids(PASSAGE, evidence.vocabulary)
    config = IctDataConfig(blocks=BlockConfig(data_path="corpus", valid_fraction=0), query_in_block_prob=1)
    dataset, _ = ict_datasets(corpus, config, PREFIXED, seed=5)
    batch = dataset.batch(range(len(dataset)), 0, 0)
    assert all(row[1 : 1 + len(query)] == query and len(row) == 7 + len(query) for row in _rows(batch.questions))
    assert all(row[1 : 1 + len(passage)] == passage for row in _rows(batch.passages))
    # a sentence of 5 tokens is whole or in the next block: nothing is cut
    assert all((len(row) - len(passage) - 2 - 3) % 5 == 0 for row in _rows(batch.passages))


@pytest.mark.parametrize("prefix", ["box", "the ro"])
def test_a_prefix_that_would_run_into_the_text_is_refused(evidence: EvidenceStore, prefix: str) -> None:
    with pytest.raises(ConfigError, match="runs into the text after it; end it with a space or a colon"):
        prefix_ids(prefix, evidence.vocabulary)


def test_a_manifest_that_names_no_prefix_has_none() -> None:
    settings = {"passage-format": "title-text", "query-seq-length": 8, "retriever-seq-length": 9}
    layout = read_text_format(settings)
    assert (layout.query_prefix, layout.passage_prefix) == ("", "")
