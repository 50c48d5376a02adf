"""The process that serves: opens, listens, and stops in order at a signal."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator

import uvicorn

from megatron_retrieval.applications.serve.app import make_app
from megatron_retrieval.applications.serve.config import ServeConfig
from megatron_retrieval.applications.serve.service import Service
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.signals import handling_stop_signals

log = get_logger("serve")


class _Server(uvicorn.Server):
    """Stops in order at any of this project's stop signals; a second interrupt does not wait."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        with handling_stop_signals(self.handle_exit):
            yield


def run_server(config: ServeConfig, topology: ProcessTopology) -> None:
    """See `command.serve`."""
    config.token()
    with config.listen() as listening:
        service = Service(config, topology)
        try:
            _serve(config, service, listening)
        finally:
            service.stop()


def _serve(config: ServeConfig, service: Service, listening: socket.socket) -> None:
    settings = uvicorn.Config(
        make_app(config, service),
        log_config=None,
        log_level="error",  # not of every request that is none
        access_log=False,  # questions are nobody else's business
        server_header=False,
        ws="none",
        lifespan="off",
        timeout_graceful_shutdown=config.stop_seconds,
    )
    host, port = listening.getsockname()[:2]
    address = f"[{host}]" if ":" in host else host
    session = service.version.session
    with_reader = "a reader" if session.reader is not None else "no reader"
    log.info("%s passages, %s", f"{len(session.search.evidence):,}", with_reader)
    if config.names is None and config.token_file is None:
        log.warning("everybody who reaches %s can ask; --token-file asks them for a token", address)
    sys.stdout.write(f"http://{address}:{port}\n")
    sys.stdout.flush()
    _Server(settings).run(sockets=[listening])
    log.info("stopped")
