"""How a model reads texts and makes vectors, asked for where a foreign folder does not state it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_retrieval.checkpoint.huggingface.format import ForeignModel
from megatron_retrieval.data.layouts.sequences import PassageFormat, TextFormatConfig, prefix_ids
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.dual_encoder import Pooling
from megatron_retrieval.utils.logging import get_logger

log = get_logger("checkpoint")


@dataclass(kw_only=True, frozen=True)
class ImportSettingsConfig:
    """How an imported model reads texts and makes vectors, where its folder does not state it; the checkpoint keeps
    it."""

    pooling: Pooling | None = None
    """A text's vector: the hidden state of [CLS], the mean over its tokens (Contriever, E5), or the state of its last
    token (causal language models); default: as the folder states, else cls."""
    normalize_embeddings: bool = False
    """Scale vectors to length 1, so that scores are cosines; also without the flag where the folder states it."""
    passage_format: PassageFormat | None = None
    """title-sep-text: [CLS] title [SEP] text [SEP]; title-text: [CLS] title text [SEP]; default: as the format does."""
    query_seq_length: int | None = None
    """Longest question, in tokens with [CLS] and [SEP]; default: as the folder states, else 64."""
    retriever_seq_length: int | None = None
    """Longest passage, in tokens with title and special tokens; default: as the folder states, else 256."""
    query_prefix: str | None = None
    """Text before every question (E5: "query: "); default: as the folder states, else none."""
    passage_prefix: str | None = None
    """Text before the title of every passage (E5: "passage: "); default: as the folder states, else none."""

    pair_seq_length: int | None = None
    """Longest question with its passage of a cross-encoder, in tokens; default: as the folder states, else 512."""

    def over(self, found: ForeignModel, folder: Path) -> ForeignModel:
        """The model with these settings in the place of its own; the log says what is assumed, and what is replaced.

        Args:
            folder: for messages.

        Raises:
            ConfigError: the model has no such setting, or one is out of range.
        """
        given = {name: value for name, value in vars(self).items() if value not in (None, False)}
        # how others pool states is a matter of their heads
        makes_vectors = isinstance(found.layout, TextFormatConfig)
        parts = {"shape": found.shape} if makes_vectors else {}
        if found.layout is not None:
            parts["layout"] = found.layout
        known = {field.name for part in parts.values() for field in dataclasses.fields(part)}
        if unknown := given.keys() - known:
            raise ConfigError(f"{_flag(min(unknown))}: a {found.kind.name} has no such setting; leave it out.")
        for name, meaning in found.assumed.items():
            if name not in given:
                log.info("%s does not state its %s: %s", folder, name.replace("_", " "), meaning)
        for key, part in parts.items():
            own = {name: value for name, value in given.items() if hasattr(part, name)}
            for name, value in own.items():
                if (before := getattr(part, name)) != value and name not in found.assumed and before != "":
                    log.info("%s: %s is %r as asked for, in the place of %r", folder, name, value, before)
            parts[key] = dataclasses.replace(part, **own)
        changed = dataclasses.replace(found, **parts)
        _check_lengths(changed, given)
        if makes_vectors and found.vocabulary.is_separable:
            for prefix in (changed.layout.query_prefix, changed.layout.passage_prefix):
                prefix_ids(prefix, found.vocabulary)
        return changed


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check_lengths(model: ForeignModel, given: Mapping[str, Any]) -> None:
    """Refuse sequences longer than the model's positions."""
    part = model.kind.encoder_part(model.shape)
    longest = None if part is None else part.shape.max_positions
    for name, value in given.items():
        if longest is not None and name.endswith("seq_length") and value > longest:
            raise ConfigError(f"{_flag(name)} {value}: the model has {longest} positions; give at most so many.")
