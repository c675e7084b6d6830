"""OneTrainer's files: for every model it trains, in every format its savers write, and what its modules compute.

`tests/families/manifests/onetrainer` holds the keys and shapes that its own wrapper and savers gave for the full-size
models at rank 4 with every layer selected, text encoders included where the format can hold them: LoRA in all formats,
OFT in ORIGINAL, three more algorithms in KOHYA, and all of them in all formats for SD 1.5 and Flux.1;
`onetrainer/*.safetensors` what its own modules gave on tiny models: base weights, inputs, files and outputs, in float64
but for the algorithms that compute in float32.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import diffadapt
from diffadapt.algorithms.across_groups import across_groups
from diffadapt.algorithms.dora import DoRA
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.lora import LoRA
from diffadapt.errors import AlgorithmError, MergeError, TargetError
from diffadapt.families import Family, family_named
from diffadapt.inject.fitting import fitted
from diffadapt.io.checkpoint import RawCheckpoint
from diffadapt.reading import interpret
from diffadapt.writing import compose
from tests import tiny
from tests.families import models
from tests.families.full_size import on_meta

HEADER = {"ot_branch": "master", "ot_revision": "0000000"}
MANIFESTS = Path(__file__).parents[1] / "families" / "manifests" / "onetrainer"
FIXTURES = Path(__file__).parent / "onetrainer"
Shapes = dict[str, list[int]]


# -- every model, every format ---------------------------------------------------------------------------------------

FAMILY = {"sd15": "sd1", "sd21": "sd2"}
"""What the others are called here is what their manifests are called."""
TARGETS = {
    "anima": (454, 454), "chroma": (433, 601), "ernie": (259, 259), "flux1": (504, 744), "flux2": (203, 203),
    "flux2_klein_4b": (109, 109), "flux2_klein_9b": (153, 153), "hidream": (1128, 1787), "hunyuan_video": (547, 843),
    "ideogram4": (279, 279), "krea2": (264, 264), "pixart_alpha": (291, 459), "pixart_sigma": (287, 455),
    "qwen_image": (846, 1205), "sana_0_6b": (315, 497), "sana_1_6b": (227, 409), "sd15": (282, 354), "sd21": (282, 420),
    "sd3_medium": (341, 775), "sd35_large": (537, 971), "sd35_medium": (393, 827), "sdxl": (794, 1059),
    "stable_cascade": (711, 904), "wuerstchen2": (292, 484), "zimage": (291, 291),
}  # fmt: skip
"""The modules of the denoiser alone, and with the text encoders that OneTrainer trains."""
_WIDTHS = {"sd2": 1024, "stable_cascade": 1280, "wuerstchen2": 1280}


def decoded(plain: dict[str, list[list[str]]]) -> Shapes:
    """A manifest's keys: by shape, each `#` stands for a number, and the numbers are listed as `leading:first-last`."""
    keys: Shapes = {}
    for shape, entries in plain.items():
        size = [int(n) for n in shape.split("x")] if shape else []
        for text, *numbers in entries:
            first, *rest = text.split("#")
            for values in expanded(numbers[0]) if numbers else [()]:
                keys[first + "".join(f"{v}{part}" for v, part in zip(values, rest, strict=True))] = size
    return keys


def expanded(numbers: str) -> Iterator[tuple[str, ...]]:
    for group in numbers.split(" "):
        leads, _, last = group.rpartition(":")
        for lead in leads.split("/"):
            for run in last.split(","):
                start, _, stop = run.partition("-")
                for value in range(int(start), int(stop or start) + 1):
                    yield (*lead.split("."), str(value)) if lead else (str(value),)


def files(name: str) -> dict[str, Shapes]:
    """The model's files: "algorithm format" -> key -> shape."""
    text = gzip.decompress((MANIFESTS / f"{name}.json.gz").read_bytes())
    return {label: decoded(plain) for label, plain in json.loads(text).items()}


def stand_in(shapes: Shapes) -> dict[str, Tensor]:
    found = models.shaped_file(shapes)
    # The flag of scaled OFT stays a boolean where OneTrainer is not told a dtype to save in.
    return {key: tensor.bool() if key.endswith("scaled_oft") else tensor for key, tensor in found.items()}


