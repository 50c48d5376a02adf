"""ICT examples: what is asked and what is found, same-document negatives, independence of ranks and restarts."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from fake_corpus import CLS, FIRST_TOKEN, SEP, TITLE, Document, FakeCorpus

from megatron_retrieval.data.examples.ict import IctDataConfig, IctDataset, ict_datasets
from megatron_retrieval.data.layouts.blocks import BlockConfig
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.types.contrastive import ContrastiveBatch
from megatron_retrieval.types.tokens import TokenBatch


def _datasets(
    documents: list[Document], *, seq_length: int = 24, query_length: int = 8, **settings: object
) -> tuple[FakeCorpus, IctDataset, IctDataset]:
    names = ("use_titles", "valid_fraction")
    blocks = {"valid_fraction": 0.0, **{name: settings.pop(name) for name in names if name in settings}}
    config = IctDataConfig(blocks=BlockConfig(data_path="corpus", **blocks), **settings)  # type: ignore[arg-type]
    text_format = TextFormatConfig(query_seq_length=query_length, retriever_seq_length=seq_length)
    corpus = FakeCorpus.of(documents)
    return (corpus, *ict_datasets(corpus, config, text_format, seed=5))


def _rows(batch: TokenBatch) -> list[list[int]]:
    return [ids[:length].tolist() for ids, length in zip(batch.ids, batch.lengths, strict=True)]


def _words(row: list[int]) -> list[int]:
    return [token for token in row if token >= FIRST_TOKEN]


def _random_documents(num_documents: int) -> list[Document]:
    draw = np.random.default_rng(0)
    return [
        (int(draw.integers(0, 4)), draw.integers(1, 9, size=draw.integers(1, 12)).tolist())
        for _ in range(num_documents)
    ]


def test_a_sentence_asks_for_the_rest_of_its_block() -> None:
    corpus, dataset, _ = _datasets([(2, [3, 4, 5])] * 40, query_in_block_prob=0.0)
    batch = dataset.batch(range(40), 0, 0)
    asked = set()
    for number, (question, passage) in enumerate(zip(_rows(batch.questions), _rows(batch.passages), strict=True)):
        sentences = [corpus.sentences[3 * number + place].tolist() for place in range(3)]
        place = sentences.index(_words(question))
        assert question == [CLS, *sentences.pop(place), SEP]
        assert passage == [CLS, TITLE, TITLE, SEP, *sentences[0], *sentences[1], SEP]
        asked.add(place)
    assert asked == {0, 1, 2}


@pytest.mark.parametrize("probability", [0.0, 0.1, 1.0])
def test_how_often_the_query_stays(probability: float) -> None:
    _, dataset, _ = _datasets([(1, [3, 4, 5])] * 4000, query_in_block_prob=probability)
    batch = dataset.batch(range(4000), 0, 0)
    stays = (batch.passages.lengths == 1 + 1 + 1 + 12 + 1).float().mean().item()
    assert stays == pytest.approx(probability, abs=0.02)
    if probability == 1.0:
        for number, passage in enumerate(_rows(batch.passages)):
            assert _words(passage) == list(range(FIRST_TOKEN + 12 * number, FIRST_TOKEN + 12 * number + 12))


def test_long_sentences_are_cut() -> None:
    _, dataset, _ = _datasets([(1, [30, 2]), (9, [3, 30])], use_one_sent_docs=True, query_in_block_prob=1.0)
    batch = dataset.batch(range(4), 0, 0)
    assert batch.questions.lengths.tolist() == [8, 4, 5, 8]
    assert batch.passages.lengths.tolist() == [24, 6, 12, 24]
    assert _rows(batch.passages)[3][:9] == [CLS, *[TITLE] * 6, SEP, FIRST_TOKEN + 35]


def test_blocks_of_one_sentence() -> None:
    """They are dropped unless asked for; then the title remains, and without a title the sentence itself."""
    documents: list[Document] = [(2, [3]), (0, [3]), (0, [2, 2])]
    assert len(_datasets(documents)[1]) == 1
    _, dataset, _ = _datasets(documents, use_one_sent_docs=True, query_in_block_prob=0.0)
    assert len(dataset) == 3
    title, sentence, rest = _rows(dataset.batch(range(3), 0, 0).passages)
    assert title == [CLS, TITLE, TITLE, SEP, SEP]
    assert sentence == [CLS, SEP, FIRST_TOKEN + 3, FIRST_TOKEN + 4, FIRST_TOKEN + 5, SEP]
    assert len(_words(rest)) == 2
    untitled = _datasets(documents, use_one_sent_docs=True, query_in_block_prob=0.0, use_titles=False)[1]
    assert _rows(untitled.batch([0], 0, 0).passages) == [[CLS, SEP, *range(FIRST_TOKEN, FIRST_TOKEN + 3), SEP]]


def test_blocks_of_the_same_document_are_no_negatives() -> None:
    documents: list[Document] = [(0, [10, 10, 10, 10]), (0, [5, 5]), (0, [10, 10, 10, 10])]
    _, dataset, _ = _datasets(documents)
    assert len(dataset) == 5
    batch = dataset.batch([0, 2, 3, 1, 4], 0, 0)
    expected = torch.zeros(5, 5, dtype=torch.bool)
    for one, other in [(0, 3), (2, 4)]:
        expected[one, other] = expected[other, one] = True
    assert torch.equal(batch.excluded[0:5], expected)
    assert torch.equal(batch.excluded[1:3], expected[1:3])
    assert batch.num_false_negatives == 4
    counted = _datasets(documents, exclude_same_document=False)[1].batch([0, 2, 3, 1, 4], 0, 0)
    assert not counted.excluded[0:5].any()
    assert counted.num_false_negatives == 0


def _joined(dataset: IctDataset, indices: list[int], epoch: int, position: int, num_ranks: int) -> ContrastiveBatch:
    """The ranks' shares put together, real slots only."""
    shares = [dataset.batch(indices, epoch, position, rank, num_ranks) for rank in range(num_ranks)]
    num_slots = len(shares[0].questions)
    assert all(len(share.questions) == len(share.passages) == num_slots for share in shares)
    real = len(indices)

    def together(batches: list[TokenBatch]) -> TokenBatch:
        rows = [row for batch in batches for row in _rows(batch)]
        assert all(row == [CLS, SEP] for row in rows[real:])
        lengths = torch.tensor([len(row) for row in rows[:real]])
        ids = torch.zeros(real, int(lengths.max()), dtype=torch.int64)
        for place, row in enumerate(rows[:real]):
            ids[place, : len(row)] = torch.tensor(row)
        return TokenBatch(ids, lengths)

    is_real = torch.cat([share.question_is_real for share in shares])
    assert is_real.tolist() == [place < real for place in range(len(is_real))]
    excluded = torch.cat([share.excluded[0:num_slots] for share in shares])
    assert excluded[:real, real:].all()
    assert not excluded.diagonal().any()
    return ContrastiveBatch(
        together([share.questions for share in shares]),
        together([share.passages for share in shares]),
        is_real[:real],
        excluded[:real, :real],
        shares[0].num_questions,
        sum(share.num_false_negatives for share in shares),
    )


