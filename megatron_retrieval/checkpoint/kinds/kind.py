"""A kind of model: all that this program knows of it in one object, and what a checkpoint of that kind says."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn

from megatron_retrieval.checkpoint.store.folders import resolve_checkpoint
from megatron_retrieval.checkpoint.store.manifest import CheckpointManifest, read_manifest
from megatron_retrieval.checkpoint.store.merged import MergedWeights
from megatron_retrieval.checkpoint.store.reader import fill_model, load_weights
from megatron_retrieval.checkpoint.store.writer import save_checkpoint
from megatron_retrieval.config.parser import from_flat_dict, to_flat_dict
from megatron_retrieval.errors import CheckpointError, ConfigError
from megatron_retrieval.models.adapters import LoraConfig, adapt, hold_once, saved_lora
from megatron_retrieval.models.encoder import EncoderShape
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.tokenizers.vocabularies import VOCABULARIES
from megatron_retrieval.tokenizers.vocabulary import SpecialIds, Vocabulary

Shape = TypeVar("Shape")
Layout = TypeVar("Layout")
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class EncoderPart:
    """The encoder inside a model, from which other models may start.

    Attributes:
        prefix: what the names of its parameters begin with.
        title: what the log calls it.
    """

    shape: EncoderShape
    prefix: str
    title: str


@dataclass(frozen=True)
class Description(Generic[Shape, Layout, Model]):
    """All of a saved model but its weights.

    Attributes:
        folder: of this one checkpoint.
        layout: of the texts that the model was trained with; None for kinds without one.
    """

    folder: Path
    manifest: CheckpointManifest
    kind: ModelKind[Shape, Layout, Model]
    shape: Shape
    layout: Layout

    @property
    def fingerprint(self) -> str:
        """Names the model: the same weights, shape and vocabulary give the same one at any layout of ranks."""
        return self.manifest.fingerprint

    @property
    def encoder(self) -> EncoderPart:
        """The encoder that other models may start from.

        Raises:
            CheckpointError: there is none.
        """
        if (part := self.kind.encoder_part(self.shape)) is None:
            raise CheckpointError(f"{self.folder}: a {self.kind.name} has no encoder that another model starts from.")
        return part

    @property
    def adapters(self) -> LoraConfig:
        """The adapters that the model has."""
        return saved_lora(self.manifest.config)

    def vocabulary(self, **settings: Any) -> Vocabulary:
        """Open the vocabulary that the model was trained with.

        Args:
            settings: in the place of saved ones.

        Raises:
            DataError: the file is damaged.
            CheckpointError: a setting is missing.
        """
        kind = VOCABULARIES[self.kind.vocabulary(self.shape)]
        saved = {key.replace("-", "_"): value for key, value in self.manifest.config.items()}
        try:
            return kind.open(self.folder / kind.file_name, {**saved, **settings})
        except KeyError as error:
            raise _missing(self.folder, str(error.args[0]).replace("_", "-")) from error

    def load(self, topology: ProcessTopology, dtype: torch.dtype = torch.float32) -> Model:
        """Build the model at this topology with its weights, in evaluation mode.

        Raises:
            CheckpointError: the weights are damaged or do not fit.
        """
        model = self.kind.build(self.shape, self.vocabulary().special, topology, dtype)
        self.fill(model, topology)
        return model.eval()

    def fill(self, model: nn.Module, topology: ProcessTopology) -> None:
        """Give a new model of this kind and shape all that was saved, its adapters too.

        Raises:
            CheckpointError: the weights are damaged or do not fit.
        """
        if self.adapters.is_active:
            adapt(model, self.adapters, topology, fill=False)
        load_weights(self.folder, self.manifest, model, topology)
        hold_once(model)


@dataclass(frozen=True)
class Loaded(Generic[Shape, Layout, Model]):
    """A model ready to use, and what it says of itself."""

    model: Model
    description: Description[Shape, Layout, Model]


#: of a checkpoint of whatever kind
AnyDescription: TypeAlias = Description[Any, Any, Any]


class ModelKind(Generic[Shape, Layout, Model]):
    """A kind of model, one subclass for each; `MODEL_KINDS` holds an instance of every one.

    Attributes:
        name: in manifests and messages.
        about: what it is, in one clause.
        starts_from: names of the kinds whose weights training may start from.
        shape_class: its configuration; of kinds with families of shapes, what these have in common.
        layout_class: configuration of the texts that it reads; None for kinds that read any.
        model_class: (shape, topology, dtype, seed=...) to a model with initial weights, which `seed` names.
        vocabulary_name: of its kind of vocabulary, see `VOCABULARIES`.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    starts_from: ClassVar[tuple[str, ...]]
    shape_class: type[Shape]
    layout_class: type[Layout] | None = None
    model_class: Callable[..., Model]
    vocabulary_name: ClassVar[str]

    def read_shape(self, settings: Mapping[str, Any]) -> Shape:
        """The shape out of a manifest's settings.

        Raises:
            KeyError: a setting is missing.
            ConfigError: a setting is out of range, or names what is not registered.
        """
        return from_flat_dict(self.shape_class, settings)

    def read_layout(self, settings: Mapping[str, Any]) -> Layout:
        """Likewise the layout of texts."""
        return cast(Layout, None if self.layout_class is None else from_flat_dict(self.layout_class, settings))

    def vocabulary(self, shape: Shape) -> str:
        """Name of the kind of vocabulary that it reads."""
        return self.vocabulary_name

    def marks(self, shape: Shape) -> dict[str, Any]:
        """What else a manifest must keep so that `read_shape` knows which class of shapes it is."""
        return {}

    def build(
        self,
        shape: Shape,
        special: SpecialIds,
        topology: ProcessTopology,
        dtype: torch.dtype = torch.float32,
        *,
        seed: int = 0,
    ) -> Model:
        """A model with initial weights.

        Args:
            special: ids of its vocabulary.
            seed: names the weights.
        """
        return self.model_class(shape, topology, dtype, seed=seed)

    def start(self, model: Model, source: AnyDescription, topology: ProcessTopology) -> None:
        """Fill `model` with what a checkpoint of a kind in `starts_from` has of it; the rest keeps its initial weights,
        and the log says so.

        Raises:
            CheckpointError: parameters or shapes differ; the message names the first of them.
        """
        fill_parts([(model, "")], source, topology)

    def encoder_part(self, shape: Shape) -> EncoderPart | None:
        """The encoder that other models may start from; None: there is none."""
        return None

    def config(self, shape: Shape, vocabulary: Vocabulary, *further: Any) -> dict[str, Any]:
        """What a checkpoint's manifest keeps of a model.

        Args:
            further: configurations beside the shape, such as the layout of texts.
        """
        settings: dict[str, Any] = {}
        for part in (shape, *further):
            settings |= to_flat_dict(part)
        of_vocabulary = {key.replace("_", "-"): value for key, value in vocabulary.settings().items()}
        return {**settings, **of_vocabulary, **self.marks(shape)}

    def save(
        self,
        directory: str | Path,
        model: Model,
        topology: ProcessTopology,
        shape: Shape,
        vocabulary: Vocabulary,
        *further: Any,
    ) -> Path:
        """Write a model as a checkpoint that no training run resumes from; all ranks call this together.

        Args:
            further: see `config`.

        Returns:
            The folder of the checkpoint.
        """
        config = self.config(shape, vocabulary, *further)
        assets = vocabulary.assets()
        return save_checkpoint(directory, model, topology, kind=self.name, config=config, assets=assets)

    def describe(self, path: str | Path, kinds: Collection[str] = ()) -> Description[Shape, Layout, Model]:
        """Read what a checkpoint says of itself, without its weights.

        Args:
            kinds: names of the kinds that the checkpoint may be of; default: this one.

        Raises:
            CheckpointError: no checkpoint here, one of another kind, or one without its vocabulary.
        """
        folder = resolve_checkpoint(path)
        manifest = require_kind(folder, kinds or (self.name,))
        try:
            found = self.read(folder, manifest)
        except KeyError as error:
            raise _missing(folder, error.args[0]) from error
        except ConfigError as error:
            raise CheckpointError(f"{folder}/manifest.json: {error}") from error
        file_name = VOCABULARIES[self.vocabulary(found.shape)].file_name
        if not (folder / file_name).is_file():
            raise CheckpointError(f"{folder}: {file_name} is missing.")
        return found

    def read(self, folder: Path, manifest: CheckpointManifest) -> Description[Shape, Layout, Model]:
        """The description out of a manifest; for errors see `read_shape`."""
        settings = manifest.config
        return Description(folder, manifest, self, self.read_shape(settings), self.read_layout(settings))

    def load(
        self, path: str | Path, topology: ProcessTopology, dtype: torch.dtype = torch.float32
    ) -> Loaded[Shape, Layout, Model]:
        """Build a saved model at this topology, in evaluation mode; for errors see `describe`."""
        description = self.describe(path)
        return Loaded(description.load(topology, dtype), description)


