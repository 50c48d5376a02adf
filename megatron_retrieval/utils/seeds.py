"""Named random streams: a draw does not depend on how many were made before it."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream called `names` under `seed`; equal on every machine and rank."""
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """The NumPy generator of the stream called `names` under `seed`."""
    return np.random.default_rng(derive_seed(seed, *names))


def fractions(numbers: NDArray[np.int64], seed: int, *names: str | int) -> NDArray[np.float64]:
    """A draw from [0, 1) for each of `numbers` (not negative), all at once.

    The draw of a number does not depend on other draws: it is splitmix64's output at that place of the stream
    called `names` under `seed`.
    """
    bits = mixed(numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(derive_seed(seed, *names)))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def mixed(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's output function: a permutation of 64-bit numbers in which every bit depends on all."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
