"""Writing DPR's biencoder JSON: question, answers, positive and hard negative passages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_retrieval.data.json_records import Record, read_json_list
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.types import Passage
from megatron_retrieval.utils.files import atomic_file


@dataclass(kw_only=True, frozen=True)
class MineNegativesConfig:
    """Hard negatives from what a retriever found: high-ranking passages without an answer (DPR; ANCE)."""

    train_data: Path
    """DPR biencoder JSON to give hard negatives to."""
    results: Path
    """results.json of retriever-evaluate over the same file."""
    output: Path
    """The biencoder JSON to write; its hard negatives are the mined ones only."""
    num_mined: int = 10
    """Hard negatives kept per question, best ranks first."""
    skip_ranks: int = 0
    """Leave out so many of the first passages, which are the likeliest to answer without holding an answer string."""


def mine_negatives(config: MineNegativesConfig) -> tuple[int, int]:
    """Write `config.output`.

    Returns:
        Questions written, and how many of them have no hard negative.

    Raises:
        ConfigError: the results are of other questions.
        DataError: a file is malformed.
    """
    num_without = 0

    def records() -> Iterator[dict[str, Any]]:
        nonlocal num_without
        results = read_json_list(config.results)
        for example in read_json_list(config.train_data):
            found = next(results, None)
            if found is None or found.text("question") != example.text("question"):
                raise ConfigError(
                    f"{config.results} does not hold the questions of {config.train_data} in their order; "
                    f"it parts from them at {example.text('question')!r}. Evaluate that file, without stride or limit."
                )
            negatives = _negatives(example, found, config)
            num_without += not negatives
            yield {**example.values, "hard_negative_ctxs": negatives}

    return write_json_list(config.output, records()), num_without


def _negatives(example: Record, found: Record, config: MineNegativesConfig) -> list[dict[str, Any]]:
    """The first passages found that neither hold an answer nor are a positive of the question."""
    positives = {(context.text("title", ""), context.text("text")) for context in example.records("positive_ctxs")}
    contexts = found.records("ctxs")[config.skip_ranks :]
    wrong = (
        context
        for context in contexts
        if not context.values.get("has_answer") and (context.text("title", ""), context.text("text")) not in positives
    )
    return [
        biencoder_context(
            Passage(context.identifier("id"), context.text("title", ""), context.text("text")),
            float(context.values.get("score", 0)),
        )
        for _, context in zip(range(config.num_mined), wrong, strict=False)
    ]


def biencoder_context(passage: Passage, score: float) -> dict[str, Any]:
    """A passage as DPR's biencoder files hold it."""
    return {
        "title": passage.title,
        "text": passage.text,
        "score": score,
        "title_score": 0,
        "passage_id": passage.id,
    }


def write_json_list(path: Path, records: Iterable[dict[str, Any]]) -> int:
    """Write the records as a JSON list, one a line; returns their number."""
    count = 0
    with atomic_file(path) as file:
        file.write("[")
        for count, record in enumerate(records, 1):
            file.write(("\n" if count == 1 else ",\n") + json.dumps(record, ensure_ascii=False))
        file.write("\n]\n")
    return count
