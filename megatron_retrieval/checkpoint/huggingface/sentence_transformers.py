"""One tower in one folder of sentence-transformers: Transformer, Pooling, and optionally Dense and Normalize."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.files import (
    read_optional_settings,
    read_settings,
)
from megatron_retrieval.checkpoint.huggingface.format import read_family
from megatron_retrieval.checkpoint.huggingface.tower_folder import (
    TowerFolder,
    assemble_tower,
    take_projection,
    tower_vocabulary,
    write_common,
)
from megatron_retrieval.checkpoint.huggingface.towers import TowerFormat
from megatron_retrieval.checkpoint.huggingface.weight_files import read_weights, write_weights
from megatron_retrieval.checkpoint.kinds.encoder_families import ENCODER_FAMILIES
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.dual_encoder import DualEncoderConfig, Pooling
from megatron_retrieval.models.encoder import EncoderShape
from megatron_retrieval.tokenizers.byte_bpe import ByteBpeTokenizer
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.utils.files import read_json, write_json
from megatron_retrieval.utils.logging import get_logger

CHAINS = [
    ["Transformer", "Pooling", *dense, *normalize] for dense in ([], ["Dense"]) for normalize in ([], ["Normalize"])
]
_ALLOWED = "Transformer, Pooling, and optionally Dense and Normalize, in this order"
IDENTITY = "torch.nn.modules.linear.Identity"
# releases before 6 spell the supported modes as flags
POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
}
#: its name of a mode -> ours
POOLINGS: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}

SETTINGS_NAME, SIMILARITY = "config_sentence_transformers.json", "similarity_fn_name"
QUERY_PROMPTS, PASSAGE_PROMPTS = ("query",), ("document", "passage", "corpus")

logger = get_logger("checkpoint")


def read_sentence_transformer(folder: Path) -> TowerFolder:
    """Transformer, pooling, and optionally a linear layer and normalisation."""
    modules = read_modules(folder, CHAINS, _ALLOWED)
    body, similarity = modules["Transformer"], _read_similarity(folder)
    encoder = _read_encoder(body / "config.json")
    vocabulary = tower_vocabulary(body, encoder)
    config = DualEncoderConfig(
        encoder=encoder,
        pooling=_read_pooling(modules["Pooling"] / "config.json"),
        # vectors of length 1 have the order of cosines in any product
        normalize_embeddings="Normalize" in modules or similarity == "cosine",
    )
    projection: dict[str, Tensor] = {}
    if "Dense" in modules:
        projection = _read_dense(modules["Dense"])
        config = dataclasses.replace(config, biencoder_projection_dim=projection["weight"].size(0))
    check_text_handling(body, vocabulary)
    query_prefix, passage_prefix = _read_prompts(folder)
    text_format = dataclasses.replace(
        _sentence_text_format(body, encoder), query_prefix=query_prefix, passage_prefix=passage_prefix
    )
    is_open = similarity is None and "Normalize" not in modules
    assumed = {"normalize_embeddings": "the dot product is assumed (--normalize-embeddings: the cosine)"}
    return assemble_tower(
        body,
        config,
        text_format,
        vocabulary,
        read_weights(body),
        projection,
        extras_from=folder,
        assumed=assumed if is_open else {},
    )


def write_sentence_transformer(folder: Path, tower: TowerFolder, role: str) -> None:
    """A folder that `SentenceTransformer` opens."""
    config = tower.config
    write_common(folder, tower, {})
    write_weights(folder, tower.encoder_state())
    chain = ["Transformer", "Pooling"] + ["Dense"] * bool(config.biencoder_projection_dim)
    chain += ["Normalize"] * config.normalize_embeddings
    paths = ["" if kind == "Transformer" else f"{number}_{kind}" for number, kind in enumerate(chain)]
    for path in paths:
        (folder / path).mkdir(exist_ok=True)
    modules = zip(chain, paths, strict=True)
    write_json(
        folder / "modules.json",
        [
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for number, (kind, path) in enumerate(modules)
        ],
    )
    length = tower.text_format.retriever_seq_length
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False})
    modes = {flag: POOLINGS[mode] == config.pooling for flag, mode in POOLING_FLAGS.items()}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": config.encoder.hidden_size, **modes})
    prompts = {"query": tower.text_format.query_prefix, "document": tower.text_format.passage_prefix}
    similarity = "cosine" if config.normalize_embeddings else "dot"
    write_json(folder / SETTINGS_NAME, {"prompts": prompts, "default_prompt_name": None, SIMILARITY: similarity})
    if config.biencoder_projection_dim:
        sizes = {"in_features": config.encoder.hidden_size, "out_features": config.biencoder_projection_dim}
        write_json(folder / "2_Dense" / "config.json", {**sizes, "bias": True, "activation_function": IDENTITY})
        write_weights(folder / "2_Dense", tower.projection("linear"))


def _read_encoder(path: Path) -> EncoderShape:
    """The shape of the Transformer, of the family that its model_type names; what names none is read as a BERT."""
    settings, family = read_family(path, ENCODER_FAMILIES.values())
    return family.from_huggingface(settings, path)


def read_modules(folder: Path, chains: Sequence[list[str]], allowed: str) -> dict[str, Path]:
    """The folders of the modules, by the last part of their class's name.

    Args:
        chains: of modules, that may stand there.
        allowed: says which they are.

    Raises:
        CheckpointError: others do, or there is no list of them.
    """
    path = folder / "modules.json"
    if not path.is_file():
        raise CheckpointError(f"{folder}: no modules.json here; is it a sentence-transformers folder?")
    listing = read_json(path)
    try:
        modules = {module["type"].rsplit(".", 1)[-1]: folder / module["path"] for module in listing}
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: expected a list of modules with type and path.") from error
    if list(modules) not in chains or len(modules) != len(listing):
        raise CheckpointError(f"{path}: modules {', '.join(modules)}; only {allowed}, can be imported here.")
    return modules


def _read_pooling(path: Path) -> Pooling:
    settings = read_settings(path)
    flags = [name for name, is_on in settings.items() if name.startswith("pooling_mode_") and is_on is True]
    if not settings.get("include_prompt", True):
        raise CheckpointError(f"{path}: include_prompt is false: the mean leaves prefixes out, which is not supported.")
    modes = settings.get("pooling_mode") or [POOLING_FLAGS.get(flag, flag) for flag in flags]
    for mode, pooling in POOLINGS.items():
        if modes in (mode, [mode]):
            return pooling
    raise CheckpointError(f"{path}: pooling {modes}; only cls, mean or lasttoken can be imported.")


def _read_dense(folder: Path) -> dict[str, Tensor]:
    settings = read_settings(folder / "config.json")
    if (activation := settings.get("activation_function")) != IDENTITY:
        raise CheckpointError(f"{folder}: activation {activation}; only a linear projection can be imported.")
    state = read_weights(folder)
    projection = take_projection(state, "linear")
    if "weight" not in projection:
        raise CheckpointError(f"{folder}: a projection with the weight linear.weight is needed.")
    if settings.get("use_residual") or state:
        raise CheckpointError(f"{folder}: a projection with a residual; only a linear projection can be imported.")
    # one without a bias adds nothing
    projection.setdefault("bias", torch.zeros(projection["weight"].size(0)))
    return projection


def _read_similarity(folder: Path) -> str | None:
    """How the folder says that vectors are compared; None: it does not."""
    settings = read_optional_settings(folder / SETTINGS_NAME)
    if (kind := settings.get("model_type", "SentenceTransformer")) != "SentenceTransformer":
        raise CheckpointError(f"{folder / SETTINGS_NAME}: model_type {kind}; only SentenceTransformer can be imported.")
    if (similarity := settings.get(SIMILARITY)) not in (None, "cosine", "dot"):
        problem = f"{SIMILARITY} {similarity}; only cosine and dot can be imported"
        raise CheckpointError(f"{folder / SETTINGS_NAME}: {problem}.")
    return similarity


def _read_prompts(folder: Path) -> tuple[str, str]:
    """The prefixes of questions and of passages, as `encode_query` and `encode_document` choose them."""
    settings = read_optional_settings(folder / SETTINGS_NAME)
    prompts = {name: text for name, text in (settings.get("prompts") or {}).items() if text is not None}
    default = prompts.get(settings.get("default_prompt_name") or "", "")
    chosen = [next((name for name in names if name in prompts), None) for names in (QUERY_PROMPTS, PASSAGE_PROMPTS)]
    others = {name: text for name, text in prompts.items() if text and text != default and name not in chosen}
    if others:
        logger.warning(
            "%s: of its prompts, %s are not imported; --query-prefix and --passage-prefix take one.", folder, others
        )
    query, passage = (default if name is None else prompts[name] for name in chosen)
    return query, passage


def check_text_handling(body: Path, vocabulary: Vocabulary) -> None:
    """Refuse what would change the text before it reaches the tokenizer, and texts without an end token."""
    if isinstance(vocabulary, ByteBpeTokenizer) and not vocabulary.ends_texts:
        raise CheckpointError(
            f"{body}/tokenizer.json: its tokenizer writes no end token behind a text, as this project does."
        )
    sentence = read_optional_settings(body / "sentence_bert_config.json")
    if sentence.get("do_lower_case"):
        raise CheckpointError(f"{body}/sentence_bert_config.json: do_lower_case is not supported.")


def _sentence_text_format(body: Path, encoder: EncoderShape) -> TextFormatConfig:
    """Title and text in one segment, questions as long as passages."""
    length = longest_text(body, encoder) or TextFormatConfig().retriever_seq_length
    return TextFormatConfig(passage_format="title-text", query_seq_length=length, retriever_seq_length=length)


def longest_text(body: Path, encoder: EncoderShape) -> int | None:
    """The longest sequence that the folder of an encoder names, within the encoder's positions; None: any."""
    length = (
        read_optional_settings(body / "sentence_bert_config.json").get("max_seq_length")
        or read_optional_settings(body / "tokenizer_config.json").get("model_max_length")
        or encoder.max_positions
    )
    return None if length is None else min(length, encoder.max_positions or length)


SENTENCE_TRANSFORMERS = TowerFormat(
    name="sentence-transformers",
    about="folder of sentence-transformers; a dual encoder",
    read_tower=read_sentence_transformer,
    write_tower=write_sentence_transformer,
)
