"""The encoder-decoders that fusion readers are made of, each with its shape and its vocabulary."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megatron_retrieval.checkpoint.kinds.bert_seq2seq import start_from_bert
from megatron_retrieval.checkpoint.kinds.family_registry import Families
from megatron_retrieval.checkpoint.kinds.kind import AnyDescription
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.bert_seq2seq import BertSeq2Seq, BertSeq2SeqConfig
from megatron_retrieval.models.encoder import EncoderShape
from megatron_retrieval.models.t5 import T5
from megatron_retrieval.models.t5_config import T5Config
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.tokenizers.vocabulary import SpecialIds


@dataclass(frozen=True, kw_only=True)
class OverEncoder:
    """How an encoder-decoder starts from an encoder.

    Attributes:
        encoder: shape of the encoders that it may start from.
        shape: such an encoder's shape to its own.
        start: `(model, description of the encoder's checkpoint, topology)`: fills the model from the encoder.
    """

    encoder: type[EncoderShape]
    shape: Callable[[Any], Any]
    start: Callable[[Any, AnyDescription, ProcessTopology], None]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A kind of encoder-decoder.

    Attributes:
        name: in manifests and messages.
        about: what it is, in one clause.
        shape: its configuration.
        vocabulary: name of its kind of vocabulary, see `VOCABULARIES`.
        build: `(shape, special ids, topology, dtype, seed=...)` to an `EncoderDecoder` with initial weights.
        over_encoder: how it starts from an encoder; None: it starts from its like alone.
    """

    name: str
    about: str
    shape: type[Any]
    vocabulary: str
    build: Callable[..., Any]
    over_encoder: OverEncoder | None = None


def _t5(shape: T5Config, _: SpecialIds, *args: Any, **settings: Any) -> T5:
    return T5(shape, *args, **settings)


def _bert_seq2seq(shape: BertSeq2SeqConfig, special: SpecialIds, *args: Any, **settings: Any) -> BertSeq2Seq:
    start_id, end_id = special.frame
    return BertSeq2Seq(shape, *args, start_id=start_id, end_id=end_id, **settings)


ARCHITECTURES: Families[Architecture] = Families("architecture of encoder-decoders", key="architecture", default="t5")
ARCHITECTURES.add(
    Architecture(name="t5", about="T5 1.0, 1.1, Flan", shape=T5Config, vocabulary="SentencePiece", build=_t5)
)
ARCHITECTURES.add(
    Architecture(
        name="bert-seq2seq",
        about="a BERT as encoder and decoder",
        shape=BertSeq2SeqConfig,
        vocabulary="WordPiece",
        build=_bert_seq2seq,
        over_encoder=OverEncoder(
            encoder=BertConfig,
            shape=lambda bert: BertSeq2SeqConfig(**dataclasses.asdict(bert)),
            start=start_from_bert,
        ),
    )
)
