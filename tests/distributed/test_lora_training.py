"""Training by adapters over a frozen base: what is trained, saved, resumed, merged, and used by later jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.adapter_folders import import_adapter
from megatron_retrieval.checkpoint.huggingface.formats import export_model
from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.checkpoint.kinds.mean_of_weights import save_mean
from megatron_retrieval.checkpoint.store.folders import resolve_checkpoint
from megatron_retrieval.checkpoint.store.manifest import read_manifest
from megatron_retrieval.checkpoint.store.merged import MergedWeights
from megatron_retrieval.checkpoint.store.reader import TensorReader
from megatron_retrieval.config.parser import parse_config
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.adapters import LoraConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.runs import FINETUNE, LAYOUTS, curve, rewind, train
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import random_texts, write_tiny_dpr
from megatron_retrieval.testing.tiny_hf import attention_mask
from megatron_retrieval.types.tokens import TokenBatch

SHAPE = "--num-layers 1 --hidden-size 128 --num-attention-heads 4 --ffn-hidden-size 256 --max-position-embeddings 32"
SETTINGS = (
    "--retriever-seq-length 32 --query-seq-length 16 --no-tensorboard --log-interval 1 --global-batch-size 8 "
    "--hidden-dropout 0 --attention-dropout 0 --save-interval 2 --lr-warmup-fraction 0 --lr-decay-style constant"
)
LORA = ("--lora-rank", "2", "--lora-alpha", "4", "--lr", "1e-2")
KINDS = {"fp32": (), "nf4": ("--lora-base-dtype", "nf4")}


def _words(folder: Path, run: str, *more: str, start: str = "base") -> list[str]:
    words = ["--train-data", f"{folder}/biencoder.json", *SETTINGS.split(), "--output-dir", f"{folder}/{run}"]
    words += ["--save", f"{folder}/{run}/saved", *more]
    return words if start == "" else [*words, "--pretrained-checkpoint", f"{folder}/{start}/saved"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and a run of four steps over it with and without quantising."""
    folder = tmp_path_factory.mktemp("lora")
    write_tiny_dpr(folder)
    base = [*SHAPE.split(), "--vocab-file", f"{folder}/vocab.txt", "--train-iters", "1", "--lr", "0"]
    train(FINETUNE, _words(folder, "base", *base, start=""))
    for name, more in KINDS.items():
        train(FINETUNE, _words(folder, name, "--train-iters", "4", *LORA, *more))
    return folder


def _texts() -> TokenBatch:
    texts = random_texts(3, 12, 3)
    return TokenBatch(texts.ids % 20, texts.lengths)


def _vectors(topology: ProcessTopology, folder: str, names: list[str]) -> list[Tensor]:
    """Of the same texts, by models as they were saved; the last one's adapters merged."""
    texts = _texts()
    with torch.no_grad():
        found = [DUAL_ENCODER.load(f"{folder}/{name}/saved", topology).model.encode_queries(texts) for name in names]
        saved = DUAL_ENCODER.describe(f"{folder}/{names[-1]}/saved")
        merged = save_mean([saved], Path(folder) / "merged" / names[-1], topology)
        return [*found, DUAL_ENCODER.load(merged, topology).model.encode_queries(texts)]


@pytest.mark.parametrize("name", KINDS)
def test_checkpoints_hold_adapters_and_name_the_base(folder: Path, name: str) -> None:
    """The base is what was there, or its quantised form beside the checkpoints; it is the same after training."""
    saved, start = resolve_checkpoint(folder / name / "saved"), resolve_checkpoint(folder / "base" / "saved")
    stored = load_file(saved / "model.tp0of1.safetensors")
    assert stored
    assert all(".adapter." in weight for weight in stored)
    moments = load_file(saved / "optimizer.tp0of1.safetensors")
    assert {moment.split(".", 1)[1] for moment in moments} == stored.keys()
    manifest = read_manifest(saved)
    assert manifest.base is not None
    base = start if name == "fp32" else folder / name / "saved" / "base" / "iter_0000000"
    assert (saved / manifest.base.path).resolve() == base.resolve()
    assert manifest.base.fingerprint == read_manifest(base).fingerprint
    before = TensorReader(start, read_manifest(start))
    after = MergedWeights(saved, manifest)
    assert after.names() == before.names()
    plain = [weight for weight in before.names() if "linear" not in weight or weight.endswith("bias")]
    assert all(torch.equal(after.full(weight), before.full(weight)) for weight in plain)
    if name == "nf4":
        quantised = MergedWeights(base, read_manifest(base))
        error = max(float((quantised.full(w) - before.full(w)).abs().max()) for w in before.names())
        assert 0 < error < 0.02


