"""Token vectors and scores equal those of sentence-transformers' `MultiVectorEncoder` for the folders of ColBERT and of
PyLate, and survive the way there and back."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder
from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.colbert import HF_COLBERT
from megatron_retrieval.checkpoint.huggingface.format import ForeignModel, import_encoder
from megatron_retrieval.checkpoint.huggingface.formats import export_model, format_of, import_model
from megatron_retrieval.checkpoint.huggingface.import_settings import ImportSettingsConfig
from megatron_retrieval.checkpoint.huggingface.pylate import HF_PYLATE
from megatron_retrieval.checkpoint.kinds.encoder_families import MODERNBERT
from megatron_retrieval.checkpoint.kinds.late_interaction import LATE_INTERACTION
from megatron_retrieval.data.layouts.late import LateFormatConfig
from megatron_retrieval.errors import CheckpointError, ConfigError
from megatron_retrieval.models.late_interaction import LateInteractionConfig, max_sim
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.passage_scorers import LateInteractionScorer
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny_byte_bpe import write_modernbert_bpe
from megatron_retrieval.testing.tiny_hf import save_with_vocabulary, tiny_bert, tiny_modernbert
from megatron_retrieval.tokenizers.byte_bpe import ByteBpeTokenizer
from megatron_retrieval.types.questions import Passage
from megatron_retrieval.utils.files import read_json, write_json

#: punctuation that texts have, and tokens that mark questions and passages
VOCABULARY = ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "?"]
VOCABULARY += [f"w{number}" for number in range(40)]
METADATA = {
    "query_token_id": "[unused0]",
    "doc_token_id": "[unused1]",
    "query_maxlen": 12,
    "doc_maxlen": 20,
    "mask_punctuation": True,
    "attend_to_mask_tokens": False,
    "dim": 16,
    "similarity": "cosine",
}


def _texts(most: int, seed: int) -> list[str]:
    chosen = random.Random(seed)
    words = [*VOCABULARY[7:], "unknown"]
    return [" ".join(chosen.choices(words, k=chosen.randint(1, most))) for _ in range(8)]


QUESTIONS, PASSAGES = _texts(14, 0), _texts(26, 1)


def _stanford(folder: Path, vocabulary: Sequence[str] = VOCABULARY, **metadata: object) -> Path:
    model = tiny_bert()
    save_with_vocabulary(model, folder, vocabulary)
    linear = torch.randn(16, 32, generator=torch.Generator().manual_seed(5))
    state = {f"bert.{name}": tensor for name, tensor in model.state_dict().items()}
    save_file({**state, "linear.weight": linear}, folder / "model.safetensors", {"format": "pt"})
    write_json(folder / "config.json", {**read_json(folder / "config.json"), "architectures": ["HF_ColBERT"]})
    write_json(folder / "artifact.metadata", {**METADATA, **metadata})
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "unk_token": "[UNK]", **names})
    return folder


def _scores(topology: ProcessTopology, name: str, folder: str, checkpoint: str) -> Tensor:
    """[questions, passages] of an import that was saved and read again."""
    import_model(name, [Path(folder)], Path(checkpoint), topology)
    loaded = LATE_INTERACTION.load(checkpoint, topology)
    found = loaded.description
    score = LateInteractionScorer(loaded.model, found.layout, found.vocabulary(), topology.device, 3)
    passages = [Passage("1", *text.split(" ", 1)) if " " in text else Passage("1", "", text) for text in PASSAGES]
    return torch.stack([score(question, passages) for question in QUESTIONS])


def _theirs(folder: Path) -> Tensor:
    model = MultiVectorEncoder(str(folder), device="cpu")
    questions, passages = model.encode_query(QUESTIONS), model.encode_document(PASSAGES)
    return torch.stack([torch.stack([(q @ p.t()).amax(1).sum() for p in passages]) for q in questions])


@pytest.mark.parametrize("attend", [False, True], ids=["masks unseen", "masks seen"])
def test_colbert_there_and_back(tmp_path: Path, attend: bool) -> None:
    folder = _stanford(tmp_path / "hf", attend_to_mask_tokens=attend, mask_punctuation=not attend)
    assert format_of(folder) == HF_COLBERT.name
    expected = _theirs(folder)
    for tp_size in (1,) if attend else (1, 2):
        words = (HF_COLBERT.name, str(folder), str(tmp_path / f"checkpoint{tp_size}"))
        for scores in run_on_ranks(_scores, tp_size, *words, tensor_model_parallel_size=tp_size):
            torch.testing.assert_close(scores, expected, rtol=0, atol=2e-5)
    export_model(HF_COLBERT.name, tmp_path / "checkpoint1", tmp_path / "out")
    before, after = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "out"))
    assert after.keys() == {name for name in before if ".pooler." not in name}
    assert all(torch.equal(before[name], after[name]) for name in after)
    assert METADATA.items() - read_json(tmp_path / "out" / "artifact.metadata").items() <= {
        ("attend_to_mask_tokens", False),
        ("mask_punctuation", True),
    }
    assert torch.equal(_theirs(tmp_path / "out"), expected)
    export_model(HF_PYLATE.name, tmp_path / "checkpoint1", tmp_path / "pylate")
    assert format_of(tmp_path / "pylate") == HF_PYLATE.name
    torch.testing.assert_close(_theirs(tmp_path / "pylate"), expected, rtol=0, atol=2e-5)
    again, first = HF_PYLATE.read([tmp_path / "pylate"]), HF_COLBERT.read([folder])
    assert (again.shape, again.layout) == (first.shape, first.layout)
    assert all(torch.equal(again.weights[name], first.weights[name]) for name in first.weights)


def test_markers_behind_the_vocabulary(tmp_path: Path) -> None:
    """PyLate adds its own; and questions need not be filled up."""
    found = HF_COLBERT.read([_stanford(tmp_path / "hf", vocabulary=VOCABULARY[:-2])])
    layout = dataclasses.replace(
        found.layout, query_marker_id=48, passage_marker_id=49, query_augmentation=False, mask_punctuation=False
    )
    (tmp_path / "pylate").mkdir()
    HF_PYLATE.write(dataclasses.replace(found, layout=layout), tmp_path / "pylate")
    assert HF_PYLATE.read([tmp_path / "pylate"]).layout == layout
    MultiVectorEncoder(str(tmp_path / "pylate"), device="cpu").save(str(tmp_path / "later"))
    assert format_of(tmp_path / "later") == HF_PYLATE.name
    assert HF_PYLATE.read([tmp_path / "later"]).layout == layout
    (scores,) = run_on_ranks(_scores, 1, HF_PYLATE.name, str(tmp_path / "pylate"), str(tmp_path / "checkpoint"))
    torch.testing.assert_close(scores, _theirs(tmp_path / "pylate"), rtol=0, atol=2e-5)
    with pytest.raises(CheckpointError, match="not filled up"):
        export_model(HF_COLBERT.name, tmp_path / "checkpoint", tmp_path / "out")


def test_modernbert_of_pylate(tmp_path: Path) -> None:
    """Its vocabulary has what PyLate adds, which a text may become there as here."""
    model = tiny_modernbert(local_attention=30)
    shape = MODERNBERT.from_huggingface(model.config.to_dict(), tmp_path)
    weights = {f"bert.{name}": full for name, full in import_encoder(model.state_dict(), shape, tmp_path).items()}
    weights["linear.weight"] = torch.randn(16, 32, generator=torch.Generator().manual_seed(5))
    vocabulary = ByteBpeTokenizer(write_modernbert_bpe(tmp_path / "words", num_tokens=298))
    layout = LateFormatConfig(query_seq_length=14, retriever_seq_length=20, query_marker_id=298, passage_marker_id=299)
    late = LateInteractionConfig(encoder=shape, colbert_dim=16)
    folder = tmp_path / "pylate"
    folder.mkdir()
    HF_PYLATE.write(ForeignModel(LATE_INTERACTION, late, weights, vocabulary, layout), folder)
    names = (HF_PYLATE.name, str(folder), str(tmp_path / "checkpoint"))
    for scores in run_on_ranks(_scores, 2, *names, tensor_model_parallel_size=2):
        torch.testing.assert_close(scores, _theirs(folder), rtol=0, atol=2e-5)
    export_model(HF_PYLATE.name, tmp_path / "checkpoint", tmp_path / "out")
    assert torch.equal(_theirs(tmp_path / "out"), _theirs(folder))


def test_what_is_no_colbert_is_refused(tmp_path: Path) -> None:
    folder = _stanford(tmp_path / "hf")
    found = HF_COLBERT.read([folder])
    with pytest.raises(ConfigError, match="--pooling: a late-interaction has no such setting"):
        ImportSettingsConfig(pooling="mean").over(found, folder)
    for key, value, fault in (
        ("similarity", "l2", "similarity is 'l2'; only 'cosine'"),
        ("query_token_id", "[unused7]", r"no token '\[unused7\]'"),
    ):
        write_json(folder / "artifact.metadata", {**METADATA, key: value})
        with pytest.raises(CheckpointError, match=fault):
            HF_COLBERT.read([folder])
    write_json(folder / "artifact.metadata", METADATA)
    save_with_vocabulary(tiny_bert(), folder, VOCABULARY)
    with pytest.raises(CheckpointError, match=r"linear\.weight is missing"):
        HF_COLBERT.read([folder])


def test_gradients_of_max_sim() -> None:
    draw = torch.Generator().manual_seed(3)
    questions, passages = (torch.randn(shape, generator=draw).requires_grad_() for shape in ((2, 3, 4), (3, 5, 4)))
    lengths = torch.tensor([5, 2, 4])
    is_token = torch.arange(5) < lengths[:, None]
    masked = passages.masked_fill(~is_token[..., None], 0)
    weights = torch.randn(2, 3, generator=draw)
    ours = torch.autograd.grad((max_sim(questions, masked) * weights).sum(), (questions, passages))
    plain = [
        weights[n, p] * sum((q @ passages[p, : lengths[p]].t()).max() for q in questions[n])
        for n in range(2)
        for p in range(3)
    ]
    theirs = torch.autograd.grad(torch.stack(plain).sum(), (questions, passages))
    torch.testing.assert_close(ours, theirs)


def _kept(topology: ProcessTopology, checkpoint: str) -> list[int]:
    """Texts encoded for each of two questions about the same passages, where all vectors are kept and where none is."""
    found = LATE_INTERACTION.load(checkpoint, topology)
    passages = [Passage(str(number), "", text) for number, text in enumerate(PASSAGES)]
    encoded, scores = list[int](), list[Tensor]()
    found.model.register_forward_pre_hook(lambda _, texts: encoded.append(len(texts[0])))
    for numbers in (1 << 20, 0):
        score = LateInteractionScorer(
            found.model, found.description.layout, found.description.vocabulary(), topology.device, 64, numbers
        )
        for question in QUESTIONS[:2]:
            encoded.append(0)
            scores.append(score(question, passages))
    torch.testing.assert_close(torch.stack(scores[:2]), torch.stack(scores[2:]))
    starts = [place for place, number in enumerate(encoded) if number == 0]
    return [sum(encoded[start:end]) for start, end in zip(starts, [*starts[1:], None], strict=True)]


def test_passages_that_questions_share_are_encoded_once(tmp_path: Path) -> None:
    run_on_ranks(_scores, 1, HF_COLBERT.name, str(_stanford(tmp_path / "hf")), str(tmp_path / "checkpoint"))
    ((first, second, *unkept),) = run_on_ranks(_kept, 1, str(tmp_path / "checkpoint"))
    assert (first, second) == (1 + len(PASSAGES), 1)
    assert unkept == [1 + len(PASSAGES)] * 2
