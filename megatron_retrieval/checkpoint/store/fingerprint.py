"""Names a model by its weights, whatever the layout of ranks, without putting a tensor together.

Every parameter is a set of slices: one for each place along the dimension that tensor parallelism cuts, or a single one
where it cuts none. A slice is hashed (SHA-256) with the name and full shape of its parameter, its place in the full
tensor, and its values in fp32. The digest of the weights is the sum of these hashes modulo 2^256 (AdHash; Bellare and
Micciancio, EUROCRYPT 1997).

Why that is sound: each slice of the full tensor is counted by exactly one rank, so every layout sums the same hashes,
and a sum depends neither on their order nor on who adds what; ranks exchange 32 bytes each. Where two models differ in
one value, a slice's hash differs, and the sums agree by chance with probability 2^-256 (2^-64 for the 16 digits of the
fingerprint). It tells apart models made in good faith; it does not withstand weights constructed to collide.

Fingerprints that an earlier version wrote in a manifest stay as they are: they are compared, never computed anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from megatron_retrieval.checkpoint.store.shard_file import tensor_bytes
from megatron_retrieval.models.sharding import ShardLayout, full_sizes, layout_of, places_in_full
from megatron_retrieval.parallel.collectives import gather_objects
from megatron_retrieval.parallel.topology import ProcessTopology

_MODULUS = 1 << 256


def shard_digest(name: str, shard: Tensor, layout: ShardLayout, topology: ProcessTopology) -> int:
    """What this rank's shard of a parameter adds to the digest of the weights.

    Args:
        shard: of any dtype; floating-point values count by what they are in fp32.
    """
    if layout.dim is None and topology.tp_rank > 0:
        return 0  # every rank holds the same
    header = [name, full_sizes(shard.shape, layout, topology.tp_size)]
    begun = hashlib.sha256(json.dumps(header).encode())
    if layout.dim != 0 and layout.num_rows is not None:
        shard = shard[: layout.num_rows]
    values = shard.detach().cpu()
    values = values.float() if values.is_floating_point() else values
    if layout.dim is None:
        return _hash(begun, 0, tensor_bytes(values))
    slices = values.movedim(layout.dim, 0)
    places = places_in_full(len(slices), layout, topology.tp_rank, topology.tp_size)
    content, num_bytes = tensor_bytes(slices), slices[0].numel() * slices.element_size()
    total = 0
    for number, place in enumerate(places.tolist()):
        if layout.dim != 0 or layout.num_rows is None or place < layout.num_rows:
            total += _hash(begun, place, content[number * num_bytes : (number + 1) * num_bytes])
    return total % _MODULUS


def weights_digest(model: nn.Module, topology: ProcessTopology) -> int:
    """What all parameters of a model come to, on every rank alike; a collective over its tensor-parallel ranks."""
    own = sum(shard_digest(name, part, layout_of(part), topology) for name, part in model.named_parameters())
    return sum(gather_objects(own, topology.groups.tp)) % _MODULUS


def model_fingerprint(
    kind: str, config: Mapping[str, Any], assets: Iterable[bytes], digests: Iterable[int], parts: Iterable[str]
) -> str:
    """Sixteen digits that name a model.

    Args:
        digests: of shards, all ranks' and all parameters'.
        parts: fingerprints of the models that it is made of.
    """
    digest = hashlib.sha256(json.dumps([kind, config], sort_keys=True).encode())
    for content in assets:
        digest.update(content)
    digest.update((sum(digests) % _MODULUS).to_bytes(32, "little"))
    for fingerprint in parts:
        digest.update(fingerprint.encode())
    return digest.hexdigest()[:16]


def _hash(begun: Any, place: int, content: memoryview) -> int:
    digest = begun.copy()
    digest.update(place.to_bytes(8, "little"))
    digest.update(content)
    return int.from_bytes(digest.digest(), "little")
