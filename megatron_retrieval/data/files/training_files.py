"""Readers of contrastive training data: DPR's, Tevatron's, FlagEmbedding's, sentence-transformers' and MS MARCO's
triples; all of them become DPR's records."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from megatron_retrieval.data.files.json_records import Record
from megatron_retrieval.data.files.names import ANSWERS, QUESTION_IDS, QUESTIONS, TEACHER_SCORE
from megatron_retrieval.data.files.passage_files import passage_of
from megatron_retrieval.data.files.records import Unnamed, read_records
from megatron_retrieval.data.files.tables import TableForm
from megatron_retrieval.types.questions import Passage

_DPR, _TEVATRON, _FLAG_EMBEDDING, _TRIPLE = "positive_ctxs", "positive_passages", "pos", "positive"
_LABELS = ("label", "labels")
#: passages of labelled rows, one or a list
_JUDGED = ("passage", "passages", "document", "documents", "docs", _TRIPLE)
#: a teacher's: FlagEmbedding's of positives and of negatives; sentence-transformers' of a positive and its negatives
_OF_POSITIVES, _OF_NEGATIVES, _OF_BOTH = "pos_scores", "neg_scores", ("score", "scores", *_LABELS)
#: of Tevatron's corpora apart from the questions, and of MS MARCO's triples
_PASSAGE_IDS = frozenset({"positive_document_ids", "positive_pids"})
_BY_IDS = "names passages by their ids, without their texts"
_CONVERT = "Bring both together: megatron-retrieval convert --format passage-ids --queries FILE --corpus FILE."


@dataclass(frozen=True)
class BiencoderExample:
    """One record of contrastive training data."""

    question: str
    answers: tuple[str, ...]
    positives: tuple[Passage, ...]
    hard_negatives: tuple[Passage, ...]
    #: a teacher's scores of positives and hard negatives, one after the other; None where there is none
    teacher_scores: tuple[float | None, ...] = ()


def read_biencoder(path: str | Path) -> Iterator[BiencoderExample]:
    """Yield the examples of a file of training data, one at a time: these files can be larger than the memory.

    Raises:
        DataError: anything malformed, with its line.
    """
    for record in read_training_records(path):
        positives, negatives = record.records("positive_ctxs"), record.records("hard_negative_ctxs", required=False)
        yield BiencoderExample(
            record.text(*QUESTIONS),
            record.strings(*ANSWERS, required=False),
            tuple(map(passage_of, positives)),
            tuple(map(passage_of, negatives)),
            tuple(teacher_score(context) for context in (*positives, *negatives)),
        )


def teacher_score(context: Record) -> float | None:
    """A teacher's score of a passage in DPR's record.

    Raises:
        DataError: it is no number.
    """
    _, value = context.first(TEACHER_SCORE)
    return None if value is None else _number(context, TEACHER_SCORE, value)


def read_training_records(path: str | Path) -> Iterator[Record]:
    """Yield training data as DPR's records. Labelled rows of the same question are one record where they follow one
    another.

    Raises:
        DataError: anything malformed, with its line.
    """
    for question, group in groupby(read_records(path, _unnamed), _labelled_question):
        records = map(as_biencoder, group)
        yield from records if question is None else [_merged(list(records))]


def is_training(record: Record) -> bool:
    """Whether a record of questions has positive passages."""
    values = record.values
    has_texts = isinstance(values.get(_FLAG_EMBEDDING), list) or isinstance(values.get(_TRIPLE), str | list)
    return _DPR in values or _TEVATRON in values or (has_texts and not values.keys() & {*ANSWERS})


def as_biencoder(record: Record) -> Record:
    """Training data in any of the forms as DPR's record: question, answers, positive_ctxs, hard_negative_ctxs.

    Raises:
        DataError: it has no positives, or names them by ids alone.
    """
    values, contexts = record.values, None
    negatives = [key for key in values if key.startswith("negative")]
    if _DPR in values:
        return record
    if _TEVATRON in values:
        contexts = (_contexts(record, _TEVATRON), _contexts(record, "negative_passages"))
    elif _FLAG_EMBEDDING in values:
        contexts = (_texts(record, _FLAG_EMBEDDING), _texts(record, "neg"))
        _add_scores(record, contexts[0], _numbers(record, _OF_POSITIVES))
        _add_scores(record, contexts[1], _numbers(record, _OF_NEGATIVES))
    elif not negatives and (key := record.first(*_LABELS)[0]):
        contexts = _labelled(record, key)
    elif _TRIPLE in values:
        contexts = (_texts(record, _TRIPLE), [text for key in negatives for text in _texts(record, key)])
        if negatives:
            _add_scores(record, [*contexts[0], *contexts[1]], _of_columns(record, len(contexts[1])))
    elif _PASSAGE_IDS & values.keys():
        raise record.error(_BY_IDS, _CONVERT)
    else:
        names = "'positive_ctxs' (DPR), 'positive_passages' (Tevatron), 'pos' (FlagEmbedding) or 'positive'"
        raise record.error(f"there is no {names}")
    identifier = record.identifier(*QUESTION_IDS)
    return dataclasses.replace(
        record,
        values={
            **({"id": identifier} if identifier else {}),
            "question": record.text(*QUESTIONS),
            "answers": list(record.strings(*ANSWERS, required=False)),
            "positive_ctxs": contexts[0],
            "negative_ctxs": [],
            "hard_negative_ctxs": contexts[1],
        },
    )


def _contexts(record: Record, key: str) -> list[dict[str, Any]]:
    contexts = []
    for row in record.records(key, required=key == _TEVATRON):
        passage, (_, score) = passage_of(row), row.first("score")
        context = {"title": passage.title, "text": passage.text, "passage_id": passage.id}
        contexts.append(context if score is None else {**context, TEACHER_SCORE: _number(row, "score", score)})
    return contexts


def _add_scores(record: Record, contexts: Sequence[dict[str, Any]], scores: Sequence[float]) -> None:
    """Give passages a teacher's scores, if there are any."""
    if scores and len(scores) != len(contexts):
        raise record.error(f"{len(scores)} scores of {len(contexts)} passages")
    for context, score in zip(contexts, scores, strict=False):
        context[TEACHER_SCORE] = score


