"""Reads pickles of plain data and NumPy arrays without executing anything that they name.

A pickle names functions and calls them, so that reading one from elsewhere runs its author's program. Here a name
stands for one of a few functions of this module, whatever it means elsewhere, and any other name ends the reading.
NumPy's own are not among them: a forged state of a type (its flags, its fields) can corrupt memory.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_retrieval.errors import DataError

_NUMBER = re.compile(r"[fiu][1248]")
_BYTE_ORDERS = ("<", ">", "=", "|")
#: what reading a damaged pickle raises
_DAMAGED = (
    pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError, ImportError, LookupError, MemoryError,
    RecursionError, TypeError, ValueError,
)  # fmt: skip


class PickledType:
    """A pickled `numpy.dtype`: made from its code, then given its byte order."""

    __slots__ = ("dtype",)

    def __init__(self, code: str, *_: object) -> None:
        if not _NUMBER.fullmatch(code):
            raise ValueError(f"arrays of type {code!r}")
        self.dtype: np.dtype[Any] = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, byte_order, *described = state
        if byte_order not in _BYTE_ORDERS or any(part is not None for part in described[:3]):
            raise ValueError("arrays of records")
        self.dtype = self.dtype.newbyteorder(byte_order)


class PickledArray:
    """A pickled `numpy.ndarray`: made empty, then filled.

    Attributes:
        values: the array itself, which cannot be written to.
    """

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: NDArray[Any] = np.empty(0)

    @classmethod
    def of(cls, values: NDArray[Any]) -> PickledArray:
        """An array that is a part of another."""
        array = cls()
        array.values = values
        return array

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, is_fortran, content = state
        content = content.encode("latin1") if isinstance(content, str) else content
        self.fill(content, kind, shape, "F" if is_fortran else "C")

    def fill(self, content: bytes | bytearray, kind: PickledType, shape: tuple[int, ...], order: Any) -> None:
        self.values = np.frombuffer(content, kind.dtype).reshape(shape, order=order)


def _reconstruct(*_: object) -> PickledArray:
    """An empty array; its state brings shape and content."""
    return PickledArray()


def _from_buffer(content: bytes, kind: PickledType, shape: tuple[int, ...], order: str) -> PickledArray:
    array = PickledArray()
    array.fill(content, kind, shape, order)
    return array


def _scalar(kind: PickledType, content: bytes) -> int | float:
    (value,) = np.frombuffer(content, kind.dtype).tolist()
    number: int | float = value
    return number


def _encode(text: str, encoding: str) -> bytes:
    """Bytes as protocols below 3 write them."""
    if encoding != "latin1":
        raise ValueError(f"bytes in {encoding}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Empty bytes as protocols below 3 write them."""
    return b""


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): PickledArray,
    ("numpy", "dtype"): PickledType,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
}
for _core in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
    _KNOWN[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _KNOWN[f"{_core}.multiarray", "scalar"] = _scalar
    _KNOWN[f"{_core}.numeric", "_frombuffer"] = _from_buffer


class _RefusedNameError(pickle.UnpicklingError):
    """The file names a function that arrays do not need."""


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise _RefusedNameError(f"{module}.{name}") from None


def read_array_pickle(path: Path) -> Any:
    """The lists, dictionaries, strings and numbers of a pickle, of any protocol; arrays as `PickledArray`.

    Raises:
        DataError: unreadable, damaged, or it holds something else, which is not run.
    """
    try:
        with open(path, "rb") as file:
            return _ArrayUnpickler(file, encoding="latin1").load()
    except OSError as error:
        raise DataError(path, f"cannot be read ({error.strerror})") from error
    except _RefusedNameError as error:
        problem = f"the pickle calls {error}, which embeddings do not need; nothing of it was run"
        raise DataError(path, problem, hint="Do not open this file with other programs.") from error
    except _DAMAGED as error:
        raise DataError(path, f"no pickle of arrays, or a damaged one ({error})") from error
