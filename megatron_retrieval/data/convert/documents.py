"""Text documents, cut into passages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path

from megatron_retrieval.data.convert.common import passage_file
from megatron_retrieval.data.convert.registry import CONVERTERS, Converter, DatasetConverterConfig
from megatron_retrieval.data.files.sentences import split_sentences
from megatron_retrieval.data.files.sniff import stem, suffix_of
from megatron_retrieval.errors import DataError
from megatron_retrieval.utils.files import read_lines
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.progress import progress_bar
from megatron_retrieval.utils.scripts import join_words, split_words

MARKDOWN = ".md"
SUFFIXES = (".txt", MARKDOWN)
_HEADING = re.compile(r" {0,3}#{1,6}[ \t]+(.*?)[ \t]*#*\s*")
_FENCE = re.compile(r" {0,3}(```|~~~)")


def convert_text(config: DatasetConverterConfig, folder: Path) -> None:
    """Write the passages of all documents; the title of each is its first heading (Markdown), or its file's name.

    Raises:
        DataError: an input is missing or not UTF-8, or there is no text at all.
    """
    paths = list(document_files(config.input))
    num_without = 0
    with passage_file(folder, config) as passages, progress_bar("documents", "files", len(paths)) as progress:
        for path in paths:
            title, lines = read_document(path)
            before = passages.num_passages
            for text in _cut(lines, config):
                passages.write(title, text)
            num_without += passages.num_passages == before
            progress.update()
        if not passages.num_passages:
            raise DataError(config.input[0], f"there is no text in the files ({len(paths)} of them)")
    if num_without:
        get_logger("data").warning("%s of %s files hold no text", f"{num_without:,}", f"{len(paths):,}")


def document_files(inputs: Iterable[str]) -> Iterator[Path]:
    """Yield the files and, sorted by name, the text files below the folders.

    Raises:
        DataError: an input is missing, or a folder holds no such file.
    """
    for path in map(Path, inputs):
        if not path.is_dir():
            yield path
            continue
        found = [file for file in sorted(path.rglob("*")) if _is_document(file.relative_to(path)) and file.is_file()]
        if not found:
            raise DataError(path, f"there are no {' or '.join(SUFFIXES)} files in the folder")
        yield from found


def read_document(path: Path) -> tuple[str, Iterator[str]]:
    """The title of a document, and its lines without the one that the title is taken from."""
    line, title = _first_heading(path) if suffix_of(path) == MARKDOWN else (0, "")
    lines = (text for number, text in enumerate(read_lines(path, allow_empty=True), 1) if number != line)
    name = stem(path).replace("_", " ").encode(errors="replace").decode()  # a file's name need not be valid Unicode
    return title or name, lines


def _first_heading(path: Path) -> tuple[int, str]:
    """Line and text of the first heading outside of code; (0, "") where there is none."""
    is_code = False
    for number, text in enumerate(read_lines(path, allow_empty=True), 1):
        is_code ^= bool(_FENCE.match(text))
        heading = None if is_code else _HEADING.fullmatch(text)
        if heading and heading[1]:
            return number, heading[1]
    return 0, ""


def _cut(lines: Iterable[str], config: DatasetConverterConfig) -> Iterator[str]:
    """Yield the texts of the passages; a document may be larger than memory."""
    if config.cut == "words":
        words = (word for line in lines for word in split_words(line))
        while passage := list(islice(words, config.passage_words)):
            yield join_words(passage)
        return
    held: list[str] = []
    for sentence in _sentences(lines, config.language):
        words_of_sentence = split_words(sentence)
        if held and len(held) + len(words_of_sentence) > config.passage_words:
            yield join_words(held)
            held = []
        held += words_of_sentence
        while len(held) > config.passage_words:  # a sentence longer than a passage
            yield join_words(held[: config.passage_words])
            held = held[config.passage_words :]
    if held:
        yield join_words(held)


def _sentences(lines: Iterable[str], language: str) -> Iterator[str]:
    """Yield the sentences of each paragraph; a blank line ends a paragraph."""
    for is_blank, paragraph in groupby(lines, str.isspace):
        if not is_blank:
            yield from split_sentences(" ".join(paragraph), language)


def _is_document(path: Path) -> bool:
    return suffix_of(path) in SUFFIXES and not any(part.startswith(".") for part in path.parts)


CONVERTERS.add(
    Converter(
        "text",
        "documents: text files of any name, and folders of .txt and .md files; written: passages",
        convert_text,
        writes_a_file_per_input=False,
    )
)
