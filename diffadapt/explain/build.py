"""From an adapter to its explanation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from math import hypot
from pathlib import Path
from typing import Any

from diffadapt.adapter import Adapter
from diffadapt.explain.explanation import Explanation, Problem
from diffadapt.explain.families import agreement, weigh
from diffadapt.explain.norms import norm_of
from diffadapt.explain.problems import problems
from diffadapt.explain.table import entries, tabulate
from diffadapt.io.hashes import hash_file
from diffadapt.metadata import base_model, tag_frequencies, trainer, trigger_words

TAGS = 20
"""How many training tags are kept, the most frequent first."""


def explain(adapter: Adapter, *, norms: bool = False, hashes: bool = False) -> Explanation:
    """Why the adapter was read as it was; see `Explanation`.

    norms: measure the deltas, which reads every tensor. hashes: of the adapter's file, where there is one.
    Raises SourceError where the file cannot be read any more.
    """
    found = of_structure(adapter, norms=norms)
    found = with_metadata(found, adapter.metadata.raw, adapter.origin.config if adapter.origin else None)
    path = adapter.path
    found = replace(found, source=adapter.source, file_bytes=path.stat().st_size if path and path.is_file() else None)
    return with_hashes(found, path, adapter.metadata.raw) if hashes and path else found


def of_structure(adapter: Adapter, *, norms: bool = False, alphas_read: bool = True) -> Explanation:
    """What keys, shapes, scalars and the deciding metadata say: equal for files that are equal in these."""
    origin = adapter.origin
    tensors = origin.tensors if origin else {}
    told = adapter.metadata.base_model
    candidates, ruled_out = weigh(origin.modules if origin else (), adapter.candidates, told)
    agrees = agreement(told, adapter.candidates)
    sizes = {key: tensor.numel() for key, tensor in tensors.items()}
    measured: dict[int, float] = {}
    if norms:
        for _, _, delta, _ in entries(adapter):
            norm = norm_of(delta)
            if norm is not None:
                measured[id(delta)] = norm
    table = tabulate(adapter, sizes, measured or None, alphas_read)
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    return Explanation(
        source=adapter.source, dialect=adapter.dialect, evidence=adapter.evidence, candidates=candidates,
        ruled_out=ruled_out, ambiguous=len(candidates) > 1, table=table, dtypes=dict(dtypes.most_common()),
        embeddings=tuple(adapter.embeddings), prefixes=tuple(adapter.prefixes), unmatched=adapter.unmatched,
        ignored=dict(adapter.ignored),
        agrees=agrees, problems=tuple(problems(adapter, table, agrees, alphas_read)),
        norm=hypot(*measured.values()) if measured else None,
    )  # fmt: skip


def with_metadata(found: Explanation, raw: Mapping[str, str], config: Mapping[str, Any] | None) -> Explanation:
    """Add what a file's own metadata say."""
    return replace(
        found, trainer=trainer(raw, config), base_model=base_model(raw, config), trigger_words=trigger_words(raw),
        tags=tag_frequencies(raw, TAGS),
    )  # fmt: skip


def with_hashes(found: Explanation, path: Path, raw: Mapping[str, str]) -> Explanation:
    """Add the hashes of the adapter's file, and what they contradict."""
    known = hash_file(path)
    hashes = {
        "sha256": known.sha256, "autov1": known.autov1, "autov2": known.autov2, "autov3": known.autov3,
        "tensors": known.data_sha256,
    }  # fmt: skip
    told = raw.get("sshs_model_hash")
    more = []
    if told and known.data_sha256 and told.lower() != known.data_sha256:
        more = [Problem("hash", f"sshs_model_hash is not of these tensors ({told[:12]}...): they were changed since")]
    return replace(found, hashes=hashes, problems=(*found.problems, *more))
