"""DPR batches: the contract of `ContrastiveBatch`, false negatives, and independence of the number of ranks."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_retrieval.data.examples.data_sets import DataSets
from megatron_retrieval.data.examples.dpr import DprDataConfig, DprDataset
from megatron_retrieval.data.examples.passage_pool import AnswerIndex
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.evidence_builder import EvidenceBuilderConfig, build_evidence
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer
from megatron_retrieval.types.contrastive import ContrastiveBatch
from megatron_retrieval.types.tokens import TokenBatch
from megatron_retrieval.utils.answer_text import normalized

NAMES = ["rome", "oslo", "lima", "bern", "riga", "cairo", "delhi"]
WORDS = [*NAMES, "capital", "of", "what", "is", "the", "noise", "also", *"0123456789"]


@pytest.fixture
def tokenizer(tmp_path: Path) -> WordPieceTokenizer:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    return WordPieceTokenizer(path)


def _context(title: str, text: str) -> dict[str, str]:
    return {"title": title, "text": text, "passage_id": ""}


def _record(number: int, **changes: Any) -> dict[str, Any]:
    record = {
        "question": f"what is {number}",
        "answers": [NAMES[number]],
        "positive_ctxs": [_context(str(number), f"capital {number} is {NAMES[number]}")],
        "hard_negative_ctxs": [_context(str(number), f"noise {number} {other}") for other in range(5)],
    }
    return {**record, **changes}


def _dataset(tmp_path: Path, tokenizer: WordPieceTokenizer, records: list[Any], **settings: Any) -> DprDataset:
    path = tmp_path / "train.json.gz"
    path.write_bytes(gzip.compress(json.dumps(records).encode()))
    config = DprDataConfig(train_data=(str(path),), **settings)
    return DprDataset(config, TextFormatConfig(query_seq_length=8, retriever_seq_length=12), tokenizer, seed=5)


def _texts(tokenizer: WordPieceTokenizer, batch: TokenBatch) -> list[str]:
    pieces = tokenizer.path.read_text().split("\n")
    return [
        " ".join(pieces[token] for token in ids[:length]) for ids, length in zip(batch.ids, batch.lengths, strict=True)
    ]


def test_slots_of_a_batch(tmp_path: Path, tokenizer: WordPieceTokenizer) -> None:
    records = [_record(number) for number in range(7)]
    dataset = _dataset(tmp_path, tokenizer, records, num_hard_negatives=2, hard_negative_selection="first")
    batch = dataset.batch([4, 1], epoch=0, first_position=0)
    assert _texts(tokenizer, batch.questions) == ["[CLS] what is 4 [SEP]", "[CLS] what is 1 [SEP]"]
    assert _texts(tokenizer, batch.passages) == [
        "[CLS] 4 [SEP] capital 4 is riga [SEP]",
        "[CLS] 4 [SEP] noise 4 0 [SEP]",
        "[CLS] 4 [SEP] noise 4 1 [SEP]",
        "[CLS] 1 [SEP] capital 1 is oslo [SEP]",
        "[CLS] 1 [SEP] noise 1 0 [SEP]",
        "[CLS] 1 [SEP] noise 1 1 [SEP]",
    ]
    assert batch.question_is_real.all()
    assert not batch.excluded.any()
    assert (batch.num_questions, batch.num_false_negatives) == (2, 0)


def test_false_negatives(tmp_path: Path, tokenizer: WordPieceTokenizer) -> None:
    """Other questions' passages are excluded as known positives, as the same passage, and for the answer they hold."""
    shared = _context("", "is noise")
    records = [
        _record(0, positive_ctxs=[shared]),
        _record(1, positive_ctxs=[_context("", "the noise"), shared]),
        _record(2, positive_ctxs=[shared], answers=["what", " "]),
        _record(3, positive_ctxs=[_context("rome", "also Rome!")], hard_negative_ctxs=[]),
    ]
    settings = {"num_hard_negatives": 1, "hard_negative_selection": "first"}
    dataset = _dataset(tmp_path, tokenizer, records, **settings)
    excluded = dataset.batch([0, 1, 2, 3], 0, 0).excluded.int().tolist()
    assert excluded == [
        [0, 0, 0, 0, 1, 0, 1, 1],  # the same passage again; an answer in the text; the filler
        [1, 0, 0, 0, 1, 0, 0, 1],  # its second positive, twice
        [1, 0, 0, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 0, 0, 0, 1],
    ]
    assert dataset.batch([0, 1, 2, 3], 0, 0).num_false_negatives == 5
    dataset = _dataset(tmp_path, tokenizer, records, exclude_false_negatives=False, **settings)
    batch = dataset.batch([0, 1, 2, 3], 0, 0)
    assert batch.excluded.nonzero().tolist() == [[row, 7] for row in range(4)]
    assert batch.num_false_negatives == 0


