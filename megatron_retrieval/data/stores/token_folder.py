"""Folders of columns whose token ids are of one vocabulary, which the folder keeps: evidence and corpus."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from megatron_retrieval.data.stores.column_folder import ColumnFolder, column_format, stored_dtype
from megatron_retrieval.errors import DataError, MismatchError
from megatron_retrieval.tokenizers.vocabularies import VOCABULARIES, VocabularyKind, building_flags
from megatron_retrieval.tokenizers.vocabulary import SpecialIds, Vocabulary
from megatron_retrieval.utils.manifest import ManifestFormat


def token_format(what: str, tool: str, *keys: str) -> ManifestFormat:
    """How a folder of token ids describes itself.

    Args:
        what: the folder holds.
        tool: builds it.
        keys: entries beyond those of every such folder.
    """
    return column_format(what, "tokenizer", "token_dtype", *keys, hint=f"Build it anew with {tool}.")


class TokenFolder(ColumnFolder):
    """A folder of columns with the vocabulary of its token ids; see ColumnFolder."""

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What the token ids come from."""
        expected, path = self._manifest["tokenizer"], self.folder / self._vocabulary_kind.file_name
        vocabulary = self._vocabulary_kind.open(path, expected)
        if vocabulary.fingerprint != expected["fingerprint"]:
            raise DataError(path, f"not the vocabulary that the {self.kind} was built with", hint=self._hint)
        return vocabulary

    @property
    def special(self) -> SpecialIds:
        """Ids that frame a sequence."""
        return self.vocabulary.special

    def require_vocabulary(self, vocabulary: Vocabulary, owner: str) -> None:
        """Refuse a model to which these token ids mean other words.

        Args:
            owner: whose vocabulary it is, for the message.

        Raises:
            MismatchError: the texts were tokenized with another vocabulary.
        """
        if vocabulary.fingerprint != self.vocabulary.fingerprint:
            raise MismatchError(
                f"The {self.kind} in {self.folder} was tokenized with vocabulary {self.vocabulary.fingerprint}, but "
                f"{owner} has vocabulary {vocabulary.fingerprint}; build the {self.kind} with "
                f"{building_flags(vocabulary)}."
            )

    def require_kind(self, name: str) -> None:
        """Refuse token ids of another kind of vocabulary.

        Args:
            name: of the kind, see `VOCABULARIES`.

        Raises:
            MismatchError: the texts were tokenized with one of another kind.
        """
        found, needed = self._vocabulary_kind, VOCABULARIES[name]
        if found is not needed:
            raise MismatchError(
                f"The {self.kind} in {self.folder} was tokenized with a {found.name} vocabulary, but a {needed.name} "
                f"vocabulary is needed; build the {self.kind} with {needed.flag}."
            )

    @property
    def _vocabulary_kind(self) -> VocabularyKind:
        # manifests of the first releases name no kind: there was one
        return VOCABULARIES[self._manifest["tokenizer"].get("kind", "WordPiece")]


def write_vocabulary(folder: Path, vocabulary: Vocabulary) -> None:
    """Write what a folder keeps of its vocabulary beside the manifest."""
    for name, content in vocabulary.assets().items():
        (folder / name).write_bytes(content)


def token_entries(vocabulary: Vocabulary) -> dict[str, Any]:
    """What the manifest of a folder of token ids says of its vocabulary."""
    special = vocabulary.special
    description = {
        "kind": vocabulary.kind,
        "fingerprint": vocabulary.fingerprint,
        "vocab_size": vocabulary.vocab_size,
        **vocabulary.settings(),
        # for earlier versions, in their words
        "special": {"cls": special.begin, "sep": special.end, "pad": special.pad, "mask": special.mask},
    }
    return {"tokenizer": description, "token_dtype": stored_dtype(vocabulary)}
