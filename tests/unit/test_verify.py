"""A bit that is flipped in any file of an artefact is found by `megatron-retrieval verify`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_retrieval.applications.verify import verify
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.errors import DataError
from megatron_retrieval.index.bm25 import LexicalConfig, build_lexical_index
from megatron_retrieval.testing.tiny import write_tiny_evidence
from megatron_retrieval.utils.manifest import MANIFEST


def test_every_file_of_evidence_and_bm25(tmp_path: Path) -> None:
    evidence = EvidenceStore(write_tiny_evidence(tmp_path, num_distractors=0))
    bm25 = tmp_path / "bm25"
    passages = map(evidence.passage, range(len(evidence)))
    build_lexical_index(passages, len(evidence), LexicalConfig(), evidence.fingerprint, bm25)
    for folder in (evidence.folder, bm25):
        assert verify(folder) == folder
        for path in sorted(folder.iterdir()):
            content = path.read_bytes()
            if path.name == MANIFEST or not content:
                continue
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 4]))
            with pytest.raises(DataError, match=f"{path.name}: the checksum differs from the manifest's"):
                verify(folder)
            path.write_bytes(content)
    entries = json.loads((bm25 / MANIFEST).read_text())
    del entries["checksums"]
    (bm25 / MANIFEST).write_text(json.dumps(entries))
    with pytest.raises(DataError, match="holds no checksums, as an earlier version made it"):
        verify(bm25)


def test_what_is_no_artefact(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing says what this folder holds \(manifest.json is missing\)"):
        verify(tmp_path)
