"""Pickled arrays come back as they were, and nothing that a pickle says is run."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_retrieval.errors import DataError
from megatron_retrieval.utils.array_pickle import PickledArray, read_array_pickle

ARRAYS = [
    np.arange(5, dtype=np.float32),
    np.arange(5, dtype=np.float16)[::2],
    np.arange(6, dtype=">f8").reshape(2, 3),
    np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
    np.empty((0, 3), np.float32),
]


class _Calls:
    """Pickled, it is the call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def _read(folder: Path, content: bytes) -> Any:
    (folder / "a.pkl").write_bytes(content)
    return read_array_pickle(folder / "a.pkl")


def _as_numpy_1(content: bytes, protocol: int) -> bytes:
    """The same pickle with the names that NumPy 1 gives its modules."""
    for part in ("multiarray", "numeric"):
        new, old = f"numpy._core.{part}".encode(), f"numpy.core.{part}".encode()
        content = content.replace(b"c" + new + b"\n", b"c" + old + b"\n")
        content = content.replace(b"\x8c" + bytes([len(new)]) + new, b"\x8c" + bytes([len(old)]) + old)
    return content if protocol < 4 else content[:3] + struct.pack("<Q", len(content) - 11) + content[11:]


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_arrays_come_back(tmp_path: Path, protocol: int, is_old: bool) -> None:
    value = {"arrays": [("id", array) for array in ARRAYS], "scalar": np.int64(-3), "data": {7: ARRAYS[0]}}
    content = pickle.dumps(value, protocol)
    if is_old:
        content = _as_numpy_1(content, protocol)
        assert b"numpy._core" not in content
    loaded = _read(tmp_path, content)
    assert loaded["scalar"] == -3
    assert loaded["data"][7].values.tolist() == ARRAYS[0].tolist()
    for (name, found), expected in zip(loaded["arrays"], ARRAYS, strict=True):
        assert name == "id"
        assert isinstance(found, PickledArray)
        assert found.values.dtype == expected.dtype
        assert np.array_equal(found.values, expected)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch {}",), r"posix\.system"),
        (eval, ("open('{}', 'w')",), r"(__)?builtin(s|__)\.eval"),
        (getattr, (os, "system"), r"(__)?builtin(s|__)\.getattr"),
        (open, ("{}", "w"), r"_?io\.open"),
        (np.fromfile, ("{}",), r"numpy"),
        (np.load, ("{}",), r"numpy\.load"),
    ],
)
def test_what_is_no_array_is_not_run(
    tmp_path: Path, function: Any, arguments: tuple[Any, ...], name: str, protocol: int
) -> None:
    victim = tmp_path / "victim"
    arguments = tuple(a.format(victim) if isinstance(a, str) else a.__name__ for a in arguments)
    with pytest.raises(DataError, match=rf"a\.pkl: the pickle calls {name}.*nothing of it was run"):
        _read(tmp_path, pickle.dumps([("1", _Calls(function, *arguments))], protocol))
    assert not victim.exists()


def test_dotted_names_lead_nowhere(tmp_path: Path) -> None:
    for name in ("ndarray.tofile", "dtype.__class__"):
        content = b"\x80\x04\x8c\x05numpy\x8c" + bytes([len(name)]) + name.encode() + b"\x93."
        with pytest.raises(DataError, match=f"the pickle calls numpy.{name}"):
            _read(tmp_path, content)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (np.array(["a", None], object), "arrays of type 'O8'"),
        (np.zeros(2, [("a", "f4")]), "arrays of type 'V4'"),
        (np.array(["a"]), "arrays of type 'U1'"),
        (np.zeros(2, "M8[s]"), "arrays of type 'M8'"),
    ],
)
def test_only_numbers(tmp_path: Path, value: Any, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        _read(tmp_path, pickle.dumps(value, 4))


def test_a_forged_type_is_refused(tmp_path: Path) -> None:
    """NumPy itself takes flags and fields from a type's state, by which floats could pass for pointers."""
    forged = (np.dtype, ("f8", False, True), (3, "<", None, ("a",), {"a": (np.dtype("f8"), 0)}, 8, 1, 63))

    class Forged:
        def __reduce__(self) -> Any:
            return forged

    with pytest.raises(DataError, match="arrays of records"):
        _read(tmp_path, pickle.dumps(Forged(), 2))


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_array_pickle(tmp_path / "missing.pkl")
    with pytest.raises(DataError, match=r"a\.pkl: no pickle of arrays, or a damaged one"):
        _read(tmp_path, b"")
    random.seed(0)
    for protocol in (0, 2, 4, 5):
        whole = pickle.dumps([("1", ARRAYS[0]), ("2", ARRAYS[2])], protocol)
        for _ in range(300):
            damaged = bytearray(whole)
            for _ in range(random.randint(1, 3)):
                damaged[random.randrange(len(damaged))] = random.randrange(256)
            with contextlib.suppress(DataError):  # and nothing else
                _read(tmp_path, bytes(damaged[: random.randint(1, len(damaged))]))
