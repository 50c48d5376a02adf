"""Tiny random Hugging Face models: every weight far from its default, so that none can be forgotten unnoticed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from torch import Tensor, nn

from megatron_retrieval.types.tokens import TokenBatch

Model = TypeVar("Model", bound=nn.Module)

VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(45)))
NUM_EMBEDDINGS = 100
SHAPE = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}


def tiny_bert() -> transformers.BertModel:
    """A BERT of three layers, in evaluation mode."""
    return _random_model(lambda: transformers.BertModel(transformers.BertConfig(**SHAPE)), seed=1)


def tiny_unigram_bert() -> transformers.BertModel:
    """A BERT of that shape, with words for XLM-R's vocabulary."""
    config = transformers.BertConfig(**{**SHAPE, "vocab_size": ROBERTA_SHAPE["vocab_size"]})
    return _random_model(lambda: transformers.BertModel(config), seed=15)


def tiny_mpnet() -> transformers.MPNetModel:
    """An MPNet of that shape."""
    settings = {"pad_token_id": 1, "max_position_embeddings": 42}
    return _random_model(lambda: transformers.MPNetModel(transformers.MPNetConfig(**{**SHAPE, **settings})), seed=9)


def tiny_distilbert() -> transformers.DistilBertModel:
    """A DistilBERT of that shape."""
    names = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}
    shape = {{**names, "intermediate_size": "hidden_dim"}.get(name, name): value for name, value in SHAPE.items()}
    return _random_model(lambda: transformers.DistilBertModel(transformers.DistilBertConfig(**shape)), seed=10)


ROBERTA_SHAPE = {**SHAPE, "vocab_size": 300, "type_vocab_size": 1, "max_position_embeddings": 42}


def tiny_roberta() -> transformers.RobertaModel:
    """A RoBERTa of that shape, with more words."""
    config = transformers.RobertaConfig(**ROBERTA_SHAPE, layer_norm_eps=1e-5)
    return _random_model(lambda: transformers.RobertaModel(config), seed=12)


def tiny_xlm_roberta() -> transformers.XLMRobertaModel:
    """An XLM-R of that shape."""
    config = transformers.XLMRobertaConfig(**ROBERTA_SHAPE, layer_norm_eps=1e-5)
    return _random_model(lambda: transformers.XLMRobertaModel(config), seed=13)


def tiny_modernbert(local_attention: int = 6) -> transformers.ModernBertModel:
    """A ModernBERT of that shape, with a window that hides most of a text of twenty tokens."""
    shape = {**SHAPE, "vocab_size": 300, "num_hidden_layers": 4, "local_attention": local_attention}
    special = {
        f"{name}_token_id": number for name, number in (("bos", 0), ("cls", 0), ("pad", 1), ("eos", 2), ("sep", 2))
    }
    rope = {"full_attention": {"rope_theta": 500.0}, "sliding_attention": {"rope_theta": 50.0}}
    config = transformers.ModernBertConfig(**shape, **special, rope_parameters=rope, attn_implementation="eager")
    return _random_model(lambda: transformers.ModernBertModel(config), seed=14)


def tiny_masked_lm(encoder: transformers.PreTrainedModel | None = None) -> transformers.PreTrainedModel:
    """A masked language model of the kind and shape of an encoder.

    Args:
        encoder: default: a BERT with so many word embeddings that two ranks share them (some without a token, as public
            models have them).
    """
    config = transformers.BertConfig(**{**SHAPE, "vocab_size": NUM_EMBEDDINGS}) if encoder is None else encoder.config
    return _random_model(lambda: transformers.AutoModelForMaskedLM.from_config(config), seed=5)


def tiny_cross_encoder(
    encoder: transformers.PreTrainedModel | None = None, **settings: Any
) -> transformers.PreTrainedModel:
    """A model of the kind and shape of an encoder with one label.

    Args:
        encoder: default: `tiny_bert`.
        settings: of its configuration.
    """
    config = copy.deepcopy((tiny_bert() if encoder is None else encoder).config)
    config.num_labels = 1
    for name, value in settings.items():
        setattr(config, name, value)
    build = transformers.AutoModelForSequenceClassification.from_config
    return _random_model(lambda: build(config), seed=12)


