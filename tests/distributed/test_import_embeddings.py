"""Pickled embeddings become a store that holds the encoder's own vectors, or are refused with file and id."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_retrieval.applications.embedding_import import MISSING, ImportEmbeddingsConfig, import_embeddings
from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.errors import MegatronRetrievalError
from megatron_retrieval.index.store.embedding_store import EmbeddingStore
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.embedded import embed
from megatron_retrieval.testing.refreshed_run import TEXT_FORMAT
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import tiny_dual_encoder_config, write_tiny_evidence

Entries = list[tuple[Any, Any]]


def _prepare(topology: ProcessTopology, folder: str, evidence_folder: str) -> None:
    """Two checkpoints and the embeddings that the first one makes, in float32."""
    evidence = EvidenceStore(evidence_folder)
    for seed in (0, 1):
        model = DualEncoder(tiny_dual_encoder_config(), topology, seed=seed)
        folder_of_one = f"{folder}/encoder-{seed}"
        DUAL_ENCODER.save(folder_of_one, model, topology, model.config, evidence.vocabulary, TEXT_FORMAT)
    embed(topology, Path(evidence_folder), Path(folder, "encoder-0"), Path(folder, "own"))


def _import_all(topology: ProcessTopology, jobs: list[dict[str, Any]]) -> list[str]:
    """What each job says when it is refused; empty where it is not."""
    said = []
    for job in jobs:
        try:
            import_embeddings(ImportEmbeddingsConfig(**job), topology)
            said.append("")
        except MegatronRetrievalError as error:
            said.append(str(error))
    return said


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("import")
    write_tiny_evidence(folder, num_distractors=600)
    run_on_ranks(_prepare, 1, str(folder), str(folder / "evidence"))
    return folder


@pytest.fixture(scope="module")
def entries(folder: Path) -> Entries:
    """(external id, vector) of every row, in the evidence's order."""
    evidence, store = EvidenceStore(folder / "evidence"), EmbeddingStore(folder / "own")
    vectors = store.vectors(0, len(store)).numpy()
    return [(evidence.passage(row).id, vectors[row].copy()) for row in range(len(store))]


class _Jobs:
    """Files and settings of imports that run in one process; each writes `NAME`."""

    def __init__(self, folder: Path, target: Path) -> None:
        self._folder, self.target = folder, target
        self.jobs: dict[str, dict[str, Any]] = {}

    def add(self, name: str, *contents: Any, protocol: int = 4, **settings: Any) -> None:
        files = []
        for number, content in enumerate(contents):
            files.append(self.target / f"{name}-{number}.pkl")
            files[-1].write_bytes(pickle.dumps(content, protocol))
        self.jobs[name] = {
            "format": "dpr",
            "input": tuple(files),
            "evidence": self._folder / "evidence",
            "retriever": self._folder / "encoder-0",
            "output": self.target / name,
            "embedding_dtype": "float32",
            **settings,
        }

    def run(self) -> dict[str, str]:
        (said,) = run_on_ranks(_import_all, 1, list(self.jobs.values()))
        return dict(zip(self.jobs, said, strict=True))


