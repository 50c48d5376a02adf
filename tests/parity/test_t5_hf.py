"""T5 computes what Hugging Face's does, layer by layer, and its weights survive the way there and back."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import transformers
from torch import Tensor
from transformers.models.t5.modeling_t5 import T5Attention

from megatron_retrieval.checkpoint.huggingface.t5 import export_t5, import_t5, t5_config_from_hf, t5_config_to_hf
from megatron_retrieval.checkpoint.store.reader import fill_model
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.attention import padding_bias
from megatron_retrieval.models.layer_inputs import TokenCache
from megatron_retrieval.models.memory import EncodedMemory
from megatron_retrieval.models.relative_bias import relative_buckets
from megatron_retrieval.models.t5 import T5, shift_right
from megatron_retrieval.models.t5_config import T5Config, t5_initial_std
from megatron_retrieval.parallel.megatron_compat import seed_dropout
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.parallel.vocab_loss import vocab_parallel_cross_entropy
from megatron_retrieval.testing.full_tensors import gather_full
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny_hf import NUM_EMBEDDINGS, T5_SHAPE, attention_mask, random_batch, tiny_t5
from megatron_retrieval.types.tokens import TokenBatch

State = dict[str, Tensor]
TOLERANCE = 1e-5
NUM_LABELS = 9
BATCH = random_batch()


def _labels() -> Tensor:
    labels = torch.randint(3, NUM_EMBEDDINGS, (len(BATCH), NUM_LABELS), generator=torch.Generator().manual_seed(7))
    # rows of different lengths, padded with the number that Hugging Face skips
    return labels.masked_fill(torch.arange(NUM_LABELS) >= torch.tensor([9, 3, 1, 9, 6, 2])[:, None], -100)


def _config(model: transformers.T5ForConditionalGeneration) -> T5Config:
    return t5_config_from_hf(model.config.to_dict(), "tiny")


def _model(topology: ProcessTopology, config: T5Config, full: State) -> T5:
    model = T5(config, topology)
    fill_model(model, full.keys(), full.__getitem__, topology, source="tiny")
    for name, parameter in model.named_parameters():
        assert torch.equal(gather_full(parameter, topology), full[name]), name
    return model


def _loss(model: T5, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The logits and the mean over real labels."""
    logits = model(BATCH, shift_right(labels))
    kept = logits.detach().clone()
    return kept, vocab_parallel_cross_entropy(logits[labels >= 0], labels[labels >= 0]).mean()


def _compute(topology: ProcessTopology, config: T5Config, full: State) -> dict[str, object]:
    """Hidden states after every part, [B, T, D], logits, loss and full gradients."""
    # no dropout, but the form of attention that training takes
    model = _model(topology, dataclasses.replace(config, hidden_dropout=0.0, attention_dropout=0.0), full).train()
    states: dict[str, list[Tensor]] = {"encoder": [], "decoder": []}
    for name, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        keep = states[name]
        stack.dropout.register_forward_hook(lambda _, __, output, keep=keep: keep.append(output.detach()))
        for layer in stack.layers[:-1]:
            layer.register_forward_hook(lambda _, __, output, keep=keep: keep.append(output.detach()))
    logits, loss = _loss(model, _labels())
    loss.backward()
    gradients = {name: gather_full(p, topology, p.grad) for name, p in model.named_parameters()}
    hidden = {name: [state.transpose(0, 1).contiguous() for state in list_] for name, list_ in states.items()}
    return {"hidden": hidden, "logits": logits, "loss": loss.detach(), "gradients": gradients}


@pytest.mark.parametrize(("gated", "tied"), [(False, True), (True, False), (True, True)])
@pytest.mark.parametrize("tp_size", [1, 2])
def test_hidden_states_logits_loss_and_gradients(tp_size: int, gated: bool, tied: bool) -> None:
    theirs, labels, mask = tiny_t5(gated=gated, tied=tied), _labels(), attention_mask(BATCH)
    config = _config(theirs)
    reference = theirs(BATCH.ids, attention_mask=mask, labels=labels, output_hidden_states=True)
    reference.loss.backward()
    full = import_t5(theirs.state_dict(), config, "tiny")
    gradients = import_t5(_gradients(theirs), config, "tiny")
    results = run_on_ranks(_compute, tp_size, config, full, tensor_model_parallel_size=tp_size)
    for ours in results:
        for stack, real in (("encoder", mask.bool()), ("decoder", torch.ones_like(labels).bool())):
            expected = getattr(reference, f"{stack}_hidden_states")
            _check_states(stack, [_batch_first(state) for state in ours["hidden"][stack]], expected, real)
        torch.testing.assert_close(ours["loss"], reference.loss.detach(), rtol=0, atol=TOLERANCE)
        for name, expected in gradients.items():
            torch.testing.assert_close(ours["gradients"][name], expected, rtol=1e-4, atol=TOLERANCE, msg=name)
    logits = torch.cat([ours["logits"] for ours in results], 2)
    torch.testing.assert_close(logits[:, :, :NUM_EMBEDDINGS], reference.logits.detach(), rtol=0, atol=TOLERANCE)
    assert (logits[:, :, NUM_EMBEDDINGS:] == torch.finfo(torch.float32).min).all()


