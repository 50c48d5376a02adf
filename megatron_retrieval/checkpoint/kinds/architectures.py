"""The encoder-decoders that fusion readers are made of, each with its shape and its vocabulary: known here alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megatron_retrieval.checkpoint.kinds import t5
from megatron_retrieval.checkpoint.kinds.description import LOWER_CASE_KEY, VOCAB_NAME
from megatron_retrieval.checkpoint.store.manifest import CheckpointManifest
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.bert_seq2seq import BertSeq2Seq, BertSeq2SeqConfig
from megatron_retrieval.models.t5 import T5
from megatron_retrieval.models.t5_config import T5Config
from megatron_retrieval.tokenizers.vocabulary import Vocabulary

Shape = T5Config | BertSeq2SeqConfig
ReaderModel = T5 | BertSeq2Seq

#: the setting in a manifest that names the architecture
KEY = "architecture"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A kind of encoder-decoder.

    Attributes:
        name: in manifests.
        shape: its configuration.
        build: `(shape, tokenizer, topology, dtype, seed=...)` to a model with initial weights.
        vocabulary: kind of vocabulary.
        vocabulary_name: the file that its checkpoints keep of it.
        vocabulary_keys: settings in the manifest that belong to the vocabulary.
    """

    name: str
    shape: type[T5Config] | type[BertSeq2SeqConfig]
    build: Callable[..., ReaderModel]
    vocabulary: str
    vocabulary_name: str
    vocabulary_keys: tuple[str, ...] = ()


def _t5(shape: T5Config, _: Vocabulary, *args: Any, **settings: Any) -> T5:
    return T5(shape, *args, **settings)


def _bert(shape: BertSeq2SeqConfig, tokenizer: Vocabulary, *args: Any, **settings: Any) -> BertSeq2Seq:
    start_id, end_id = tokenizer.special.frame
    return BertSeq2Seq(shape, *args, start_id=start_id, end_id=end_id, **settings)


T5_ARCHITECTURE = Architecture(
    name="t5",
    shape=T5Config,
    build=_t5,
    vocabulary="SentencePiece",
    vocabulary_name=t5.SENTENCEPIECE_NAME,
)
BERT_ARCHITECTURE = Architecture(
    name="bert-seq2seq",
    shape=BertSeq2SeqConfig,
    build=_bert,
    vocabulary="WordPiece",
    vocabulary_name=VOCAB_NAME,
    vocabulary_keys=(LOWER_CASE_KEY,),
)
_ARCHITECTURES = {architecture.name: architecture for architecture in (T5_ARCHITECTURE, BERT_ARCHITECTURE)}


def saved_architecture(manifest: CheckpointManifest, source: object) -> Architecture:
    """The architecture of a T5 or a fusion reader; checkpoints that name none hold a T5.

    Raises:
        CheckpointError: one that this version does not know.
    """
    name = manifest.config.get(KEY, T5_ARCHITECTURE.name)
    if name not in _ARCHITECTURES:
        raise CheckpointError(f"{source}/manifest.json: {KEY} {name!r}; known are {', '.join(_ARCHITECTURES)}.")
    return _ARCHITECTURES[name]
