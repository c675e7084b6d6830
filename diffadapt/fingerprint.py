"""A fingerprint of what an adapter does: the same in whatever dialect and order its tensors were saved."""

from __future__ import annotations

import hashlib

from diffadapt.adapter import Adapter
from diffadapt.algorithms.base import Delta
from diffadapt.io.safetensors_writer import data_of


def fingerprint(adapter: Adapter) -> str:
    """64 hex over modules, algorithms, scales and numbers; not over names, metadata, or axes of length 1.

    Two files with one fingerprint do the same to the bit. The same adapter in another type of number has another
    fingerprint. Reads every tensor.
    """
    digest = hashlib.sha256()
    named = [((key.component, key.module), delta) for key, delta in adapter.targets.items()]
    named += [((key.component or "", key.module), delta) for key, delta in adapter.foreign.items()]
    for (component, module), delta in sorted(named, key=lambda item: item[0]):
        digest.update(f"{component}\0{module}\0{delta.algorithm}\0{scale_of(delta)}\0".encode())
        for role, tensor in sorted(delta.tensors().items()):
            if role == "alpha":
                continue  # in the scale, which files without alpha have too
            shape = tuple(size for size in tensor.shape if size > 1)
            digest.update(f"{role}\0{tensor.dtype}\0{shape}\0".encode())
            digest.update(data_of(tensor))
    for token, embedding in sorted(adapter.embeddings.items()):
        for part, vectors in sorted(embedding.vectors.items()):
            digest.update(f"{token}\0{part}\0{tuple(vectors.shape)}\0".encode())
            digest.update(data_of(vectors))
    for part, prefix in sorted(adapter.prefixes.items()):
        digest.update(f"{part}\0{tuple(prefix.values.shape)}\0{prefix.layers}\0{prefix.heads}\0".encode())
        digest.update(data_of(prefix.values))
    return digest.hexdigest()


def scale_of(delta: Delta) -> str:
    """What multiplies a delta's factors, to six digits; "" where nothing does."""
    inner = getattr(delta, "inner", None)
    if isinstance(inner, Delta):
        return scale_of(inner)
    scale = getattr(delta, "scale", None)
    return f"{float(scale):.6g}" if isinstance(scale, (int, float)) else ""
