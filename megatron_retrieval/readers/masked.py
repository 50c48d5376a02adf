"""A masked language model as the reader of REALM: what is hidden in a text, given a passage (Guu et al. 2020, arXiv
2002.08909, section 3.2)."""

from __future__ import annotations

from typing import Any

import torch

from megatron_retrieval.checkpoint.kinds.kind import AnyDescription
from megatron_retrieval.checkpoint.kinds.masked_lm import MASKED_LM
from megatron_retrieval.data.examples.retrieved_masks import RetrievedMasks
from megatron_retrieval.data.layouts.lengths import require_positions
from megatron_retrieval.data.layouts.masked import MaskedFormatConfig
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.evaluation.mask_filling import MaskFiller
from megatron_retrieval.models.masked_lm import MaskedLanguageModel
from megatron_retrieval.models.passage_scores import PassageScoreConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.readers.kind import OpenReader, ReaderKind
from megatron_retrieval.readers.settings import ReaderAnswersConfig, ReaderSettings
from megatron_retrieval.training.steps.masked_readings import MaskedReadings
from megatron_retrieval.training.steps.readings import Pass


class OpenMaskedReader(OpenReader):
    """See OpenReader; it answers texts with masks."""

    checkpoints = MASKED_LM
    model: MaskedLanguageModel

    def __init__(
        self,
        start: AnyDescription,
        settings: ReaderSettings,
        topology: ProcessTopology,
        dtype: torch.dtype,
        *,
        seed: int = 0,
    ) -> None:
        require_positions(settings.shape.max_positions, reader_seq_length=settings.layout.reader_seq_length)
        self.settings, self.topology = settings, topology
        self.vocabulary = start.vocabulary()
        self.model = MaskedLanguageModel(settings.shape, topology, dtype, seed=seed)

    def answerer(self, scores: PassageScoreConfig | None = None, micro_batch_size: int = 128) -> MaskFiller:
        """See OpenReader; the passages of a text are read at once."""
        layout, scores = self.settings.layout, scores or PassageScoreConfig()
        return MaskFiller(self.model, self.vocabulary, layout, self.topology, scores)

    def side(self, evidence: EvidenceStore, asked: frozenset[Pass]) -> MaskedReadings:
        """See OpenReader."""
        texts = RetrievedMasks(evidence, self.settings.layout, self.vocabulary)
        return MaskedReadings(self.model, texts, self.topology, batch_size=self.settings.encode.encode_batch_size)

    def checkpoint_config(self, scores: PassageScoreConfig | None = None) -> dict[str, Any]:
        """See OpenReader: any masked language model starts like that."""
        return self.checkpoints.config(self.settings.shape, self.vocabulary)


#: not in the registry, whose readers answer questions
MASKED = ReaderKind(
    name="masked-lm",
    about="fills masks with the help of one passage (REALM)",
    passes=MaskedReadings.passes,
    needs_passages=False,
    layout=MaskedFormatConfig,
    answers=ReaderAnswersConfig,
    finetune=None,
    open=OpenMaskedReader,
)
