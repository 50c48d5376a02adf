"""The evidence builder continues after a kill at any moment, and the evidence is that of uninterrupted work."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from megatron_retrieval.data.stores import evidence_builder
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.evidence_builder import EvidenceBuilderConfig, build_evidence
from megatron_retrieval.data.stores.evidence_encoding import EncodedChunk, RawPassage, encode_chunk
from megatron_retrieval.errors import DataError
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.utils import partial_folder
from megatron_retrieval.utils.partial_folder import PartialFolder

NUM_PASSAGES, CHUNK = 31, 4


class _Killed(BaseException):
    pass


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EvidenceBuilderConfig:
    """For a folder `evidence`; `whole` was built without a stop."""
    monkeypatch.setattr(evidence_builder, "_CHUNK_PASSAGES", CHUNK)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "river", "city"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    lines = [
        json.dumps({"id": f"p{row}", "title": "city " * (row % 3), "text": "a river " * row})
        for row in range(NUM_PASSAGES)
    ]
    (tmp_path / "passages.jsonl").write_text("\n".join(lines))
    build_evidence(_config(tmp_path, "whole"))
    return _config(tmp_path, "evidence")


def _config(folder: Path, output: str, **changes: object) -> EvidenceBuilderConfig:
    values = {
        "input": (str(folder / "passages.jsonl"),),
        "output": str(folder / output),
        "vocab_file": str(folder / "vocab.txt"),
        **changes,
    }
    return EvidenceBuilderConfig(**values)  # type: ignore[arg-type]


def _assert_whole(folder: Path) -> None:
    """The evidence is there, the same bytes as `whole`, and nothing else is left."""
    assert len(EvidenceStore(folder / "evidence")) == NUM_PASSAGES
    names = sorted(file.name for file in (folder / "whole").iterdir())
    assert sorted(file.name for file in (folder / "evidence").iterdir()) == names
    for name in names:
        assert (folder / "evidence" / name).read_bytes() == (folder / "whole" / name).read_bytes(), name
    assert sorted(path.name for path in folder.iterdir()) == ["evidence", "passages.jsonl", "vocab.txt", "whole"]


def _kill_after(num_chunks: int, config: EvidenceBuilderConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    done = 0

    def encode(tokenizer: Vocabulary, passages: Sequence[RawPassage]) -> EncodedChunk:
        nonlocal done
        if done == num_chunks:
            raise _Killed
        done += 1
        return encode_chunk(tokenizer, passages)

    with monkeypatch.context() as patch:
        patch.setattr(evidence_builder, "encode_chunk", encode)
        with pytest.raises(_Killed):
            build_evidence(config)


@pytest.mark.parametrize(("num_chunks", "journal_seconds"), [(0, 0.0), (1, 0.0), (5, 0.0), (5, 1e9)])
def test_killed_builder_continues(
    tmp_path: Path,
    config: EvidenceBuilderConfig,
    monkeypatch: pytest.MonkeyPatch,
    num_chunks: int,
    journal_seconds: float,
) -> None:
    monkeypatch.setattr(partial_folder, "JOURNAL_SECONDS", journal_seconds)
    _kill_after(num_chunks, config, monkeypatch)
    partial = tmp_path / "evidence.partial"
    assert not (tmp_path / "evidence").exists()
    known = json.loads((partial / "journal.json").read_text())["state"]["passages"]
    assert known == (0 if journal_seconds else num_chunks * CHUNK)
    for name in ("texts.values", "ids.offsets", "unsorted_hashes.u64"):
        with open(partial / "contents" / name, "ab") as file:
            file.write(b"a tail that the journal does not know")
    num_encoded = 0

    def encode(tokenizer: Vocabulary, passages: Sequence[RawPassage]) -> EncodedChunk:
        nonlocal num_encoded
        num_encoded += len(passages)
        return encode_chunk(tokenizer, passages)

    monkeypatch.setattr(evidence_builder, "encode_chunk", encode)
    assert build_evidence(config) == NUM_PASSAGES
    assert num_encoded == NUM_PASSAGES - known
    _assert_whole(tmp_path)


@pytest.mark.parametrize("place", ["sort_id_table", "write_vocabulary", "write_manifest", "publish", "discard"])
def test_killed_at_the_end(
    tmp_path: Path, config: EvidenceBuilderConfig, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """While what follows the passages is made, or the folder gets its name, or the journal is removed."""

    def kill(*_: object) -> None:
        raise _Killed

    owner = {"publish": PartialFolder, "discard": PartialFolder}
    with monkeypatch.context() as patch:
        patch.setattr(owner.get(place, evidence_builder), place, kill)
        with pytest.raises(_Killed):
            build_evidence(config)
    if place not in ("publish", "discard"):
        (tmp_path / "evidence.partial" / "contents" / ".manifest.json.torn").write_text("{")
    assert build_evidence(config) == NUM_PASSAGES
    _assert_whole(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lower_case": False}, "vocabulary of --vocab-file has changed"),
        ({"input": (__file__,)}, "--input has changed"),
    ],
)
def test_other_settings_do_not_continue(
    tmp_path: Path,
    config: EvidenceBuilderConfig,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, object],
    message: str,
) -> None:
    _kill_after(1, config, monkeypatch)
    with pytest.raises(DataError, match=message):
        build_evidence(_config(tmp_path, "evidence", **change))
    build_evidence(config)
    _assert_whole(tmp_path)


def test_input_that_changed_meanwhile_is_refused(
    tmp_path: Path, config: EvidenceBuilderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    _kill_after(1, config, monkeypatch)
    with open(tmp_path / "passages.jsonl", "a") as file:
        file.write('\n{"id": "new", "title": "", "text": ""}')
    with pytest.raises(DataError, match=r"passages\.jsonl \(bytes, time of change\) has changed"):
        build_evidence(config)