def test_vectors_come_back_by_their_ids(folder: Path, entries: Entries, tmp_path: Path) -> None:
    jobs, half = _Jobs(folder, tmp_path), len(entries) // 2
    by_row = {row: vector.astype(np.float16) for row, (_, vector) in enumerate(entries)}
    prefixed = [(f"wiki:{name}", vector) for name, vector in entries]
    jobs.add("dpr", entries[half:][::-1], entries[:half], protocol=2)
    jobs.add("wiki", prefixed, id_prefix="wiki:", embedding_dtype="bfloat16")
    jobs.add("rows", {"embed_data": by_row}, format="megatron", ids="row", embedding_dtype="float16")
    jobs.add(
        "named",
        {"embed_data": dict(entries[half:]), "other": 1},
        {"embed_data": dict(entries[:half])},
        format="megatron",
    )
    names, matrix = [name for name, _ in entries], np.stack([vector for _, vector in entries])
    jobs.add("contriever", (names[half:], matrix[half:]), (names[:half], matrix[:half]), format="pair")
    jobs.add("tevatron", (matrix, names), format="pair")
    jobs.add("gaps", entries[3:], max_missing=3)
    assert set(jobs.run().values()) == {""}

    own = EmbeddingStore(folder / "own")
    expected = own.vectors(0, len(own))
    for name in jobs.jobs:
        store = EmbeddingStore(tmp_path / name)
        store.verify()
        assert store.manifest.identity.encoder_fingerprint == own.manifest.identity.encoder_fingerprint
        assert store.manifest.identity.evidence_fingerprint == own.manifest.identity.evidence_fingerprint
        found, start = store.vectors(0, len(own)), 3 if name == "gaps" else 0
        assert torch.equal(found[start:], expected.to(found.dtype)[start:])
    assert not EmbeddingStore(tmp_path / "gaps").vectors(0, 3).any()
    assert (tmp_path / "gaps" / MISSING).read_text().split() == [name for name, _ in entries[:3]]


def test_what_does_not_fit_is_refused(folder: Path, entries: Entries, tmp_path: Path) -> None:
    jobs, (name, vector) = _Jobs(folder, tmp_path), entries[5]

    def with_sixth(*replacement: Any) -> Entries:
        return [*entries[:5], *replacement, *entries[6:]]

    cases: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
        "missing": (
            (with_sixth(),),
            {},
            f"1 of {len(entries)} passages have no vector in the files, among them '{name}'",
        ),
        "unknown": ((with_sixth(("nobody", vector)),), {}, "the evidence has no passage 'nobody'"),
        "row": (
            ({"embed_data": {len(entries): vector}},),
            {"format": "megatron", "ids": "row"},
            "has no passage '622'",
        ),
        "twice": ((entries, [entries[5]]), {}, f"twice-1.pkl: the id '{name}' has a vector already, in "),
        "within": ((with_sixth(entries[4]),), {}, f"the id '{entries[4][0]}' has a vector already, in "),
        "short": ((with_sixth((name, vector[:-1])),), {}, f"the vector of '{name}' has 31 numbers"),
        "nan": ((with_sixth((name, vector * np.nan)),), {}, f"the vector of '{name}' holds NaN or infinity"),
        "large": (
            (with_sixth((name, vector * 1e6)),),
            {"embedding_dtype": "float16"},
            f"of '{name}' does not fit float16",
        ),
        "pair": (((["1"], np.ones((1, 32), np.float32)),), {}, "Contriever and Tevatron write"),
        "uneven": (
            ((["1", "2"], np.ones((1, 32), np.float32)),),
            {"format": "pair"},
            "2 ids, but 1 vectors",
        ),
        "no-pair": ((entries,), {"format": "pair"}, "expected a pair of ids and one matrix"),
        "words": ((with_sixth((name, "vector")),), {}, f"what stands at the id '{name}' is no vector of floats"),
        "pairs": (([(name, vector, 1)],), {}, "expected a list of (id, vector)"),
        "key": (([((1, 2), vector)],), {}, "is no id"),
        "kind": ((dict(entries),), {}, "expected a list of (id, vector)"),
        "megatron": ((entries,), {"format": "megatron"}, "expected a dictionary whose 'embed_data'"),
        "encoder": ((entries,), {"retriever": folder / "encoder-1"}, "encoded anew, half differ by"),
        "order": (
            ({"embed_data": dict(enumerate(v for _, v in entries[::-1]))},),
            {"format": "megatron", "ids": "row"},
            "half differ by",
        ),
    }
    for case, (contents, settings, _) in cases.items():
        jobs.add(case, *contents, **settings)
    said = jobs.run()
    for case, (_, _, problem) in cases.items():
        assert problem in said[case], case
        assert f"{case}-" in said[case], case
        assert not (tmp_path / case).exists()
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".pkl"]