def _equal(first: ContrastiveBatch, second: ContrastiveBatch) -> bool:
    return (
        all(
            torch.equal(getattr(first, name).ids, getattr(second, name).ids)
            and torch.equal(getattr(first, name).lengths, getattr(second, name).lengths)
            for name in ("questions", "passages")
        )
        and torch.equal(first.excluded[0:], second.excluded[0:])
        and (first.num_questions, first.num_false_negatives) == (second.num_questions, second.num_false_negatives)
    )


@pytest.mark.parametrize("num_questions", [16, 13, 1])
def test_examples_do_not_depend_on_ranks_or_restarts(num_questions: int) -> None:
    documents = _random_documents(60)
    indices = np.random.default_rng(1).permutation(40)[:num_questions].tolist()
    single = _joined(_datasets(documents)[1], indices, 3, 32, 1)
    for num_ranks in (2, 4):
        anew = _datasets(documents)[1]
        assert _equal(_joined(anew, indices, 3, 32, num_ranks), single)


def test_epochs_ask_for_other_sentences() -> None:
    _, dataset, _ = _datasets([(1, [4, 4, 4, 4])] * 50)
    batches = [dataset.batch(range(50), epoch, 0) for epoch in (0, 0, 1)]
    assert torch.equal(batches[0].questions.ids, batches[1].questions.ids)
    changed = (batches[0].questions.ids != batches[2].questions.ids).any(1).float().mean().item()
    assert 0.5 < changed < 0.95
    tail = dataset.batch(range(30, 50), 0, 30)
    assert torch.equal(tail.questions.ids, batches[0].questions.ids[30:])


def test_held_out_documents_are_not_trained_on(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="megatron_retrieval"):
        _, train, held_out = _datasets([(0, [2, 2])] * 300 + [(0, [2])] * 20, valid_fraction=0.2)

    def words(dataset: IctDataset) -> set[int]:
        batch = dataset.batch(range(len(dataset)), 0, 0)
        return {word for part in (batch.questions, batch.passages) for row in _rows(part) for word in _words(row)}

    assert 30 < len(held_out) < 90
    assert len(train) + len(held_out) == 300
    assert not words(train) & words(held_out)
    assert f"{len(train)} blocks of" in caplog.text
    assert "dropped for one sentence" in caplog.text


def test_nothing_to_train_on_is_explained() -> None:
    with pytest.raises(DataError, match=r"none of the 3 blocks has a second sentence.*--use-one-sent-docs"):
        _datasets([(2, [3]), (0, [40, 40])])
    with pytest.raises(DataError, match="no document is left to train on"):
        _datasets([(2, [3, 3])], valid_fraction=0.999999)
    with pytest.raises(ConfigError, match="--query-in-block-prob"):
        _datasets([(2, [3])], query_in_block_prob=1.5)


def test_a_batch_of_4096_is_fast() -> None:
    _, dataset, _ = _datasets([(4, [25] * 40)] * 1100, seq_length=256, query_length=64)
    assert len(dataset) > 4096
    start = time.process_time()
    dataset.batch(range(4096), 0, 0)
    assert time.process_time() - start < 0.5
