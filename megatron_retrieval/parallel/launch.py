"""Entry points that run as one process under `python` and as several under `torchrun`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from torch.distributed.elastic.multiprocessing.errors import record

from megatron_retrieval.config.program import run_program
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology, process_topology
from megatron_retrieval.utils.signals import stop_with_launcher


class HasParallelConfig(Protocol):
    """A configuration with a ParallelConfig."""

    @property
    def parallel(self) -> ParallelConfig: ...


Config = TypeVar("Config", bound=HasParallelConfig)


def run_distributed(
    config_class: type[Config],
    main: Callable[[Config, ProcessTopology], None],
    args: Sequence[str] | None = None,
    *,
    prog: str = "",
) -> None:
    """Parse the configuration, join the other processes, and call `main(config, topology)`.

    A failing rank exits with a non-zero status; torchrun then ends the others and reports the first failure. Where
    torchrun itself has ended, the ranks stop as well.
    """

    @record
    def run() -> None:
        run_program(config_class, within_topology, args, prog=prog)

    def within_topology(config: Config) -> None:
        with process_topology(config.parallel) as topology:
            main(config, topology)

    stop_with_launcher()
    run()
