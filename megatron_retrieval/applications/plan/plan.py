"""The plan of a run: disk, memory and time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from megatron_retrieval.applications.plan.config import PlanConfig
from megatron_retrieval.applications.plan.estimate import Estimate, estimate, num_encoders, retro_of
from megatron_retrieval.applications.plan.fit import disk_bytes, host_index_bytes, is_exact, num_versions, problems
from megatron_retrieval.applications.plan.known_rates import Rates, known_rates
from megatron_retrieval.applications.plan.rates import Calibration, MeasuredRates
from megatron_retrieval.applications.plan.retro_plan import RetroEstimate, retro_rows
from megatron_retrieval.applications.plan.steps import Staleness, StepSeconds, staleness, step_seconds
from megatron_retrieval.applications.plan.units import duration, size
from megatron_retrieval.config.parser import overlaid, to_flat_dict
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.parallel.topology import ParallelConfig, process_topology

PLAN = "plan.json"


@dataclass(frozen=True)
class Plan:
    """The estimates of a run.

    Attributes:
        problems: what does not fit, a line each.
        step: of the training that is planned; None without.
        retro: None: no RETRO is planned.
        staleness: for several numbers of embedding ranks; none where nothing is refreshed.
    """

    config: PlanConfig
    rates: Rates
    estimate: Estimate
    problems: list[str]
    step: StepSeconds | None
    retro: RetroEstimate | None
    staleness: list[Staleness]

    def rows(self) -> list[tuple[str, str, str]]:
        """(what, how much, where) for a table."""
        ranks = _ranks(self.config, self.config.hardware.num_ranks)
        retro = [] if self.retro is None else retro_rows(self.config.retro, self.retro, ranks)
        return [*_disk(self), *_memory(self), *_times(self), *retro]

    def basis(self) -> list[str]:
        """What the times follow from, a line each."""
        rates = {
            "building": (self.rates.build, "passages a second and process"),
            "encoding": (self.rates.encode, f"passages a second and {_rank(self.config)}"),
            "training": (self.rates.train, f"passages a second and {_rank(self.config)}, forward and backward"),
            "search": (self.rates.search, f"rows a second and {_rank(self.config)}"),
            "disk": (self.rates.disk, "bytes a second"),
        }
        lines = [f"{name}: {rate.value:,.0f} {unit} ({rate.origin})" for name, (rate, unit) in rates.items()]
        if self.step is not None:
            settings = self.config.rates
            network, nvlink = settings.network_gb_per_second, settings.nvlink_gb_per_second
            lines.append(
                f"communication: {network:,.0f} GB/s a node and {nvlink:,.0f} GB/s between its GPUs (not measured: "
                "--network-gb-per-second, --nvlink-gb-per-second), waited for; optimizer and data loading not counted"
            )
        return lines

    def staleness_rows(self) -> list[tuple[str, str, str, str]]:
        """(embedding ranks, steps a second, seconds of a refresh, steps trained meanwhile) for a table."""
        return [
            (
                str(found.num_embedding_ranks),
                f"{found.steps_per_second:.3g}",
                duration(found.refresh_seconds),
                f"{found.steps:,.0f}",
            )
            for found in self.staleness
        ]

    def to_json(self) -> dict[str, Any]:
        """All figures, in bytes and seconds, and the settings that they follow from."""
        return {
            "settings": to_flat_dict(self.config),
            "rates": {
                name: value if isinstance(value, float) else vars(value) for name, value in vars(self.rates).items()
            },
            "estimate": {
                **vars(self.estimate),
                "num_versions": num_versions(self.config),
                "disk_bytes": disk_bytes(self.config, self.estimate),
                "device_bytes": self.estimate.device_bytes,
                "host_index_bytes": host_index_bytes(self.config, self.estimate),
            },
            "problems": self.problems,
            "step": self.step and vars(self.step),
            "retro": self.retro and vars(self.retro),
            "staleness": [vars(found) for found in self.staleness],
        }


def make_plan(config: PlanConfig, clock: Callable[[], float] = time.perf_counter) -> Plan:
    """Measure, where that is asked for, and compute the rest.

    Args:
        clock: see `Calibration`.

    Raises:
        ConfigError: settings that contradict, or an index that faiss does not make.
        DataError: the passages to measure with cannot be read.
    """
    measured = None
    if config.rates.measure:
        measured = _measure(config, clock)
        sizes = replace(config.sizes, mean_text_bytes=measured.text_bytes, mean_tokens=measured.text_tokens)
        config = replace(config, sizes=sizes)
    rates = known_rates(config, measured)
    found = estimate(config, rates)
    aged = list(staleness(config, rates))
    faults, step = problems(config, rates, found), step_seconds(config, rates)
    return Plan(config, rates, found, faults, step, retro_of(config, rates), aged)


def _measure(config: PlanConfig, clock: Callable[[], float]) -> MeasuredRates:
    assert config.rates.vocab_file is not None
    calibration = Calibration(
        inputs=config.rates.input,
        vocab_file=config.rates.vocab_file,
        lower_case=config.rates.lower_case,
        encoder=config.encoder,
        text_format=overlaid(TextFormatConfig(), config.text_format),
        encode=config.encode,
        embedding_dtype=config.embedding_dtype,
        num_passages=config.passages,
        num_queries=config.num_queries,
        topk=config.topk,
        clock=clock,
    )
    with process_topology(ParallelConfig(device=None if config.hardware.gpus else "cpu")) as topology:
        return calibration.measure(topology)


def _disk(plan: Plan) -> list[tuple[str, str, str]]:
    found, rows, versions = plan.estimate, [], num_versions(plan.config)
    rows.append(("evidence", size(found.evidence_bytes), "disk"))
    if found.spans_bytes:
        rows.append(("salient spans", size(found.spans_bytes), "disk"))
    rows.append(("embeddings", size(found.version_bytes), "disk"))
    if checkpoints := plan.config.training.num_checkpoints:
        encoders = num_encoders(versions, checkpoints)
        rows.append((f"embeddings while refreshing: {versions} versions", size(versions * found.version_bytes), "disk"))
        rows.append((f"their encoders: at most {encoders}", size(encoders * found.encoder_bytes), "disk"))
        rows.append((_checkpoints(plan), size(checkpoints * found.checkpoint_bytes), "disk"))
    if found.index_bytes is not None:
        rows.append((f"index {plan.config.index_factory}", size(found.index_bytes), "disk"))
    rows.append(("all of it", size(disk_bytes(plan.config, found)), "disk"))
    return rows


def _checkpoints(plan: Plan) -> str:
    if kept := plan.config.training.keep_last:
        return f"checkpoints: {kept} kept, one being written"
    return f"checkpoints: two of {size(plan.estimate.checkpoint_bytes)}; without --keep-last all are kept"


def _memory(plan: Plan) -> list[tuple[str, str, str]]:
    config, found = plan.config, plan.estimate
    where = f"GPU memory, each of {config.num_training_ranks}" if config.hardware.gpus else "memory of each node"
    rows = _exact_search(found, config.hardware.gpus > 0, where) if is_exact(config, found) else []
    if found.index_bytes is not None:
        rows.append(("the approximate index", size(host_index_bytes(config, found)), "memory of each node"))
    if config.training.reader != "none":
        reader = f"retriever and {config.training.reader}"
        rows += [
            (f"training {reader}: weights, gradients, moments", size(found.state_bytes), where),
            (f"training, {config.training.num_passages} passages: activations", size(found.activation_bytes), where),
            ("training, with two indexes at a change", size(found.device_bytes), where),
        ]
        if config.hardware.gpus and not config.training.num_embedding_ranks:
            what = "embedding with --index-refresh-mode background"
            rows.append((what, size(found.background_bytes), "added on rank 0's GPU"))
    return rows


def _exact_search(found: Estimate, on_gpus: bool, where: str) -> list[tuple[str, str, str]]:
    rows = [
        ("vectors of exact search" if on_gpus else "vectors of exact search, in 8 bits", found.rank_index_bytes, where),
        ("work space of exact search", found.search_buffer_bytes, where),
    ]
    if not on_gpus:
        rows.append(("vectors on disk that exact search looks up", found.rank_mapped_bytes, f"{where}, if free"))
    return [(what, size(num_bytes), place) for what, num_bytes, place in rows]


def _times(plan: Plan) -> list[tuple[str, str, str]]:
    config, found = plan.config, plan.estimate
    ranks, training = _ranks(config, config.hardware.num_ranks), _ranks(config, config.num_training_ranks)
    rows = [
        ("building the evidence", duration(found.build_seconds), f"--workers {config.hardware.num_workers}"),
        ("embedding", duration(found.embed_seconds), ranks),
        (f"an exact search, {config.num_queries} questions", duration(found.search_seconds), training),
    ]
    if found.spans_bytes:
        rows.insert(
            1, ("finding salient spans", duration(found.spans_seconds), f"--workers {config.hardware.num_workers}")
        )
    if config.training.reader != "none":
        beside = _ranks(config, config.training.num_embedding_ranks) + " beside training"
        waiting = f"{ranks}, training waits"
        where = beside if config.training.num_embedding_ranks else waiting
        rows.insert(len(rows) - 1, ("a refresh of the index", duration(found.refresh_seconds), where))
    if not config.hardware.gpus:
        rows.append(("an exact search from the disk", duration(found.streamed_seconds), ranks))
    if (step := plan.step) is not None:
        parts = {"passes": step.compute, "search": step.search, "gradients": step.reduce}
        parts |= {"vectors": step.gather, "tensor parallelism": step.layers}
        shares = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items() if seconds)
        rows.append((f"a training step, {step.batch_size:,} questions", duration(step.total), shares))
    return rows


def _ranks(config: PlanConfig, number: int) -> str:
    plural = "" if number == 1 else "es" if _rank(config).endswith("s") else "s"
    return f"{number} {_rank(config)}{plural}"


def _rank(config: PlanConfig) -> str:
    return "GPU" if config.hardware.gpus else "CPU process"
