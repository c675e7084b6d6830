"""Original names and row orders, held against Diffusers' own checkpoint converters.

Every row of an original checkpoint carries its number; the converter must leave it in the module and at the place where
our routes put it. A swapped half, a wrong slice or a wrong name fails.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate

import pytest
import torch
from diffusers.loaders import lora_conversion_utils as lora_converters
from diffusers.loaders import single_file_utils as converters
from torch import Tensor

from diffadapt.families import family_named
from diffadapt.families.names import Names, Rule
from tests.families.full_size import on_meta

Checkpoint = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """convert: the converter, which may take its argument apart. spelled: our name of an original tensor -> the
    checkpoint's. extra: keys that the converter wants and that no module has. component: of the family."""

    convert: Callable[[Checkpoint], Checkpoint]
    spelled: Callable[[str], str] = str
    extra: tuple[str, ...] = ()
    component: str = "transformer"
    skipped: frozenset[str] = field(default_factory=frozenset)


def _krea2(key: str) -> str:
    """Krea's norms have a scale; the table of a block's modulation is no module of its own."""
    if key.startswith("transformer_blocks.") and key.endswith(".scale_shift_table"):
        return key.removeprefix("transformer_").replace("scale_shift_table", "mod.lin")
    norm = key.removesuffix(".weight").endswith((".qnorm", ".knorm", "prenorm", "postnorm", "txtmlp.0", "last.norm"))
    return key.replace(".weight", ".scale") if norm else key


def _ideogram4(checkpoint: Checkpoint) -> Checkpoint:
    """Diffusers' converter of LoRAs, which takes the blocks' Linears; nobody converts checkpoints."""
    ends = (".qkv.weight", ".o.weight", ".w1.weight", ".w2.weight", ".w3.weight", ".adaln_modulation.weight")
    blocks = {key for key in checkpoint if key.startswith("layers.") and key.endswith(ends)}
    lora = {key.replace(".weight", ".lora_B.weight"): checkpoint[key] for key in blocks}
    lora |= {key.replace(".weight", ".lora_A.weight"): torch.zeros(1, 1) for key in blocks}
    converted = lora_converters._convert_non_diffusers_ideogram4_lora_to_diffusers(lora)
    ours = {key.removeprefix("transformer.").replace(".lora_B", ""): rows.long() for key, rows in converted.items()}
    return ours | {key: rows for key, rows in checkpoint.items() if key not in blocks}


def _llm_adapter(checkpoint: Checkpoint) -> Checkpoint:
    """Diffusers' converter of LoRAs, which takes Anima's text conditioner out of the denoiser."""
    inner = {f"diffusion_model.{key}": rows for key, rows in checkpoint.items()}
    converted = lora_converters._convert_non_diffusers_anima_lora_to_diffusers(inner)
    return {key.removeprefix("text_conditioner."): rows for key, rows in converted.items()}


def _flux(key: str) -> str:
    """BFL's norms have a scale."""
    return key.replace(".weight", ".scale") if key.endswith(("_norm.weight",)) or ".norms." in key else key


def _longcat(checkpoint: Checkpoint) -> Checkpoint:
    """The converter of Flux.1, whose original names these are; LongCat has no vector."""
    vector = {f"vector_in.{layer}.{kind}" for layer in ("in_layer", "out_layer") for kind in ("weight", "bias")}
    converted = converters.convert_flux_transformer_checkpoint_to_diffusers(
        checkpoint | dict.fromkeys(vector, torch.zeros(1))
    )
    return {key.replace("time_text_embed.", "time_embed."): rows for key, rows in converted.items()}


_FLUX2 = Case(converters.convert_flux2_transformer_checkpoint_to_diffusers, spelled=_flux)
_SD3 = Case(converters.convert_sd3_transformer_checkpoint_to_diffusers, extra=("pos_embed",))
_COSMOS = Case(converters.convert_cosmos_transformer_checkpoint_to_diffusers)
_SANA = Case(converters.convert_sana_transformer_to_diffusers, extra=("pos_embed", "y_embedder.y_embedding"))
_WAN = Case(converters.convert_wan_transformer_to_diffusers)
_LTX = Case(converters.convert_ltx_transformer_checkpoint_to_diffusers)


def _cascade(key: str) -> str:
    """The attention is torch's own, whose fused projection is a parameter."""
    return key.replace(".in_proj.", ".in_proj_")


_CASCADE = converters.convert_stable_cascade_unet_single_file_to_diffusers

