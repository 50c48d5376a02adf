"""Text documents, cut into passages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from megatron_retrieval.data.convert.common import passage_file
from megatron_retrieval.data.convert.registry import CONVERTERS, Converter, DatasetConverterConfig
from megatron_retrieval.data.documents.cutting import cut_passages
from megatron_retrieval.data.documents.plain import read_markdown, read_text
from megatron_retrieval.data.documents.reader import name_as_title
from megatron_retrieval.data.files.sniff import suffix_of
from megatron_retrieval.errors import DataError
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.progress import progress_bar

MARKDOWN = ".md"
SUFFIXES = (".txt", MARKDOWN)


def convert_text(config: DatasetConverterConfig, folder: Path) -> None:
    """Write the passages of all documents; the title of each is its first heading (Markdown), or its file's name.

    Raises:
        DataError: an input is missing or not UTF-8, or there is no text at all.
    """
    paths = list(document_files(config.input))
    num_without = 0
    with passage_file(folder, config) as passages, progress_bar("documents", "files", len(paths)) as progress:
        for path in paths:
            before = passages.num_passages
            for section in read_markdown(path) if suffix_of(path) == MARKDOWN else read_text(path):
                for passage in cut_passages(section.lines, config):
                    passages.write(section.title or name_as_title(path), passage.text)
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
