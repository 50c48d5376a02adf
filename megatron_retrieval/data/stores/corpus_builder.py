"""Builds a corpus folder from text files, in several processes and constant memory, from where it was stopped."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import chain
from pathlib import Path

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.data.files.document_files import MAX_DOCUMENT_CHARACTERS, read_documents
from megatron_retrieval.data.files.sentences import SPLITTER, Document, check_language
from megatron_retrieval.data.stores import corpus as layout
from megatron_retrieval.data.stores.column_folder import ColumnWriter, OffsetsWriter, offsets_file, write_manifest
from megatron_retrieval.data.stores.corpus_encoding import EncodedDocuments, encode_documents
from megatron_retrieval.data.stores.document_tasks import write_tasks
from megatron_retrieval.data.stores.token_folder import token_entries, write_vocabulary
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.tokenizers.sentencepiece import SentencePieceTokenizer
from megatron_retrieval.tokenizers.vocabularies import VOCABULARIES, open_encoder_vocabulary
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.utils.files import file_fingerprint
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.partial_folder import PartialFolder, input_states, partial_folder
from megatron_retrieval.utils.progress import progress_bar
from megatron_retrieval.utils.worker_pool import in_tasks, worker_pool

#: size of a worker's task; fixed, so that a restart cuts the documents into the same tasks
CHUNK_DOCUMENTS, CHUNK_CHARACTERS = 1024, 1 << 18


@dataclass(frozen=True, kw_only=True)
class CorpusBuilderConfig(Checked):
    """Build a corpus folder for unsupervised pretraining from text files; run it again to continue after a stop."""

    input: tuple[str, ...]
    """Text files, plain or gzip, each of any kind: JSONL (text, optional title; a newline ends a paragraph), passages
    of psgs_w100.tsv (consecutive ones with one title are a document), SQuAD JSON, DPR biencoder JSON (its positive
    contexts, each once), or plain text (a blank line ends a paragraph; every paragraph is a document without title).
    Documents are cut at 1,048,576 characters."""
    output: str
    """Folder to create; unfinished work is kept in OUTPUT.partial."""
    vocab_file: str | None = None
    """Vocabulary of the encoder to train: WordPiece (vocab.txt), or byte-level BPE or unigram (tokenizer.json)."""
    tokenizer_model: str | None = None
    """SentencePiece model (spiece.model) of the T5 to train, in place of --vocab-file."""
    lower_case: bool = True
    """Lower-case the text, as uncased WordPiece vocabularies need; SentencePiece models have a setting of their own."""
    language: str = "en"
    """Language whose rules divide the text into sentences (ISO 639 code)."""
    workers: PositiveInt = 1
    """Processes that split and tokenize; the result does not depend on it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.vocab_file is None) == (self.tokenizer_model is None):
            raise ConfigError(
                "give either --vocab-file (an encoder's vocabulary) or --tokenizer-model (SentencePiece)."
            )

    def open_vocabulary(self) -> Vocabulary:
        """What the text is tokenized with."""
        if self.vocab_file is not None:
            return open_encoder_vocabulary(self.vocab_file, self.lower_case)
        assert self.tokenizer_model is not None
        return SentencePieceTokenizer(self.tokenizer_model)


@dataclass(kw_only=True)
class CorpusProgress:
    """Progress of a build, kept in the journal of the unfinished folder.

    Attributes:
        chunks: of the input, done.
        documents_read: in these chunks, including those without a sentence.
        documents: kept.
        continuations: pieces of long documents, the first pieces not counted.
        sentences: kept.
        tokens: of the sentences.
        file_bytes: valid size of each file.
    """

    chunks: int = 0
    documents_read: int = 0
    documents: int = 0
    continuations: int = 0
    sentences: int = 0
    tokens: int = 0
    file_bytes: dict[str, int] = field(default_factory=dict)


def build_corpus(config: CorpusBuilderConfig) -> int:
    """Write the corpus folder, which appears when it is complete; the same call continues after a stop.

    Returns:
        The number of documents.

    Raises:
        DataError: an input is malformed or changed meanwhile, holds no sentence, or the output exists.
        ConfigError: --language is unknown.
    """
    check_language(config.language)
    vocabulary = config.open_vocabulary()
    with partial_folder(config.output, _settings(config, vocabulary)) as partial:
        if partial.is_published:
            partial.discard()
            return len(layout.CorpusStore(config.output))
        try:
            progress = _write_columns(config, partial, vocabulary)
        except DataError:  # the input must be corrected first, so the unfinished work is useless
            partial.discard()
            raise
        _finish(config, partial, vocabulary, progress)
        partial.publish()
    _report(config, progress)
    return progress.documents


