"""The mean of several models of one shape, weight by weight (Wortsman et al. 2022, Model soups, arXiv 2203.05482)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_retrieval.checkpoint.kinds.kind import AnyDescription
from megatron_retrieval.checkpoint.store.merged import MergedWeights
from megatron_retrieval.checkpoint.store.reader import fill_model
from megatron_retrieval.checkpoint.store.writer import save_checkpoint
from megatron_retrieval.config.parser import to_flat_dict
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.adapters import without_adapters
from megatron_retrieval.parallel.topology import ProcessTopology

#: settings in which models of one mean may differ
_FREE = ("dropout", "seq-length", "init-method-std", "recompute-granularity")


def save_mean(
    sources: Sequence[AnyDescription], output: Path, topology: ProcessTopology, shares: Sequence[float] = ()
) -> Path:
    """Write the mean of the models' weights as a checkpoint, in fp32; all settings and the vocabulary are those of the
    first. Adapters are merged into their matrices, so that a single model becomes a plain one.

    Args:
        shares: of each in the mean; default: equal ones.

    Returns:
        The folder of the checkpoint.

    Raises:
        CheckpointError: the models are not of one kind, a weight is missing or of another shape, or the models read
            texts otherwise.
    """
    first, shares = sources[0], shares or [1 / len(sources)] * len(sources)
    readers = [MergedWeights(source.folder, source.manifest) for source in sources]
    names = readers[0].names()
    for source, reader in zip(sources, readers, strict=True):
        if source.kind is not first.kind or reader.names() != names:
            raise CheckpointError(f"{source.folder}: not the weights of {first.folder}, so that they have no mean.")
    _require_same_settings(sources)

    def mean(name: str) -> Tensor:
        total = readers[0].full(name).float() * shares[0]
        for reader, share in zip(readers[1:], shares[1:], strict=True):
            if (tensor := reader.full(name)).shape != total.shape:
                raise CheckpointError(f"{name}: of another shape in one of the models, so that they have no mean.")
            total += tensor.float() * share
        return total

    vocabulary = first.vocabulary()
    model = first.kind.build(first.shape, vocabulary.special, topology)
    fill_model(model, names, mean, topology, source="the mean")
    settings, assets = without_adapters(first.manifest.config), vocabulary.assets()
    return save_checkpoint(output, model, topology, kind=first.kind.name, config=settings, assets=assets)


def _require_same_settings(models: Sequence[AnyDescription]) -> None:
    """Refuse models whose weights mean different things though their shapes are equal."""
    first, own = models[0], _deciding_settings(models[0])
    for other in models[1:]:
        others = _deciding_settings(other)
        for name, value in own.items():
            if others[name] != value:
                raise CheckpointError(
                    f"{other.folder}: its {name} is {others[name]!r}, that of {first.folder} is {value!r}, so that "
                    "they have no mean."
                )


def _deciding_settings(model: AnyDescription) -> dict[str, Any]:
    """All settings of shape and texts, but for how a model is trained and how long its texts may be."""
    parts = [to_flat_dict(part) for part in (model.shape, model.layout) if part is not None]
    settings = {name: value for part in parts for name, value in part.items() if not name.endswith(_FREE)}
    return {**settings, "vocabulary": model.vocabulary().fingerprint}
