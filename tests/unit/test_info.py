"""`megatron-retrieval info` says what the defaults of this machine are."""

from __future__ import annotations

import warnings
from importlib import metadata

import pytest

from megatron_retrieval.cli import main
from megatron_retrieval.parallel import machine
from megatron_retrieval.parallel.import_megatron import PROVEN, is_proven


@pytest.mark.parametrize("is_fast", [True, False])
def test_defaults_follow_from_the_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_fast: bool
) -> None:
    monkeypatch.setattr(machine, "_seconds", lambda dtype: 1e-3)
    monkeypatch.setattr(machine, "bf16_is_fast", lambda device: is_fast)
    main(["info"])
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    found = {name.strip(): value.strip() for name, value in lines.items()}
    assert found["--dtype auto means"] == ("bf16" if is_fast else "fp32")
    assert found["megatron-core"] == "0.16.1"
    assert "GFLOP/s" in found["fp32 on the CPU"]


def test_a_version_of_megatron_core_that_is_not_proven_is_named_and_used() -> None:
    with pytest.warns(UserWarning, match=r"megatron-core 0\.19\.2 is not proven here, only 0\.16\.1"):
        assert not is_proven("0.19.2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert is_proven(metadata.version("megatron-core")), PROVEN
