"""The foreign formats, and models on their way from and to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_retrieval.checkpoint.huggingface.adapter_folders import PEFT, adapters_alone, import_adapter
from megatron_retrieval.checkpoint.huggingface.causal import RELEASES
from megatron_retrieval.checkpoint.huggingface.causal_folder import HF_CAUSAL_LM
from megatron_retrieval.checkpoint.huggingface.colbert import ARCHITECTURE, HF_COLBERT
from megatron_retrieval.checkpoint.huggingface.cross_encoder import HF_CROSS_ENCODER
from megatron_retrieval.checkpoint.huggingface.dpr import HF_DPR
from megatron_retrieval.checkpoint.huggingface.dpr_checkpoint import DPR_CHECKPOINT
from megatron_retrieval.checkpoint.huggingface.files import read_optional_settings
from megatron_retrieval.checkpoint.huggingface.format import ForeignModel, Format, family_in
from megatron_retrieval.checkpoint.huggingface.import_settings import ImportSettingsConfig
from megatron_retrieval.checkpoint.huggingface.masked_lm import HF_MASKED_LM
from megatron_retrieval.checkpoint.huggingface.pointing_readers import HF_DPR_READER, HF_QUESTION_ANSWERING
from megatron_retrieval.checkpoint.huggingface.pylate import HF_PYLATE, is_pylate
from megatron_retrieval.checkpoint.huggingface.sentence_transformers import SENTENCE_TRANSFORMERS
from megatron_retrieval.checkpoint.huggingface.t5_folder import HF_T5
from megatron_retrieval.checkpoint.huggingface.towers import (
    HF_BERT,
    HF_DISTILBERT,
    HF_MODERNBERT,
    HF_MPNET,
    HF_ROBERTA,
    HF_UNIGRAM_BERT,
    HF_XLM_ROBERTA,
    TOWER_FOLDERS,
)
from megatron_retrieval.checkpoint.kinds.encoder_families import ENCODER_FAMILIES
from megatron_retrieval.checkpoint.kinds.reader import ReaderDescription
from megatron_retrieval.checkpoint.kinds.registry import MODEL_KINDS, describe
from megatron_retrieval.checkpoint.store.merged import MergedWeights
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.utils.files import atomic_directory
from megatron_retrieval.utils.registry import Registry

FORMATS: Registry[Format] = Registry("format of models")
_BODIES = (HF_BERT, HF_UNIGRAM_BERT, HF_MPNET, HF_DISTILBERT, HF_ROBERTA, HF_XLM_ROBERTA, HF_MODERNBERT)
_ENCODERS = (*_BODIES, HF_MASKED_LM, HF_DPR, DPR_CHECKPOINT, SENTENCE_TRANSFORMERS)
for _format in (
    *_ENCODERS,
    HF_CROSS_ENCODER,
    HF_QUESTION_ANSWERING,
    HF_DPR_READER,
    HF_COLBERT,
    HF_PYLATE,
    HF_T5,
    HF_CAUSAL_LM,
    PEFT,
):
    FORMATS.add(_format)
#: what the names of models with heads end with
_HEADS: dict[str, Format] = {
    "ForSequenceClassification": HF_CROSS_ENCODER,
    "ForQuestionAnswering": HF_QUESTION_ANSWERING,
    "DPRReader": HF_DPR_READER,
}
_OTHER_HEADS = ("ForTokenClassification", "ForMultipleChoice")


def format_of(folder: Path) -> str | None:
    """The name of the format that a folder of another project has; None where it is no such folder.

    Raises:
        CheckpointError: a model that cannot be imported, or only without its head.
    """
    tower = folder / TOWER_FOLDERS["passage"]
    model = tower if tower.is_dir() else folder
    settings = read_optional_settings(model / "config.json")
    architectures = settings.get("architectures") or ()
    for end, row in _HEADS.items():
        if any(name.endswith(end) for name in architectures):
            return row.name
    if (model / "modules.json").is_file():
        return HF_PYLATE.name if is_pylate(model) else SENTENCE_TRANSFORMERS.name
    model_type = settings.get("model_type")
    if ARCHITECTURE in architectures:
        return HF_COLBERT.name
    if model_type is None:
        return None
    if model_type in RELEASES:
        return HF_CAUSAL_LM.name
    families = [family for family in ENCODER_FAMILIES.values() if model_type in family.model_types]
    if (name := f"hf-{family_in(model, families).name if families else model_type}") not in FORMATS:
        raise CheckpointError(f"{model}: model_type is {model_type!r}; models of {', '.join(FORMATS)} can be imported.")
    if other := next((head for head in architectures if head.endswith(_OTHER_HEADS)), None):
        raise CheckpointError(
            f"{model}: a {other}, whose head has no place here; megatron-retrieval import checkpoint --format {name} "
            "takes the encoder alone."
        )
    return name


def import_model(
    name: str,
    folders: Sequence[Path],
    output: Path,
    topology: ProcessTopology,
    *,
    separate_towers: bool = False,
    settings: ImportSettingsConfig = ImportSettingsConfig(),  # noqa: B008
    base: Path | None = None,
) -> Path:
    """Turn a model of a foreign format into a checkpoint; all ranks call this together.

    Args:
        folders: see `Format.read`; for errors likewise.
        separate_towers: make two towers of one.
        settings: asked for, in the place of what the folder states.
        base: what adapters belong to, see `import_adapter`.

    Returns:
        The folder of the checkpoint.
    """
    if name == PEFT.name and base is not None:
        return import_adapter(folders, base, output, topology)
    found = settings.over(FORMATS[name].read(folders, separate_towers=separate_towers), folders[0])
    further = (() if found.layout is None else (found.layout,)) + found.further
    return found.kind.save(output, found.build(topology), topology, found.shape, found.vocabulary, *further)


def export_model(name: str, path: Path, output: Path) -> None:
    """Export a checkpoint to the new folder `output`, which appears whole or not at all.

    Raises:
        CheckpointError: no checkpoint at `path`, or the format cannot hold this model, or all that was trained of it.
        DataError: `output` exists already.
    """
    found = describe(path, MODEL_KINDS)
    if not FORMATS[name].holds(found.kind.name, found.shape):
        others = [other for other in FORMATS if FORMATS[other].holds(found.kind.name, found.shape)]
        choice = f"choose --format {' or '.join(others)}" if others else "no other format can"
        raise CheckpointError(f"{found.folder}: {name} cannot hold this {found.kind.name}; {choice}.")
    if name == PEFT.name:
        weights = adapters_alone(found)
        base = str((found.folder / found.manifest.base.path).resolve()) if found.manifest.base else ""
        rest: dict[str, Any] = {"adapters": found.adapters, "base": base}
    else:
        merged = MergedWeights(found.folder, found.manifest)
        weights = {weight: merged.full(weight) for weight in merged.names()}
        rest = {"further": (found.passage_scores,)} if isinstance(found, ReaderDescription) else {}
    model = ForeignModel(found.kind, found.shape, weights, found.vocabulary(), found.layout, **rest)
    write_model(name, model, output)


def write_model(name: str, model: ForeignModel, output: Path) -> None:
    """Write a model that the format holds to the new folder `output`, which appears whole or not at all."""
    with atomic_directory(output) as folder:
        FORMATS[name].write(model, folder)
