"""What a kind of reader says of itself: its fine-tuning, its evaluation and its end-to-end training follow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from megatron_retrieval.checkpoint.kinds.kind import AnyDescription
from megatron_retrieval.checkpoint.kinds.reader import ReaderModelKind
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.evaluation.reader_task import Reader
from megatron_retrieval.models.passage_scores import PassageScoreConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.readers.settings import ReaderSettings
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.training.steps.readings import Pass, ReaderSide


class OpenReader(ABC):
    """A reader's model together with its vocabulary, layout and way of answering.

    Args:
        start: gives the vocabulary; its weights are taken by `load` alone.
        settings: shape, layout and the like, of the classes that its kind names.
        topology: the model is laid out for it.
        dtype: of parameters and activations.
        seed: names the initial weights.

    Attributes:
        checkpoints: the kind of its checkpoints.
        model: all of its parameters.
        vocabulary: what it reads and answers in.

    Raises:
        ConfigError: sequences longer than the model's positions, or no room for passages.
    """

    checkpoints: ClassVar[ReaderModelKind[Any, Any, Any]]
    settings: ReaderSettings
    topology: ProcessTopology
    model: nn.Module
    vocabulary: Vocabulary

    @abstractmethod
    def __init__(
        self,
        start: AnyDescription,
        settings: ReaderSettings,
        topology: ProcessTopology,
        dtype: torch.dtype,
        *,
        seed: int = 0,
    ) -> None: ...

    def load(self, start: AnyDescription) -> None:
        """Take the weights of a checkpoint, or what it has of them; the log says what is new.

        Raises:
            CheckpointError: parameters or shapes differ; the message names the first of them.
        """
        self.checkpoints.start(self.model, start, self.topology)

    def load_saved(self, saved: AnyDescription) -> None:
        """Take a reader of this kind as it was saved, its adapters too.

        Raises:
            CheckpointError: as `load`.
        """
        saved.fill(self.model, self.topology)

    def require_room(self, num_passages: int, scores: PassageScoreConfig | None = None) -> None:  # noqa: B027
        """Refuse more passages than the model's positions have room for, where it reads a question's in one text; most
        readers have room for any.

        Args:
            num_passages: the most that a question has.
            scores: how their scores are used where it answers; None: it learns from all of them in one text.

        Raises:
            ConfigError: there may be too many tokens.
        """

    @abstractmethod
    def answerer(self, scores: PassageScoreConfig | None = None, micro_batch_size: int = 128) -> Reader:
        """What answers with the weights of the moment.

        Args:
            scores: how the scores of passages are used; None: not at all.
            micro_batch_size: passages read at once.
        """

    @abstractmethod
    def side(self, evidence: EvidenceStore, asked: frozenset[Pass]) -> ReaderSide:
        """Its part in training with a retriever over `evidence`; called before the optimizer is made.

        Args:
            asked: passes that the objective asks for.
        """

    def checkpoint_config(self, scores: PassageScoreConfig | None = None) -> dict[str, Any]:
        """What the manifest of its checkpoints keeps.

        Args:
            scores: how the scores of passages are used; None where it is trained without a retriever.
        """
        layout = self.settings.layout
        further = (layout,) if scores is None else (layout, scores)
        return self.checkpoints.config(self.settings.shape, self.vocabulary, *further)

    def recorded(self, scores: PassageScoreConfig) -> dict[str, Any]:
        """What else its speed or its answers depend on, for the record of an evaluation.

        Args:
            scores: how the scores of passages are used.
        """
        return {}


@dataclass(kw_only=True, frozen=True)
class ReaderKind:
    """A kind of reader, a row of `registry.READERS`.

    Attributes:
        name: `--task NAME-finetune` fine-tunes one.
        about: what it does, in one clause.
        passes: what objectives of end-to-end training may ask of it.
        needs_passages: it has no answer to a question alone.
        layout: configuration class of its layout, with a default for every setting.
        answers: configuration class of how it answers, likewise.
        finetune: configuration class of its fine-tuning, a `finetune.ReaderFinetuneConfig`; None: there is none.
        open: the class of its readers.
    """

    name: str
    about: str
    passes: frozenset[Pass]
    needs_passages: bool
    layout: type[Any]
    answers: type[Any]
    finetune: type[Any] | None
    open: type[OpenReader]

    @property
    def checkpoints(self) -> ReaderModelKind[Any, Any, Any]:
        """The kind of its checkpoints."""
        return self.open.checkpoints
