"""Writing DPR's biencoder JSON: question, answers, positive and hard negative passages."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from megatron_retrieval.types.questions import Passage
from megatron_retrieval.utils.files import atomic_file


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
