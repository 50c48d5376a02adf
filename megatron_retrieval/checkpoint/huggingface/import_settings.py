"""What defines an embedding beside its weights, asked for where a foreign folder does not state it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from megatron_retrieval.checkpoint.huggingface.format import ForeignModel
from megatron_retrieval.data.layouts.sequences import PassageFormat, TextFormatConfig, prefix_ids
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.dual_encoder import Pooling
from megatron_retrieval.utils.logging import get_logger

log = get_logger("checkpoint")


@dataclass(kw_only=True, frozen=True)
class EmbeddingSettingsConfig:
    """How an imported dual encoder makes vectors, where its folder does not state it; the checkpoint keeps it."""

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

    def over(self, found: ForeignModel, folder: Path) -> ForeignModel:
        """The model with these settings in the place of its own; the log says what is assumed, and what is replaced.

        Args:
            folder: for messages.

        Raises:
            ConfigError: the model is no dual encoder and has no such settings, or one is out of range.
        """
        given = {name: value for name, value in vars(self).items() if value not in (None, False)}
        if not isinstance(found.layout, TextFormatConfig):
            if given:
                flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
                raise ConfigError(f"{flags}: settings of dual encoders, which a {found.kind.name} does not have.")
            return found
        known = {field.name for part in (found.shape, found.layout) for field in dataclasses.fields(part)}
        if unknown := given.keys() - known:
            flag = min(unknown).replace("_", "-")
            raise ConfigError(f"--{flag}: a {found.kind.name} has no such setting; leave it out.")
        for name, meaning in found.assumed.items():
            if name not in given:
                log.info("%s does not state its %s: %s", folder, name.replace("_", " "), meaning)
        parts = []
        for part in (found.shape, found.layout):
            own = {name: value for name, value in given.items() if hasattr(part, name)}
            for name, value in own.items():
                if (before := getattr(part, name)) != value and name not in found.assumed and before != "":
                    log.info("%s: %s is %r as asked for, in the place of %r", folder, name, value, before)
            parts.append(dataclasses.replace(part, **own))
        shape, layout = parts
        for prefix in (layout.query_prefix, layout.passage_prefix) if found.vocabulary.is_separable else ():
            prefix_ids(prefix, found.vocabulary)
        return dataclasses.replace(found, shape=shape, layout=layout)
