"""What starts from a BERT holds the BERT's weights where it should, whatever the kind of checkpoint and the layout."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from megatron_retrieval.checkpoint.huggingface.formats import export_model
from megatron_retrieval.checkpoint.kinds.bert_seq2seq import source_layer
from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.checkpoint.kinds.extractive_reader import EXTRACTIVE_READER
from megatron_retrieval.checkpoint.kinds.fusion_reader import FUSION_READER
from megatron_retrieval.checkpoint.kinds.masked_lm import MASKED_LM
from megatron_retrieval.checkpoint.kinds.registry import describe
from megatron_retrieval.data.layouts.extractive import ExtractiveFormatConfig
from megatron_retrieval.data.layouts.fusion import FusionFormatConfig
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.errors import CheckpointError, ConfigError
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.bert_seq2seq import BertSeq2Seq, BertSeq2SeqConfig
from megatron_retrieval.models.dual_encoder import DualEncoder, DualEncoderConfig
from megatron_retrieval.models.extractive_reader import ExtractiveReader
from megatron_retrieval.models.layer_inputs import LayerInputs
from megatron_retrieval.models.masked_lm import MaskedLanguageModel
from megatron_retrieval.models.memory import EncodedMemory
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.full_tensors import gather_full
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import random_texts
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer

State = dict[str, Tensor]
TOLERANCE = 1e-5
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(95)))
BERT = BertConfig(
    num_layers=3,
    hidden_size=32,
    num_attention_heads=4,
    max_position_embeddings=24,
    vocab_size=len(VOCABULARY),
    init_method_std=0.2,
)
TEXTS = random_texts(5, 16, seed=5)


def _full(model: nn.Module, topology: ProcessTopology) -> State:
    return {name: gather_full(parameter, topology).clone() for name, parameter in model.named_parameters()}


def _save_berts(topology: ProcessTopology, folder: str) -> State:
    """A checkpoint of each kind of BERT; the weights of all, by kind."""
    layout = ExtractiveFormatConfig(question_seq_length=8, reader_seq_length=20)
    towers = {
        name: DualEncoderConfig(encoder=BERT, biencoder_shared_query_context_model=name == "shared")
        for name in ("shared", "separate")
    }
    language_model = MaskedLanguageModel(BERT, topology, seed=1)
    with torch.no_grad():
        language_model.head.bias.copy_(torch.arange(len(language_model.head.bias)))
    reader, vocabulary = ExtractiveReader(BERT, topology, seed=1), WordPieceTokenizer("vocab.txt", tokens=VOCABULARY)
    encoders = {name: DualEncoder(config, topology, seed=1) for name, config in towers.items()}
    for name, encoder in encoders.items():
        DUAL_ENCODER.save(f"{folder}/{name}", encoder, topology, encoder.config, vocabulary, TextFormatConfig())
    MASKED_LM.save(f"{folder}/masked-lm", language_model, topology, BERT, vocabulary)
    EXTRACTIVE_READER.save(f"{folder}/extractive", reader, topology, BERT, vocabulary, layout)
    states: State = {}
    for name, model in {**encoders, "masked-lm": language_model, "extractive": reader}.items():
        states |= {f"{name}.{parameter}": full for parameter, full in _full(model, topology).items()}
    return states


def _start(topology: ProcessTopology, folder: str, name: str, num_layers: int) -> tuple[BertSeq2Seq, State]:
    start = describe(f"{folder}/{name}", FUSION_READER.starts_from)
    shape = dataclasses.replace(FUSION_READER.shape_from(start), decoder_num_layers=num_layers)
    model = FUSION_READER.build(shape, start.vocabulary().special, topology, seed=9)
    FUSION_READER.start(model, start, topology)
    return model.eval(), _full(model, topology)


def _start_all(topology: ProcessTopology, folder: str, saved: State) -> bool:
    prefixes = {
        "shared": "towers.shared.bert.",
        "separate": "towers.passage.bert.",
        "masked-lm": "bert.",
        "extractive": "bert.",
    }
    for name, prefix in prefixes.items():
        _, full = _start(topology, folder, name, 2)
        source = {key.removeprefix(f"{name}.{prefix}"): value for key, value in saved.items() if key.startswith(name)}
        for key, value in full.items():
            if key.startswith("bert."):
                assert torch.equal(value, source[key.removeprefix("bert.")]), key
        bias = torch.arange(len(VOCABULARY)).float() if name == "masked-lm" else torch.zeros(len(VOCABULARY))
        assert torch.equal(full["output_bias"], bias)
        # the first and the last of three layers, self-attention and feed-forward network as they are
        for layer, its_source in ((0, 0), (1, 2)):
            for part in ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2"):
                for kind in ("weight", "bias"):
                    ours, theirs = f"decoder.layers.{layer}.{part}.{kind}", f"encoder.layers.{its_source}.{part}.{kind}"
                    assert torch.equal(full[ours], source[theirs]), ours
    _check_states(topology, folder)
    return True


@torch.no_grad()
def _check_states(topology: ProcessTopology, folder: str) -> None:
    """The encoder's states are the tower's; a decoder layer computes what the encoder's does where it reads the same,
    its cross-attention what that layer's self-attention does."""
    model, _ = _start(topology, folder, "separate", 3)
    tower = DUAL_ENCODER.load(f"{folder}/separate", topology).model.towers["passage"].bert
    assert torch.equal(model.encoder(TEXTS), tower(TEXTS))
    states = torch.randn(7, 4, BERT.hidden_size, generator=torch.Generator().manual_seed(2))
    for ours, theirs in zip(model.decoder.layers, tower.encoder.layers, strict=True):
        inputs = LayerInputs(memory=EncodedMemory(states.transpose(0, 1)))
        expected = theirs.self_attention(states, inputs)
        torch.testing.assert_close(ours.cross_attention(states, inputs), expected, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(ours.self_attention(states, inputs), expected, rtol=0, atol=TOLERANCE)
        attended = ours.input_layernorm(states + expected)
        torch.testing.assert_close(ours.pre_cross_attn_layernorm(states + expected), attended)
        # without cross-attention the layer is the encoder's
        ours.parts = [part for part in ours.parts if part.name != "cross_attention"]
        torch.testing.assert_close(ours(states, inputs), theirs(states, inputs), rtol=0, atol=TOLERANCE)


def test_starts_from_every_bert(tmp_path: Path) -> None:
    (saved,) = run_on_ranks(_save_berts, 1, str(tmp_path))
    assert run_on_ranks(_start_all, 2, str(tmp_path), saved, tensor_model_parallel_size=2) == [True, True]


def test_layers_that_shorter_decoders_start_from() -> None:
    def sources(num_layers: int, decoder_num_layers: int) -> list[int]:
        shape = BertSeq2SeqConfig(num_layers=num_layers, decoder_num_layers=decoder_num_layers)
        return [source_layer(number, shape) for number in range(decoder_num_layers)]

    assert sources(12, 12) == list(range(12))
    assert sources(12, 6) == [0, 2, 4, 7, 9, 11]
    assert sources(6, 2) == [0, 5]
    assert sources(6, 1) == [0]
    for wrong in (0, 13):
        with pytest.raises(ConfigError, match=f"--decoder-num-layers {wrong}: must be from 1 to 12"):
            BertSeq2SeqConfig(decoder_num_layers=wrong)


def _save_reader(topology: ProcessTopology, folder: str) -> State:
    """A reader with the vocabulary of the BERT that it started from, saved and loaded."""
    start = describe(f"{folder}/masked-lm", FUSION_READER.starts_from)
    layout = FusionFormatConfig(question_seq_length=6, reader_seq_length=20)
    shape, vocabulary = dataclasses.replace(FUSION_READER.shape_from(start), decoder_num_layers=1), start.vocabulary()
    model = FUSION_READER.build(shape, vocabulary.special, topology, seed=9)
    FUSION_READER.save(f"{folder}/reader", model, topology, shape, vocabulary, layout)
    saved = FUSION_READER.describe(f"{folder}/reader")
    assert (saved.shape, saved.layout, saved.vocabulary().settings()["lower_case"]) == (shape, layout, True)
    loaded = saved.load(topology)
    assert (loaded.start_id, loaded.end_id, loaded.training) == (2, 3, False)
    assert all(torch.equal(value, _full(model, topology)[name]) for name, value in _full(loaded, topology).items())
    return {}


def test_a_saved_reader_says_what_it_is(tmp_path: Path) -> None:
    run_on_ranks(_save_berts, 1, str(tmp_path))
    run_on_ranks(_save_reader, 1, str(tmp_path))
    with pytest.raises(CheckpointError, match="hf-t5 cannot hold this fusion-reader; no other format can"):
        export_model("hf-t5", tmp_path / "reader", tmp_path / "exported")
    with pytest.raises(CheckpointError, match="hf-t5 cannot hold this masked-lm; choose --format hf-bert or"):
        export_model("hf-t5", tmp_path / "masked-lm", tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
    manifest = tmp_path / "reader" / "iter_0000000" / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"bert-seq2seq"', '"mamba"'))
    with pytest.raises(CheckpointError, match="'mamba'; choose one of t5, bert-seq2seq"):
        FUSION_READER.describe(tmp_path / "reader")
    manifest.write_text(text.replace('"lower-case"', '"lower"'))
    with pytest.raises(CheckpointError, match="the setting 'lower-case' is missing"):
        FUSION_READER.describe(tmp_path / "reader").vocabulary()