def test_several_positives(tmp_path: Path, tokenizer: WordPieceTokenizer) -> None:
    """They are candidates of their own question wherever they stand first, and of no other use to it."""
    shared = _context("", "is noise")
    records = [
        _record(0, positive_ctxs=[_context("", "capital 0 is rome"), _context("", "rome"), _context("", "the")]),
        _record(1, positive_ctxs=[shared], answers=[]),
        _record(2, positive_ctxs=[_context("", "of 2"), shared], hard_negative_ctxs=[]),
    ]
    settings = {"num_hard_negatives": 1, "hard_negative_selection": "first", "num_positives": 2}
    dataset = _dataset(tmp_path, tokenizer, records, **settings)
    batch = dataset.batch([0, 1, 2], 0, 0)
    assert batch.num_positives == 2
    assert _texts(tokenizer, batch.passages) == [
        *("[CLS] [SEP] capital 0 is rome [SEP]", "[CLS] [SEP] rome [SEP]", "[CLS] 0 [SEP] noise 0 0 [SEP]"),
        *("[CLS] [SEP] is noise [SEP]", "[CLS] [SEP]", "[CLS] 1 [SEP] noise 1 0 [SEP]"),
        *("[CLS] [SEP] of 2 [SEP]", "[CLS] [SEP] is noise [SEP]", "[CLS] [SEP]"),
    ]
    assert batch.excluded.int().tolist() == [
        [0, 0, 0, 0, 1, 0, 0, 0, 1],
        [0, 0, 0, 0, 1, 0, 0, 1, 1],
        [0, 0, 0, 1, 1, 0, 0, 0, 1],
    ]
    assert batch.positive_columns(0).tolist() == [[0, 1], [3, 4], [6, 7]]
    assert batch.positive_columns(1).tolist() == [[9, 10], [12, 13], [15, 16]]
    drawn = _dataset(tmp_path, tokenizer, records, positive_selection="sample")
    first = {_texts(tokenizer, drawn.batch([0], epoch, 0).passages)[0] for epoch in range(20)}
    assert first == {f"[CLS] [SEP] {text} [SEP]" for text in ("capital 0 is rome", "rome", "the")}


def test_hard_negatives_that_answer_are_passed_over(tmp_path: Path, tokenizer: WordPieceTokenizer) -> None:
    positive = _context("0", "capital 0 is rome")
    negatives = [_context("", "noise ROME"), positive, _context("", "noise 1"), _context("rome", "noise 2")]
    records = [_record(0, positive_ctxs=[positive], hard_negative_ctxs=negatives)]
    settings = {"num_hard_negatives": 3, "hard_negative_selection": "first"}
    batch = _dataset(tmp_path, tokenizer, records, **settings).batch([0], 0, 0)
    assert _texts(tokenizer, batch.passages)[1:] == [
        "[CLS] [SEP] noise 1 [SEP]",
        "[CLS] rome [SEP] noise 2 [SEP]",  # DPR matches the text, not the title
        "[CLS] [SEP]",
    ]
    assert batch.excluded.tolist() == [[False, False, False, True]]
    batch = _dataset(tmp_path, tokenizer, records, exclude_false_negatives=False, **settings).batch([0], 0, 0)
    assert _texts(tokenizer, batch.passages)[1] == "[CLS] [SEP] noise rome [SEP]"


def _joined(dataset: DprDataset, indices: list[int], epoch: int, position: int, num_ranks: int) -> ContrastiveBatch:
    """The ranks' shares put together and cut to the real slots."""
    shares = [dataset.batch(indices, epoch, position, rank, num_ranks) for rank in range(num_ranks)]
    assert len({len(share.questions) for share in shares}) == 1
    fan = len(shares[0].passages) // len(shares[0].questions)
    real, slots = len(indices), len(indices) * fan

    def together(batches: list[TokenBatch], count: int) -> TokenBatch:
        width = max(batch.ids.size(1) for batch in batches)
        ids = torch.cat([torch.nn.functional.pad(batch.ids, (0, width - batch.ids.size(1))) for batch in batches])
        lengths = torch.cat([batch.lengths for batch in batches])
        assert (lengths[count:] == 2).all()
        longest = int(lengths[:count].max())
        return TokenBatch(ids[:count, :longest], lengths[:count])

    is_real = torch.cat([share.question_is_real for share in shares])
    excluded = torch.cat([share.excluded for share in shares])
    assert is_real.tolist() == [place < real for place in range(len(is_real))]
    assert excluded[:real, slots:].all()
    own = torch.arange(len(is_real))
    assert not excluded[own, own * fan].any()
    return ContrastiveBatch(
        together([share.questions for share in shares], real),
        together([share.passages for share in shares], slots),
        is_real[:real],
        excluded[:real, :slots],
        shares[0].num_questions,
        sum(share.num_false_negatives for share in shares),
    )


