"""Evaluate a retriever on several data sets with judgements, and write their mean, as BEIR's tables do."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_retrieval.applications.retriever_evaluation import RetrieverEvaluateConfig
from megatron_retrieval.applications.retriever_evaluation import main as evaluate
from megatron_retrieval.applications.search import SearchConfig, SearchOptionsConfig
from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.parser import write_config
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.evaluation.judged_metrics import JudgementsConfig
from megatron_retrieval.evaluation.retrieval_results import METRICS
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology
from megatron_retrieval.reports.tables import percent, text_table
from megatron_retrieval.retrieval.encode_batches import EncodeConfig
from megatron_retrieval.utils.files import read_json, write_json

_SHOWN = ("ndcg@10", "mrr@10", "map")


@dataclass(kw_only=True, frozen=True)
class BeirEvaluateConfig(Checked):
    """Evaluate a retriever on several data sets by their judgements; each counts the same in the mean."""

    datasets: tuple[Path, ...]
    """Folders in BEIR's layout: queries.jsonl and qrels/SPLIT.tsv, plain or gzip. Beside them stand what was built of
    corpus.jsonl: evidence, and embeddings, bm25 or both, which are searched."""
    split: str = "test"
    """Name of the judgements."""
    retriever: Path | None = None
    """Checkpoint of the dual encoder that made the folders embeddings; default: bm25 alone is searched."""
    bm25: bool = False
    """Search the folders bm25 as well."""
    output_dir: Path
    """Folder for metrics.json (means, and the data sets' own), config.yaml and, for each data set, a folder with what
    retriever-evaluate writes."""
    topk: tuple[PositiveInt, ...] = (10, 100)
    """Depths of the metrics; the greatest is the number of passages retrieved."""
    ignore_identical_ids: bool = False
    """Score, and write what was found, as if a passage with the question's own id were not there, as BEIR does
    (ArguAna, Quora)."""
    options: SearchOptionsConfig = field(default_factory=SearchOptionsConfig)
    """How the evidence is searched."""
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    """How questions are encoded."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Processes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [path.resolve().name for path in self.datasets]
        if not names or len(set(names)) < len(names):
            raise ConfigError("--datasets: give folders with different names, which the results have too.")

    def of(self, dataset: Path) -> RetrieverEvaluateConfig:
        """The evaluation on one of them."""
        search = SearchConfig(
            evidence=dataset / "evidence",
            embeddings=dataset / "embeddings" if self.retriever else None,
            retriever=self.retriever,
            bm25_index=dataset / "bm25" if self.bm25 or not self.retriever else None,
            options=self.options,
        )
        qrels = _file(dataset / "qrels" / f"{self.split}.tsv")
        return RetrieverEvaluateConfig(
            search=search,
            questions=_file(dataset / "queries.jsonl"),
            judgements=JudgementsConfig(qrels=qrels, ignore_identical_ids=self.ignore_identical_ids),
            output_dir=self.output_dir / dataset.resolve().name,
            topk=self.topk,
            encode=self.encode,
            parallel=self.parallel,
        )


def _file(path: Path) -> Path:
    """The file, or its gzip."""
    found = [place for place in (path, path.with_name(f"{path.name}.gz")) if place.exists()]
    if not found:
        raise DataError(path, "is missing, plain and gzip", hint="Expected BEIR's layout.")
    return found[0]


def main(config: BeirEvaluateConfig, topology: ProcessTopology) -> None:
    jobs = [config.of(dataset) for dataset in config.datasets]  # what is missing is said before anything is searched
    for job in jobs:
        evaluate(job, topology)
    if topology.is_main:
        metrics = {job.output_dir.name: read_json(job.output_dir / METRICS) for job in jobs}
        means = _means(list(metrics.values()))
        write_json(config.output_dir / METRICS, {"num_datasets": len(jobs), **means, "datasets": metrics})
        write_config(config, config.output_dir / "config.yaml")
        shown = [*_SHOWN, f"recall@{max(config.topk)}"]
        rows = [[name, *(percent(row[key]) for key in shown)] for name, row in [*metrics.items(), ("mean", means)]]
        sys.stdout.write(text_table(["", *shown], rows) + "\n")


def _means(metrics: list[dict[str, Any]]) -> dict[str, float]:
    """The plain mean over data sets of every metric by judgements."""
    names = [name.removesuffix("_ci95") for name in metrics[0] if name.endswith("_ci95")]
    return {
        name: sum(row[name] for row in metrics) / len(metrics) for name in names if all(name in row for row in metrics)
    }
