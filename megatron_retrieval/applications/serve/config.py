"""Settings of the server."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from megatron_retrieval.applications.answering import AnsweringConfig
from megatron_retrieval.applications.learn.folder import LearnedFolder
from megatron_retrieval.config.checks import Bounds, Checked, NonNegativeFloat, PositiveInt
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.parallel.topology import ParallelConfig

#: names of this machine that no other can take; a page elsewhere cannot have its own name point here
LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")


@dataclass(kw_only=True, frozen=True)
class ServeLimitsConfig(Checked):
    """What a request may ask for."""

    max_question_length: PositiveInt = 1000
    """Longest question, in characters."""
    max_topk: PositiveInt = 100
    """Most passages for a question."""
    max_waiting: PositiveInt = 512
    """Questions that may wait for their turn; further ones are refused with status 503."""
    batch_size: PositiveInt = 32
    """Questions searched together, of those that wait."""
    answer_batch_size: PositiveInt = 4
    """Questions answered together; searches take turns with them."""


@dataclass(kw_only=True, frozen=True)
class ServeConfig(Checked):
    """Answer questions on a page and by a REST interface (/search, /answer, /passages/{id}, /health, /openapi.json)."""

    answering: AnsweringConfig
    """What is searched, and what answers."""
    documents: Path | None = None
    """Folder that the passages were made from, where their ids name its files: those files, and no others, can then be
    opened from the page; default: the folder that megatron-retrieval learn read, else none can."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0: every address of this machine, so that others reach it."""
    port: Annotated[int, Bounds(least=0, most=65535)] = 8000
    """Port to listen at; 0: any that is free."""
    token_file: Path | None = None
    """File whose first line every request must bring (Authorization: Bearer ...); default: none is asked for."""
    allowed_hosts: tuple[str, ...] = ()
    """Names by which the server may be addressed; default: on 127.0.0.1 the local ones, elsewhere any."""
    watch_seconds: NonNegativeFloat = 5.0
    """Seconds between two looks for a newer version of what is searched, which then takes the place of the old one; 0:
    never. Both are in memory until it has."""
    stop_seconds: PositiveInt = 60
    """Seconds that running requests have to finish after a stop signal."""
    limits: ServeLimitsConfig = field(default_factory=ServeLimitsConfig)
    """What a request may ask for."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Processes."""

    @property
    def document_folder(self) -> Path | None:
        """--documents, or what the folder in --evidence was learned from."""
        learned = LearnedFolder.at(self.answering.search.evidence)
        return self.documents or (learned.documents if learned else None)

    @property
    def names(self) -> tuple[str, ...] | None:
        """Names by which the server may be addressed; None: any."""
        if self.allowed_hosts:
            return self.allowed_hosts
        return LOCAL_NAMES if self.host in LOCAL_NAMES else None

    def token(self) -> str | None:
        """What requests must bring; None: nothing.

        Raises:
            DataError: the file is missing or empty.
        """
        if self.token_file is None:
            return None
        try:
            token = self.token_file.read_text(encoding="utf-8").partition("\n")[0].strip()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(self.token_file, "cannot be read as text", hint="--token-file names it.") from error
        if not token or not token.isascii():
            raise DataError(self.token_file, "its first line must be a token in ASCII", hint="--token-file names it.")
        return token

    def listen(self) -> socket.socket:
        """The socket, listening.

        Raises:
            ConfigError: the port is taken, or the address is not of this machine.
        """
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            return socket.create_server((self.host, self.port), family=family, backlog=1024)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError(
                f"--host {self.host} --port {self.port}: {reason}; choose another port, or 0 for any that is free."
            ) from error
