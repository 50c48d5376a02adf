"""Causal language models of Llama's kind (Touvron et al. 2023, arXiv 2302.13971): RMSNorm before each part, rotary
positions, heads that share keys and values (Ainslie et al. 2023, arXiv 2305.13245), SwiGLU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from torch import Tensor, nn

from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.attention import causal_bias
from megatron_retrieval.models.causal_config import CausalShape, causal_engine_config
from megatron_retrieval.models.dropout import Dropout
from megatron_retrieval.models.encoder import EncoderShape
from megatron_retrieval.models.engine import num_real_rows, vocab_parallel_logits, word_embeddings
from megatron_retrieval.models.initialise import initialise_normal
from megatron_retrieval.models.layer_inputs import LayerInputs, TokenCache
from megatron_retrieval.models.layers import LayerStack, norm, transformer_layer
from megatron_retrieval.models.memory import by_head
from megatron_retrieval.models.packing import Packing, pack, packed_places
from megatron_retrieval.models.prompt import Prompts
from megatron_retrieval.models.rotary import Rotary
from megatron_retrieval.models.sharding import mark_padded
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.types.tokens import TokenBatch, to_device

#: beginning of all prompts that is read once rather than for each; shorter ones cost no time
MIN_SHARED_TOKENS = 8


@dataclass(kw_only=True, frozen=True)
class CausalConfig(CausalShape, EncoderShape):
    """Shape and regularisation of a causal language model, which encodes texts too: a token sees those before it."""

    @property
    def is_causal(self) -> bool:
        """See EncoderShape."""
        return True

    def build_encoder(self, topology: ProcessTopology, dtype: torch.dtype = torch.float32) -> CausalStack:
        """See EncoderShape."""
        return CausalStack(self, topology, dtype)

    def initial_std(self, name: str) -> float:
        """Standard deviation of the initial weights of the matrix `name`."""
        return self.init_method_std


class CausalStack(nn.Module):
    """Token ids to hidden states, each of which depends on the tokens up to its own; an `Encoder`.

    Parameters are sharded over `topology`'s tensor-parallel group; the caller initialises or loads them.
    """

    def __init__(self, config: CausalConfig, topology: ProcessTopology, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        engine, self.config = causal_engine_config(config, topology.tp_size, dtype), config
        self.embedding = word_embeddings(config.vocab_size, engine, topology.groups)
        recompute = config.recompute_granularity == "full"
        self.decoder = LayerStack(
            transformer_layer(engine, topology.groups, norm_place="before", recompute=recompute)
            for _ in range(config.num_layers)
        )
        self.final_layernorm = norm(engine)
        self.dropout = Dropout(config.hidden_dropout)
        self.to(dtype)

    def forward(self, batch: TokenBatch, segments: Tensor | None = None) -> Tensor:
        """[B, T] ids -> [B, T, D] hidden states in the model's dtype, zero at padding; see `Encoder`."""
        states = batch.ids.new_zeros(*batch.ids.shape, self.config.hidden_size, dtype=self._weight.dtype)
        packed, packing = self.read(batch)
        return states.index_put((packing.rows, packing.columns), packed)

    def read(self, batch: TokenBatch, cache: TokenCache | None = None) -> tuple[Tensor, Packing]:
        """[N, D] hidden states of the real tokens, text by text, and where they stand; padding is not computed.

        Args:
            cache: takes keys and values of all tokens, [T, B, ...] with padding; the texts continue what it has seen.

        Raises:
            ConfigError: a text is longer than the positions.
        """
        ids, packing, inputs = self.prepared(batch, cache)
        return self._run(ids, inputs)[:, 0], packing

    def prepared(self, batch: TokenBatch, cache: TokenCache | None) -> tuple[Tensor, Packing, LayerInputs]:
        """[N, 1] ids of the real tokens, where they stand, and what the layers need beside their states."""
        num_seen = 0 if cache is None else cache.num_tokens
        self._require_positions(num_seen + int(batch.lengths.max()))
        ids, packing = pack(batch, self._weight.device)
        positions = packing.columns[:, None] + num_seen
        is_plain = num_seen == 0 and not self._is_cut(packing.num_columns)
        bias = None if is_plain else self._bias(packing.num_columns, num_seen)
        rotary_positions = self._rotary(positions)
        inputs = LayerInputs(bias, cache=cache, rotary=rotary_positions, packing=packing, is_causal=is_plain)
        return ids[:, None], packing, inputs

    def prepared_token(self, cache: TokenCache) -> LayerInputs:
        """What the layers need for one more token of each of the sequences in the cache, which are of one length."""
        place = cache.num_tokens
        self._require_positions(place + 1)
        angles = self._rotary(torch.tensor([[place]], device=self._weight.device))
        return LayerInputs(self._bias(1, place), cache=cache, rotary=angles)

    def step(self, ids: Tensor, prompts: Prompts, cache: TokenCache) -> Tensor:
        """[R, D] hidden states of the newest token of R sequences, n for each prompt in consecutive rows.

        Args:
            ids: [R, 1] int64, the newest tokens, which `cache` takes.

        Raises:
            ConfigError: the longest prompt and what is written behind it are longer than the positions.
        """
        self._require_positions(prompts.longest + cache.num_tokens + 1)
        positions = prompts.positions(len(ids)) + cache.num_tokens
        bias = prompts.bias(self.config.window_size, cache.num_tokens + 1)
        memory, angles = prompts.memory_at(cache.num_tokens), self._rotary(positions[None])
        inputs = LayerInputs(bias, memory, cache, angles, prompts=prompts)
        return self._run(ids.t(), inputs)[0]

    def _run(self, ids: Tensor, inputs: LayerInputs) -> Tensor:
        """[L, R] ids -> [L, R, D]."""
        states = self.decoder(self.dropout(self.embedding(ids)), inputs)
        output: Tensor = self.final_layernorm(states)
        return output

    def _require_positions(self, num_tokens: int) -> None:
        if num_tokens > self.config.max_position_embeddings:
            raise ConfigError(
                f"a sequence of {num_tokens} tokens exceeds the model's {self.config.max_position_embeddings} "
                "positions; lower the sequence length, the number of passages in a prompt, or --max-answer-length."
            )

    def _rotary(self, positions: Tensor) -> Rotary:
        return self.config.rotary(positions, self._weight.dtype)

    def _is_cut(self, num_tokens: int) -> bool:
        return self.config.window_size is not None and num_tokens > self.config.window_size

    def _bias(self, num_tokens: int, num_seen: int) -> Tensor | None:
        weight = self._weight
        return causal_bias(num_tokens, num_seen, weight.dtype, weight.device, window=self.config.window_size)

    @property
    def _weight(self) -> Tensor:
        """One that tells type and device."""
        weight: Tensor = self.embedding.weight
        return weight