@pytest.mark.parametrize("num_questions", [4, 3, 1])
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_batch_does_not_depend_on_ranks(
    tmp_path: Path, tokenizer: WordPieceTokenizer, num_ranks: int, num_questions: int
) -> None:
    """Uneven last batches and sampled hard negatives included."""
    shared = _context("", "is noise")
    records = [_record(number, positive_ctxs=[shared]) if number % 2 else _record(number) for number in range(7)]
    dataset = _dataset(tmp_path, tokenizer, records, num_hard_negatives=2)
    indices = [5, 3, 2, 6][:num_questions]
    single, several = (_joined(dataset, indices, 3, 8, ranks) for ranks in (1, num_ranks))
    for name in ("questions", "passages"):
        assert torch.equal(getattr(single, name).ids, getattr(several, name).ids)
        assert torch.equal(getattr(single, name).lengths, getattr(several, name).lengths)
    assert torch.equal(single.excluded, several.excluded)
    assert (single.num_questions, single.num_false_negatives) == (several.num_questions, several.num_false_negatives)
    assert several.num_questions == num_questions


@pytest.mark.parametrize(("num_hard_negatives", "negatives"), [(0, [_context("0", "x")]), (1, []), (1, None)])
def test_one_question_without_anything_to_tell_it_from(
    tmp_path: Path, tokenizer: WordPieceTokenizer, num_hard_negatives: int, negatives: list[Any] | None
) -> None:
    records = [_record(0, hard_negative_ctxs=negatives), _record(1, hard_negative_ctxs=negatives)]
    dataset = _dataset(tmp_path, tokenizer, records, num_hard_negatives=num_hard_negatives)
    dataset.require_negatives(2)
    with pytest.raises(ConfigError, match="nothing to tell the positive passage from"):
        dataset.require_negatives(1)
    _dataset(tmp_path, tokenizer, [_record(0)], num_hard_negatives=1).require_negatives(1)


def test_draws_are_named_by_epoch_and_position(tmp_path: Path, tokenizer: WordPieceTokenizer) -> None:
    dataset = _dataset(tmp_path, tokenizer, [_record(number) for number in range(7)])

    def drawn(epoch: int, position: int) -> list[str]:
        return _texts(tokenizer, dataset.batch([0, 1, 2, 3, 4, 5, 6], epoch, position).passages)[1::2]

    assert drawn(0, 0) == drawn(0, 0)
    assert drawn(0, 0) != drawn(1, 0)
    assert drawn(0, 0) != drawn(0, 7)
    tail = _texts(tokenizer, dataset.batch([4, 5, 6], 0, 4).passages)[1::2]
    assert tail == drawn(0, 0)[4:]