def _of_columns(record: Record, num_negatives: int) -> list[float]:
    """The scores of a positive and its negatives; where margins below the positive stand there, it has 0."""
    scores = _numbers(record, *_OF_BOTH)
    return [0.0, *(-margin for margin in scores)] if len(scores) == num_negatives else scores


def _numbers(record: Record, *keys: str) -> list[float]:
    """The number or numbers at the first of `keys` with a value."""
    key, value = record.first(*keys)
    return [_number(record, key, item) for item in (value if isinstance(value, list) else [value])] if key else []


def _number(record: Record, key: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise record.error(f"{key!r}: {value!r} is no score")
    return number


def _texts(record: Record, key: str) -> list[dict[str, Any]]:
    value = record.values.get(key)
    first = value[0] if isinstance(value, list) and value else value
    if isinstance(first, int | dict):
        raise record.error(_BY_IDS, _CONVERT)
    return [{"title": "", "text": text} for text in record.strings(key, required=key != "neg")]


def _labelled(record: Record, key: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Positives are labelled 1, negatives 0."""
    texts, labels = record.strings(*_JUDGED), record.strings(key)
    if len(texts) != len(labels):
        raise record.error(f"{len(labels)} labels of {len(texts)} passages")
    if unknown := set(labels) - {"0", "1"}:
        hint = "A graded similarity has no positives: training here is contrastive."
        raise record.error(f"the label {unknown.pop()} is neither 0 nor 1", hint)
    judged = [({"title": "", "text": text}, label) for text, label in zip(texts, labels, strict=True)]
    return [text for text, label in judged if label == "1"], [text for text, label in judged if label == "0"]


def _labelled_question(record: Record) -> str | None:
    """The question of a row with one labelled passage, which groups such rows."""
    is_labelled = _LABELS[0] in record.values and not any(key.startswith("negative") for key in record.values)
    return record.text(*QUESTIONS) if is_labelled and _DPR not in record.values else None


def _merged(records: Sequence[Record]) -> Record:
    values = dict(records[0].values)
    for key in ("positive_ctxs", "hard_negative_ctxs"):
        values[key] = [context for record in records for context in record.values[key]]
    return dataclasses.replace(records[0], values=values)


def _unnamed(form: TableForm) -> Unnamed | None:
    """Tables without a header: MS MARCO's triples, or questions with their positives."""
    row = form.plain_row
    if all(field.strip().isdecimal() for field in row) and len(row) > 1:
        return Unnamed(("query", "positive_pids", "negative_pids")[: len(row)])
    return Unnamed(("query", "positive", "negative")[: len(row)]) if len(row) in (2, 3) else None
