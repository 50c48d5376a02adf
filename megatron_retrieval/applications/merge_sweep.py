"""Means of a start and what was trained from it, in several shares: what each finds at home and elsewhere.

The mean of both weights keeps most of what training gained and little of what it lost (Wortsman et al. 2022, Robust
fine-tuning of zero-shot models, arXiv 2109.01903).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.checkpoint.kinds.kind import AnyDescription
from megatron_retrieval.checkpoint.kinds.mean_of_weights import save_mean
from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.evaluation.paired_runs import compare_runs
from megatron_retrieval.evaluation.retrieval_results import METRICS, RANKS, write_ranks
from megatron_retrieval.parallel.collectives import on_first_rank
from megatron_retrieval.parallel.precision import DtypeConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.reports.figures import sweep_picture
from megatron_retrieval.reports.tables import percent, text_table
from megatron_retrieval.training.tasks.recall_task import RecallConfig
from megatron_retrieval.utils.files import file_fingerprint, link, read_json, write_json
from megatron_retrieval.utils.logging import get_logger

log = get_logger("merge")
SWEEP, BEST, PICTURE = "sweep.json", "best", "sweep.png"
#: key of what was measured, beside the figures
MEASURED = "measured"


@dataclass(kw_only=True, frozen=True)
class MergeSweepConfig(Checked):
    """Means in several shares, each measured on questions."""

    sweep: tuple[float, ...] | None = None
    """Shares of the last checkpoint, such as 0 0.25 0.5 0.75 1; the others have the rest in equal parts. --output then
    holds share-S for each, sweep.json, and `best`, which leads to the best: of those that find significantly less than
    the lowest share on no further data set, at no depth, the one with the highest recall on the first. The same command
    continues where it stopped; where checkpoints, questions or evidence changed, it measures again."""
    eval_questions: tuple[str, ...] = ()
    """Questions of each data set: first those of the kind that was trained on, then of others."""
    eval_evidence: tuple[str, ...] = ()
    """Folder of the evidence for each of them."""
    eval_max_questions: PositiveInt | None = None
    """Ask only so many questions of each, at equal distances in the file; default: all."""
    eval_topk: tuple[PositiveInt, ...] = (1, 5, 20)
    """Depths at which recall is measured; at the first the best is the best."""
    eval_micro_batch_size: PositiveInt = 128
    """Texts encoded at once by each copy of the model."""
    precision: DtypeConfig = field(default_factory=DtypeConfig)
    """Number format in which a mean is measured; it is kept as precisely as the checkpoints are."""
    picture: bool = False
    """Draw sweep.png as well (needs matplotlib)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sweep is None:
            return
        if len(set(self.sweep)) < 2 or not all(0 <= share <= 1 for share in self.sweep):
            raise ConfigError("--sweep: give two shares or more, between 0 and 1.")
        if not self.eval_questions or len(self.eval_questions) != len(self.eval_evidence):
            raise ConfigError("--sweep measures: give --eval-questions, and --eval-evidence for each of them.")

    def recalls(self) -> list[RecallConfig]:
        """How each data set is measured."""
        return [
            RecallConfig(
                eval_questions=questions,
                eval_evidence=evidence,
                eval_max_questions=self.eval_max_questions,
                eval_topk=self.eval_topk,
                eval_micro_batch_size=self.eval_micro_batch_size,
            )
            for questions, evidence in zip(self.eval_questions, self.eval_evidence, strict=True)
        ]


def sweep_shares(
    config: MergeSweepConfig, sources: Sequence[AnyDescription], output: Path, topology: ProcessTopology
) -> Path:
    """Write and measure the means; a collective over all ranks.

    Returns:
        The checkpoint of the best.

    Raises:
        ConfigError: the checkpoints are no dual encoders.
        CheckpointError, DataError, MismatchError: they have no mean, or cannot be measured.
    """
    if sources[0].kind is not DUAL_ENCODER:
        raise ConfigError(f"--sweep measures dual encoders; {sources[0].folder} is a {sources[0].kind.name}.")
    assert config.sweep is not None
    shares = sorted(set(config.sweep))
    folders = [output / f"share-{share:g}" for share in shares]
    for share, folder in zip(shares, folders, strict=True):
        rest = (1 - share) / (len(sources) - 1)
        _measure_share(config, sources, [rest] * (len(sources) - 1) + [share], folder, topology)
    on_first_rank(partial(_choose, config, shares, folders, output), topology.world_group)
    return output / BEST


