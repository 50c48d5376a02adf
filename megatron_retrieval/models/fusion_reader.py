"""Fusion in the decoder (Izacard & Grave 2021, arXiv 2007.01282): passages are encoded separately and read jointly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.models.encoded_sources import EncodedSources
from megatron_retrieval.models.memory import EncodedMemory
from megatron_retrieval.models.score_attention import ScoreForm, choose_form
from megatron_retrieval.models.seq2seq import EncoderDecoder
from megatron_retrieval.models.t5 import shift_right
from megatron_retrieval.parallel.vocab_loss import vocab_parallel_cross_entropy, vocab_parallel_log_softmax
from megatron_retrieval.types.tokens import WIDTH_STEP, TokenBatch, by_length, real_lengths, to_device


@dataclass(kw_only=True, frozen=True)
class FusionEncodeConfig(Checked):
    """Batching and attention of a fusion reader."""

    encode_batch_size: PositiveInt = 8
    """Texts in one forward pass of a fusion reader's encoder, or in end-to-end training of any reader, grouped by
    length. Changes memory and speed, not the result."""
    score_attention: Literal["auto", "explicit", "mask", "feature"] = "auto"
    """How passage scores and padding masks are added in the decoder's attention. explicit: without fused kernels; mask:
    as the mask of fused kernels; feature: as additional features of the keys, for kernels without a mask. auto: feature
    on CUDA where a flash kernel supports the model's dtype and head width, else mask. Changes speed and memory, not the
    result."""


@dataclass(frozen=True)
class _PackedTexts:
    """The encoded tokens of B questions' K texts.

    Attributes:
        states: [B, S, D], zero at padding; S is the most real tokens of a question, rounded up.
        lengths: [B] int64 on the CPU.
        text_of: [B, S] int64, index of the text of every token among its question's; K at padding.
    """

    states: Tensor
    lengths: Tensor
    text_of: Tensor

    def bias(self, passage_scores: Tensor) -> Tensor:
        """[B, 1, 1, S] in the dtype of the scores [B, K]: the lowest number of the states' dtype at padding, and at
        every token of a passage its score."""
        at_padding = passage_scores.new_full((len(passage_scores), 1), torch.finfo(self.states.dtype).min)
        return torch.cat([passage_scores, at_padding], 1).gather(1, self.text_of)[:, None, None, :]


class FusionReader(nn.Module):
    """An encoder-decoder that reads K texts per question.

    Args:
        model: holds all parameters.

    Attributes:
        score_form: how scores enter attention on this device, with this dtype and head width; see `score_attention`.
    """

    def __init__(self, model: EncoderDecoder, config: FusionEncodeConfig | None = None) -> None:
        super().__init__()
        self.model: EncoderDecoder = model
        self.config = config or FusionEncodeConfig()
        weight = next(self.parameters())
        self.score_form: ScoreForm = choose_form(
            self.config.score_attention, weight.device, weight.dtype, model.decoder.head_width
        )

    def forward(
        self,
        texts: TokenBatch,
        is_real: Tensor,
        decoder_ids: Tensor,
        passage_scores: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """The logits of next tokens.

        Args:
            texts: B * K rows, the K texts of a question in consecutive rows; like `is_real` best on the CPU, from where
                they are taken batch by batch: on a GPU they make the host wait.
            is_real: [B, K] bool; fillers are neither encoded nor read.
            decoder_ids: [B * n, L] int64, n sequences per question in consecutive rows.
            passage_scores: [B, K] added to the cross-attention logits of every head, layer and token; the gradient is
                right at any tensor-parallel size.
            places: [M] int64, row * L + column of `decoder_ids` of the tokens whose logits are computed; default: all.

        Returns:
            [M, V / tensor-parallel size] float32 (default: [B * n, L, V / tensor-parallel size]), see
            `EncoderDecoder.logits`.
        """
        states = self.model.decoder(decoder_ids, self.encode(texts, is_real, passage_scores))
        return self.model.logits(states if places is None else states.flatten(0, 1)[places])

    def encode(self, texts: TokenBatch, is_real: Tensor, passage_scores: Tensor | None = None) -> EncodedMemory:
        """Encode the real ones of B * K texts; a question's source is the concatenation of its texts' real tokens.

        Args:
            passage_scores: [B, K] added to the cross-attention logits at every token of a passage, differentiable,
                best in float32: rounding depends on `score_form`. Those of fillers are ignored.
        """
        packed = self._pack(texts, is_real)
        if passage_scores is None:
            return EncodedMemory.of_texts(packed.states, packed.lengths, self.score_form)
        return EncodedMemory(packed.states, packed.bias(passage_scores), self.score_form)

    def sources(self, texts: TokenBatch, is_real: Tensor, passage_scores: Tensor | None = None) -> EncodedSources:
        """B sources to decode answers from, see `encode`."""
        return EncodedSources(self.model, self.encode(texts, is_real, passage_scores))

    def _pack(self, texts: TokenBatch, is_real: Tensor) -> _PackedTexts:
        num_questions, num_texts = is_real.shape
        lengths = real_lengths(texts, is_real.cpu())
        totals = lengths.sum(1)
        width = -(-int(totals.max()) // WIDTH_STEP) * WIDTH_STEP
        starts = (torch.arange(num_questions)[:, None] * width + lengths.cumsum(1) - lengths).flatten()
        owner = torch.full((num_questions * width,), num_texts)
        states, places = [], []
        for rows, batch in self._encoder_batches(texts, is_real):
            columns = torch.arange(batch.ids.size(1))
            is_token = columns < batch.lengths[:, None]
            encoded = self.model.encoder(batch).flatten(0, 1)
            states.append(encoded[to_device(is_token.flatten().nonzero()[:, 0], encoded.device)])
            places.append((starts[rows, None] + columns)[is_token])
            owner[places[-1]] = (rows % num_texts).repeat_interleave(batch.lengths)
        found = torch.cat(states)
        place, owner = (to_device(part, found.device) for part in (torch.cat(places), owner))
        packed = found.new_zeros(num_questions * width, found.size(1)).index_copy(0, place, found)
        return _PackedTexts(packed.view(num_questions, width, -1), totals, owner.view(num_questions, width))

    def score_each(self, texts: TokenBatch, is_real: Tensor, labels: Tensor) -> Tensor:
        """log p(answer | question, passage) of every passage separately: the sums of `score_tokens` over the answer.

        Returns:
            [B, K] float32; -inf for fillers.
        """
        scores = self.score_tokens(texts, is_real, labels).sum(2)
        return scores.masked_fill(~to_device(is_real, scores.device), -torch.inf)

    def score_tokens(self, texts: TokenBatch, is_real: Tensor, labels: Tensor) -> Tensor:
        """log p(token | previous tokens, question, passage) of every passage separately.

        Args:
            texts, is_real: see `forward`; fillers are not read.
            labels: [B, L] int64 on the CPU, each question's answer with its end token, padded with -1.

        Returns:
            [B, K, L] float32, equal on all tensor-parallel ranks; 0 at padding and for fillers.
        """
        scores = torch.zeros(is_real.numel() * labels.size(1), device=self._device)
        for logits, targets, slots in self._each_logits(texts, is_real, labels):
            scores = scores.index_copy(0, slots, -vocab_parallel_cross_entropy(logits, targets))
        return scores.view(*is_real.shape, -1)

    def score_vocabulary(
        self, texts: TokenBatch, is_real: Tensor, labels: Tensor, tp_group: dist.ProcessGroup
    ) -> Tensor:
        """log p(v | previous tokens, question, passage) of every passage separately, for every token v.

        Args:
            texts, is_real, labels: see `score_tokens`.
            tp_group: the ranks that share the vocabulary.

        Returns:
            [B, K, L, V / tensor-parallel size] float32, this rank's part of the vocabulary; the lowest number at
            entries without a token, 0 behind the answers and for fillers.
        """
        parts, places = [], []
        for logits, _, slots in self._each_logits(texts, is_real, labels):
            parts.append(vocab_parallel_log_softmax(logits, tp_group))
            places.append(slots)
        found = torch.cat(parts)
        scores = found.new_zeros(is_real.numel() * labels.size(1), found.size(1)).index_copy(
            0, torch.cat(places), found
        )
        return scores.view(*is_real.shape, labels.size(1), -1)

    def _each_logits(
        self, texts: TokenBatch, is_real: Tensor, labels: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Of the answers' tokens after batches of single texts: logits [M, V / tensor-parallel size], the tokens [M],
        and the places [M] of both among [B * K * L]."""
        device, num_labels = self._device, labels.size(1)
        for rows, batch in self._encoder_batches(texts, is_real):
            own_labels = labels[rows // is_real.size(1)]
            owners, columns = (own_labels >= 0).nonzero(as_tuple=True)
            places, targets, slots = (
                to_device(part, device)
                for part in (
                    owners * num_labels + columns,
                    own_labels[owners, columns],
                    rows[owners] * num_labels + columns,
                )
            )
            memory = EncodedMemory.of_texts(self.model.encoder(batch), batch.lengths, self.score_form)
            decoded = self.model.decoder(to_device(shift_right(own_labels, self.model.start_id), device), memory)
            yield self.model.logits(decoded.flatten(0, 1)[places]), targets, slots

    def _encoder_batches(self, texts: TokenBatch, is_real: Tensor) -> Iterator[tuple[Tensor, TokenBatch]]:
        """The rows of real texts, on the CPU, in batches of similar length, each as wide as its longest text and on the
        reader's device."""
        rows = is_real.cpu().flatten().nonzero()[:, 0]
        for index in by_length(texts.lengths[rows], self.config.encode_batch_size):
            yield rows[index], texts.rows(rows[index]).to(self._device)

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device
