"""Settings of all tests."""

from __future__ import annotations

import os

# before torch is imported: two threads each of two workers would wait for each other on two cores
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator

import programs
import pytest
from hypothesis import settings

from megatron_retrieval.testing.spawn import warm_fork_server

# machines are shared: how long an example takes says nothing about the code; a change is not refused for a chance find
settings.register_profile("untimed", deadline=None, derandomize=True)
settings.load_profile("untimed")

# before a test starts the fork server with nothing imported
warm_fork_server()


@pytest.fixture(scope="module", autouse=True)
def _nothing_goes_on() -> Iterator[None]:
    """No program outlives the tests of its file."""
    yield
    programs.end_started()