@pytest.mark.parametrize("name", KINDS)
def test_merged_is_unmerged(folder: Path, name: str) -> None:
    ((base, adapted, merged),) = run_on_ranks(_vectors, 1, str(folder), ["base", name])
    assert torch.allclose(adapted, merged, atol=1e-5)
    assert not torch.allclose(adapted, base, atol=1e-2)


def _mean(topology: ProcessTopology, folder: str) -> list[Tensor]:
    """A matrix of the base, of a model with adapters, and of a mean of both."""
    found = [DUAL_ENCODER.describe(f"{folder}/{name}/saved") for name in ("base", "fp32")]
    mean = DUAL_ENCODER.describe(save_mean(found, Path(folder) / "mean", topology, (0.25, 0.75)))
    matrix = "towers.query.bert.encoder.layers.0.self_attention.linear_qkv.weight"
    return [MergedWeights(one.folder, one.manifest).full(matrix) for one in (*found, mean)]


def test_a_mean_has_shares(folder: Path) -> None:
    ((base, adapted, mean),) = run_on_ranks(_mean, 1, str(folder))
    assert not torch.equal(base, adapted)
    assert torch.allclose(mean, 0.25 * base + 0.75 * adapted, atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_step_0_is_the_base(folder: Path, name: str) -> None:
    """The first loss is that of the run without adapters; quantised, close to it. Then they learn."""
    losses = curve(folder / name)
    (expected,) = curve(folder / "base")
    assert losses[0] == expected if name == "fp32" else losses[0] == pytest.approx(expected, rel=0.02)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("name", "layout"), [("fp32", "TP 2"), ("nf4", "TP 2"), ("fp32", "DP 2")])
