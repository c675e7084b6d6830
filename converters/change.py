"""An adapter as a plan wants it: fewer components and metadata, another algorithm, smaller ranks, another type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

from torch import Tensor

from diffadapt.adapter import Adapter
from diffadapt.converters.plan import DTYPES, Plan
from diffadapt.dialects.peft_config import METADATA_KEY
from diffadapt.errors import ConvertError
from diffadapt.io.finite import has_nonfinite

MEANING = (
    "ss_network_module", "ss_network_args", "ss_network_dim", "ss_network_alpha", "ot_branch", "ot_config",
    "diffadapt.names", METADATA_KEY, "software", "ss_base_model_version", "modelspec.architecture",
)  # fmt: skip
"""Metadata by which files are read: what their numbers mean, and for which family they are."""


def changed(adapter: Adapter, plan: Plan) -> Adapter:
    """The adapter that the plan makes of this one, but for the type of its numbers; `losses` say what ranks cost.

    Raises ConvertError where nothing is left, and what `to_lora` and `resize` raise.
    """
    if plan.only is not None:
        adapter = only(adapter, plan.only)
    if plan.algorithm == "lora" and set(adapter.algorithms) != {"lora"}:
        from diffadapt.combine import to_lora

        adapter = to_lora(adapter, plan.rank)
    if plan.resizes:
        from diffadapt.combine import resize

        adapter = resize(adapter, plan.rank, ratio=plan.ratio, share=plan.share, cumulative=plan.cumulative)
    return _stripped(adapter, plan.keep) if plan.strip else adapter


def only(adapter: Adapter, part: str) -> Adapter:
    """What acts on the text encoders ("te") or on everything else ("unet"). Raises ConvertError if that is nothing."""

    def kept(component: str | None) -> bool:
        return ("encoder" in (component or "")) == (part == "te")

    targets = {key: delta for key, delta in adapter.targets.items() if kept(key.component)}
    foreign = {key: delta for key, delta in adapter.foreign.items() if kept(key.component)}
    embeddings = adapter.embeddings if part == "te" else {}
    if not targets and not foreign and not embeddings:
        raise ConvertError(
            f"{adapter.source}: nothing acts on {'text encoders' if part == 'te' else 'the denoiser'}; it has "
            f"{', '.join(adapter.components)}."
        )
    return replace(adapter, targets=targets, foreign=foreign, embeddings=embeddings)


def cast(adapter: Adapter, plan: Plan) -> Adapter:
    """The adapter in the plan's type of number. Raises ConvertError where that has no finite number for a value."""
    if plan.dtype is None:
        return adapter
    dtype = DTYPES[plan.dtype]

    def rounded(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.numel() <= 1:
            return tensor  # scalars (alpha) keep their numbers; integers count
        found = tensor.to(dtype)
        if has_nonfinite(found) and not has_nonfinite(tensor):
            largest = tensor.abs().max().item()
            raise ConvertError(
                f"{adapter.source}: holds {largest:g}, more than {plan.dtype} reaches. Use bf16 or fp32."
            )
        return found

    return replace(
        adapter,
        targets={key: delta.map_tensors(rounded) for key, delta in adapter.targets.items()},
        foreign={key: delta.map_tensors(rounded) for key, delta in adapter.foreign.items()},
        embeddings={
            token: replace(one, vectors={part: rounded(vectors) for part, vectors in one.vectors.items()})
            for token, one in adapter.embeddings.items()
        },
    )


def _stripped(adapter: Adapter, keep: tuple[str, ...]) -> Adapter:
    return replace(adapter, metadata=replace(adapter.metadata, raw=stripped(adapter.metadata.raw, keep)))


def stripped(metadata: Mapping[str, str], keep: tuple[str, ...]) -> dict[str, str]:
    """The metadata that the numbers' meaning hangs on, and those that `keep` names."""
    kept = (*MEANING, *keep)
    return {key: text for key, text in metadata.items() if any(fnmatchcase(key, pattern) for pattern in kept)}