def _batch_first(state: Tensor) -> Tensor:
    return state if state.size(0) == len(BATCH) else state.transpose(0, 1)


def _check_states(stack: str, ours: list[Tensor], theirs: tuple[Tensor, ...], real: Tensor) -> None:
    assert len(ours) == len(theirs) == 1 + T5_SHAPE["num_layers" if stack == "encoder" else "num_decoder_layers"]
    for number, (state, expected) in enumerate(zip(ours, theirs, strict=True)):
        difference = (state - expected)[real].abs().max().item()
        assert difference < TOLERANCE, f"{stack}, layer {number} (0: embedding) differs by {difference:.1e}"


def _gradients(model: transformers.T5ForConditionalGeneration) -> State:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def _recomputed(topology: ProcessTopology, config: T5Config) -> bool:
    """Whether recomputing the layers gives the same loss and gradients, with dropout and with a bias that learns."""
    results = []
    for granularity in ("none", "full"):
        variant = dataclasses.replace(config, recompute_granularity=granularity, hidden_dropout=0.2)
        model = T5(variant, topology, seed=3).train()
        seed_dropout(1, topology.tp_rank)
        key_bias = torch.linspace(-1, 1, len(BATCH) * BATCH.ids.size(1)).view(len(BATCH), 1, 1, -1).requires_grad_()
        labels = _labels().clamp(min=0)
        logits = model.logits(model.decoder(shift_right(labels), EncodedMemory(model.encoder(BATCH), key_bias)))
        loss = vocab_parallel_cross_entropy(logits, labels).mean()
        loss.backward()
        gradients = [gather_full(parameter, topology, parameter.grad) for parameter in model.parameters()]
        results.append([loss.detach(), key_bias.grad, *gradients])
    return all(torch.allclose(*pair, rtol=1e-5, atol=1e-7) for pair in zip(*results, strict=True))


def test_recompute_changes_nothing() -> None:
    config = _config(tiny_t5(gated=True, tied=False))
    assert run_on_ranks(_recomputed, 2, config, tensor_model_parallel_size=2) == [True, True]


def _precomputed(model: T5, batch: TokenBatch, bias: Tensor) -> EncodedMemory:
    memory = EncodedMemory(model.encoder(batch), bias)
    return memory.precompute(layer.cross_attention for layer in model.decoder.layers)


def _of_any_layout(topology: ProcessTopology, config: T5Config, full: State) -> dict[str, Tensor]:
    """Gradients of a bias on keys, initial weights, and what decoding token by token gives."""
    initial = {name: gather_full(p, topology) for name, p in T5(config, topology, seed=5).named_parameters()}
    model = _model(topology, config, full).eval()
    ids = shift_right(_labels())
    key_bias = torch.zeros(len(BATCH), 1, 1, BATCH.ids.size(1), requires_grad=True)
    whole = model.decoder(ids, EncodedMemory(model.encoder(BATCH), key_bias))
    whole.square().sum().backward()
    with torch.no_grad():
        memory, cache = _precomputed(model, BATCH, key_bias), TokenCache()
        steps = [model.decoder(ids[:, :4], memory, cache)]
        assert cache.num_tokens == 4
        steps += [model.decoder(ids[:, t : t + 1], memory, cache) for t in range(4, NUM_LABELS)]
    return {"bias": key_bias.grad, "whole": whole.detach(), "steps": torch.cat(steps, 1), **initial}


def test_bias_on_keys_cache_and_initial_weights_at_any_layout() -> None:
    theirs = tiny_t5(gated=True, tied=True)
    config = _config(theirs)
    arguments = (config, import_t5(theirs.state_dict(), config, "tiny"))
    (one,) = run_on_ranks(_of_any_layout, 1, *arguments)
    for two in run_on_ranks(_of_any_layout, 2, *arguments, tensor_model_parallel_size=2):
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-4, atol=TOLERANCE, msg=name)
        assert all(torch.equal(two[name], value) for name, value in one.items() if "." in name)
    assert one["bias"].abs().max() > 0.1
    torch.testing.assert_close(one["steps"], one["whole"], rtol=0, atol=TOLERANCE)


