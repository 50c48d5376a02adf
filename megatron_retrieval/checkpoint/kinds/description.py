"""What checkpoints of all kinds say of themselves beside their weights."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from megatron_retrieval.checkpoint.store.manifest import CheckpointManifest, read_manifest, resolve_checkpoint
from megatron_retrieval.config.parser import from_flat_dict, to_flat_dict
from megatron_retrieval.errors import CheckpointError, ConfigError
from megatron_retrieval.models.passage_scores import PassageScoreConfig
from megatron_retrieval.tokenizers.vocabularies import VOCABULARIES
from megatron_retrieval.tokenizers.vocabulary import Vocabulary

VOCAB_NAME = "vocab.txt"
LOWER_CASE_KEY = "lower-case"

Config = TypeVar("Config")


@dataclass(frozen=True)
class ModelDescription:
    """All of a checkpoint but its weights, whatever its vocabulary.

    Attributes:
        folder: of this one checkpoint.
    """

    folder: Path
    manifest: CheckpointManifest

    @property
    def kind(self) -> str:
        """What was saved."""
        return self.manifest.kind

    @property
    def fingerprint(self) -> str:
        """Names the model: the same weights, shape and vocabulary give the same one at any layout of ranks."""
        return self.manifest.fingerprint

    def open_vocabulary(self, kind: str, **settings: Any) -> Vocabulary:
        """The vocabulary that the model was trained with, of a kind of `VOCABULARIES`.

        Raises:
            DataError: the file is missing or damaged.
        """
        saved = {key.replace("-", "_"): value for key, value in self.manifest.config.items()}
        return VOCABULARIES[kind].open(self.folder / VOCABULARIES[kind].file_name, {**saved, **settings})


@dataclass(frozen=True)
class CheckpointDescription(ModelDescription):
    """All of a checkpoint with a WordPiece vocabulary but its weights."""

    @property
    def lower_case(self) -> bool:
        """Whether the vocabulary expects lower-cased text."""
        return bool(self.manifest.config[LOWER_CASE_KEY])

    def vocabulary(self, **settings: Any) -> Vocabulary:
        """Open the vocabulary that the model was trained with.

        Args:
            settings: in the place of saved ones.
        """
        return self.open_vocabulary("WordPiece", **settings)


def open_checkpoint(path: str | Path, kinds: Collection[str]) -> CheckpointDescription:
    """Read what a checkpoint of one of these kinds says of itself.

    Raises:
        CheckpointError: no checkpoint here, one of another kind, or one without vocabulary.
    """
    found = open_model(path, kinds, VOCAB_NAME, (LOWER_CASE_KEY,))
    return CheckpointDescription(found.folder, found.manifest)


def open_model(
    path: str | Path, kinds: Collection[str], vocabulary: str, vocabulary_keys: Iterable[str] = ()
) -> ModelDescription:
    """As `open_checkpoint`, for any vocabulary: the name of its file and of the settings that belong to it."""
    folder = resolve_checkpoint(path)
    manifest = read_manifest(folder)
    if manifest.kind not in kinds:
        raise CheckpointError(f"{folder}: holds a {manifest.kind}, where a {' or '.join(kinds)} is needed.")
    if not (folder / vocabulary).is_file():
        raise CheckpointError(f"{folder}: {vocabulary} is missing.")
    for key in vocabulary_keys:
        if key not in manifest.config:
            raise CheckpointError(f"{folder}/manifest.json: the setting {key!r} is missing.")
    return ModelDescription(folder, manifest)


def wordpiece_asset(vocabulary: Iterable[str]) -> dict[str, bytes]:
    """The file that a checkpoint keeps of its WordPiece tokens, given in order of their ids."""
    return {VOCAB_NAME: "".join(f"{token}\n" for token in vocabulary).encode()}


def saved_settings(config_class: type[Config], description: ModelDescription) -> Config:
    """The part of the saved settings that makes a `config_class`.

    Raises:
        CheckpointError: one of them is missing.
    """
    try:
        return from_flat_dict(config_class, description.manifest.config)
    except KeyError as error:
        raise CheckpointError(f"{description.folder}/manifest.json: the setting {error} is missing.") from error


def saved_passage_scores(found: ModelDescription) -> PassageScoreConfig:
    """What a reader does with the scores of passages; those that were trained without a retriever say nothing of it.

    Raises:
        CheckpointError: a setting is missing or out of range.
    """
    if not to_flat_dict(PassageScoreConfig()).keys() & found.manifest.config.keys():
        return PassageScoreConfig()
    try:
        return saved_settings(PassageScoreConfig, found)
    except ConfigError as error:
        raise CheckpointError(f"{found.folder}/manifest.json: {error}") from error
