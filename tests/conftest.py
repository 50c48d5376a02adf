"""Settings of all tests."""

from __future__ import annotations

from hypothesis import settings

# machines are shared: how long an example takes says nothing about the code
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
