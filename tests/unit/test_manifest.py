"""Manifests: what was written is read, and everything else is refused with a sentence that says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_retrieval.errors import DataError
from megatron_retrieval.utils.manifest import MANIFEST, ManifestFormat

BOXES = ManifestFormat(what="a box of books", version=3, hint="Pack it anew.", keys=frozenset({"books"}))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    BOXES.write(tmp_path, {"books": ["a", "b"], "weight": 4})
    assert json.loads((tmp_path / MANIFEST).read_text())["format_version"] == 3
    assert BOXES.read(tmp_path) == {"books": ["a", "b"], "weight": 4}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"format_version": 3, "books": [',
            r"not the manifest of a box of books \(not valid JSON.*\. Pack it",
        ),
        ("[]", "damaged, or not the manifest of a box of books .*no format_version"),
        ('{"books": []}', "no format_version"),
        ('{"format_version": 3}', "it has no books"),
        ('{"format_version": 4, "books": []}', "has format version 4 of a box of books; this program reads version 3"),
    ],
)
def test_other_manifests_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(DataError, match=message):
        BOXES.read(tmp_path)


def test_folders_without_manifest_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no box of books here \(manifest.json is missing\)\. Pack it anew\."):
        BOXES.read(tmp_path)
    with pytest.raises(DataError, match=r"no box of books here \(there is no such folder\)"):
        BOXES.read(tmp_path / "nowhere")


def test_entries_that_cannot_be_used_are_damage(tmp_path: Path) -> None:
    BOXES.write(tmp_path, {"books": []})
    with (
        pytest.raises(DataError, match=r"damaged, or not .* \(KeyError\('weight'\)\)"),
        BOXES.opened(tmp_path) as found,
    ):
        found["weight"]


def test_missing_and_short_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "books.txt").write_bytes(b"1234")
    BOXES.require_sizes(tmp_path, {"books.txt": 4})
    with pytest.raises(DataError, match=r"books\.txt: has 4 bytes instead of 5,000"):
        BOXES.require_sizes(tmp_path, {"books.txt": 5000})
    with pytest.raises(DataError, match=r"shelf\.txt: is missing from a box of books"):
        BOXES.require_sizes(tmp_path, {"shelf.txt": 1})
