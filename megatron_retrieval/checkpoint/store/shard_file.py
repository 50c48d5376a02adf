"""Writes safetensors files one tensor at a time, so that a model on a device needs no second copy in host memory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_retrieval.utils.disk import writing

#: the format's names of number formats
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_shard_file(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors as they are, each in its own dtype, to the disk.

    Returns:
        The file's checksum, as `file_fingerprint` gives it.

    Raises:
        DiskError: the disk is full, read-only or failing.
    """
    # wide numbers first: every tensor then begins at a multiple of its numbers' width
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    with writing(path), open(path, "wb") as file:
        digest = hashlib.sha256()
        contents: Iterator[bytes | memoryview] = (tensor_bytes(tensors[name]) for name in names)
        for content in chain([_header({name: tensors[name] for name in names})], contents):
            file.write(content)
            digest.update(content)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()[:16]


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The numbers of a tensor, as they stand in the file."""
    numbers: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(numbers)


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    """Eight bytes that say how long it is, then names, dtypes, shapes and places of the tensors in JSON."""
    entries, start = {}, 0
    for name, tensor in tensors.items():
        stop = start + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
