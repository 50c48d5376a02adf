"""Builds a folder of salient spans, in several processes and constant memory; continues after a stop."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Annotated

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.choices import OneOf
from megatron_retrieval.data.files.sentences import SPLITTER, check_language
from megatron_retrieval.data.salient.sentences import RawText, SpanFinder, SpanRules, find_spans
from megatron_retrieval.data.salient.spans import DATE_RULES, NAMED_TYPES, UNTYPED
from megatron_retrieval.data.salient.taggers import TAGGERS, Tagger
from megatron_retrieval.data.salient.texts import document_texts, evidence_texts, tagged_texts
from megatron_retrieval.data.salient.writing import SpanProgress, SpanWriter, add_holders
from megatron_retrieval.data.stores import salient as layout
from megatron_retrieval.data.stores.column_folder import write_manifest
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.tokenizers.vocabularies import VOCABULARIES
from megatron_retrieval.utils.files import file_fingerprint
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.partial_folder import PartialFolder, input_states, partial_folder
from megatron_retrieval.utils.progress import progress_bar
from megatron_retrieval.utils.worker_pool import worker_pool

#: texts of a worker's task
_CHUNK_TEXTS = 256
#: spans come with the sentences
IMPORT = "import"

log = get_logger("data")


@dataclass(frozen=True, kw_only=True)
class SpanBuilderConfig(Checked):
    """Find names and dates in sentences, to be masked (train mss); run it again to continue after a stop."""

    evidence: Path
    """Folder of the evidence (build evidence): spans are looked for in its passages unless --input is given;
    for each sentence, the passages that hold it are found in any case."""
    input: tuple[str, ...] = ()
    """A corpus of its own, in the kinds of file that build corpus reads; with --tagger import, JSON lines with
    passage_id, sentence and spans ([[start, end, type], ...]), or EMDR2's with bert_ent_pos."""
    output: str
    """Folder to create; unfinished work is kept in OUTPUT.partial."""
    tagger: Annotated[str, OneOf(TAGGERS)] = "rules"
    """What finds names; import: they stand in the files of --input."""
    tagger_model: str | None = None
    """Folder or name of the pipeline, for --tagger spacy."""
    types: tuple[str, ...] = (*NAMED_TYPES, UNTYPED)
    """Types of spans to keep; NAME is what --tagger rules finds."""
    dates: bool = True
    """Add the dates that a pattern finds: 5 May 1990, May 5, 1990, May 1990, May, 1990, 1990s."""
    max_span_tokens: PositiveInt = 10
    """Longest span, in tokens of the evidence's vocabulary; longer ones are left out."""
    language: str = "en"
    """Language whose rules divide texts into sentences (ISO 639 code)."""
    workers: PositiveInt = 1
    """Processes that find spans; the result does not depend on it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tagger == IMPORT and not self.input:
            raise ConfigError("--tagger import reads spans from files: give --input.")

    def open_finder(self) -> SpanFinder:
        """What finds spans, in a process of its own."""
        return SpanFinder(self.open_tagger(), EvidenceStore(self.evidence).vocabulary, self.rules)

    def open_tagger(self) -> Tagger | None:
        """None: spans come with the sentences."""
        return TAGGERS[self.tagger].open(self.tagger_model)

    @property
    def rules(self) -> SpanRules:
        """Which spans are kept."""
        return SpanRules(self.types, self.max_span_tokens, self.dates, self.language)


def build_salient_spans(config: SpanBuilderConfig) -> int:
    """Write the folder, which appears when it is complete; the same call continues after a stop.

    Returns:
        The number of sentences with a span.

    Raises:
        DataError: an input is malformed or changed meanwhile, no sentence has a span, or the output exists.
        ConfigError: --language is unknown, or the tagger cannot be opened.
    """
    check_language(config.language)
    evidence, tagger = EvidenceStore(config.evidence), config.open_tagger()
    tagged_by = tagger.version if tagger is not None else "as imported"
    with partial_folder(config.output, _settings(config, evidence, tagged_by)) as partial_output:
        if partial_output.is_published:
            partial_output.discard()
            return len(layout.SpanStore(config.output))
        try:
            progress = SpanProgress(**partial_output.state)
            if not progress.is_read:
                _find(config, evidence, partial_output, progress)
            if not progress.has_holders:
                add_holders(evidence, partial_output, progress, config.workers)
        except DataError:  # the input must be corrected first, so the unfinished work is useless
            partial_output.discard()
            raise
        _finish(config, evidence, partial_output, progress, tagged_by)
        partial_output.publish()
    _report(config, progress)
    return progress.sentences


def _settings(config: SpanBuilderConfig, evidence: EvidenceStore, tagged_by: str) -> dict[str, object]:
    """Everything that the result, or its division into tasks, depends on."""
    return {
        "--evidence": evidence.fingerprint,
        "--input": list(config.input),
        **input_states(config.input),
        "--tagger": [config.tagger, tagged_by],
        "--types": list(config.types),
        "--dates": DATE_RULES if config.dates else None,
        "--max-span-tokens": config.max_span_tokens,
        "--language": config.language,
        "the program's division of the work": _CHUNK_TEXTS,
        **{f"the version of {library}": version(library) for library in (SPLITTER, VOCABULARIES["WordPiece"].library)},
    }


def _find(config: SpanBuilderConfig, evidence: EvidenceStore, output: PartialFolder, progress: SpanProgress) -> None:
    """Write the sentences that are not counted in `progress` yet, and update it."""
    if progress.texts:
        log.info("continuing behind %s texts", f"{progress.texts:,}")
    total = None if config.input else len(evidence)
    with (
        SpanWriter(output.contents, progress) as writer,
        worker_pool(find_spans, config.workers, config.open_finder) as find,
        progress_bar("spans", "texts", total) as bar,
    ):
        output.save(writer.sync())
        bar.update(progress.texts)
        for found in find(_chunks(_texts(config, evidence, progress.texts))):
            writer.write(found)
            bar.update(found.num_texts)
            output.save_if_due(writer.sync)
        progress.is_read = True
        output.save(writer.sync())
    if {**output.settings, **input_states(config.input)} != output.settings:
        raise DataError(", ".join(config.input), "changed while being read")
    if not progress.sentences:
        raise DataError(", ".join(config.input) or config.evidence, "no sentence has a span that can be masked")


def _texts(config: SpanBuilderConfig, evidence: EvidenceStore, first: int) -> Iterator[RawText]:
    if not config.input:
        return evidence_texts(evidence, first)
    if config.tagger == IMPORT:
        return islice(tagged_texts(config.input, evidence), first, None)
    return islice(document_texts(config.input), first, None)


def _chunks(texts: Iterable[RawText]) -> Iterator[list[RawText]]:
    iterator = iter(texts)
    while chunk := list(islice(iterator, _CHUNK_TEXTS)):
        yield chunk


def _finish(
    config: SpanBuilderConfig, evidence: EvidenceStore, output: PartialFolder, progress: SpanProgress, tagged_by: str
) -> None:
    """Write the manifest."""
    names = [layout.PASSAGES, layout.WORDINGS, *layout.column_files(layout.SENTENCES, layout.SPANS, layout.HOLDERS)]
    output.keep_only(names)
    contents = file_fingerprint(*(output.contents / name for name in names))
    entries = {
        "num_sentences": progress.sentences,
        "num_spans": progress.spans,
        "num_wordings": progress.wordings,
        "types": list(config.types),
        "evidence_fingerprint": evidence.fingerprint,
        "tagger": tagged_by,
        "date_rules": DATE_RULES if config.dates else None,
        "max_span_tokens": config.max_span_tokens,
        "language": config.language,
        "sentence_splitter": f"{SPLITTER} {version(SPLITTER)}",
        "inputs": list(config.input),
        "census": dict(sorted(progress.census.items())),
    }
    fingerprint = hashlib.sha256(f"{contents}/{entries['types']}/{evidence.fingerprint}".encode()).hexdigest()[:16]
    write_manifest(output.contents, layout.SpanStore, fingerprint, entries)


def _report(config: SpanBuilderConfig, progress: SpanProgress) -> None:
    counts = (progress.census["texts"], progress.census["sentences"], progress.sentences, progress.spans)
    words = "%s texts, %s sentences; %s with %s spans in %s"
    log.info(f"spans: {words}", *(f"{count:,}" for count in counts), config.output)
    for reason, count in Counter(progress.census).most_common():
        if ":" in reason:
            log.info("left out, %s: %s", reason, f"{count:,}")
    kinds = ((kind, progress.census.get(kind, 0)) for kind in config.types)
    log.info("by type: %s", ", ".join(f"{kind} {count:,}" for kind, count in kinds if count))