CASES = {
    "flux1": Case(converters.convert_flux_transformer_checkpoint_to_diffusers, spelled=_flux),
    "chroma": Case(converters.convert_chroma_transformer_checkpoint_to_diffusers, spelled=_flux),
    "longcat_image": Case(_longcat, spelled=_flux),
    "flux2": _FLUX2,
    "flux2_klein_4b": _FLUX2,
    "flux2_klein_9b": _FLUX2,
    "flux3": Case(converters.convert_flux3_transformer_checkpoint_to_diffusers, spelled=_flux),
    "sd3_medium": _SD3,
    "sd35_medium": _SD3,
    "sd35_large": _SD3,
    "auraflow": Case(converters.convert_auraflow_transformer_checkpoint_to_diffusers),
    "lumina2": Case(converters.convert_lumina2_to_diffusers),
    "stable_cascade": Case(_CASCADE, spelled=_cascade, component="prior"),
    "stable_cascade decoder": Case(_CASCADE, spelled=_cascade, component="decoder"),
    "stable_cascade_lite": Case(_CASCADE, spelled=_cascade, component="prior"),
    # The single-file converter knows neither Sana 1.5's norms nor the Sprints.
    "sana_0_6b": _SANA,
    "zimage": Case(converters.convert_z_image_transformer_checkpoint_to_diffusers),
    "qwen_image_21": Case(converters.convert_qwen_image21_transformer_checkpoint_to_diffusers),
    "krea2": Case(converters.convert_krea2_transformer_checkpoint_to_diffusers, spelled=_krea2),
    "cosmos2_2b": _COSMOS,
    "cosmos2_14b": _COSMOS,
    "cosmos25_2b": _COSMOS,
    "cosmos25_14b": _COSMOS,
    "anima": Case(_llm_adapter, component="text_conditioner"),
    "hidream": Case(converters.convert_hidream_transformer_to_diffusers),
    "ernie": Case(converters.convert_ernie_image_transformer_checkpoint_to_diffusers),
    "ideogram4": Case(_ideogram4),
    "wan21_t2v_14b": _WAN,
    "wan21_t2v_1_3b": _WAN,
    "wan21_i2v_14b": _WAN,
    "wan22_i2v_a14b": _WAN,
    "wan22_ti2v_5b": _WAN,
    "wan21_vace_14b": _WAN,
    "wan21_vace_1_3b": _WAN,
    "wan22_animate": _WAN,
    "wan21_fun_1_3b": _WAN,
    "wan_animate2": Case(converters.convert_wan_animate_2_transformer_to_diffusers),
    "hunyuan_video": Case(converters.convert_hunyuan_video_transformer_to_diffusers),
    "ltx_2b": _LTX,
    "ltx_13b": _LTX,
    "ltx2": Case(converters.convert_ltx2_transformer_to_diffusers),
}


def rows_of(names: Names) -> dict[str, tuple[int, ...]]:
    """Every tensor of the full-size model -> its shape with all but the rows shrunk to 1."""
    assert names.model is not None
    model = on_meta(names.model.layout)
    return {key: (tensor.shape[0], *(1,) * (tensor.ndim - 1)) for key, tensor in model.named_parameters()}


def foreign_names(rule: Rule) -> list[str]:
    """The names a rule stands for, up to more blocks than any model has."""
    found = [rule.foreign]
    for letter, count in (("{i}", 128), ("{j}", 128), ("{k}", 8)):
        if letter in rule.foreign:
            found = [name.replace(letter, str(n)) for name in found for n in range(count)]
    return found


def numbered(names: Names, case: Case) -> tuple[Checkpoint, Checkpoint]:
    """An original checkpoint with numbered rows, and what it must become."""
    shapes, original, expected = rows_of(names), Checkpoint(), Checkpoint()
    start = 0

    def fresh(shape: tuple[int, ...]) -> Tensor:
        nonlocal start
        start += shape[0]
        return torch.arange(start - shape[0], start).view(shape)

    for rule in names.native:
        if not rule.written:
            continue
        for foreign in foreign_names(rule):
            route = names.resolve(foreign)
            if route is None or names.native_name(route.modules[0]) not in (None, foreign):
                continue  # another spelling than the one of the checkpoint
            for kind in (".weight", ".bias", ""):
                keys = [module + kind for module in route.modules]
                if not all(key in shapes for key in keys) or case.spelled(foreign + kind) in original:
                    continue
                sizes = [shapes[key][0] for key in keys]
                count = sum(sizes) // (route.part[1] if route.part else 1)
                rows = fresh((count, *shapes[keys[0]][1:]))
                original[case.spelled(foreign + kind)] = rows
                for key, size, stop in zip(keys, sizes, accumulate(sizes), strict=True):
                    if route.part is not None:
                        whole = expected.setdefault(key, torch.full(shapes[key], -1))
                        whole[route.part[0] * count : (route.part[0] + 1) * count] = rows
                    else:
                        part = rows[stop - size : stop]
                        expected[key] = part.roll(size // 2, 0) if route.exchange else part
    for key, shape in shapes.items():
        if key not in expected:
            original[case.spelled(key)] = expected[key] = fresh(shape)
    return original | {key: torch.zeros(1) for key in case.extra}, expected


@pytest.mark.parametrize("name", CASES)
def test_the_converter_puts_every_row_where_our_routes_do(name):
    case, family = CASES[name], family_named(name.partition(" ")[0])
    assert family is not None
    original, expected = numbered(family.components[case.component], case)
    converted = case.convert(dict(original))
    wrong = [key for key, rows in expected.items() if key not in converted or not converted[key].equal(rows)]
    assert not set(wrong) - case.skipped
    assert len(expected) > 100