def _settings(config: CorpusBuilderConfig, vocabulary: Vocabulary) -> dict[str, object]:
    """Everything that the result, or its division into tasks, depends on."""
    kind = VOCABULARIES[vocabulary.kind]
    return {
        "--input": list(config.input),
        **input_states(config.input),
        f"the vocabulary of {kind.flag}": vocabulary.fingerprint,
        "--language": config.language,
        "the program's division of the work": [CHUNK_DOCUMENTS, CHUNK_CHARACTERS, MAX_DOCUMENT_CHARACTERS],
        **{f"the version of {library}": version(library) for library in (SPLITTER, kind.library)},
    }


def _write_columns(config: CorpusBuilderConfig, partial: PartialFolder, vocabulary: Vocabulary) -> CorpusProgress:
    before = CorpusProgress(**partial.state)
    if before.chunks:
        get_logger("data").info("continuing behind %s documents", f"{before.documents_read:,}")
    encode_in_language = functools.partial(encode_documents, language=config.language)
    with (
        contextlib.ExitStack() as files,
        worker_pool(encode_in_language, config.workers, config.open_vocabulary) as encode,
        progress_bar("corpus", "documents") as bar,
    ):
        writer = _Writer(partial.contents, files, before)
        documents = chain.from_iterable(map(read_documents, config.input))
        chunks = in_tasks(documents, _characters, CHUNK_DOCUMENTS, CHUNK_CHARACTERS)
        write_tasks(chunks, before.chunks, encode, writer, partial, bar)
    if _settings(config, vocabulary) != partial.settings:
        raise DataError(", ".join(config.input), "changed while being read")
    if not writer.progress.documents:
        raise DataError(", ".join(config.input), "there is no sentence in the text")
    return writer.progress


def _characters(document: Document) -> int:
    return sum(map(len, document.paragraphs))


class _Writer:
    """Appends encoded documents to the files of a corpus folder, behind those that `progress` speaks of."""

    def __init__(self, folder: Path, files: contextlib.ExitStack, progress: CorpusProgress) -> None:
        self.progress = progress
        sizes = progress.file_bytes
        documents = offsets_file(layout.DOCUMENTS)
        self._sentences, self._titles = (
            ColumnWriter(folder, name, files, sizes) for name in (layout.SENTENCES, layout.TITLES)
        )
        self._documents = OffsetsWriter(folder / documents, files, sizes.get(documents, 0))

    def write(self, encoded: EncodedDocuments) -> None:
        self._sentences.write(encoded.sentences)
        self._titles.write(encoded.titles)
        self._documents.write(encoded.num_sentences)
        progress = self.progress
        progress.chunks += 1
        progress.documents_read += encoded.num_read
        progress.documents += len(encoded.num_sentences)
        progress.continuations += encoded.num_continuations
        progress.sentences += len(encoded.sentences.lengths)
        progress.tokens += len(encoded.sentences.values)

    def sync(self) -> dict[str, object]:
        """Flush the files to disk; returns the progress for the journal."""
        parts = (self._sentences, self._titles, self._documents)
        self.progress.file_bytes = {name: size for part in parts for name, size in part.sync().items()}
        return asdict(self.progress)


def _finish(
    config: CorpusBuilderConfig, partial: PartialFolder, vocabulary: Vocabulary, progress: CorpusProgress
) -> None:
    columns = sorted(progress.file_bytes)
    partial.keep_only(columns)
    write_vocabulary(partial.contents, vocabulary)
    contents = file_fingerprint(*(partial.contents / name for name in columns))
    fingerprint = hashlib.sha256(f"{contents}/{vocabulary.fingerprint}".encode()).hexdigest()[:16]
    entries = {
        "num_documents": progress.documents,
        "num_sentences": progress.sentences,
        "num_tokens": progress.tokens,
        "num_documents_without_sentence": progress.documents_read - progress.documents,
        "num_continuations": progress.continuations,
        "language": config.language,
        "sentence_splitter": f"{SPLITTER} {version(SPLITTER)}",
        "inputs": list(config.input),
    }
    write_manifest(partial.contents, layout.CorpusStore, fingerprint, {**token_entries(vocabulary), **entries})


def _report(config: CorpusBuilderConfig, progress: CorpusProgress) -> None:
    log = get_logger("data")
    counts = (progress.documents, progress.sentences, progress.tokens)
    log.info("corpus: %s documents, %s sentences, %s tokens in %s", *(f"{count:,}" for count in counts), config.output)
    if skipped := progress.documents_read - progress.documents:
        log.info("%s documents without a sentence were left out", f"{skipped:,}")
    if progress.continuations:
        log.info(
            "documents longer than %s characters were cut; %s of the documents continue another",
            *(f"{count:,}" for count in (MAX_DOCUMENT_CHARACTERS, progress.continuations)),
        )