def _beams(topology: ProcessTopology, config: T5Config, full: State) -> bool:
    """Sequences of one source side by side, reordered and with a source gone, are what each is alone."""
    model = _model(topology, config, full).eval()
    batch = TokenBatch(BATCH.ids[:3], BATCH.lengths[:3])
    bias = padding_bias(batch.lengths, batch.ids.size(1), torch.float32, batch.ids.device)
    assert bias is not None
    ids, next_ids = shift_right(_labels())[:, :5], torch.tensor([[7], [8], [9], [10]])
    with torch.no_grad():
        states, memory, cache = model.encoder(batch), _precomputed(model, batch, bias), TokenCache()
        first = model.decoder(ids, memory, cache)
        rows = torch.tensor([1, 0, 5, 5])  # two sequences for each of three sources; the second source is done
        cache.select(rows)
        second = model.decoder(next_ids, memory.select(rows, torch.tensor([0, 2])), cache)
        for beam, row in enumerate(rows.tolist()):
            alone = torch.cat([ids[row], next_ids[beam]])[None]
            expected = model.decoder(alone, EncodedMemory(states[row // 2][None], bias[row // 2][None]))[0]
            torch.testing.assert_close(first[row], expected[:-1], rtol=0, atol=TOLERANCE)
            torch.testing.assert_close(second[beam, 0], expected[-1], rtol=0, atol=TOLERANCE)
    return True


def test_several_sequences_of_one_source() -> None:
    theirs = tiny_t5(gated=False, tied=True)
    config = _config(theirs)
    assert run_on_ranks(_beams, 1, config, import_t5(theirs.state_dict(), config, "tiny")) == [True]


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20), (6, 50)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_relative_buckets(num_buckets: int, max_distance: int, is_causal: bool) -> None:
    distances = torch.arange(-1500, 1500)
    expected = T5Attention._relative_position_bucket(distances, not is_causal, num_buckets, max_distance)
    assert torch.equal(relative_buckets(distances, num_buckets, max_distance, is_causal=is_causal), expected)


@pytest.mark.parametrize(("gated", "tied"), [(False, True), (True, False)])
def test_round_trip_is_bit_equal(gated: bool, tied: bool) -> None:
    theirs = tiny_t5(gated=gated, tied=tied)
    state = {name: tensor for name, tensor in theirs.state_dict().items() if "embed_tokens" not in name}
    config = _config(theirs)
    exported = export_t5(import_t5(theirs.state_dict(), config, "tiny"), config)
    if tied:
        del state["lm_head.weight"]
    assert exported.keys() == state.keys()
    assert all(torch.equal(exported[name], state[name]) for name in state)
    assert t5_config_from_hf(t5_config_to_hf(config), "tiny") == config


def test_the_kinds_of_output_are_told_apart() -> None:
    settings = tiny_t5(gated=True, tied=False).config.to_dict()
    assert t5_config_from_hf(settings, "tiny").untie_embeddings_and_output_weights
    # as releases before 5 wrote it
    del settings["scale_decoder_outputs"]
    settings["tie_word_embeddings"] = False
    config = t5_config_from_hf(settings, "tiny")
    assert config.untie_embeddings_and_output_weights
    # newer releases train 1.1 with one matrix for both, and save it once
    state = tiny_t5(gated=True, tied=True).state_dict()
    del state["lm_head.weight"]
    full = import_t5(state, config, "tiny")
    assert torch.equal(full["output"], full["embedding.weight"])


def test_what_makes_no_t5_is_refused() -> None:
    theirs = tiny_t5(gated=False, tied=True)
    state, config, settings = theirs.state_dict(), _config(theirs), theirs.config.to_dict()
    with pytest.raises(CheckpointError, match=r"folder: lm_head\.weight is not shared\.weight"):
        import_t5({**state, "lm_head.weight": torch.zeros(NUM_EMBEDDINGS, 32)}, config, "folder")
    missing = {name: tensor for name, tensor in state.items() if name != "decoder.block.1.layer.2.layer_norm.weight"}
    with pytest.raises(CheckpointError, match=r"folder: 1 weights are missing.*decoder\.block\.1\.layer\.2\.layer"):
        import_t5(missing, config, "folder")
    with pytest.raises(CheckpointError, match=r"folder: 1 weights are missing.*shared\.weight"):
        import_t5({name: tensor for name, tensor in state.items() if "shared" not in name}, config, "folder")
    with pytest.raises(CheckpointError, match=r"folder: 1 weights have no place in T5.*adapter"):
        import_t5({**state, "adapter": torch.zeros(1)}, config, "folder")
    for key, value in (("feed_forward_proj", "gated-silu"), ("model_type", "mt5"), ("pad_token_id", 3)):
        with pytest.raises(CheckpointError, match=f"config.json: {key} is"):
            t5_config_from_hf({**settings, key: value}, "config.json")


@pytest.mark.parametrize("gated", [False, True])
def test_initial_weights_are_spread_as_theirs(gated: bool) -> None:
    """Every matrix of a new model, divided by the standard deviation that ours has, is of unit variance."""
    torch.manual_seed(0)
    shape = {**T5_SHAPE, "d_model": 64, "d_kv": 32, "d_ff": 192, "vocab_size": 500, "num_layers": 1}
    theirs = transformers.T5ForConditionalGeneration(
        transformers.T5Config(**shape, feed_forward_proj="gated-gelu" if gated else "relu")
    )
    config = _config(theirs)
    for name, full in import_t5(theirs.state_dict(), config, "tiny").items():
        if full.dim() == 2:
            unit = full / t5_initial_std(config, name)
            # query, key and value of all heads, each on its own
            parts = unit.unflatten(0, (4, 3, -1)).unbind(1) if "qkv" in name else [unit]
            for part in parts:
                assert part.std().item() == pytest.approx(1, abs=0.3 if "bias" in name else 0.06), name
