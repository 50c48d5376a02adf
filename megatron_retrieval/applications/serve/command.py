"""The command; what it needs beyond this package is imported when it is called."""

from __future__ import annotations

from megatron_retrieval.applications.answering import require_one_process
from megatron_retrieval.applications.serve.config import ServeConfig
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.parallel.topology import ProcessTopology


def serve(config: ServeConfig, topology: ProcessTopology) -> None:
    """Serve until a stop signal, then finish the requests that run.

    Raises:
        ConfigError: the extra is not installed, several processes, or an address that cannot be had.
        MegatronRetrievalError: what is to be served cannot be opened.
    """
    require_one_process(topology, "serve")
    try:
        from megatron_retrieval.applications.serve.server import run_server
    except ImportError as error:
        raise ConfigError(f"serve needs {error.name}: pip install 'megatron-retrieval[serve]'.") from error
    run_server(config, topology)
