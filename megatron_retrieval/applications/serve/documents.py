"""The files that passages were made from; a passage's id names its own, and nothing else can be asked for."""

from __future__ import annotations

from pathlib import Path

from megatron_retrieval.data.documents.place import Place
from megatron_retrieval.types.questions import Passage

#: kinds that browsers show; files of all others are offered as what they are
_SHOWN = {".pdf": "application/pdf", ".html": "text/html", ".htm": "text/html"}
_TEXT = (".txt", ".md", ".csv", ".tsv", ".json", ".jsonl", ".rst")


class DocumentFiles:
    """Finds the file of a passage.

    Args:
        folder: of the documents; links that lead out of it are not followed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()

    def find(self, passage_id: str) -> Path | None:
        """The file that the id names; None where it names none, or none that is in the folder."""
        place = Place.of(passage_id)
        if place is None:
            return None
        try:
            path = (self._folder / place.file).resolve()
            return path if path.is_relative_to(self._folder) and path.is_file() else None
        except OSError:  # a name that the file system refuses, or links in a circle
            return None


def document_of(passage: Passage) -> tuple[str, str]:
    """What passages of one document have in common: their file or, where ids tell none, their title."""
    place = Place.of(passage.id)
    return ("title", passage.title) if place is None else ("file", place.file)


def media_type(path: Path) -> str:
    """What the browser is told that a file is."""
    suffix = path.suffix.lower()
    return "text/plain; charset=utf-8" if suffix in _TEXT else _SHOWN.get(suffix, "application/octet-stream")


def harmless(path: Path) -> dict[str, str]:
    """Headers under which whatever a document holds runs nothing and reaches nothing of this server. Browsers do not
    show a PDF in a sandbox, and have one of their own for it."""
    if path.suffix.lower() == ".pdf":
        return {"Content-Disposition": "inline"}
    policy = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return {"Content-Disposition": "inline", "Content-Security-Policy": policy}
