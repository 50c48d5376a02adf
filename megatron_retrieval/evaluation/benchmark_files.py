"""Figures in the files of public benchmarks: BEIR's results and MTEB's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_retrieval.data.files.sniff import stem
from megatron_retrieval.utils.files import write_json

BEIR, MTEB = "beir_results.json", "mteb_results.json"
#: BEIR's name of the group, and of the measure before @k
_BEIR_NAMES = {"ndcg": "NDCG", "map": "MAP", "recall": "Recall", "precision": "P", "mrr": "MRR"}


def write_benchmark_results(folder: Path, metrics: Mapping[str, Any], depths: Sequence[int], qrels: Path) -> None:
    """Write both files. In BEIR's layout judgements are DATASET/qrels/SPLIT.tsv, which names task and split."""
    values = {f"{name}@{depth}": round(metrics[f"{name}@{depth}"], 5) for name in _BEIR_NAMES for depth in depths}
    groups = {
        group: {f"{name}@{depth}": values[f"{group}@{depth}"] for depth in depths}
        for group, name in _BEIR_NAMES.items()
    }
    write_json(folder / BEIR, groups)
    scores = {name.replace("@", "_at_"): value for name, value in values.items()}
    entry = {**scores, "main_score": scores["ndcg_at_10"], "hf_subset": "default", "languages": []}
    place = qrels.resolve()
    result = {"task_name": place.parent.parent.name, "dataset_revision": "", "mteb_version": ""}
    write_json(folder / MTEB, {**result, "scores": {stem(place): [entry]}})
