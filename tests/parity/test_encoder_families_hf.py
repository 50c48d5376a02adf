"""Every family beside BERT computes what Hugging Face's does, forwards and backwards, at any tensor-parallel size, and
goes to sentence-transformers and back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import transformers
from foreign import re_export
from sentence_transformers import SentenceTransformer, models
from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.format import export_encoder, import_encoder
from megatron_retrieval.checkpoint.huggingface.formats import FORMATS
from megatron_retrieval.checkpoint.kinds.encoder_families import ENCODER_FAMILIES
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.sharding import shard_of
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology, process_topology
from megatron_retrieval.retrieval.retriever import encode_questions
from megatron_retrieval.testing.full_tensors import gather_full
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny_byte_bpe import write_modernbert_bpe, write_roberta_bpe, write_unigram
from megatron_retrieval.testing.tiny_hf import (
    VOCABULARY,
    attention_mask,
    random_batch,
    save_with_vocabulary,
    tiny_distilbert,
    tiny_modernbert,
    tiny_mpnet,
    tiny_roberta,
    tiny_unigram_bert,
    tiny_xlm_roberta,
)

MPNET_VOCABULARY = ["<s>", "<pad>", "</s>", "[UNK]", "[CLS]", *VOCABULARY[5:-1], "<mask>"]
TINY = {
    "mpnet": tiny_mpnet,
    "distilbert": tiny_distilbert,
    "roberta": tiny_roberta,
    "xlm-roberta": tiny_xlm_roberta,
    "modernbert": tiny_modernbert,
}
WORDPIECE = {
    "mpnet": (MPNET_VOCABULARY, transformers.MPNetTokenizer),
    "distilbert": (VOCABULARY, transformers.BertTokenizer),
}
JSON = {
    "bert-unigram": (write_unigram, transformers.XLMRobertaTokenizer),
    "roberta": (write_roberta_bpe, transformers.RobertaTokenizer),
    "xlm-roberta": (write_unigram, transformers.XLMRobertaTokenizer),
    "modernbert": (write_modernbert_bpe, transformers.PreTrainedTokenizerFast),
}
ONES = torch.linspace(-1, 1, 32)
State = dict[str, Tensor]
#: BERT's layers are tried elsewhere
WITH_BERTS = {**TINY, "bert-unigram": tiny_unigram_bert}
every_family = pytest.mark.parametrize("name", TINY)


def _run(topology: ProcessTopology, name: str, settings: dict[str, object], full: State) -> tuple[Tensor, State]:
    """The hidden states of a batch, and the gradient of a weighted sum of them over all real tokens."""
    encoder = ENCODER_FAMILIES[name].from_huggingface(settings, Path("tiny")).build_encoder(topology).eval()
    for parameter_name, parameter in encoder.named_parameters():
        parameter.data.copy_(shard_of(full[parameter_name], parameter, topology.tp_rank, topology.tp_size))
    batch = random_batch(num_tokens=20)
    states = encoder(batch, segments=torch.ones_like(batch.ids))
    (states * ONES)[attention_mask(batch).bool()].sum().backward()
    gradients = {}
    for parameter_name, parameter in encoder.named_parameters():
        parameter.data.copy_(parameter.grad)
        gradients[parameter_name] = gather_full(parameter, topology)
    return states.detach(), gradients


@every_family
@pytest.mark.parametrize("tp_size", [1, 2])
def test_states_and_gradients(name: str, tp_size: int) -> None:
    model, batch = TINY[name](), random_batch(num_tokens=20)
    mask, settings = attention_mask(batch), model.config.to_dict()
    shape = ENCODER_FAMILIES[name].from_huggingface(settings, Path("tiny"))
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("pooler.")}
    full = import_encoder(state, shape, "tiny")
    reference = model(batch.ids, attention_mask=mask).last_hidden_state
    (reference * ONES)[mask.bool()].sum().backward()
    zeros = {key: torch.zeros_like(value) for key, value in state.items()}
    theirs = {**zeros, **{key: value.grad for key, value in model.named_parameters() if value.grad is not None}}
    expected = import_encoder({key: theirs[key] for key in state}, shape, "tiny")
    for states, gradients in run_on_ranks(_run, tp_size, name, settings, full, tensor_model_parallel_size=tp_size):
        torch.testing.assert_close(states[mask.bool()], reference.detach()[mask.bool()], rtol=0, atol=1e-5)
        for parameter_name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[parameter_name], rtol=1e-4, atol=2e-4)
    exported = export_encoder(full, shape)
    assert exported.keys() == state.keys()
    assert all(torch.equal(exported[key], state[key]) for key in state)
    assert ENCODER_FAMILIES[name].from_huggingface(ENCODER_FAMILIES[name].to_huggingface(shape), Path("x")) == shape


@pytest.mark.parametrize("name", WITH_BERTS)
def test_it_goes_through_sentence_transformers(tmp_path: Path, name: str) -> None:
    _save(name, tmp_path / "hf")
    parts = [models.Transformer(str(tmp_path / "hf"), max_seq_length=20), models.Pooling(32, "mean")]
    SentenceTransformer(modules=parts, device="cpu", similarity_fn_name="dot").save(str(tmp_path / "st"))
    found = FORMATS["sentence-transformers"].read([tmp_path / "st"])
    assert ENCODER_FAMILIES.of(found.shape.encoder).name == name
    texts = ["w1 w2 W3, w9", "w4 " * 30, ""]
    expected = SentenceTransformer(str(tmp_path / "st"), device="cpu").encode(texts, convert_to_tensor=True)
    torch.testing.assert_close(_encode(tmp_path / "st", texts), expected, rtol=0, atol=2e-6)
    exported = re_export("sentence-transformers", [tmp_path / "st"], tmp_path / "out")
    again = SentenceTransformer(str(exported), device="cpu").encode(texts, convert_to_tensor=True)
    assert torch.equal(again, expected)
    problem = "the tokenizer is a XLMRoberta" if name == "bert-unigram" else f"model_type is '{name}'; only 'bert'"
    with pytest.raises(CheckpointError, match=problem):
        FORMATS["hf-bert"].read([tmp_path / "hf"])


def _save(name: str, folder: Path) -> None:
    """Model and tokenizer, as transformers saves them."""
    if name in WORDPIECE:
        vocabulary, tokenizer = WORDPIECE[name]
        save_with_vocabulary(TINY[name](), folder, vocabulary)
    else:
        write, tokenizer = JSON[name]
        WITH_BERTS[name]().save_pretrained(folder)
        write(folder)
    tokenizer.from_pretrained(folder).save_pretrained(folder)


def _encode(folder: Path, texts: list[str]) -> Tensor:
    found = FORMATS["sentence-transformers"].read([folder])
    with process_topology(ParallelConfig(device="cpu")) as topology:
        model = found.build(topology).eval()
        return encode_questions(texts, found.vocabulary, found.layout, model.encode_queries, device=topology.device)


@pytest.mark.real_data
def test_all_mpnet_base_v2() -> None:
    """A public checkpoint, where MPNET_FOLDER names its folder."""
    folder = Path(os.environ.get("MPNET_FOLDER", "all-mpnet-base-v2"))
    if not folder.is_dir():
        pytest.skip(f"MPNET_FOLDER names no folder of all-mpnet-base-v2 ({folder} is not here)")
    texts = ["Who discovered radium?", "Marie Skłodowska Curie discovered polonium, naïve 北京. " * 50, "why"]
    expected = SentenceTransformer(str(folder), device="cpu").encode(texts, convert_to_tensor=True)
    torch.testing.assert_close(_encode(folder, texts), expected, rtol=0, atol=1e-5)