@cache
def modules_of(family: Family, component: str) -> dict[str, nn.Module]:
    """The full-size modules by their canonical names."""
    model = family.components[component].model
    if model is not None:
        return dict(on_meta(model.layout).named_modules())
    if component == "unet":
        return dict(models.unet(family.name).named_modules())
    width = 1280 if component == "text_encoder_2" and "clip_g" in family.slots else _WIDTHS.get(family.name, 768)
    encoder = dict(models.clip(width).named_modules())
    if "text_encoder_3" in family.components:
        # SD3's and HiDream's CLIP-L has a projection, as CLIP-bigG everywhere.
        encoder.setdefault("text_projection", nn.Linear(width, width, bias=False, device="meta"))
    return {models.canonical(path): module for path, module in encoder.items()}


def test_a_shared_block_leaves_the_family_to_the_header():
    """One block of 32 channels in every module: SD 2.x only by what OneTrainer says of it."""
    shapes = {key: [1, 496] for key in files("sd21")["oft kohya"]}
    assert interpret(RawCheckpoint(stand_in(shapes), HEADER), name="x").family == "sd1"
    assert interpret(RawCheckpoint(stand_in(shapes), {**HEADER, "ss_v2": "True"}), name="x").family == "sd2"


@pytest.mark.parametrize("name", TARGETS)
def test_every_key_of_every_format_is_applied(name):
    denoiser, both = TARGETS[name]
    family = family_named(FAMILY.get(name, name))
    assert family is not None
    for label, shapes in files(name).items():
        for header in ({}, HEADER):
            adapter = interpret(RawCheckpoint(stand_in(shapes), header), name=label)
            assert adapter.family == family.name, (label, adapter.candidates)
            assert not adapter.unmatched, label
            assert not adapter.foreign, label
            assert not adapter.ignored, label
            # ORIGINAL never holds an encoder; nor COMFY where ComfyUI does not have the model.
            alone = label.endswith("original") or (label.endswith("comfy") and "comfy" not in encoders_of(name))
            assert len(adapter.targets) == (denoiser if alone else both), label
            assert set().union(*adapter.keys.values()) == shapes.keys(), label
        for key, delta in adapter.targets.items():
            layer = Layer.of(modules_of(family, key.component)[key.module])
            assert layer is not None
            delta, layer = fitted(key.module, delta, layer)
            delta.check(layer)


def encoders_of(name: str) -> str:
    return "" if name.startswith(("sana", "stable_cascade", "wuerstchen")) else "comfy"


# -- what its modules compute ----------------------------------------------------------------------------------------

LIMIT, LIMIT32 = 2e-6, 1e-5


def sana() -> nn.Module:
    """One block, for its depthwise convolution."""
    from diffusers import SanaTransformer2DModel

    return SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=12,
        mlp_ratio=1.5, sample_size=8,
    ).eval()  # fmt: skip


MODELS = {"unet": tiny.unet, "flux": tiny.flux, "sana": sana}


def stored(name: str) -> dict[str, Tensor]:
    return load_file(FIXTURES / f"{name}.safetensors")


def cases() -> list[tuple[str, str]]:
    return [
        (name, case)
        for name in MODELS
        for case in sorted({key.split("/")[0] for key in stored(name)} - {"base", "input"})
    ]


def part(tensors: dict[str, Tensor], begin: str) -> dict[str, Tensor]:
    return {key.removeprefix(begin): tensor for key, tensor in tensors.items() if key.startswith(begin)}


@torch.no_grad()
def model_with(tensors: dict[str, Tensor], name: str) -> nn.Module:
    """The tiny model in float64 with the base weights that OneTrainer's modules were on."""
    model = diffadapt.enable(MODELS[name]().double().requires_grad_(False))
    state = dict(model.named_parameters())
    for key, tensor in part(tensors, "base/").items():
        state[key].copy_(tensor)
    return model


