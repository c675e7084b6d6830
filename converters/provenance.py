"""What a converted file says of itself: its own hashes where the source had some, and where it came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import diffadapt
from diffadapt.converters.plan import Plan
from diffadapt.converters.result import Made
from diffadapt.errors import SourceError
from diffadapt.fingerprint import scale_of
from diffadapt.io.safetensors import read_header
from diffadapt.io.safetensors_writer import Copied, Run, read_run

HISTORY = "diffadapt.history"
"""Metadata: a JSON list of what was done to the file, the latest last: the source's BLAKE3, version, plan."""

_KEPT = 16
_DATA = ("sshs_model_hash", "modelspec.hash_sha256")
_LEGACY = "sshs_legacy_hash"
_LEGACY_AT, _LEGACY_BYTES = 0x100000, 0x10000


def signed(made: Made, digest: str, plan: Plan, copied: Copied) -> dict[str, str]:
    """The result's metadata with its provenance, and with those hashes worked out anew that the source had.

    digest: BLAKE3 of the whole source. copied: the source, for what is copied from it.
    """
    metadata = {**made.metadata, **provenance(made.origin, digest, plan)}
    if any(name in made.origin for name in (*_DATA, _LEGACY)):
        metadata |= {name: text for name, text in _hashes(made, copied).items() if name in made.origin}
    return metadata


def provenance(source: Mapping[str, str], digest: str, plan: Plan) -> dict[str, str]:
    """The line of metadata that says what the file was made of; as long for every digest."""
    return {HISTORY: json.dumps([*history(source), _entry(digest, plan)])}


def _entry(digest: str, plan: Plan) -> dict[str, Any]:
    return {"blake3": digest, "version": diffadapt.__version__, "plan": plan.to_dict()}


def history(metadata: Mapping[str, str]) -> list[Any]:
    """What a file says was done to it; nothing where that is no list."""
    try:
        found = json.loads(metadata.get(HISTORY, "[]"))
    except ValueError:
        return []
    return found[-_KEPT:] if isinstance(found, list) else []


def is_made_by(file: Path, digest: str, plan: Plan) -> bool:
    """Whether a file is what the plan makes of this source."""
    try:
        found = history(read_header(file).metadata)
    except SourceError:
        return False
    return bool(found) and found[-1] == _entry(digest, plan)


def _hashes(made: Made, copied: Copied) -> dict[str, str]:
    """The hashes by which trainers and web UIs know a file; all are of its data, whatever the metadata say.

    sshs_model_hash: SHA-256 of the data section; modelspec.hash_sha256: the same, behind "0x". sshs_legacy_hash: 8 hex
    of 64 KiB at 1 MiB of the file as sd-scripts saves it to hash it, with the metadata that begin with "ss_".
    """
    own = {key: text for key, text in made.metadata.items() if key.startswith("ss_")}
    start = _LEGACY_AT - len(made.layout.header(own))
    data, legacy, position = hashlib.sha256(), hashlib.sha256(), 0
    for piece in made.layout.pieces():
        block = read_run(piece, copied) if isinstance(piece, Run) else piece
        data.update(block)
        legacy.update(block[max(start - position, 0) : max(start + _LEGACY_BYTES - position, 0)])
        position += len(block)
    found = {"sshs_model_hash": data.hexdigest(), "modelspec.hash_sha256": f"0x{data.hexdigest()}"}
    # A header of a megabyte reaches into what is hashed, and the order of its keys is chance.
    return found | ({_LEGACY: legacy.hexdigest()[:8]} if start >= 0 else {})


def largest_error(before: Mapping[Any, Any], after: Mapping[Any, Any]) -> float:
    """The largest relative Frobenius error of any delta's tensors of one name.

    For deltas of the same algorithm and rank. A tensor that one of them lacks counts as an error of 1, and so does
    another scale.
    """
    worst = 0.0
    for key, delta in before.items():
        other_delta = after.get(key)
        if other_delta is None or scale_of(delta) != scale_of(other_delta):
            return 1.0
        theirs = other_delta.tensors()
        for role, tensor in delta.tensors().items():
            if role == "alpha":
                continue  # in the scale; some dialects have it in a config
            other = theirs.get(role)
            if other is None or other.numel() != tensor.numel():
                return 1.0
            if tensor is not other and not torch.equal(tensor.flatten(), other.flatten()):
                one, two = tensor.flatten().double(), other.flatten().double()
                worst = max(worst, float((one - two).norm() / one.norm().clamp_min(1e-30)))
    return worst