def test_ranks_do_not_matter(folder: Path, name: str, layout: str) -> None:
    run = f"{name} {layout}".replace(" ", "-")
    train(FINETUNE, _words(folder, run, "--train-iters", "3", *LORA, *KINDS[name]), *LAYOUTS[layout])
    assert curve(folder / run) == pytest.approx(curve(folder / name)[:3], rel=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_resumed_is_uninterrupted(folder: Path, name: str) -> None:
    """From step 2, with the adapters' settings left to the checkpoint; the base is not made anew."""
    saved = folder / name / "saved"
    expected = load_file(saved / "iter_0000004" / "model.tp0of1.safetensors")
    rewind(saved, 2)
    train(FINETUNE, _words(folder, name, "--train-iters", "4", "--load", str(saved), "--lr", "1e-2"))
    found = load_file(saved / "iter_0000004" / "model.tp0of1.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[weight], expected[weight]) for weight in expected)


def _refusals(topology: ProcessTopology, cases: list[list[str]]) -> list[str]:
    found = []
    for words in cases:
        with pytest.raises(ConfigError) as error:
            FINETUNE.build(parse_config(FINETUNE.config, words), topology)
        found.append(str(error.value))
    return found


def _memory(topology: ProcessTopology, folder: str, name: str) -> list[int]:
    """Bytes of the frozen matrices of one model, of these in memory beside a second model, and of all as counted."""
    models = [DUAL_ENCODER.load(f"{folder}/{name}/saved", topology).model for _ in range(2)]
    frozen = [[p for p in model.parameters() if not p.requires_grad and p.dim() > 1] for model in models]
    once = {p.data_ptr(): p.nbytes for own in frozen for p in own}
    return [sum(p.nbytes for p in frozen[0]), sum(once.values()), sum(p.nbytes for own in frozen for p in own)]


@pytest.mark.parametrize("name", KINDS)
def test_the_base_is_in_memory_once(folder: Path, name: str) -> None:
    ((one, together, counted),) = run_on_ranks(_memory, 1, str(folder), name)
    assert 0 < one == together
    assert counted == 2 * one


def _import(topology: ProcessTopology, folder: str) -> None:
    root = Path(folder)
    import_adapter([root / "exported"], root / "base" / "saved", root / "again" / "saved", topology)


def test_peft_opens_what_is_exported_and_it_comes_back(folder: Path) -> None:
    """The base as Hugging Face's folders, the adapters as PEFT's; both directions compute what the checkpoint does."""
    export_model("hf-bert", folder / "base" / "saved", folder / "plain")
    export_model("hf-bert", folder / "fp32" / "saved", folder / "merged-hf")
    export_model("peft", folder / "fp32" / "saved", folder / "exported")
    run_on_ranks(_import, 1, str(folder))
    ((adapted, again, _),) = run_on_ranks(_vectors, 1, str(folder), ["fp32", "again"])
    assert torch.equal(adapted, again)
    texts = _texts()
    with torch.no_grad():
        base = transformers.BertModel.from_pretrained(folder / "plain" / "question_encoder", add_pooling_layer=False)
        merged = transformers.BertModel.from_pretrained(
            folder / "merged-hf" / "question_encoder", add_pooling_layer=False
        )
        theirs = peft.PeftModel.from_pretrained(base, str(folder / "exported" / "question_encoder"))
        for model in (merged, theirs):
            vectors = model.eval()(input_ids=texts.ids, attention_mask=attention_mask(texts))[0][:, 0]
            assert torch.allclose(vectors, adapted, atol=1e-4)
    stored = load_file(resolve_checkpoint(folder / "again" / "saved") / "model.tp0of1.safetensors")
    assert all(".adapter." in weight for weight in stored)


REFUSED: dict[str, tuple[list[str], str]] = {
    "another rank": (["--load", "{}/fp32/saved", "--lora-rank", "3"], "--lora-rank 3 (was 2)"),
    "no adapters": (["--load", "{}/fp32/saved", "--lora-rank", "0"], "--lora-rank none (was 2)"),
    "no rank": (["--lora-rank", "0", "--lora-base-dtype", "nf4"], "nf4 leaves nothing to train"),
    "no linear": (["--lora-rank", "2", "--lora-targets", "q_proj"], "--lora-targets q_proj: the model's linears are"),
}


def test_other_settings_are_refused(folder: Path) -> None:
    cases = [_words(folder, "refused", *[word.format(folder) for word in words]) for words, _ in REFUSED.values()]
    (found,) = run_on_ranks(_refusals, 1, cases)
    assert all(message in said for said, (_, message) in zip(found, REFUSED.values(), strict=True))
    with pytest.raises(ConfigError, match="--lora-alpha has no effect without --lora-rank"):
        LoraConfig(lora_alpha=3.0)


def _all_trained(topology: ProcessTopology, runs: list[list[str]]) -> list[dict[str, Any]]:
    return [_trained(topology, words) for words in runs]


def _trained(topology: ProcessTopology, words: list[str]) -> dict[str, Any]:
    """What a run allocates for the weights that it trains."""
    trainer = FINETUNE.build(parse_config(FINETUNE.config, words), topology)
    named = dict(trainer.model.module.named_parameters())
    return {
        "trained": sum(p.numel() for p in named.values() if p.requires_grad),
        "buffer_bytes": sum(buffer.grad_data.nbytes for buffer in trainer.model.ddp.buffers),
        "passages": sum(p.numel() for name, p in named.items() if p.requires_grad and ".passage." in name),
        "state": sum(tensor.nbytes for tensor in trainer.optimizer.state_tensors().values()),
        "frozen_bytes": sum(p.nbytes for name, p in named.items() if "linear" in name and not p.requires_grad),
    }


def test_the_frozen_base_is_in_no_buffer(folder: Path) -> None:
    """Two towers of one layer: A and B of rank 2 for query, key, value, projection and two matrices of 128 x 256."""
    per_layer = 3 * 2 * (128 + 128) + 2 * (128 + 128) + 2 * 2 * (128 + 256)
    runs = [_words(folder, "measured", *LORA, *more) for more in ((), KINDS["nf4"], ("--freeze-passage-encoder",))]
    ((plain, quantised, frozen),) = run_on_ranks(_all_trained, 1, runs)
    assert (plain["passages"], frozen["passages"], frozen["trained"]) == (per_layer, 0, per_layer)
    for found in (plain, quantised):
        assert found["trained"] == 2 * per_layer
        assert found["buffer_bytes"] == 4 * found["trained"]
        assert found["state"] == 2 * 4 * found["trained"]
    assert quantised["frozen_bytes"] < 0.2 * plain["frozen_bytes"]
