"""The encoder that learning starts from: one that is given, imported where it must be, or one trained from nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from tokenizers import BertWordPieceTokenizer

from megatron_retrieval.applications.learn.indexes import corpus_of
from megatron_retrieval.applications.learn.read import write_passages
from megatron_retrieval.applications.learn.ways import Training, run_ict
from megatron_retrieval.checkpoint.huggingface.formats import FORMATS, format_of, import_model
from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.checkpoint.store.folders import holds_checkpoints
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.errors import CheckpointError, ConfigError
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.dual_encoder import DualEncoderConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer
from megatron_retrieval.types.questions import Passage
from megatron_retrieval.utils.files import atomic_file, sampled_fingerprint

#: of an encoder from nothing: what two cores train in minutes
_OWN_LENGTHS = TextFormatConfig(passage_format="title-text", query_seq_length=64, retriever_seq_length=192)
_OWN_SHAPE = {
    "num_layers": 2,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "max_position_embeddings": 192,
    "init_method_std": 0.05,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
}
_OWN_VOCABULARY = 16_000


def given_encoder(source: Path, folder: Path, topology: ProcessTopology) -> Path:
    """The encoder that a user names, as a checkpoint in `folder` that needs nothing outside.

    Raises:
        ConfigError: `source` holds neither a checkpoint nor a model of a known format.
        CheckpointError: the model cannot be imported.
    """
    name, fetch = _import_of(source, topology)
    checkpoint = folder / name
    if not holds_checkpoints(checkpoint):
        fetch(checkpoint)
    return checkpoint


def imported(source: Path, folder: Path, topology: ProcessTopology) -> Path:
    """A model of others as a checkpoint in `folder`, imported anew where its contents changed; a checkpoint as it is.

    Raises:
        CheckpointError: the model cannot be imported.
    """
    kind = format_of(source)
    if kind is None:
        return source
    checkpoint = folder / _name_of(source)
    if not holds_checkpoints(checkpoint):
        import_model(kind, [source], checkpoint, topology)
    return checkpoint


def _name_of(source: Path) -> str:
    """The folder's name, and a part that other contents change."""
    contents = "".join(sampled_fingerprint(path) for path in sorted(source.rglob("*")) if path.is_file())
    return f"{source.resolve().name}-{hashlib.sha256(contents.encode()).hexdigest()[:8]}"


def _import_of(source: Path, topology: ProcessTopology) -> tuple[str, Callable[[Path], object]]:
    """A name for what `source` holds, and what writes it as a checkpoint."""
    if kind := format_of(source):
        return _name_of(source), lambda output: import_model(kind, [source], output, topology)
    if not source.is_dir():
        raise ConfigError(f"--encoder {source}: there is no such folder.")
    try:
        found = DUAL_ENCODER.describe(source)
    except CheckpointError as error:
        known = ", ".join(name for name in FORMATS if FORMATS[name].holds(DUAL_ENCODER.name, DualEncoderConfig()))
        raise ConfigError(
            f"--encoder {source}: no encoder is there ({error}) Known are checkpoints, {known}."
        ) from error

    def copy(output: Path) -> None:
        model = found.load(topology)
        DUAL_ENCODER.save(output, model, topology, found.shape, found.vocabulary(), found.layout)

    return f"encoder-{found.fingerprint[:8]}", copy


def encoder_from_nothing(
    passages: Callable[[], Iterable[Passage]], folder: Path, training: Training, language: str
) -> Path:
    """Train an encoder by ICT on the passages alone, from a vocabulary of their own words.

    Args:
        folder: of the checkpoint.
    """
    if holds_checkpoints(folder):
        return folder
    vocabulary, text, corpus = (training.folder / name for name in ("vocab.txt", "text.tsv", "corpus"))
    if not text.exists():
        _write_vocabulary(passages(), vocabulary)
        write_passages(text, passages())
    corpus_of(text, corpus, WordPieceTokenizer(vocabulary), language)
    shape = DualEncoderConfig(
        encoder=BertConfig(**_OWN_SHAPE),  # type: ignore[arg-type]
        pooling="mean",
        biencoder_shared_query_context_model=True,
        normalize_embeddings=True,
    )
    trained = DUAL_ENCODER.describe(run_ict(training, corpus, model=shape, text_format=_OWN_LENGTHS))
    model = trained.load(training.topology)
    DUAL_ENCODER.save(folder, model, training.topology, trained.shape, trained.vocabulary(), trained.layout)
    return folder


def _write_vocabulary(passages: Iterable[Passage], path: Path) -> None:
    """The most frequent pieces of words, and every character."""
    trained = BertWordPieceTokenizer(lowercase=True)
    texts = (text for passage in passages for text in (passage.title, passage.text))
    trained.train_from_iterator(texts, vocab_size=_OWN_VOCABULARY, min_frequency=2, show_progress=False)
    tokens = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    with atomic_file(path) as file:
        file.writelines(f"{token}\n" for token, _ in tokens)