def tiny_bert_seq2seq() -> transformers.EncoderDecoderModel:
    """A BERT with a shorter decoder of its kind, which shares its embeddings."""
    encoder = transformers.BertConfig(**SHAPE)
    decoder = transformers.BertConfig(**{**SHAPE, "num_hidden_layers": 2}, is_decoder=True, add_cross_attention=True)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    model = _random_model(lambda: transformers.EncoderDecoderModel(config), seed=8)
    model.decoder.bert.embeddings = model.encoder.embeddings
    return model


def tiny_dpr(projection_dim: int) -> tuple[transformers.DPRQuestionEncoder, transformers.DPRContextEncoder]:
    """A question encoder and a context encoder."""
    config = transformers.DPRConfig(**SHAPE, projection_dim=projection_dim)
    questions = _random_model(lambda: transformers.DPRQuestionEncoder(config), seed=2)
    return questions, _random_model(lambda: transformers.DPRContextEncoder(config), seed=3)


T5_SHAPE = {
    "vocab_size": NUM_EMBEDDINGS,
    "d_model": 32,
    "d_kv": 12,
    "d_ff": 48,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 0,
}


def tiny_t5(*, gated: bool, tied: bool, vocab_size: int = NUM_EMBEDDINGS) -> transformers.T5ForConditionalGeneration:
    """A T5 with stacks of different heights and heads that together are wider than its hidden states."""
    config = transformers.T5Config(
        **{**T5_SHAPE, "vocab_size": vocab_size},
        feed_forward_proj="gated-gelu" if gated else "relu",
        tie_word_embeddings=tied,
    )

    def build() -> transformers.T5ForConditionalGeneration:
        model = transformers.T5ForConditionalGeneration(config)
        if not tied:
            # newer releases share the two matrices until a checkpoint with different ones comes
            model.lm_head.weight = nn.Parameter(torch.zeros_like(model.shared.weight))
        return model

    return _random_model(build, seed=6)


CAUSAL_SHAPE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "attn_implementation": "eager",
}
#: model types of causal language models, with what each has beside the others
#: with heads of 8 numbers one pair of coordinates turns more slowly, one a little, two as ever
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
CAUSAL: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (transformers.LlamaConfig, {"tie_word_embeddings": True, "rope_theta": 1000.0}),
    "llama, scaled": (transformers.LlamaConfig, {"rope_parameters": LLAMA_3_ROPE}),
    "mistral": (transformers.MistralConfig, {"sliding_window": 5}),
    "qwen2": (transformers.Qwen2Config, {"head_dim": 8, "use_sliding_window": False}),
    "qwen3": (transformers.Qwen3Config, {"tie_word_embeddings": True}),
}


def tiny_causal(model_type: str, *, with_output: bool = True) -> transformers.PreTrainedModel:
    """A causal language model, in evaluation mode.

    Args:
        with_output: else its stack alone, as embedders are saved.
    """
    config_class, settings = CAUSAL[model_type]
    config = config_class(**{**CAUSAL_SHAPE, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1, **settings})
    build = transformers.AutoModelForCausalLM if with_output else transformers.AutoModel
    return _random_model(lambda: build.from_config(config), seed=11)


def save_with_vocabulary(
    model: transformers.PreTrainedModel, folder: Path, vocabulary: Sequence[str] = VOCABULARY
) -> None:
    """Save the model beside a `vocab.txt`."""
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary))


def random_batch(num_rows: int = 6, num_tokens: int = 12) -> TokenBatch:
    """Token sequences of different lengths, the first one full."""
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(5, len(VOCABULARY), (num_rows, num_tokens), generator=generator)
    lengths = torch.randint(1, num_tokens, (num_rows,), generator=generator)
    lengths[0] = num_tokens
    return TokenBatch(ids, lengths)


def attention_mask(batch: TokenBatch) -> Tensor:
    """[B, T], 1 at real tokens, as Hugging Face expects."""
    return (torch.arange(batch.ids.size(1)) < batch.lengths[:, None]).long()


@torch.no_grad()
def _random_model(build: Callable[[], Model], seed: int) -> Model:
    """The same weights in every process, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    return model.eval()
