"""A teacher's scores in the training files of others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_retrieval.data.examples.labelled import require_teacher
from megatron_retrieval.data.examples.ranking import RankingDataConfig, RankingDataset
from megatron_retrieval.data.files.training_files import read_biencoder
from megatron_retrieval.data.files.training_formats import TrainingFormat, write_training_data
from megatron_retrieval.data.layouts.pair import PairFormatConfig
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer

WHERE, LAKE, TOWER, WHO = "where is the lake", "the blue lake lies north", "the tower", "a king"


def _file(folder: Path, record: dict[str, object]) -> Path:
    (folder / "train").write_text(json.dumps([record]))
    return folder / "train"


@pytest.mark.parametrize(
    ("record", "scores"),
    [
        (
            {
                "query": WHERE,
                "positive_passages": [{"text": LAKE, "score": 3}],
                "negative_passages": [{"text": TOWER, "score": -1.5}, {"text": WHO}],
            },
            (3, -1.5, None),
        ),
        ({"query": WHERE, "pos": [LAKE], "neg": [TOWER], "pos_scores": [0.9], "neg_scores": [0.1]}, (0.9, 0.1)),
        ({"query": WHERE, "positive": LAKE, "negative_1": TOWER, "negative_2": WHO, "score": [1, 0, 2]}, (1, 0, 2)),
        ({"query": WHERE, "positive": LAKE, "negative": TOWER, "label": 0.75}, (0, -0.75)),
        (
            {
                "question": WHERE,
                "positive_ctxs": [{"text": LAKE, "score": 1000, "teacher_score": 2}],
                "hard_negative_ctxs": [{"text": TOWER, "score": 20.5}],
            },
            (2, None),
        ),
    ],
    ids=["Tevatron", "FlagEmbedding", "n-tuples", "margins", "DPR"],
)
def test_scores_of_a_teacher(tmp_path: Path, record: dict[str, object], scores: tuple[float | None, ...]) -> None:
    (example,) = read_biencoder(_file(tmp_path, record))
    assert example.teacher_scores == scores


@pytest.mark.parametrize(
    ("pos_scores", "problem"), [([0.9, 0.1], "2 scores of 1 passages"), (["high"], "'high' is no score")]
)
def test_scores_that_are_none(tmp_path: Path, pos_scores: list[object], problem: str) -> None:
    record = {"query": WHERE, "pos": [LAKE], "neg": [TOWER], "pos_scores": pos_scores, "neg_scores": [0.1]}
    with pytest.raises(DataError, match=problem):
        list(read_biencoder(_file(tmp_path, record)))


@pytest.mark.parametrize(
    ("form", "scores"),
    [
        ("dpr", [(2.5, -1.0, 0.5)]),
        ("tevatron", [(2.5, -1.0, 0.5)]),
        ("flagembedding", [(2.5, -1.0, 0.5)]),
        ("sentence-transformers", [(2.5, -1.0), (2.5, 0.5)]),
    ],
)
def test_scores_come_back(tmp_path: Path, form: TrainingFormat, scores: list[tuple[float, ...]]) -> None:
    positive, *negatives = (
        {"title": "", "text": text, "passage_id": str(number), "teacher_score": score}
        for number, (text, score) in enumerate(((LAKE, 2.5), (TOWER, -1.0), (WHO, 0.5)))
    )
    record = {"question": WHERE, "answers": [], "positive_ctxs": [positive], "hard_negative_ctxs": negatives}
    write_training_data(tmp_path / "written", [record], form)
    assert [example.teacher_scores for example in read_biencoder(tmp_path / "written")] == scores


def test_a_question_without_a_positive_makes_no_triplet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "megatron_retrieval")
    asked = {"question": WHERE, "answers": [], "hard_negative_ctxs": [{"title": "", "text": TOWER}]}
    records = [{**asked, "positive_ctxs": []}, {**asked, "positive_ctxs": [{"title": "", "text": LAKE}]}]
    write_training_data(tmp_path / "written", records, "sentence-transformers")
    line = json.loads((tmp_path / "written").read_text())
    assert line == {"anchor": WHERE, "positive": LAKE, "negative": TOWER}
    assert "1 questions without a positive or a hard negative make no triplet" in caplog.text


def _ranking(folder: Path, *scores: float | None) -> RankingDataset:
    """A question for each score of its positive; None: its passages have none."""
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]) + "\n")
    passages = [
        [{"text": name, **({} if score is None else {"teacher_score": score})} for name in "ab"] for score in scores
    ]
    records = [{"question": "a", "positive_ctxs": [one], "hard_negative_ctxs": [other]} for one, other in passages]
    (folder / "train").write_text(json.dumps(records))
    config = RankingDataConfig(train_data=(str(folder / "train"),))
    return RankingDataset(config, PairFormatConfig(), WordPieceTokenizer(folder / "vocab.txt"), seed=1)


def test_every_question_has_scores_where_they_alone_teach(tmp_path: Path) -> None:
    """Else it would be asked in vain, and a file of such questions would make steps of nothing."""
    whole, some, none = (_ranking(tmp_path, *scores) for scores in ((1, 2), (1, None, None), (None,)))
    require_teacher("--ranking-loss kl", whole, None)
    with pytest.raises(ConfigError, match="kl learns from a teacher, and 2 of 3 questions in --train-data"):
        require_teacher("--ranking-loss kl", some, whole)
    with pytest.raises(ConfigError, match="and 2 of 3 questions in --valid-data have no scores of one"):
        require_teacher("--ranking-loss kl", whole, some)
    require_teacher("--contrastive-loss kl", some, some, has_labels=True)
    with pytest.raises(ConfigError, match="and --train-data has no scores of one"):
        require_teacher("--contrastive-loss kl", none, None, has_labels=True)
