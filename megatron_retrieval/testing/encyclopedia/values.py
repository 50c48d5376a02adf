"""Generated names and values, each drawn once only, so that an answer points to one passage.

Names are put together from recurring syllables and words: a model that has learned them can read a name that it
never saw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from megatron_retrieval.testing.encyclopedia.words import (
    ADJECTIVES,
    BIRDS,
    ENDS,
    FAMILY_ENDS,
    FIRST_NAMES,
    MATERIALS,
    MIDDLES,
    NOUNS,
    STARTS,
    WARES,
)


class ValueMaker:
    """Draws names and values; every draw differs from all earlier ones.

    Args:
        random: the stream to draw from.
    """

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random
        self._used: set[str] = set()
        pick, place, number = self._pick, self._place, self._number
        self._makers: dict[str, Callable[[], str]] = {
            "place": place,
            "isle": lambda: f"{place()} Island",
            "castle": lambda: f"Castle {place()}",
            "mount": lambda: f"Mount {place()}",
            "reef": lambda: f"{place()} Reef",
            "person": lambda: f"{pick(FIRST_NAMES)} {pick(STARTS)}{pick(MIDDLES)}{pick(FAMILY_ENDS)}",
            "company": lambda: f"{place()} {pick(['Works', 'Brothers', 'Company', 'Industries'])}",
            "ship": lambda: f"{pick(ADJECTIVES)} {pick(NOUNS)}",
            "novel": lambda: f"The {pick(NOUNS)} of {place()}",
            "picture": lambda: f"The {pick(ADJECTIVES)} {pick(NOUNS)}",
            "opera": lambda: f"The {pick(NOUNS)} and the {pick(NOUNS)}",
            "goods": lambda: f"{pick(MATERIALS)} {pick(WARES)}",
            "coin": lambda: f"{place()} {pick(['crown', 'penny', 'shilling', 'thaler'])}".lower(),
            "tongue": lambda: f"{pick(STARTS)}{pick(MIDDLES)}{pick(['bic', 'dish', 'lese', 'nian', 'rish', 'vian'])}",
            "bird": lambda: f"{pick(ADJECTIVES).lower()} {pick(BIRDS)}",
            "festival": lambda: f"{pick(NOUNS)} {pick(['Fair', 'Feast', 'Games', 'Parade'])} of {place()}",
            "theorem": lambda: f"{place()} {pick(['effect', 'equation', 'law', 'theorem'])}",
            "university": lambda: f"University of {place()}",
            "gallery": lambda: f"{place()} Museum",
            "theatre": lambda: f"{place()} Theatre",
            "prize": lambda: f"{place()} {pick(['Cup', 'Medal', 'Ribbon', 'Wreath'])}",
            "year": lambda: str(self._random.integers(1100, 1990)),
            "area": lambda: f"{number(1000, 990_000)} square kilometres",
            "people": lambda: f"{number(1000, 90_000)} people",
        }

    def draw(self, what: str) -> str:
        """A new value of the sort `what`; years may repeat, everything else is unique."""
        while True:
            value = self._makers[what]()
            if what == "year":
                return value
            if value.lower() not in self._used:
                self._used.add(value.lower())
                return value

    def _pick(self, choices: Sequence[str]) -> str:
        return choices[int(self._random.integers(len(choices)))]

    def _place(self) -> str:
        return self._pick(STARTS) + self._pick(MIDDLES) + self._pick(ENDS)

    def _number(self, low: int, high: int) -> str:
        return f"{self._random.integers(low, high):,}"
