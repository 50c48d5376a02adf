"""The losses of RAG are those of Hugging Face's RAG, whose labels begin with the start token."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import RagSequenceForGeneration, RagTokenForGeneration

from megatron_retrieval.objectives.end_to_end import individual_topk, log_priors, rag_token

NUM_QUESTIONS, NUM_PASSAGES, LENGTH, VOCABULARY = 4, 3, 6, 11
PAD = 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_are_hugging_faces(smoothing: float) -> None:
    random = torch.Generator().manual_seed(5)
    logits = torch.randn(NUM_QUESTIONS * NUM_PASSAGES, LENGTH, VOCABULARY, generator=random)
    scores = torch.randn(NUM_QUESTIONS, NUM_PASSAGES, generator=random)
    # theirs adds the prior at the second token: an answer of one would lose it
    lengths = torch.tensor([5, 2, 4, 3])[:, None]
    answers = torch.randint(1, VOCABULARY, (NUM_QUESTIONS, LENGTH - 1), generator=random)
    answers = answers.masked_fill(torch.arange(LENGTH - 1) >= lengths, PAD)
    prefixed = torch.nn.functional.pad(answers, (1, 0), value=PAD)
    generator = SimpleNamespace(pad_token_id=PAD, bos_token_id=None)
    theirs = SimpleNamespace(config=SimpleNamespace(bos_token_id=None, generator=generator, n_docs=NUM_PASSAGES))
    theirs.marginalize = lambda *given: RagTokenForGeneration.marginalize(theirs, *given)

    each = logits.log_softmax(2).view(NUM_QUESTIONS, NUM_PASSAGES, LENGTH, VOCABULARY)[:, :, : LENGTH - 1]
    is_token, is_real = answers != PAD, torch.ones(NUM_QUESTIONS, NUM_PASSAGES, dtype=torch.bool)
    places = answers[:, None, :, None].expand(-1, NUM_PASSAGES, -1, -1)
    tokens = each.gather(3, places)[..., 0].masked_fill(~is_token[:, None], 0)
    mixture = (log_priors(scores, is_real)[:, :, None, None] + each).logsumexp(1)
    ours = rag_token(scores, is_real, tokens, is_token, 1, mixture.mean(2) if smoothing else None, smoothing)
    expected = RagTokenForGeneration.get_nll(theirs, logits, scores, prefixed, epsilon=smoothing).sum()
    torch.testing.assert_close(ours.loss, expected)
    if not smoothing:  # theirs smooths the marginal of whole sequences, ours the reader
        expected = RagSequenceForGeneration.get_nll(theirs, logits, scores, prefixed).sum()
        torch.testing.assert_close(individual_topk(scores, is_real, tokens.sum(2), 1).loss, expected)