class CausalLM(nn.Module):
    """A stack with an output layer over its vocabulary.

    Args:
        config: shape of the model.
        topology: parameters are sharded over its tensor-parallel group, on its device.
        dtype: of parameters and activations.
        seed: of the initial weights, which are equal at any tensor-parallel size.
    """

    def __init__(
        self, config: CausalConfig, topology: ProcessTopology, dtype: torch.dtype = torch.float32, *, seed: int = 0
    ) -> None:
        super().__init__()
        self.config, self._groups = config, topology.groups
        self.stack = config.build_encoder(topology, dtype)
        word_matrix = self.stack.embedding.weight
        self._num_real = num_real_rows(config.vocab_size, word_matrix.size(0), topology.tp_rank)
        self.output = None
        if config.untie_embeddings_and_output_weights:
            self.output = nn.Parameter(torch.zeros_like(word_matrix))
            set_tensor_model_parallel_attributes(self.output, is_parallel=True, dim=0, stride=1)
            mark_padded(self.output, config.vocab_size)
        initialise_normal(self, topology, std=config.initial_std, seed=seed)
        self.to(topology.device)

    def forward(self, tokens: TokenBatch, places: Tensor) -> Tensor:
        """The logits of the tokens after those at `places`.

        Args:
            tokens: B sequences, padded to T.
            places: [M] int64 on the model's device, b * T + t for row b and column t of a real token.

        Returns:
            [M, V / tensor-parallel size] float32, as `logits`.
        """
        states, _ = self.stack.read(tokens)
        lengths = to_device(tokens.lengths, places.device)
        return self.logits(states.index_select(0, packed_places(lengths, places, tokens.ids.size(1))))

    @torch.no_grad()
    def read_prompts(self, tokens: TokenBatch) -> Prompts:
        """Read B prompts of two or more tokens, for generation to continue them.

        Padding is not computed, and the tokens that all of them begin with (an instruction) are read once.
        """
        cache, lengths = TokenCache(), tokens.lengths - 1
        device = self.stack.embedding.weight.device
        if num_shared := _num_shared(tokens.ids, int(lengths.min())):
            self.stack.read(TokenBatch(tokens.ids[:1, :num_shared], torch.tensor([num_shared])), cache)
            cache.select(torch.zeros(len(tokens), dtype=torch.int64, device=device))
        rest = tokens.ids[:, num_shared : int(lengths.max())]
        self.stack.read(TokenBatch(rest, lengths - num_shared), cache)
        newest = to_device(tokens.ids.gather(1, lengths.to(tokens.ids.device)[:, None])[:, 0], device)
        computed = {attention: by_head(*parts) for attention, parts in cache.computed.items()}
        is_padded = bool((lengths < lengths.max()).any())
        return Prompts(computed, to_device(lengths, device), newest, is_padded, int(lengths.max()))

    def logits(self, states: Tensor) -> Tensor:
        """[..., D] hidden states -> [..., V / tensor-parallel size] float32, this rank's part of the (padded)
        vocabulary; the lowest number at entries beyond `vocab_size`."""
        matrix = self.stack.embedding.weight if self.output is None else self.output
        return vocab_parallel_logits(states, matrix, None, self._num_real, self._groups)


def _num_shared(ids: Tensor, shortest: int) -> int:
    """How many tokens B texts of `shortest` tokens or more begin with alike, if reading them once is worth it; each
    keeps one of its own.

    Args:
        ids: [B, T] on the CPU.
    """
    differs = (ids[:, : shortest - 1] != ids[:1, : shortest - 1]).any(0)
    num_shared = int(differs.int().argmax()) if bool(differs.any()) else len(differs)
    return num_shared if num_shared >= MIN_SHARED_TOKENS and len(ids) > 1 else 0
