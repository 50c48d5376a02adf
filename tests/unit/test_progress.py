"""Work in stages: every bar says its stage, and what is left of all."""

from __future__ import annotations

import pytest

from megatron_retrieval.utils import progress
from megatron_retrieval.utils.progress import Stages, progress_bar


def test_bars_say_the_stage_and_what_is_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stages = Stages("reading", "words", "vectors")
    stages.guess(reading=10, words=20, vectors=30)
    with stages.stage("reading"):
        assert stages.seconds_left(None) == 60
        now[0] = 4
        assert stages.seconds_left(None) == 56
        assert stages.seconds_left(of_bar=100) == 150, "what the bar knows counts more than the guess"
        now[0] = 20
    with stages.stage("words"):
        assert stages.seconds_left(None) == 100, "the first stage took twice as long as guessed"
        with progress_bar("counting", "passages", 10) as bar:
            bar.update(5)
        assert "2/3 words: counting" in capsys.readouterr().err
        now[0] = 30
    assert stages.seconds == {"reading": 20, "words": 10}
    with progress_bar("alone", "passages", 10):
        pass
    assert "all:" not in capsys.readouterr().err