def require_kind(folder: Path, kinds: Collection[str]) -> CheckpointManifest:
    """The manifest of a checkpoint that holds a model of one of these kinds.

    Raises:
        CheckpointError: no checkpoint here, or one of another kind.
    """
    manifest = read_manifest(folder)
    if manifest.kind not in kinds:
        parts = f"; name one of its parts: {', '.join(str(folder / part) for part in manifest.parts)}"
        hint = parts if manifest.parts else ""
        raise CheckpointError(f"{folder}: holds a {manifest.kind}, where a {' or '.join(kinds)} is needed{hint}.")
    return manifest


def _missing(folder: Path, setting: str) -> CheckpointError:
    return CheckpointError(f"{folder}/manifest.json: the setting {setting!r} is missing.")


def fill_parts(parts: Iterable[tuple[nn.Module, str]], source: AnyDescription, topology: ProcessTopology) -> None:
    """Fill parts of a model, each from the tensors of a checkpoint whose names begin with its prefix, in which adapters
    are merged.

    Raises:
        CheckpointError: parameters or shapes differ; the message names the first of them.
    """
    reader = MergedWeights(source.folder, source.manifest)
    for part, prefix in parts:
        names = {name.removeprefix(prefix) for name in reader.names() if name.startswith(prefix)}
        where = f"{reader.folder}, {prefix.removesuffix('.')}" if prefix else str(reader.folder)

        def full(name: str, prefix: str = prefix) -> Tensor:
            return reader.full(prefix + name)

        fill_model(part, names, full, topology, source=where)
