"""What a foreign format is, and a model on its way between formats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.files import read_model_settings
from megatron_retrieval.checkpoint.huggingface.weight_table import export_weights, import_weights
from megatron_retrieval.checkpoint.kinds.encoder_families import ENCODER_FAMILIES, EncoderFamily
from megatron_retrieval.checkpoint.kinds.kind import ModelKind
from megatron_retrieval.checkpoint.store.reader import fill_model
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.adapters import LoraConfig
from megatron_retrieval.models.encoder import EncoderShape
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.tokenizers.unigram import UnigramTokenizer, is_unigram
from megatron_retrieval.tokenizers.vocabularies import VOCABULARIES
from megatron_retrieval.tokenizers.vocabulary import Vocabulary


@dataclass(frozen=True)
class ForeignModel:
    """A model on its way between formats.

    Attributes:
        kind: of the checkpoint that it comes from or becomes.
        layout: of texts, for kinds that have one.
        weights: full fp32 tensors under the parameter names of the kind's model.
        assumed: settings that the folder does not state, each with what is taken.
        adapters: settings of those that stand among the weights, apart from their matrices; default: none do.
        base: where these matrices come from, for whoever reads the export.
        further: what a checkpoint of the kind keeps beside shape and layout.
    """

    kind: ModelKind[Any, Any, Any]
    shape: Any
    weights: Mapping[str, Tensor]
    vocabulary: Vocabulary
    layout: Any = None
    assumed: Mapping[str, str] = field(default_factory=dict)
    adapters: LoraConfig = field(default_factory=LoraConfig)
    base: str = ""
    further: tuple[Any, ...] = ()

    def build(self, topology: ProcessTopology) -> Any:
        """A model of the kind with these weights.

        Raises:
            CheckpointError: they do not fit the shape; the message names the first that does not.
        """
        model = self.kind.build(self.shape, self.vocabulary.special, topology)
        fill_model(model, self.weights.keys(), self.weights.__getitem__, topology, source="the import")
        return model


class Format(Protocol):
    """A row of `FORMATS`: how other projects keep models in folders."""

    @property
    def name(self) -> str: ...
    @property
    def about(self) -> str:
        """What kind of folder it is, in one clause."""
        ...

    def holds(self, kind: str, shape: Any) -> bool:
        """Whether a model of this kind (its name) and shape can be exported."""
        ...

    def read(self, folders: Sequence[Path], *, separate_towers: bool = False) -> ForeignModel:
        """Import a model.

        Args:
            folders: of the model; for dual encoders one tower, a folder with both, or question and passage tower.
            separate_towers: make two towers of one.

        Raises:
            CheckpointError: files or weights are missing or damaged, or the model computes something that this project
                does not.
            DataError: its vocabulary is damaged.
        """
        ...

    def write(self, model: ForeignModel, folder: Path) -> None:
        """Export a model that it holds into an empty folder.

        Raises:
            CheckpointError: a setting of the model has no place in the format.
        """
        ...


def only_folder(what: str, folders: Sequence[Path], separate_towers: bool) -> Path:
    """The folder of a model that is one.

    Raises:
        CheckpointError: several were given, or two towers are to be made of it.
    """
    if len(folders) != 1 or separate_towers:
        raise CheckpointError(f"{what} is one model: give one --input folder, and leave out --separate-towers.")
    return folders[0]


def read_vocabulary(kind: str, folder: Path, num_embeddings: int) -> Vocabulary:
    """The vocabulary of a folder.

    Args:
        kind: its name in `VOCABULARIES`.
        num_embeddings: of the model beside it.

    Raises:
        CheckpointError: there is none, or it has more entries than the model has embeddings.
        DataError: it is damaged.
    """
    vocabulary = VOCABULARIES[kind].from_huggingface(folder)
    if vocabulary.vocab_size > num_embeddings:
        raise CheckpointError(
            f"{folder}: {vocabulary.vocab_size} vocabulary entries, but only {num_embeddings} word embeddings."
        )
    return vocabulary


def write_vocabulary(vocabulary: Vocabulary, folder: Path, max_length: int | None) -> None:
    """Write the vocabulary's files, and how it treats text.

    Args:
        max_length: of a sequence, in tokens; None: any.
    """
    VOCABULARIES[vocabulary.kind].to_huggingface(vocabulary, folder, max_length)


def import_encoder(state: Mapping[str, Tensor], shape: EncoderShape, source: str | Path) -> dict[str, Tensor]:
    """Full fp32 tensors under the names of our encoder of this family.

    Args:
        state: of the family's model in transformers; heads and buffers are left out.
        source: where it comes from, for messages.

    Raises:
        CheckpointError: weights are missing, unknown, or not of the configured shape.
    """
    family = ENCODER_FAMILIES.of(shape)
    return import_weights(family.current_names(state), family.table(shape), source, f"the encoder ({family.name})")


def read_family(path: Path, families: Iterable[EncoderFamily]) -> tuple[dict[str, Any], EncoderFamily]:
    """The contents of a `config.json`, and the family that its model_type names, and the vocabulary beside it where
    several have that; without a model_type it is the first's.

    Raises:
        CheckpointError: as `read_model_settings`.
        DataError: the vocabulary is damaged.
    """
    rows = list(families)
    settings = read_model_settings(path, *(name for family in rows for name in family.model_types))
    model_type = settings.get("model_type", rows[0].model_type)
    return settings, family_in(path.parent, [family for family in rows if model_type in family.model_types])


def family_in(folder: Path, families: Sequence[EncoderFamily]) -> EncoderFamily:
    """Of families with one model_type that whose vocabulary the folder has, else the first.

    Raises:
        DataError: the vocabulary is damaged.
    """
    if len(families) == 1:
        return families[0]
    path = folder / VOCABULARIES[UnigramTokenizer.kind].file_name
    is_other = path.is_file() and is_unigram(path)
    fits = (family for family in families if is_other == (family.vocabulary == UnigramTokenizer.kind))
    return next(fits, families[0])


def encoder_state(weights: Mapping[str, Tensor], shape: EncoderShape) -> dict[str, Tensor]:
    """The encoder of a model's weights, under the names of its family's model in transformers."""
    own = {name.removeprefix("bert."): full for name, full in weights.items() if name.startswith("bert.")}
    return export_encoder(own, shape)


def export_encoder(full: Mapping[str, Tensor], shape: EncoderShape) -> dict[str, Tensor]:
    """The inverse of `import_encoder`."""
    return export_weights(full, ENCODER_FAMILIES.of(shape).table(shape))
