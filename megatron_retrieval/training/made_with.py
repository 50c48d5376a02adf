"""What a checkpoint was made with; a run that resumes it says what differs, and refuses what would falsify the run.

| differs | |
|---|---|
| seed, global batch size, number of examples, objective, what is frozen | refused: batches or gradients would differ |
| contents of an input: training data, evidence, vocabulary, weights to start from | refused |
| contents of an input that only evaluation reads | said |
| any other setting: learning rate, schedule, steps, precision, ... | said |
| where files are written to; a path to the same contents | neither |

`--accept-changes` turns refusals into the same line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_retrieval.checkpoint.store.folders import resolve_checkpoint
from megatron_retrieval.config.marks import resuming
from megatron_retrieval.config.parser import flat_fields
from megatron_retrieval.errors import ConfigError, MegatronRetrievalError
from megatron_retrieval.utils.files import read_json, sampled_fingerprint
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.manifest import MANIFEST

log = get_logger("checkpoint")


@dataclass(frozen=True)
class Input:
    """Files or folders that a run reads.

    Attributes:
        paths: as given, separated by spaces.
        fingerprint: of their contents; None where one is missing.
    """

    paths: str
    fingerprint: str | None


@dataclass(frozen=True)
class MadeWith:
    """What a run is made with, as its checkpoints keep it.

    Attributes:
        identity: names the sequence of batches and what is learned from them (seed, global batch size, ...).
        inputs: what is learned from, by flag.
        held_out: what evaluation reads, by flag.
        settings: all others, by flag, in JSON values.
    """

    identity: Mapping[str, Any]
    inputs: Mapping[str, Input]
    held_out: Mapping[str, Input]
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, job: Any, identity: Mapping[str, Any], model: Mapping[str, Any]) -> MadeWith:
        """What a job is made with.

        Args:
            job: its configuration.
            identity: see above.
            model: settings of the model as it was built, which replace those of flags.
        """
        inputs: dict[str, Input] = {}
        held_out: dict[str, Input] = {}
        settings = {}
        for name, field, value in flat_fields(job):
            flag, mark = f"--{name}", resuming(field)
            if mark is None and flag not in identity:
                settings[flag] = model.get(name, value)
            elif mark in ("input", "held-out input") and value:
                (inputs if mark == "input" else held_out)[flag] = _read(value)
        return cls(identity, inputs, held_out, settings)

    def to_json(self) -> dict[str, Any]:
        """For the manifest of a checkpoint; see `require_unchanged`."""
        return asdict(self)

    def require_unchanged(self, saved: Mapping[str, Any], folder: Path, *, accept_changes: bool) -> None:
        """Compare with what the checkpoint in `folder` was made with, and log what differs in one line.

        Args:
            saved: of `to_json`; checkpoints of earlier versions have only "identity".

        Raises:
            ConfigError: what the run learns differs.
        """
        # what one of the two lacks differs as well, such as a part that is frozen
        own = dict.fromkeys(saved["identity"]) | dict(self.identity)
        refused = _differences(saved["identity"], own)
        refused += _changed_inputs(saved.get("inputs"), self.inputs)
        settings = saved.get("settings", {})
        said = _differences(settings, {flag: value for flag, value in self.settings.items() if flag in settings})
        said += _changed_inputs(saved.get("held_out"), self.held_out)
        before = {**saved.get("inputs", {}), **saved.get("held_out", {})}
        left_out = sorted(before.keys() - self.inputs.keys() - self.held_out.keys())
        said += [f"{flag} none (was {before[flag]['paths']})" for flag in left_out]
        if refused and not accept_changes:
            raise ConfigError(
                f"{folder}: the run that saved it learned from something else: {', '.join(refused)}. Resume with the "
                "same, start anew with --pretrained-checkpoint, or give --accept-changes to go on with the other."
            )
        if changes := refused + said:
            log.info("%s was made with other settings: %s", folder, ", ".join(changes))


def _read(value: Any) -> Input:
    paths = value if isinstance(value, list) else [value]
    try:
        fingerprint: str | None = " ".join(_fingerprint(Path(path)) for path in paths)
    except (OSError, MegatronRetrievalError):
        fingerprint = None  # whoever reads it says what is wrong; weights to start from may be gone
    return Input(" ".join(paths), fingerprint)


def _fingerprint(path: Path) -> str:
    """Of a folder (checkpoint, evidence, corpus, embeddings) what its manifest says, of a file that of its samples: an
    evidence of any size costs the same."""
    if path.is_file():
        return sampled_fingerprint(path)
    manifest = (path if (path / MANIFEST).is_file() else resolve_checkpoint(path)) / MANIFEST
    return str(read_json(manifest).get("fingerprint") or sampled_fingerprint(manifest))


def _changed_inputs(saved: Mapping[str, Mapping[str, Any]] | None, own: Mapping[str, Input]) -> list[str]:
    """Those with other contents, as far as they can be compared."""
    if saved is None:
        return []
    changed = []
    for flag, now in own.items():
        before = Input(**saved[flag]) if flag in saved else Input("none", "")
        if None in (now.fingerprint, before.fingerprint) or now.fingerprint == before.fingerprint:
            continue
        is_same_place = now.paths == before.paths
        changed.append(f"{flag} {now.paths} ({'with other contents' if is_same_place else f'was {before.paths}'})")
    return changed


def _differences(saved: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """As in "--lr 0.01 (was 0.001)"."""
    values = [(name, value, saved.get(name)) for name, value in own.items()]
    return [f"{name} {_text(now)} (was {_text(before)})" for name, now, before in values if now != before]


def _text(value: Any) -> str:
    return "none" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)