def _measure_share(
    config: MergeSweepConfig,
    sources: Sequence[AnyDescription],
    weights: Sequence[float],
    folder: Path,
    topology: ProcessTopology,
) -> None:
    """Write one mean, and for each data set what `compare_runs` reads; what is there and of the same stays."""
    dtype = config.precision.on(topology.device)
    recalls = enumerate(config.recalls())
    asked = [(number, recall, _measured(recall, sources, weights, dtype)) for number, recall in recalls]
    missing = [one for one in asked if one[2] != _recorded(_evaluation(folder, one[0]) / METRICS)]
    if not missing:
        return
    loaded = DUAL_ENCODER.load(save_mean(sources, folder, topology, weights), topology, dtype)
    for number, recall, measured in missing:
        task = recall.open(loaded.model, loaded.description.layout, loaded.description.vocabulary())
        assert task is not None
        retrieved = task.retrieve(topology)
        if topology.is_main:
            metrics, place = task.metrics(retrieved), _evaluation(folder, number)
            write_ranks(place / RANKS, task.questions, retrieved.ranks, {})
            write_json(place / METRICS, metrics | {"questions": recall.eval_questions, MEASURED: measured})
            log.info("%s, %s: %s", folder.name, recall.eval_questions, _figures(metrics, config.eval_topk))


def _measured(
    recall: RecallConfig, sources: Sequence[AnyDescription], weights: Sequence[float], dtype: torch.dtype
) -> dict[str, Any]:
    """What the figures follow from; figures that followed from something else are measured again."""
    assert recall.eval_questions is not None
    assert recall.eval_evidence is not None
    return {
        "checkpoints": [source.fingerprint for source in sources],
        "weights": list(weights),
        "questions": file_fingerprint(recall.eval_questions),
        "max_questions": recall.eval_max_questions,
        "evidence": EvidenceStore(recall.eval_evidence).fingerprint,
        "topk": sorted(set(recall.eval_topk)),
        "dtype": str(dtype).removeprefix("torch."),
    }


def _recorded(metrics: Path) -> dict[str, Any] | None:
    """What the figures in a file followed from; None where there are none, or it is not said."""
    found: dict[str, Any] | None = read_json(metrics).get(MEASURED) if metrics.exists() else None
    return found


def _evaluation(folder: Path, number: int) -> Path:
    return folder / f"evaluation-{number}"


def _figures(metrics: dict[str, Any], topk: Sequence[int]) -> str:
    return " / ".join(percent(metrics[f"recall@{k}"]) for k in sorted(set(topk)))


def _choose(config: MergeSweepConfig, shares: Sequence[float], folders: Sequence[Path], output: Path) -> None:
    """Compare every mean with the first, and lead `best` to the best."""
    deciding, rows, data_sets = f"recall@{config.eval_topk[0]}", list[dict[str, Any]](), len(config.eval_questions)
    for share, folder in zip(shares, folders, strict=True):
        compared = [
            compare_runs(_evaluation(folders[0], number), _evaluation(folder, number), config.eval_topk)
            for number in range(data_sets)
        ]
        rows.append({"share": share, "checkpoint": str(folder), "data_sets": compared})
    unharmed = [row for row in rows if not any(_loses(one, config.eval_topk) for one in row["data_sets"][1:])]
    best = max(unharmed, key=lambda row: row["data_sets"][0][deciding]["candidate"])
    for row in rows:
        row["is_best"] = row is best
    write_json(output / SWEEP, {"metric": deciding, "questions": list(config.eval_questions), "shares": rows})
    link(Path(best["checkpoint"]), output / BEST)
    if config.picture:
        sweep_picture(rows, deciding, config.eval_questions, output / PICTURE)
    sys.stdout.write(_table(rows, config.eval_questions, deciding) + "\n")


def _loses(compared: dict[str, Any], topk: Sequence[int]) -> bool:
    """Whether recall is significantly lower, at any depth."""
    return any(compared[f"recall@{k}"]["difference_ci95"][1] < 0 for k in topk)


def _table(rows: Sequence[dict[str, Any]], questions: Sequence[str], metric: str) -> str:
    """A line a share: what it finds of each data set, and how much more than the lowest share."""
    header = ["share", *(f"{Path(name).name} {metric}" for name in questions), ""]
    lines = []
    for row in rows:
        cells = []
        for one in (compared[metric] for compared in row["data_sets"]):
            low, high = (f"{100 * end:+.1f}" for end in one["difference_ci95"])
            cells.append(f"{percent(one['candidate'])}  {100 * one['difference']:+.1f} [{low}, {high}]")
        lines.append([f"{row['share']:g}", *cells, "best" if row["is_best"] else ""])
    return text_table(header, lines)
