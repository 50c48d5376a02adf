"""Writes question stores from question files, a block of questions at a time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence, Sized
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path

import numpy as np

from megatron_retrieval.data.files.passage_questions import not_blank
from megatron_retrieval.data.files.question_files import AskedQuestionsConfig, read_questions
from megatron_retrieval.data.stores import questions as layout
from megatron_retrieval.data.stores.column_folder import (
    ColumnWriter,
    EncodedColumn,
    OffsetsWriter,
    offsets_file,
    stored_dtype,
    write_manifest,
)
from megatron_retrieval.data.stores.questions import QuestionStore
from megatron_retrieval.data.stores.ragged import Ragged, Rows, tokenize
from megatron_retrieval.errors import DataError
from megatron_retrieval.tokenizers.vocabularies import VOCABULARIES
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.types.questions import Question
from megatron_retrieval.utils.files import atomic_directory
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.manifest import MANIFEST
from megatron_retrieval.utils.partial_folder import input_states

_BLOCK_QUESTIONS = 1 << 12

log = get_logger("data")


@dataclass(frozen=True, kw_only=True)
class QuestionSource:
    """What a question store is written from.

    Attributes:
        files: question files, see `read_questions`.
        asked: which of their questions, and how their text is prepared.
        retriever: vocabulary of the retriever.
        reader: vocabulary of the reader.
    """

    files: Sequence[str]
    asked: AskedQuestionsConfig
    retriever: Vocabulary
    reader: Vocabulary

    def fingerprint(self) -> str:
        """Names all that the store depends on; files count by size and time of change."""
        vocabularies = [
            [vocabulary.fingerprint, version(VOCABULARIES[vocabulary.kind].library)]
            for vocabulary in (self.retriever, self.reader)
        ]
        settings = [QuestionStore.format.version, input_states(self.files), asdict(self.asked), vocabularies]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]

    def questions(self) -> Iterator[Question]:
        """Those of all files, without blank answers."""
        for question in chain.from_iterable(read_questions(path, self.asked) for path in self.files):
            yield replace(question, answers=not_blank(question.answers))


def write_question_store(folder: Path, source: QuestionSource) -> None:
    """Write the questions that have an answer; the folder appears whole. A store that holds them already is left as it
    is, a damaged one or one with other contents is replaced.

    Raises:
        DataError: a file is malformed, no question has an answer, or `folder` holds anything but such a store.
    """
    fingerprint = source.fingerprint()
    if (folder / MANIFEST).exists():
        QuestionStore.format.read(folder)  # what is something else is no store to replace
        with contextlib.suppress(DataError):
            if QuestionStore(folder).fingerprint == fingerprint:
                QuestionStore.format.compare(folder)
                return
        shutil.rmtree(folder)
    with atomic_directory(folder) as partial:
        entries = _write_columns(partial, source)
        write_manifest(partial, QuestionStore, fingerprint, entries)


def _write_columns(folder: Path, source: QuestionSource) -> dict[str, object]:
    """Write all columns; returns what the manifest says of them."""
    num_without = 0
    with contextlib.ExitStack() as files:
        writer = _Writer(folder, source, files)
        questions = source.questions()
        while block := list(islice(questions, _BLOCK_QUESTIONS)):
            answered = [question for question in block if question.answers]
            num_without += len(block) - len(answered)
            writer.write(answered)
        writer.sync()
    names = ", ".join(source.files)
    if num_without:
        log.info("%s: %s questions without answers are left out", names, f"{num_without:,}")
    if not writer.num_questions:
        raise DataError(source.files[0], "no question has an answer to learn")
    log.info("%s: %s questions with answers", names, f"{writer.num_questions:,}")
    if writer.num_unknown:
        log.info("%s: %s answers with characters that the reader cannot write", names, f"{writer.num_unknown:,}")
    return writer.entries()


class _Writer:
    """Appends questions to the files of a store."""

    def __init__(self, folder: Path, source: QuestionSource, files: contextlib.ExitStack) -> None:
        self._reader = source.reader
        #: where both have one vocabulary, one column serves them
        self._vocabularies = {layout.QUESTIONS: source.reader}
        if source.retriever.fingerprint != source.reader.fingerprint:
            self._vocabularies[layout.QUERIES] = source.retriever
        texts = (layout.IDS, layout.TEXTS, layout.ANSWERS, layout.GOLD_IDS)
        names = (*texts, layout.ANSWER_TOKENS, *self._vocabularies)
        self._columns = {name: ColumnWriter(folder, name, files) for name in names}
        groups = (layout.ANSWERS_OF, layout.GOLD_OF)
        self._groups = {name: OffsetsWriter(folder / offsets_file(name), files) for name in groups}
        self.num_questions = 0
        #: answers that the reader's vocabulary cannot write
        self.num_unknown = 0

    def write(self, questions: Sequence[Question]) -> None:
        texts = [question.text for question in questions]
        answers = [answer for question in questions for answer in question.answers]
        gold = [identifier for question in questions for identifier in question.gold_passage_ids]
        self._write_texts(layout.IDS, [question.id for question in questions])
        self._write_texts(layout.TEXTS, texts)
        self._write_texts(layout.ANSWERS, answers)
        self._write_texts(layout.GOLD_IDS, gold)
        tokens = self._write_tokens(layout.ANSWER_TOKENS, self._reader, answers)
        is_unknown = np.flatnonzero(tokens.values == self._reader.special.unknown)
        self.num_unknown += len(np.unique(np.searchsorted(tokens.offsets, is_unknown, side="right")))
        for name, vocabulary in self._vocabularies.items():
            self._write_tokens(name, vocabulary, texts)
        self._groups[layout.ANSWERS_OF].write(_lengths([question.answers for question in questions]))
        self._groups[layout.GOLD_OF].write(_lengths([question.gold_passage_ids for question in questions]))
        self.num_questions += len(questions)

    def sync(self) -> None:
        """Bring the files to the disk."""
        for column in self._columns.values():
            column.sync()
        for offsets in self._groups.values():
            offsets.sync()

    def entries(self) -> dict[str, object]:
        """What the manifest says of the columns."""
        return {
            "num_questions": self.num_questions,
            "query_column": next(reversed(self._vocabularies)),
            "token_dtypes": {name: stored_dtype(vocabulary) for name, vocabulary in self._vocabularies.items()},
        }

    def _write_texts(self, name: str, texts: Sequence[str]) -> None:
        encoded = [text.encode() for text in texts]
        self._columns[name].write(EncodedColumn(np.frombuffer(b"".join(encoded), np.uint8), _lengths(encoded)))

    def _write_tokens(self, name: str, vocabulary: Vocabulary, texts: Sequence[str]) -> Ragged:
        tokens = tokenize(vocabulary, texts)
        self._columns[name].write(EncodedColumn(tokens.values, tokens.lengths))
        return tokens


def _lengths(items: Sequence[Sized]) -> Rows:
    return np.fromiter(map(len, items), np.int64, len(items))