def test_questions_without_positive_are_dropped(
    tmp_path: Path, tokenizer: WordPieceTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    records = [_record(0), _record(1, positive_ctxs=[]), _record(2, hard_negative_ctxs=[]), _record(3)]
    with caplog.at_level("INFO", logger="megatron_retrieval"):
        dataset = _dataset(tmp_path, tokenizer, records)
    assert len(dataset) == 3
    assert "training questions: 3, dropped without positive: 1" in caplog.text
    assert "fewer than 1 hard negatives: 1" in caplog.text
    assert len(_dataset(tmp_path, tokenizer, records, max_train_questions=2)) == 2
    with pytest.raises(DataError, match="no question has a positive passage"):
        _dataset(tmp_path, tokenizer, records[1:2])


def test_mined_negatives_are_of_the_evidence(tmp_path: Path, tokenizer: WordPieceTokenizer) -> None:
    """Without positives, whatever their titles, and without passages that contain an answer."""
    records = [_record(0, positive_ctxs=[_context("also", "the 0")]), _record(1, positive_ctxs=[_context("", "is 1")])]
    passages = [("of", "the 0"), ("", "also rome"), ("", "is 1"), ("lima", "noise also is the capital of 7")]
    lines = [{"id": str(n), "title": title, "text": text} for n, (title, text) in enumerate(passages)]
    (tmp_path / "passages.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    build_evidence(
        EvidenceBuilderConfig(
            input=(str(tmp_path / "passages.jsonl"),),
            output=str(tmp_path / "evidence"),
            vocab_file=str(tokenizer.path),
        )
    )
    path = tmp_path / "train.json"
    path.write_text(json.dumps(records))
    config = DprDataConfig(train_data=(str(path),), num_hard_negatives=2, hard_negative_selection="first")
    layout = TextFormatConfig(query_seq_length=8, retriever_seq_length=12)
    dataset = DprDataset(config, layout, tokenizer, seed=5, evidence=EvidenceStore(tmp_path / "evidence"))
    assert _texts(tokenizer, dataset.all_questions()) == ["[CLS] what is 0 [SEP]", "[CLS] what is 1 [SEP]"]
    dataset.mine(np.array([[0, 1, 2, 3], [3, 0, -1, -1]], np.int32))
    batch = dataset.batch([0, 1], 0, 0)
    assert _texts(tokenizer, batch.passages) == [
        *("[CLS] also [SEP] the 0 [SEP]", "[CLS] [SEP] is 1 [SEP]"),
        "[CLS] lima [SEP] noise also is the capital of 7 [SEP]",
        *("[CLS] [SEP] is 1 [SEP]", "[CLS] lima [SEP] noise also is the capital of 7 [SEP]"),
        "[CLS] of [SEP] the 0 [SEP]",
    ]
    # the passage of the evidence that stands in the file as well is the positive of the second question
    assert batch.excluded.int().tolist() == [[0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]]


def test_every_file_may_be_a_data_set(tmp_path: Path, tokenizer: WordPieceTokenizer) -> None:
    paths = [tmp_path / f"{name}.json" for name in "ab"]
    for path, numbers in zip(paths, ([0, 1, 2], [3, 4]), strict=True):
        path.write_text(json.dumps([_record(number) for number in numbers] + [_record(5, positive_ctxs=[])]))
    files = tuple(map(str, paths))

    def dataset(**settings: Any) -> DprDataset:
        config = DprDataConfig(train_data=files, **settings)
        return DprDataset(config, TextFormatConfig(query_seq_length=8, retriever_seq_length=12), tokenizer, seed=5)

    assert dataset().data_sets() is None
    assert dataset(train_data_weights=(1.0, 0.5)).data_sets() == DataSets([3, 2], (1.0, 0.5))
    with pytest.raises(DataError, match=r"b\.json: no question has a positive"):
        dataset(train_data_weights=(1.0, 0.5), max_train_questions=3).data_sets()
    with pytest.raises(ConfigError, match="--train-data-weights: 1 weights of 2 files"):
        dataset(train_data_weights=(1.0,))
    held_out = DprDataConfig(train_data=files, train_data_weights=(1.0, 0.5)).held_out(("c",))
    assert (held_out.train_data, held_out.train_data_weights) == (("c",), None)


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="--num-hard-negatives"):
        DprDataConfig(train_data=("x",), num_hard_negatives=-1)
    with pytest.raises(ConfigError, match="--max-train-questions"):
        DprDataConfig(train_data=("x",), max_train_questions=0)


def test_answer_index_agrees_with_trying_every_pair() -> None:
    draw = np.random.default_rng(0)
    passages = [normalized(" ".join(draw.choice(list("abcdefg"), 12))) for _ in range(60)] + [normalized("")]
    answers = [normalized(" ".join(draw.choice(list("abcdefgh"), size))) for size in (1, 2, 3) for _ in range(30)]
    index = AnswerIndex(passages)
    for answer in answers:
        assert index.containing(answer) == [place for place, text in enumerate(passages) if answer in text]


def test_a_large_batch_is_fast(tmp_path: Path, tokenizer: WordPieceTokenizer) -> None:
    draw = np.random.default_rng(0)

    def text() -> str:
        return " ".join(f"{WORDS[choice % len(WORDS)]}{choice}" for choice in draw.integers(0, 5000, 100))

    records = [
        _record(number % 7, positive_ctxs=[_context("", text())], hard_negative_ctxs=[_context("", text())])
        for number in range(256)
    ]
    dataset = _dataset(tmp_path, tokenizer, records)
    start = time.process_time()
    dataset.batch(range(256), 0, 0)
    assert time.process_time() - start < 0.3
