"""What somebody should know of a file before using it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diffadapt.adapter import Adapter
from diffadapt.algorithms.lora import LoRA
from diffadapt.dialects.peft_config import METADATA_KEY
from diffadapt.explain.explanation import Problem, Row, span
from diffadapt.explain.table import entries

_SHOWN = 3


def problems(adapter: Adapter, table: Sequence[Row], agrees: bool | None, alphas_read: bool) -> Iterator[Problem]:
    """What is odd about an adapter, as far as its header tells. agrees: see `families.agreement`."""
    if adapter.unmatched:
        shown = ", ".join(adapter.unmatched[:_SHOWN])
        yield Problem("unmatched", f"{len(adapter.unmatched)} keys match nothing and are not used: {shown}")
    if agrees is False:
        told = adapter.metadata.base_model
        yield Problem("metadata", f"the metadata say {told}, the tensors are of {' or '.join(adapter.candidates)}")
    yield from _ranks(adapter, table)
    yield from _alphas(adapter, alphas_read)


def _ranks(adapter: Adapter, table: Sequence[Row]) -> Iterator[Problem]:
    """Ranks that contradict the metadata, and ranks beyond what a layer can have."""
    spans = [row.rank for row in table if row.rank is not None]
    told = adapter.metadata.raw.get("ss_network_dim", "")
    if spans and told.isdecimal() and len(told) < 7:
        low, high = min(low for low, _ in spans), max(high for _, high in spans)
        if not low <= int(told) <= high:
            yield Problem("metadata", f"the metadata say rank {told}, the tensors have {span((low, high))}")
    high_ranks = [
        (module, delta.rank, min(delta.up.shape[0], delta.down[0].numel()))
        for _, module, delta, _ in entries(adapter)
        if isinstance(delta, LoRA) and not 0 < delta.rank <= min(delta.up.shape[0], delta.down[0].numel())
    ]
    if high_ranks:
        module, rank, most = high_ranks[0]
        yield Problem(
            "rank", f"{len(high_ranks)} modules have a rank beyond their layer's size: {module} {rank}, at most {most}"
        )


def _alphas(adapter: Adapter, alphas_read: bool) -> Iterator[Problem]:
    """Low-rank modules without an alpha, which are taken at scale 1; and alphas that were not looked at."""
    ranked = [keys for _, _, delta, keys in entries(adapter) if delta.rank is not None]
    without = sum(not any(key.endswith("alpha") for key in keys) for keys in ranked)
    if without and not _configured(adapter.origin.config if adapter.origin else None, adapter.metadata.raw):
        yield Problem("alpha", f"{without} of {len(ranked)} modules have no alpha: taken as alpha = rank, scale 1")
    if not alphas_read and without < len(ranked):
        yield Problem("alpha", f"the alphas of {len(ranked) - without} modules were not read: only the header was")


def _configured(config: Mapping[str, Any] | None, raw: Mapping[str, str]) -> bool:
    """Whether a config beside the tensors gives the alpha."""
    return METADATA_KEY in raw or any(name in (config or {}) for name in ("lora_alpha", "alpha", "lycoris_config"))