@torch.no_grad()
def outputs(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {path: model.get_submodule(path)(x.double()) for path, x in part(tensors, "input/").items()}


@pytest.mark.parametrize(("name", "case"), cases())
def test_live_and_merged_are_what_the_trainer_computes(name, case, tmp_path):
    tensors = stored(name)
    model = model_with(tensors, name)
    base, truth = outputs(model, tensors), part(tensors, f"{case}/out/")
    save_file(part(tensors, f"{case}/file/"), tmp_path / "file.safetensors", HEADER)
    report = model.load_adapter(tmp_path / "file.safetensors", adapter_name="mine", strict=True)
    assert report.complete
    limit = LIMIT32 if "dora" in case else LIMIT
    for path, seen in outputs(model, tensors).items():
        assert tiny.relative(seen, truth[path], base[path]) < limit, path
    if (name, case) == ("sana", "lora kohya"):
        with pytest.raises(MergeError, match=r"ff\.conv_depth.*depthwise"):
            model.adapters.merge()
        return
    before = tiny.snapshot(model)
    model.adapters.merge()
    for path, seen in outputs(model, tensors).items():
        assert tiny.relative(seen, truth[path], base[path]) < limit, path
    model.adapters.unmerge()
    assert tiny.same_bits(model, before)


CONV = "transformer.transformer_blocks.0.ff.conv_depth"


@pytest.mark.parametrize(
    "file",
    [
        {f"{CONV}.lora_A.weight": torch.ones(4, 48, 3, 3), f"{CONV}.lora_B.weight": torch.ones(2, 4, 1, 1)},
        {f"{CONV}.oft_R.weight": torch.ones(54, 28)},
        {f"{CONV}.lokr_w1": torch.ones(6, 6), f"{CONV}.lokr_w2": torch.ones(8, 8, 3, 3)},
    ],
    ids=["lora", "oft", "lokr"],
)
def test_a_depthwise_convolution_refuses_by_name_what_no_trainer_made(file):
    """OneTrainer's LoKr and OFT raise in their own forward there, and so would a pair of two rows."""
    with pytest.raises(TargetError, match=r"ff\.conv_depth"):
        diffadapt.enable(sana()).load_adapter(file)


def test_a_pair_across_groups_is_no_change_of_a_weight():
    layer = Layer.of(nn.Conv2d(6, 6, 3, groups=6))
    assert layer is not None
    delta = across_groups(LoRA(torch.ones(2, 6, 3, 3), torch.ones(1, 2, 1, 1), 2.0), layer)
    assert delta.live_only is not None
    assert delta.low_rank() is None
    with pytest.raises(AlgorithmError, match="depthwise"):
        delta.weight_delta(torch.zeros(6, 1, 3, 3))
    plain = LoRA(torch.ones(2, 1, 3, 3), torch.ones(6, 2, 1, 1), 2.0)
    assert across_groups(plain, layer) is plain


def test_magnitudes_of_another_depthwise_convolution():
    layer = Layer.of(nn.Conv2d(6, 6, 3, groups=6))
    assert layer is not None
    dora = DoRA(LoRA(torch.ones(2, 6, 3, 3), torch.ones(1, 2, 1, 1), 2.0), torch.ones(5, 1, 1, 1), False, 0.0)
    with pytest.raises(AlgorithmError, match="5 magnitudes"):
        across_groups(dora, layer).check(layer)


def test_what_was_trained_across_groups_is_saved_as_it_came(tmp_path):
    file = part(stored("sana"), "lora kohya/file/")
    model = diffadapt.enable(sana())
    model.load_adapter(file, adapter_name="mine", trainable=True)
    model.adapters.save("mine", tmp_path / "mine.safetensors", dialect="diffusers")
    pair = load_file(tmp_path / "mine.safetensors")
    assert {tuple(tensor.shape) for tensor in pair.values() if tensor.ndim == 4} == {(4, 48, 3, 3), (1, 4, 1, 1)}


@pytest.mark.parametrize("case", ["loha kohya", "lokr comfy", "lokr_dora_in kohya", "oft comfy", "lora comfy"])
def test_rows_left_unexchanged_come_back_so(case, tmp_path):
    """Its converter exchanges the halves of `lora_up` only; a file of ours keeps its header, so it must do the same."""
    tensors = part(stored("flux"), f"{case}/file/")
    outer = {key: tensor for key, tensor in tensors.items() if "adaLN" in key}
    assert outer
    save_file(outer, tmp_path / "one.safetensors", HEADER)
    adapter = diffadapt.read_adapter(tmp_path / "one.safetensors")
    again = load_file(adapter.save(tmp_path / "two.safetensors"))
    assert again.keys() >= {key for key in outer if not key.endswith("alpha")}
    assert all(torch.equal(again[key], tensor) for key, tensor in outer.items() if key in again)


# -- writing its names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(TARGETS) - {"stable_cascade"}))
def test_its_own_names_are_written_as_it_writes_them(name):
    shapes = files(name).get("lora legacy")
    if shapes is None:  # that format came later than these models
        assert name in {"anima", "hidream", "ideogram4", "krea2", "sana_0_6b", "sana_1_6b", "wuerstchen2"}
        return
    adapter = interpret(RawCheckpoint(stand_in(shapes), HEADER), name="x")
    made = compose(adapter, "onetrainer").tensors
    assert made.keys() == shapes.keys()
    assert all(list(tensor.shape) == shapes[key] for key, tensor in made.items())
