"""`learn`: from a folder of documents to a folder that is searched, stage by stage; each continues after a stop."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_retrieval.applications.learn.adapt import adapted_encoder, remove_large_files
from megatron_retrieval.applications.learn.config import LearnConfig
from megatron_retrieval.applications.learn.encoder import encoder_from_nothing, given_encoder
from megatron_retrieval.applications.learn.folder import DOCUMENTS, PASSAGES, REPORT, LearnedFolder
from megatron_retrieval.applications.learn.indexes import embed, evidence_of
from megatron_retrieval.applications.learn.read import Documents, read_documents, write_passages
from megatron_retrieval.applications.learn.ways import Training
from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.config.parser import to_flat_dict
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.index.bm25 import build_lexical_index
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.training.run_record import RunRecord
from megatron_retrieval.utils.files import lock_file, write_json
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.progress import Stages

log = get_logger("learn")
READING, ENCODER, EVIDENCE, WORDS, ADAPTING, VECTORS = "reading", "encoder", "evidence", "words", "adapting", "vectors"
#: seconds that a passage may take on a core or two, before anything was measured
_GUESSES = {EVIDENCE: 0.0005, WORDS: 0.001, VECTORS: 0.05}
_LOCK = "learn.lock"
#: files that could not be read that are named at the end; documents.json has all
_MOST_NAMED = 20


def main(config: LearnConfig, topology: ProcessTopology) -> None:
    """Learn the folder, and say what came of it."""
    if topology.world_size > 1:
        raise ConfigError("learn runs in one process; start it without torchrun.")
    folder = config.learned
    if not config.folder.is_dir():
        raise DataError(config.folder, "there is no such folder")
    if folder.exists() and any(folder.iterdir()) and not (folder / _LOCK).exists():
        raise DataError(folder, "exists already, and learn did not make it", hint="Choose another --output.")
    with lock_file(folder / _LOCK, f"{folder}: {{holder}} is learning into it; wait for its end."):
        sys.stdout.write(_Learning(config, topology).run())


@dataclass
class _Learning:
    """One call of `learn`."""

    config: LearnConfig
    topology: ProcessTopology
    stages: Stages = field(init=False)
    record: RunRecord = field(init=False)

    def __post_init__(self) -> None:
        self.record = RunRecord(self.config)
        settings = self.config.adaptation
        adapting = [ADAPTING] if settings.adapt or settings.questions else []
        self.stages = Stages(READING, ENCODER, EVIDENCE, WORDS, *adapting, VECTORS)

    def run(self) -> str:
        """Go through the stages; returns what to tell the user."""
        config, learned = self.config, self.config.learned
        with self.stages.stage(READING):
            documents = read_documents(config)
            log.info("%s", _what_was_read(documents))
        with self.stages.stage(ENCODER):
            start = self._start(documents)
        version = learned / "versions" / _name_of_version(documents, start, config)
        self._index(documents, version, start)
        encoder, decision = start, dict[str, Any]()
        if ADAPTING in self.stages.names:
            with self.stages.stage(ADAPTING):
                encoder, decision = adapted_encoder(config, documents, version, start, self.topology)
        with self.stages.stage(VECTORS):
            embeddings, num_embedded = embed(version / "evidence", encoder, learned, config.encode, self.topology)
        report = {
            "documents": len(documents.files),
            "documents_read": documents.num_read,
            "passages": len(EvidenceStore(version / "evidence")),
            "passages_embedded": num_embedded,
            "seconds": self.stages.seconds,
            "adaptation": decision,
        }
        self._publish(documents, version, embeddings, encoder, report)
        return _farewell(config, documents, report)

    def _start(self, documents: Documents) -> Path:
        """The checkpoint of the encoder that was given, or of one that is trained now."""
        config, encoders = self.config, self.config.learned / "encoders"
        if config.encoder is not None:
            return given_encoder(config.encoder, encoders, self.topology)
        settings, language = config.adaptation, config.cutting.language
        key = json.dumps(
            [settings.scratch_steps, settings.scratch_lr, settings.adapt_batch_size, settings.seed, language]
        )
        name = f"own-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
        run = config.learned / "runs" / name / documents.fingerprint
        training = Training(
            folder=run,
            steps=settings.scratch_steps,
            batch_size=settings.adapt_batch_size,
            lr=settings.scratch_lr,
            seed=settings.seed,
            topology=self.topology,
        )
        return encoder_from_nothing(documents.passages, encoders / name, training, language)

    def _index(self, documents: Documents, version: Path, encoder: Path) -> None:
        """Write passages, evidence and BM25 index of the documents, those of them that are not there yet."""
        with self.stages.stage(EVIDENCE):
            table = version / PASSAGES
            if not table.exists():
                write_passages(table, documents.passages())
            evidence = EvidenceStore(evidence_of(table, version / "evidence", encoder, self.config.workers))
        self.stages.guess(**{name: seconds * len(evidence) for name, seconds in _GUESSES.items()})
        if ADAPTING in self.stages.names:
            self.stages.guess(**{ADAPTING: _GUESSES[VECTORS] * self.config.adaptation.num_encoded(len(evidence))})
        with self.stages.stage(WORDS):
            if not (version / "bm25").exists():
                passages = map(evidence.passage, range(len(evidence)))
                output, lexical = version / "bm25", self.config.lexical
                build_lexical_index(passages, len(evidence), lexical, evidence.fingerprint, output)

    def _publish(
        self, documents: Documents, version: Path, embeddings: Path, encoder: Path, report: dict[str, Any]
    ) -> None:
        """Make the version the newest, then remove what nothing needs any more."""
        learned = self.config.learned
        write_json(version / DOCUMENTS, documents.to_json())
        write_json(version / REPORT, report)
        self.record.write(version)
        LearnedFolder.publish(learned, version, embeddings, encoder, self.config.folder)
        remove_large_files(learned)
        for folder in (learned / "parsed").iterdir():
            if folder != documents.parsed.folder:
                shutil.rmtree(folder)
        documents.remove_others()


def _name_of_version(documents: Documents, encoder: Path, config: LearnConfig) -> str:
    """Names all that passages, evidence and BM25 index are made of."""
    vocabulary = DUAL_ENCODER.describe(encoder).vocabulary().fingerprint
    parts = [documents.fingerprint, vocabulary, to_flat_dict(config.lexical)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _what_was_read(documents: Documents) -> str:
    return f"{len(documents.files):,} documents, {documents.num_read:,} of them new or changed"


def _farewell(config: LearnConfig, documents: Documents, report: dict[str, Any]) -> str:
    """What was learned and what was left out, and what to do now."""
    lines = [
        f"{report['documents']:,} documents, {report['passages']:,} passages; "
        f"{report['documents_read']:,} documents were read and {report['passages_embedded']:,} passages embedded now."
    ]
    if documents.problems:
        lines.append(f"{len(documents.problems):,} files could not be read:")
        lines += [f"  {_printable(name)}: {why}" for name, why in list(documents.problems.items())[:_MOST_NAMED]]
        if (rest := len(documents.problems) - _MOST_NAMED) > 0:
            lines.append(f"  and {rest:,} more (documents.json in the version's folder)")
    if documents.others:
        kinds = ", ".join(f"{ending} {number:,}" for ending, number in documents.others.most_common())
        lines.append(f"Files of kinds that are not read: {kinds}.")
    lines.append(f"In the terminal: megatron-retrieval ask --evidence {config.learned}")
    lines.append(f"In a browser: megatron-retrieval serve --evidence {config.learned}")
    return "\n".join(lines) + "\n"


def _printable(name: str) -> str:
    """A file's name, which need not be valid Unicode."""
    return name.encode(errors="replace").decode()
