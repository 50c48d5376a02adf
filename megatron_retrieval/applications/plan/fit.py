"""Finds what does not fit in a plan, and settings that would make it fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from megatron_retrieval.applications.plan import costs
from megatron_retrieval.applications.plan.config import PlanConfig
from megatron_retrieval.applications.plan.estimate import Estimate, estimate, index_bytes, with_recompute
from megatron_retrieval.applications.plan.known_rates import Rates
from megatron_retrieval.applications.plan.units import GB
from megatron_retrieval.errors import ConfigError

#: compressed indexes, from the most to the fewest bytes; those of which fit are named
_SMALLER_INDEXES = ("IVF65536,SQ8", "OPQ96,IVF65536,PQ96", "OPQ48,IVF65536,PQ48")


def problems(config: PlanConfig, rates: Rates, found: Estimate) -> list[str]:
    """One line for everything that does not fit, each with what would help.

    Args:
        found: the estimate for this plan.
    """
    return [*_disk(config, rates, found), *_device(config, rates, found), *_host(config, found)]


def num_versions(config: PlanConfig) -> int:
    """Versions of the embeddings that stand on the disk at the same time: those that are kept, the one searched and the
    one before among them, and the one being made."""
    return 1 if config.training.reader == "none" else config.training.keep_index_versions + 1


def disk_bytes(config: PlanConfig, found: Estimate) -> int:
    """All that stands on the disk at the same time."""
    return found.disk_bytes(num_versions(config), config.training.num_checkpoints)


def host_index_bytes(config: PlanConfig, found: Estimate) -> int:
    """What search keeps in the memory of a node: the approximate index on every process, or on CPU all vectors that its
    process compares with; mapped vectors that lie on GPUs take none."""
    if found.index_bytes is not None:
        return found.index_bytes * max(1, config.hardware.gpus // config.hardware.nodes)
    return 0 if config.hardware.gpus else found.rank_index_bytes


def is_exact(config: PlanConfig, found: Estimate) -> bool:
    """Whether vectors are compared with exactly, as training always does; else an approximate index takes their place,
    in the memory of the host."""
    return config.training.reader != "none" or found.index_bytes is None


def _disk(config: PlanConfig, rates: Rates, found: Estimate) -> Iterator[str]:
    there, needed = config.hardware.disk_bytes, disk_bytes(config, found)
    if needed <= there:
        return
    ways = []
    if config.embedding_dtype == "float32":
        halved = disk_bytes(config, estimate(replace(config, embedding_dtype="float16"), rates))
        ways.append(f"--embedding-dtype float16 needs {_gb(halved)}{_judged(halved, there)}")
    if num_versions(config) > 1:
        once = found.disk_bytes(1, config.training.num_checkpoints)
        ways.append(f"without refreshing (no --index-refresh-interval) {_gb(once)} are needed{_judged(once, there)}")
    ways.append(f"a disk with {_gb(needed)} free holds it")
    yield f"Disk: {_gb(needed)} are needed, {_gb(there)} are free; {'; '.join(ways)}."


def _device(config: PlanConfig, rates: Rates, found: Estimate) -> Iterator[str]:
    there, trains = config.hardware.device_bytes, config.training.reader != "none"
    needed = found.device_bytes if trains else found.rank_index_bytes + found.search_buffer_bytes
    if not config.hardware.gpus or not is_exact(config, found) or needed <= there:
        return
    copies = 2 if trains else 1
    others = needed - copies * found.rank_index_bytes
    ways = []
    if config.embedding_dtype == "float32":
        halved = needed - copies * found.rank_index_bytes // 2
        ways.append(f"--embedding-dtype float16 needs {_gb(halved)}{_judged(halved, there)}")
    ranks = costs.ranks_needed(copies * found.version_bytes, others, there)
    if ranks is not None:
        ranks += config.training.num_embedding_ranks
        ways.append(f"--gpus {ranks} spread the vectors thinly enough")
    if trains:
        ways += _lighter_training(config, rates, there)
    else:
        ways += _smaller_indexes(config, config.hardware.host_bytes, "on the host")
    yield f"GPU memory: {_gb(needed)} are needed of {_gb(there)}; {'; '.join(ways) or 'larger GPUs are needed'}."


def _lighter_training(config: PlanConfig, rates: Rates, there: int) -> Iterator[str]:
    """Settings of training that take less memory, the mildest first."""
    half = config.encode.is_half
    if not half:
        config = replace(config, encode=replace(config.encode, bf16=True))
        needed = estimate(config, rates).device_bytes
        yield f"--bf16 needs {_gb(needed)}{_judged(needed, there)}"
        if needed <= there:
            return
    if costs.bert_of(config.encoder).recompute_granularity != "full":
        config = with_recompute(config)
        needed = estimate(config, rates).device_bytes
        words = "--recompute-granularity full" if half else "with --recompute-granularity full as well it"
        yield f"{words} needs {_gb(needed)}{_judged(needed, there)}"
        if needed <= there:
            return
    for num_passages in range(config.training.num_passages - 1, 0, -1):
        fewer = replace(config, training=replace(config.training, num_passages=num_passages))
        if estimate(fewer, rates).device_bytes <= there:
            yield f"with these, --num-passages {num_passages} fits"
            return


def _host(config: PlanConfig, found: Estimate) -> Iterator[str]:
    there, needed = config.hardware.host_bytes, host_index_bytes(config, found)
    if not config.hardware.gpus and found.state_bytes > 0 and found.device_bytes > there:
        yield f"Host memory: training needs {_gb(found.device_bytes)} of {_gb(there)} on a node; train on GPUs."
        return
    if needed <= there:
        return
    if found.index_bytes is None:
        nodes = costs.ranks_needed(found.version_bytes, 0, there)
        ways = [
            f"as they are, vectors come from the disk and a search takes about {found.streamed_seconds:,.0f} s",
            f"--nodes {nodes} hold them",
            *_smaller_indexes(config, there, "on every node"),
        ]
    else:
        ways = [*_smaller_indexes(config, there // max(1, config.hardware.gpus // config.hardware.nodes), "a process")]
    yield f"Host memory: search needs {_gb(needed)} of {_gb(there)} on a node; {'; '.join(ways) or 'more is needed'}."


def _smaller_indexes(config: PlanConfig, there: int, where: str) -> Iterator[str]:
    """The largest approximate index that fits; for answering questions, not for training, whose index is exact."""
    for factory in _SMALLER_INDEXES:
        try:
            needed = index_bytes(factory, config)
        except ConfigError:  # its codes do not divide the dimensions
            continue
        if needed <= there and factory != config.index_factory:
            yield f'--index-factory "{factory}" needs {_gb(needed)} {where} (approximate, for answering questions)'
            return


def _judged(needed: int, there: int) -> str:
    return ", which fits" if needed <= there else ""


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / GB:,.1f} GB"
