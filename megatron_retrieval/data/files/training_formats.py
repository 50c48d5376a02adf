"""Training data written for other tools: DPR's records as lines of Tevatron, FlagEmbedding or sentence-transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from megatron_retrieval.data.files.dpr_json import write_json_list
from megatron_retrieval.data.files.json_records import Record
from megatron_retrieval.data.files.names import ANSWERS, QUESTION_IDS
from megatron_retrieval.data.files.passage_files import passage_of
from megatron_retrieval.data.files.training_files import teacher_score
from megatron_retrieval.types.questions import Passage
from megatron_retrieval.utils.files import atomic_file
from megatron_retrieval.utils.logging import get_logger

log = get_logger("data")
Fields = Mapping[str, Any]
TrainingFormat = Literal["dpr", "tevatron", "flagembedding", "sentence-transformers"]


def _tevatron(record: Record, number: int) -> Iterator[Fields]:
    """One line a question, whose passages keep ids and titles."""
    positives, negatives = (
        [
            {
                "docid": passage.id,
                "title": passage.title,
                "text": passage.text,
                **({} if score is None else {"score": score}),
            }
            for passage, score in zip(passages, scores, strict=True)
        ]
        for passages, scores in zip(_passages(record), _scores(record), strict=True)
    )
    yield {
        "query_id": record.identifier(*QUESTION_IDS) or str(number),
        "query": record.text("question"),
        "answers": record.strings(*ANSWERS, required=False),
        "positive_passages": positives,
        "negative_passages": negatives,
    }


def _flag_embedding(record: Record, number: int) -> Iterator[Fields]:
    """One line a question; a passage is its title, a space and its text."""
    positives, negatives = _passages(record)
    fields = {"query": record.text("question"), "pos": list(map(_text, positives)), "neg": list(map(_text, negatives))}
    scores = _scores(record)
    yield {**fields, "pos_scores": scores[0], "neg_scores": scores[1]} if None not in scores[0] + scores[1] else fields


def _sentence_transformers(record: Record, number: int) -> Iterator[Fields]:
    """A triplet for each hard negative, whose columns are the same in all lines; passages as for FlagEmbedding. None
    without a positive."""
    positives, negatives = _passages(record)
    if not positives:
        return
    (of_positive, *_), of_negatives = _scores(record)
    for negative, score in zip(negatives, of_negatives, strict=True):
        fields = {"anchor": record.text("question"), "positive": _text(positives[0]), "negative": _text(negative)}
        yield {**fields, "score": [of_positive, score]} if None not in (of_positive, score) else fields


def _passages(record: Record) -> tuple[list[Passage], list[Passage]]:
    """Positives and hard negatives."""
    positives = record.records("positive_ctxs")
    return list(map(passage_of, positives)), list(map(passage_of, record.records("hard_negative_ctxs", required=False)))


def _scores(record: Record) -> tuple[list[float | None], list[float | None]]:
    """A teacher's, of positives and hard negatives."""
    positives, negatives = record.records("positive_ctxs"), record.records("hard_negative_ctxs", required=False)
    return list(map(teacher_score, positives)), list(map(teacher_score, negatives))


def _text(passage: Passage) -> str:
    return f"{passage.title} {passage.text}".strip()


#: format -> the lines of a record
_LINES: dict[str, Callable[[Record, int], Iterator[Fields]]] = {
    "tevatron": _tevatron,
    "flagembedding": _flag_embedding,
    "sentence-transformers": _sentence_transformers,
}


def write_training_data(path: Path, records: Iterable[dict[str, Any]], format: TrainingFormat) -> None:
    """Write DPR's records.

    Args:
        format: dpr (a JSON list), or a key of `_LINES`.
    """
    if format == "dpr":
        write_json_list(path, records)
        return
    num_unwritten = 0
    with atomic_file(path) as file:
        for number, record in enumerate(records, 1):
            lines = [
                json.dumps(line, ensure_ascii=False) for line in _LINES[format](Record(path, number, record), number)
            ]
            file.writelines(f"{line}\n" for line in lines)
            num_unwritten += not lines
    if num_unwritten:
        log.warning("%s: %s questions without a positive or a hard negative make no triplet", path, num_unwritten)
