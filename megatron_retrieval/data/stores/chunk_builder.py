"""Builds a chunk folder from text files, in several processes and constant memory; continues after a stop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Annotated

from megatron_retrieval.config.checks import Bounds, Checked, PositiveInt
from megatron_retrieval.data.files.document_files import MAX_DOCUMENT_CHARACTERS, read_whole_documents
from megatron_retrieval.data.files.sentences import Document
from megatron_retrieval.data.stores import chunks as layout
from megatron_retrieval.data.stores.chunk_encoding import ChunkEncoder, encode_chunks
from megatron_retrieval.data.stores.chunk_writer import ChunkProgress, ChunkWriter, finish_chunks
from megatron_retrieval.data.stores.document_groups import GROUP_VERSION
from megatron_retrieval.data.stores.document_tasks import write_tasks
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.tokenizers.vocabularies import VOCABULARIES, open_encoder_vocabulary
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.partial_folder import PartialFolder, input_states, partial_folder
from megatron_retrieval.utils.progress import progress_bar
from megatron_retrieval.utils.worker_pool import in_tasks, worker_pool

#: size of a worker's task; fixed, so that a restart cuts the documents into the same tasks
TASK_DOCUMENTS, TASK_CHARACTERS = 1024, 1 << 18


@dataclass(frozen=True, kw_only=True)
class ChunkBuilderConfig(Checked):
    """Cut text files into chunks for a language model that retrieves; run it again to continue after a stop."""

    input: tuple[str, ...]
    """Text files, plain or gzip, each of any kind: JSONL (text, optional title), passages of psgs_w100.tsv (consecutive
    ones with one title are a document), SQuAD JSON (an article is a document), training data (its positives, each
    once), or plain text (a file is a document). Documents are cut at 1,048,576 characters."""
    output: str
    """Folder to create; unfinished work is kept in OUTPUT.partial."""
    vocab_file: str
    """Vocabulary of the language model: byte-level BPE (tokenizer.json). Kinds that drop spaces or case can be used as
    well, but bits per byte are not comparable then: unigram (tokenizer.json), WordPiece (vocab.txt)."""
    lower_case: bool = True
    """Lower-case the text, as uncased WordPiece vocabularies need."""
    retro_chunk_length: Annotated[int, Bounds(least=1, most=255)] = 64
    """Tokens of a chunk."""
    retro_section_length: PositiveInt | None = None
    """Cut texts into documents of so many tokens, a multiple of --retro-chunk-length; default: a text is a document."""
    workers: PositiveInt = 1
    """Processes that tokenize; the result does not depend on it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.retro_section_length and self.retro_section_length % self.retro_chunk_length:
            raise ConfigError(
                f"--retro-section-length {self.retro_section_length}: must be a multiple of --retro-chunk-length, "
                f"{self.retro_chunk_length}."
            )

    def open_vocabulary(self) -> Vocabulary:
        """What the text is tokenized with."""
        return open_encoder_vocabulary(self.vocab_file, self.lower_case)

    def open_encoder(self) -> ChunkEncoder:
        """What a worker process tokenizes with."""
        return ChunkEncoder(self.open_vocabulary(), self.retro_chunk_length, self.retro_section_length)


def build_chunks(config: ChunkBuilderConfig) -> int:
    """Write the chunk folder, which appears when it is complete; the same call continues after a stop.

    Returns:
        The number of chunks.

    Raises:
        DataError: an input is malformed or changed meanwhile, holds no token, or the output exists.
    """
    vocabulary = config.open_vocabulary()
    with partial_folder(config.output, _settings(config, vocabulary)) as partial:
        if partial.is_published:
            partial.discard()
            return len(layout.ChunkStore(config.output))
        try:
            progress = ChunkProgress(**partial.state)
            if not progress.is_read:
                _write_columns(config, partial, vocabulary, progress)
        except DataError:  # the input must be corrected first, so the unfinished work is useless
            partial.discard()
            raise
        partial.keep_only({*progress.file_bytes, layout.GROUPS})  # a manifest would be sealed into itself
        finish_chunks(partial.contents, vocabulary, config.retro_chunk_length, progress, config.input)
        partial.publish()
    counts = (progress.documents, progress.rows, progress.tokens, progress.bytes)
    get_logger("data").info(
        "chunks: %s documents, %s rows, %s tokens, %s bytes in %s", *(f"{count:,}" for count in counts), config.output
    )
    return progress.rows


def _settings(config: ChunkBuilderConfig, vocabulary: Vocabulary) -> dict[str, object]:
    """Everything that the result, or its division into tasks, depends on."""
    library = VOCABULARIES[vocabulary.kind].library
    return {
        "--input": list(config.input),
        **input_states(config.input),
        "the vocabulary of --vocab-file": vocabulary.fingerprint,
        "--retro-chunk-length": config.retro_chunk_length,
        "--retro-section-length": config.retro_section_length,
        "the program's division of the work": [TASK_DOCUMENTS, TASK_CHARACTERS, MAX_DOCUMENT_CHARACTERS],
        "the program's rule of groups": GROUP_VERSION,
        f"the version of {library}": version(library),
    }


def _write_columns(
    config: ChunkBuilderConfig, partial: PartialFolder, vocabulary: Vocabulary, progress: ChunkProgress
) -> None:
    """Write the documents that are not counted in `progress` yet, and update it."""
    if progress.tasks:
        get_logger("data").info("continuing behind %s documents", f"{progress.documents_read:,}")
    with (
        contextlib.ExitStack() as files,
        worker_pool(encode_chunks, config.workers, config.open_encoder) as encode,
        progress_bar("chunks", "documents") as bar,
    ):
        writer = ChunkWriter(partial.contents, config.retro_chunk_length, files, progress)
        tasks = in_tasks(_documents(config), _characters, TASK_DOCUMENTS, TASK_CHARACTERS)
        write_tasks(tasks, progress.tasks, encode, writer, partial, bar)
    if _settings(config, vocabulary) != partial.settings:
        raise DataError(", ".join(config.input), "changed while being read")
    if not progress.documents:
        raise DataError(", ".join(config.input), "there is no token in the text")
    progress.is_read = True
    partial.save(asdict(progress))


def _documents(config: ChunkBuilderConfig) -> Iterator[tuple[int, Document]]:
    for number, path in enumerate(config.input):
        for document in read_whole_documents(path):
            yield number, document


def _characters(numbered: tuple[int, Document]) -> int:
    return len(numbered[1].paragraphs[0])
