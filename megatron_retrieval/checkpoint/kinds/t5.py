"""T5s: shape and SentencePiece model travel with the weights."""

from __future__ import annotations

from megatron_retrieval.checkpoint.kinds.kind import ModelKind
from megatron_retrieval.models.t5 import T5
from megatron_retrieval.models.t5_config import T5Config


class T5Kind(ModelKind[T5Config, None, T5]):
    """See ModelKind."""

    name = "t5"
    about = "a T5, which reads as a fusion reader without further training"
    starts_from = ("t5",)
    shape_class, model_class, vocabulary_name = T5Config, T5, "SentencePiece"


T5_KIND = T5Kind()
