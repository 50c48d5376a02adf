"""A disk that refuses: what writes data says it and where, leaves no half-written file, and can be started again."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from megatron_retrieval.data.stores.corpus_builder import CorpusBuilderConfig, build_corpus
from megatron_retrieval.data.stores.evidence_builder import EvidenceBuilderConfig, build_evidence
from megatron_retrieval.errors import DiskError
from megatron_retrieval.index.store.embedding_store import StoreIdentity
from megatron_retrieval.index.store.embedding_writer import EmbeddingWriter
from megatron_retrieval.testing.tiny import write_tiny_corpus, write_tiny_evidence
from megatron_retrieval.utils.files import atomic_file, write_json


@contextlib.contextmanager
def no_file_above(num_bytes: int) -> Iterator[None]:
    """No file may be longer; real, though the system's word for it is not that of a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_small_file_keeps_what_it_held(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, [1])
    with no_file_above(1000), pytest.raises(DiskError, match=r"file\.json: cannot be written, it would be larger"):
        write_json(path, list(range(1000)))
    says = r"file\.json: cannot be written, the disk is full\. Free some space"
    with pytest.raises(DiskError, match=says), atomic_file(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert _contents(tmp_path) == {"file.json": b"[\n  1\n]\n"}


def _build_evidence(inputs: Path, output: Path) -> None:
    source, vocab = str(inputs / "passages.jsonl"), str(inputs / "vocab.txt")
    build_evidence(EvidenceBuilderConfig(input=(source,), output=str(output), vocab_file=vocab))


def _build_corpus(inputs: Path, output: Path) -> None:
    source, vocab = str(inputs / "corpus.jsonl"), str(inputs / "corpus-vocab.txt")
    build_corpus(CorpusBuilderConfig(input=(source,), output=str(output), vocab_file=vocab))


BUILDERS: dict[str, tuple[Callable[[Path], Path], Callable[[Path, Path], None]]] = {
    "evidence": (write_tiny_evidence, _build_evidence),
    "corpus": (write_tiny_corpus, _build_corpus),
}


@pytest.mark.parametrize(("name", "num_bytes"), [("evidence", 3000), ("evidence", 20_000), ("corpus", 1000)])
def test_builders_continue_when_there_is_room(tmp_path: Path, name: str, num_bytes: int) -> None:
    make, build = BUILDERS[name]
    expected = _contents(make(tmp_path))
    output = tmp_path / "again"
    with no_file_above(num_bytes), pytest.raises(DiskError, match=r"again.*: cannot be written, it would be larger"):
        build(tmp_path, output)
    assert not output.exists()
    assert (tmp_path / "again.partial").exists()  # to be continued
    build(tmp_path, output)
    assert _contents(output) == expected
    assert not (tmp_path / "again.partial").exists()


def test_what_is_mapped_has_its_place_on_the_disk_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it had not, a full disk would kill the process while it sorts ids."""
    write_tiny_evidence(tmp_path)

    def refuse(descriptor: int, start: int, num_bytes: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(DiskError, match="again: cannot be written, the disk is full"):
        _build_evidence(tmp_path, tmp_path / "again")


def test_embedding_continues_when_there_is_room(tmp_path: Path) -> None:
    vectors = torch.arange(600.0 * 8).view(600, 8)
    identity = StoreIdentity("evidence", "encoder", 600, "float32")
    writer = EmbeddingWriter(tmp_path, identity)
    part = writer.begin(0, [128] * 4)
    part.append(vectors[:128])
    with no_file_above(6000), pytest.raises(DiskError, match=r"shard-00000\.part: cannot be written"):
        part.append(vectors[128:256])
    with no_file_above(6000), pytest.raises(DiskError, match=r"shard-00000\.bin: cannot be written"):
        writer.write(0, vectors[:512])
    assert {path.name for path in tmp_path.iterdir()} == {"plan.json", "shard-00000.part"}
    part = EmbeddingWriter(tmp_path, identity).begin(0, [128] * 4)
    assert part.num_batches == 1
    for batch in vectors[128:512].split(128):
        part.append(batch)
    writer.write(0, part.vectors())
    writer.write(1, vectors[512:])
    assert torch.equal(writer.finish().vectors(0, 600), vectors)
