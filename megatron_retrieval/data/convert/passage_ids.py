"""Training data that names questions and passages by their ids: BEIR's and TREC's judgements, MS MARCO's id triples,
and sentence-transformers' mined hard negatives of MS MARCO."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice, zip_longest
from operator import itemgetter
from pathlib import Path
from typing import Any

from megatron_retrieval.data.convert.common import Example, biencoder_record
from megatron_retrieval.data.convert.registry import CONVERTERS, Converter, DatasetConverterConfig
from megatron_retrieval.data.files.dpr_json import write_json_list
from megatron_retrieval.data.files.json_records import Record, read_json_lines
from megatron_retrieval.data.files.names import QUESTION_IDS
from megatron_retrieval.data.files.passage_files import read_passages
from megatron_retrieval.data.files.question_files import read_questions
from megatron_retrieval.data.files.sniff import FileKind, form_of_table, sniff, stem
from megatron_retrieval.data.files.tables import read_plain_table
from megatron_retrieval.data.files.trec import read_qrels
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.types.questions import Passage
from megatron_retrieval.utils.logging import get_logger


@dataclass(frozen=True)
class _Named:
    """A question with its passages, by their ids."""

    question: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]


class _Texts:
    """Questions and passages by their ids, in a temporary database: a collection can be larger than the memory."""

    def __init__(self, config: DatasetConverterConfig, files: contextlib.ExitStack) -> None:
        assert config.queries is not None
        folder = files.enter_context(tempfile.TemporaryDirectory(dir=Path(config.output).parent))
        self._database = files.enter_context(contextlib.closing(sqlite3.connect(Path(folder) / "texts")))
        self._database.execute("PRAGMA journal_mode = OFF")
        self._store("queries", config.queries, ((q.id, "", q.text) for q in read_questions(config.queries)))
        passages = ((p.id, p.title, p.text) for path in config.corpus for _, p in read_passages(path))
        self._store("passages", ", ".join(config.corpus), passages)

    def question(self, identifier: str) -> str | None:
        row = self._row("queries", identifier)
        return None if row is None else row[1]

    def passages(self, identifiers: Iterable[str]) -> tuple[Passage, ...]:
        """Those that the corpus has."""
        rows = ((identifier, self._row("passages", identifier)) for identifier in identifiers)
        return tuple(Passage(identifier, *row) for identifier, row in rows if row is not None)

    def _store(self, table: str, path: str, rows: Iterable[tuple[str, str, str]]) -> None:
        self._database.execute(f"CREATE TABLE {table} (id TEXT PRIMARY KEY, title TEXT, text TEXT) WITHOUT ROWID")
        for row in rows:
            try:
                self._database.execute(f"INSERT INTO {table} VALUES (?, ?, ?)", row)
            except sqlite3.IntegrityError as error:
                raise DataError(path, f"the id {row[0]!r} is used twice", hint="Every text needs an id.") from error

    def _row(self, table: str, identifier: str) -> tuple[str, str] | None:
        found = self._database.execute(f"SELECT title, text FROM {table} WHERE id = ?", (identifier,))
        row: tuple[str, str] | None = found.fetchone()
        return row


def convert_passage_ids(config: DatasetConverterConfig, folder: Path) -> None:
    """Write biencoder-NAME.json for each input; what the queries or the corpus lack is left out and counted.

    Raises:
        ConfigError: --queries or --corpus is missing.
        DataError: a file is malformed, or no question has a positive passage in the corpus.
    """
    if config.queries is None or not config.corpus:
        raise ConfigError("--format passage-ids takes the texts from --queries and --corpus: give both.")
    with contextlib.ExitStack() as files:
        texts = _Texts(config, files)
        for path in config.input:
            counts = {"questions": 0, "without text": 0, "without a positive": 0, "missing passages": 0}
            named = islice(_read(path), 0, None, config.question_stride)
            written = write_json_list(
                folder / f"biencoder-{stem(path)}.json", _records(path, named, texts, config, counts)
            )
            if not written:
                raise DataError(path, "no question has a positive passage", hint="Are --queries and --corpus its own?")
            get_logger("data").info("%s: %s", path, ", ".join(f"{number:,} {name}" for name, number in counts.items()))


def _records(
    path: str, named: Iterable[_Named], texts: _Texts, config: DatasetConverterConfig, counts: dict[str, int]
) -> Iterator[dict[str, Any]]:
    for item in named:
        counts["questions"] += 1
        question, positives = texts.question(item.question), texts.passages(item.positives)
        negatives = texts.passages(item.negatives)
        counts["without text"] += question is None
        counts["without a positive"] += not positives
        lengths = len(item.positives) + len(item.negatives), len(positives) + len(negatives)
        counts["missing passages"] += lengths[0] - lengths[1]
        if question is not None and positives:
            example = Example(item.question, question, (), positives, negatives)
            yield {"id": item.question, **biencoder_record(stem(path), example, config)}


def _read(path: str) -> Iterator[_Named]:
    if sniff(path) is FileKind.JSON_LINES:
        return map(_of_lists, read_json_lines(path))
    form = form_of_table(path)
    if not form.header and len(form.plain_row) == 3:
        return _of_triples(path)
    return _of_grades(path)


def _of_grades(path: str) -> Iterator[_Named]:
    """A grade above 0 makes a positive; hard negatives are those that were judged 0 or below."""
    for question, grades in read_qrels(path).items():
        positives, negatives = (
            tuple(name for name, grade in grades.items() if (grade > 0) is wanted) for wanted in (True, False)
        )
        yield _Named(question, positives, negatives)


def _of_triples(path: str) -> Iterator[_Named]:
    """Triples of the same question are one record where they follow one another."""
    for question, rows in groupby(_triples(path), itemgetter(0)):
        _, positives, negatives = (tuple(dict.fromkeys(column)) for column in zip(*rows, strict=True))
        yield _Named(question, positives, negatives)


def _triples(path: str) -> Iterator[Sequence[str]]:
    for line, row in read_plain_table(path):
        if len(row) != 3:
            raise DataError(path, f"expected 3 ids, found {len(row)}", line=line)
        yield row


def _of_lists(record: Record) -> _Named:
    """`pos`, and `neg` as a list or as a list for each system that found them, whose best come first in turn."""
    negatives = record.values.get("neg") or []
    if isinstance(negatives, dict):
        systems = [Record(record.path, record.line, negatives).strings(name) for name in negatives]
        turns = chain.from_iterable(zip_longest(*systems))
        negatives = tuple(dict.fromkeys(name for name in turns if name is not None))
    else:
        negatives = record.strings("neg", "negative_document_ids", required=False)
    question = record.identifier(*QUESTION_IDS)
    if not question:
        raise record.error("there is no 'qid' or 'query_id'")
    return _Named(question, record.strings("pos", "positive_document_ids"), negatives)


CONVERTERS.add(
    Converter(
        "passage-ids",
        "qrels, triples of ids, or hard negatives by ids, with --queries and --corpus; written: training data",
        convert_passage_ids,
    )
)
