"""What the parameters of an original single file are in Diffusers' names: the denoiser's by the table of its family,
the text encoders' by the prefixes of their wrappers, with the names of transformers or those of OpenCLIP.

Sources: the modules `FrozenCLIPEmbedder` and `FrozenOpenCLIPEmbedder` of Stability's generative-models; ComfyUI's
checkpoints (`text_encoders.`); OpenCLIP's `transformer.py`, whose q, k and v are one parameter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import NamedTuple

from diffadapt.adapter import TargetKey
from diffadapt.combine.checkpoints import ORIGINAL, plain
from diffadapt.families import Family


class Piece(NamedTuple):
    """A Diffusers module of which a parameter holds some rows. start, stop: which; None for all. turned: the halves of
    its rows stand the other way round in the file (native shift|scale)."""

    target: TargetKey
    start: int | None = None
    stop: int | None = None
    turned: bool = False


class Encoder(NamedTuple):
    """A text encoder of a single file. prefix: before its parameters. open_clip: whose names they have."""

    prefix: str
    component: str
    open_clip: bool = False


ENCODERS = (
    Encoder("cond_stage_model.transformer.", "text_encoder"),  # Stable Diffusion 1
    Encoder("cond_stage_model.model.", "text_encoder", open_clip=True),  # ... 2
    Encoder("conditioner.embedders.0.transformer.", "text_encoder"),  # ... XL
    Encoder("conditioner.embedders.1.model.", "text_encoder_2", open_clip=True),
    Encoder("conditioner.embedders.0.model.", "text_encoder_2", open_clip=True),  # ... XL's refiner
    Encoder("text_encoders.clip_l.transformer.", "text_encoder"),
    Encoder("text_encoders.clip_g.transformer.", "text_encoder_2"),
    Encoder("text_encoders.t5xxl.transformer.", "t5"),
)
_T5 = "t5"
"""The last text encoder of the family, whatever its number."""

_FUSED = "in_proj"
_OPEN_CLIP = {
    "attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2", "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
}  # fmt: skip
_TOP = {"token_embedding": "embeddings.token_embedding", "ln_final": "final_layer_norm"}
_LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")


def split(name: str) -> tuple[str, str, str]:
    """A parameter's module, its role, and the parameter that is the module's weight. OpenCLIP's `attn.in_proj_weight`
    is the weight of a module that is none there."""
    module, _, role = name.rpartition(".")
    if role in ("in_proj_weight", "in_proj_bias"):
        return f"{module}.{_FUSED}", role.removeprefix("in_proj_"), f"{module}.in_proj_weight"
    return module, role, f"{module}.weight"


def encoders(names: Iterable[str], family: Family | None) -> set[str]:
    """The text encoders that a file of these parameters holds."""
    found = {one for one in ENCODERS if any(name.startswith(one.prefix) for name in names)}
    return {_component(one, family) for one in found}


def pieces(module: str, rows: int, family: Family | None) -> Iterator[Piece]:
    """The Diffusers modules that a module of the file is, or holds. rows: of its parameter."""
    encoder = next((one for one in ENCODERS if module.startswith(one.prefix)), None)
    if encoder is not None:
        yield from _of_encoder(encoder, module.removeprefix(encoder.prefix), rows, family)
        return
    denoiser = family.slots.get("denoiser") if family else None
    if family is None or denoiser is None or not module.startswith(ORIGINAL):
        return
    route = family.components[denoiser].resolve(module.removeprefix(ORIGINAL))
    if route is None:
        return
    if len(route.modules) == 1:
        if route.part is None:
            yield Piece(TargetKey(denoiser, route.modules[0]), turned=bool(route.exchange))
        return
    unit, stops = rows // sum(route.shares), [*accumulate(route.shares)]
    for target, start, stop in zip(route.modules, [0, *stops], stops, strict=False):
        yield Piece(TargetKey(denoiser, target), start * unit, stop * unit)


def _component(encoder: Encoder, family: Family | None) -> str:
    if encoder.component != _T5:
        return encoder.component
    third = family is not None and "text_encoder_3" in family.components
    return "text_encoder_3" if third else "text_encoder_2"


def _of_encoder(encoder: Encoder, module: str, rows: int, family: Family | None) -> Iterator[Piece]:
    component = _component(encoder, family)
    if not encoder.open_clip:
        yield Piece(TargetKey(component, plain(component, f"{module}.")[:-1]))
        return
    found = _LAYER.fullmatch(module)
    if found is None:
        if module in _TOP:
            yield Piece(TargetKey(component, f"text_model.{_TOP[module]}"))
        return
    layer, inner = f"text_model.encoder.layers.{found[1]}", found[2]
    if inner == f"attn.{_FUSED}":
        third = rows // 3
        for number, part in enumerate("qkv"):
            target = TargetKey(component, f"{layer}.self_attn.{part}_proj")
            yield Piece(target, number * third, (number + 1) * third)
    elif inner in _OPEN_CLIP:
        yield Piece(TargetKey(component, f"{layer}.{_OPEN_CLIP[inner]}"))
