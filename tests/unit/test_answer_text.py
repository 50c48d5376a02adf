"""Answer normalisation follows DPR's token rules."""

from __future__ import annotations

import pytest

from megatron_retrieval.utils.answer_text import answer_tokens, normalized


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("U.S. (1985)", ("u", ".", "s", ".", "(", "1985", ")")),
        ("Röntgen", ("ro\u0308ntgen",)),
        ("a\u200bb\u00a0C_d", ("a", "b", "c", "_", "d")),
        ("🚁 5%", ("🚁", "5", "%")),
        (" \t\n", ()),
    ],
)
def test_tokens(text: str, tokens: tuple[str, ...]) -> None:
    assert answer_tokens(text) == tokens


@pytest.mark.parametrize(
    ("answer", "passage", "contained"),
    [
        ("the Fall", "After The fall.", True),
        ("art", "a party", False),
        ("U.S", "in the U.S.", True),
        ("U.S.", "in the US", False),
        ("new york", "new, york", False),
        ("R\u00f6ntgen", "by Ro\u0308ntgen", True),
        ("", "anything", False),
    ],
)
def test_containment_is_contiguous_tokens(answer: str, passage: str, contained: bool) -> None:
    assert (normalized(answer) in normalized(passage)) is contained
