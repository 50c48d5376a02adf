"""Readers: models that answer questions from passages."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, cast

from megatron_retrieval.checkpoint.kinds.kind import AnyDescription, Description, Layout, Model, ModelKind, Shape
from megatron_retrieval.checkpoint.store.manifest import CheckpointManifest
from megatron_retrieval.config.parser import Config, from_flat_dict, to_flat_dict
from megatron_retrieval.models.passage_scores import PassageScoreConfig


@dataclass(frozen=True)
class ReaderDescription(Description[Shape, Layout, Model]):
    """All of a saved reader but its weights.

    Attributes:
        stated_scores: what it was trained to do with the scores of passages; None: it was trained without a retriever.
    """

    stated_scores: PassageScoreConfig | None = None

    @property
    def passage_scores(self) -> PassageScoreConfig:
        """What it does with the scores of passages; nothing where it was trained without a retriever."""
        return self.stated_scores or PassageScoreConfig()


def layout_if_saved(config_class: type[Config], settings: Mapping[str, Any]) -> Config | None:
    """The layout out of a manifest's settings; None where the model has not been trained as a reader."""
    has_layout = to_flat_dict(config_class()).keys() <= settings.keys()
    return from_flat_dict(config_class, settings) if has_layout else None


#: of a reader of whatever kind
AnyReaderDescription: TypeAlias = ReaderDescription[Any, Any, Any]


class ReaderModelKind(ModelKind[Shape, Layout, Model]):
    """See ModelKind.

    Attributes:
        reads: names of the kinds whose checkpoints hold such a reader as it is.
    """

    reads: ClassVar[tuple[str, ...]]

    @abstractmethod
    def shape_from(self, source: AnyDescription) -> Shape:
        """The shape of a reader that starts from a checkpoint of a kind in `starts_from`."""

    def describe(self, path: str | Path, kinds: Collection[str] = ()) -> ReaderDescription[Shape, Layout, Model]:
        """See ModelKind."""
        return cast(ReaderDescription[Shape, Layout, Model], super().describe(path, kinds))

    def read(self, folder: Path, manifest: CheckpointManifest) -> ReaderDescription[Shape, Layout, Model]:
        """See ModelKind; the manifest of a reader that was trained without a retriever says nothing of scores."""
        found, settings = super().read(folder, manifest), manifest.config
        knows_scores = bool(to_flat_dict(PassageScoreConfig()).keys() & settings.keys())
        scores = from_flat_dict(PassageScoreConfig, settings) if knows_scores else None
        return ReaderDescription(folder, manifest, self, found.shape, found.layout, scores)
