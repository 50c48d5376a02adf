"""The encoder-decoders that fusion readers are made of, each with its shape and its vocabulary: known here alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megatron_retrieval.checkpoint.kinds import t5
from megatron_retrieval.checkpoint.kinds.description import LOWER_CASE_KEY, VOCAB_NAME, ModelDescription
from megatron_retrieval.checkpoint.store.manifest import CheckpointManifest
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.bert_seq2seq import BertSeq2Seq, BertSeq2SeqConfig
from megatron_retrieval.models.t5 import T5
from megatron_retrieval.models.t5_config import T5Config
from megatron_retrieval.tokenizers.sentencepiece import SentencePieceTokenizer
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer

Shape = T5Config | BertSeq2SeqConfig
ReaderModel = T5 | BertSeq2Seq
ReaderTokenizer = SentencePieceTokenizer | WordPieceTokenizer

#: the setting in a manifest that names the architecture
KEY = "architecture"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A kind of encoder-decoder.

    Attributes:
        name: in manifests.
        shape: its configuration.
        build: `(shape, tokenizer, topology, dtype, seed=...)` to a model with initial weights.
        vocabulary_name: the file that its checkpoints keep of the vocabulary.
        vocabulary_keys: settings in the manifest that belong to the vocabulary.
        open_tokenizer: reads a checkpoint's vocabulary.
    """

    name: str
    shape: type[T5Config] | type[BertSeq2SeqConfig]
    build: Callable[..., ReaderModel]
    vocabulary_name: str
    vocabulary_keys: tuple[str, ...] = ()
    open_tokenizer: Callable[[ModelDescription], ReaderTokenizer]


def _t5(shape: T5Config, _: SentencePieceTokenizer, *args: Any, **settings: Any) -> T5:
    return T5(shape, *args, **settings)


def _bert(shape: BertSeq2SeqConfig, tokenizer: WordPieceTokenizer, *args: Any, **settings: Any) -> BertSeq2Seq:
    return BertSeq2Seq(shape, *args, start_id=tokenizer.begin_id, end_id=tokenizer.end_id, **settings)


def _sentencepiece(found: ModelDescription) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(found.folder / t5.SENTENCEPIECE_NAME)


def _wordpiece(found: ModelDescription) -> WordPieceTokenizer:
    return WordPieceTokenizer(found.folder / VOCAB_NAME, bool(found.manifest.config[LOWER_CASE_KEY]))


T5_ARCHITECTURE = Architecture(
    name="t5",
    shape=T5Config,
    build=_t5,
    vocabulary_name=t5.SENTENCEPIECE_NAME,
    open_tokenizer=_sentencepiece,
)
BERT_ARCHITECTURE = Architecture(
    name="bert-seq2seq",
    shape=BertSeq2SeqConfig,
    build=_bert,
    vocabulary_name=VOCAB_NAME,
    vocabulary_keys=(LOWER_CASE_KEY,),
    open_tokenizer=_wordpiece,
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
