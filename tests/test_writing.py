"""write_adapter: what is written is read back as the same adapter, and as their own by PEFT and Diffusers."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from diffadapt.algorithms.base import Delta
from diffadapt.errors import DialectError
from diffadapt.io.checkpoint import RawCheckpoint
from diffadapt.reading import read_adapter
from tests.families import models

MANIFESTS = [
    "sdxl-kohya-lora-sgm", "sdxl-kohya-lora-te1-te2", "sdxl-lycoris-dora-down", "sdxl-diffusers-lora-te1-te2",
    "sd15-kohya-locon", "sd15-lycoris-lokr-diffusers", "sd15-lycoris-mixed-kohya",
]  # fmt: skip


def small(name, every):
    """A part of a manifest: the modules at every so many places."""
    shapes = models.manifest(name)
    modules = sorted(
        {key.split(".lora")[0] if key.startswith(("unet", "text")) else key.split(".")[0] for key in shapes}
    )
    kept = tuple(f"{module}." for module in modules[::every])
    return models.random_file({key: shape for key, shape in shapes.items() if key.startswith(kept)})


def assert_same(one, other):
    assert set(one.targets) == set(other.targets)
    for target, delta in one.targets.items():
        again: Delta = other.targets[target]
        assert type(again) is type(delta)
        assert again.rank == delta.rank
        ours, theirs = delta.tensors(), again.tensors()
        assert ours.keys() == theirs.keys()
        for role, tensor in ours.items():
            torch.testing.assert_close(theirs[role].squeeze(), tensor.squeeze())


@pytest.mark.parametrize("name", MANIFESTS)
def test_own_dialect_gives_the_same_keys(name, tmp_path):
    tensors = small(name, 1)
    metadata = {"ss_output_name": "x", "sshs_model_hash": "0", "modelspec.title": "T"}
    adapter = read_adapter(RawCheckpoint(tensors, metadata))
    path = adapter.save(tmp_path / "a.safetensors")
    again = read_adapter(path)
    assert_same(adapter, again)
    assert again.dialect == adapter.dialect
    raw = dict(again.metadata.raw)
    raw.pop("lora_adapter_metadata", None)
    assert raw == {"ss_output_name": "x", "modelspec.title": "T"}
    # Families have one way of writing; what came in another spelling keeps its number of keys.
    with safe_open(path, "pt") as file:
        assert len(file.keys()) == len(tensors)
        if name in ("sdxl-kohya-lora-sgm", "sdxl-kohya-lora-te1-te2", "sd15-kohya-locon", "sd15-lycoris-mixed-kohya"):
            assert set(file.keys()) == set(tensors)


@pytest.mark.parametrize("dialect", ["kohya", "lycoris", "comfy", "diffusers", "peft", "bare"])
@pytest.mark.parametrize("name", MANIFESTS)
def test_every_dialect_keeps_the_deltas_or_says_why_not(name, dialect, tmp_path):
    adapter = read_adapter(small(name, 7))
    several = len(adapter.components) > 1
    impossible = {
        "lycoris": several and adapter.family == "sdxl" and "unet" not in adapter.components,
        "diffusers": name == "sd15-lycoris-mixed-kohya",
    }
    if impossible.get(dialect, several and dialect in ("peft", "bare")):
        with pytest.raises(DialectError, match=f"^{dialect}: "):
            adapter.save(tmp_path / "a.safetensors", dialect=dialect)
        assert not list(tmp_path.iterdir())
        return
    path = adapter.save(tmp_path / "a.safetensors", dialect=dialect)
    again = read_adapter(path)
    assert again.dialect == dialect
    assert_same(adapter, again)


def test_stabilised_scale_is_kept(tmp_path):
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": True}
    pair = {f"base_model.model.conv_in.lora_{x}.weight": torch.randn(4, 4) for x in "AB"}
    adapter = read_adapter(RawCheckpoint(pair, config=config))
    weight = torch.zeros(4, 4)
    for dialect in ("kohya", "diffusers", "peft"):
        again = read_adapter(adapter.save(tmp_path / f"{dialect}.safetensors", dialect=dialect))
        for target, delta in adapter.targets.items():
            torch.testing.assert_close(again.targets[target].weight_delta(weight), delta.weight_delta(weight))


def tiny_unet():
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=8, norm_num_groups=8, cross_attention_dim=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def lora_for(model, prefix, level):
    """A Kohya file with several ranks and alphas for the attention of a model."""
    tensors = {}
    chosen = [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "attn" in n]
    for place, (name, module) in enumerate(chosen):
        rank = 2 + place % 3
        key = f"{prefix}{(level + name.removeprefix(level)).replace('.', '_')}"
        tensors[f"{key}.lora_down.weight"] = torch.randn(rank, module.in_features)
        tensors[f"{key}.lora_up.weight"] = torch.randn(module.out_features, rank)
        tensors[f"{key}.alpha"] = torch.tensor(1.0 + place % 2)
    return tensors


def test_peft_reads_the_folder(tmp_path):
    from peft import PeftModel

    unet = tiny_unet()
    tensors = lora_for(unet, "lora_unet_", "")
    adapter = read_adapter(tensors)
    folder = adapter.save(tmp_path / "peft", dialect="peft")
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert_same(adapter, read_adapter(folder))
    model = PeftModel.from_pretrained(unet, folder)
    layers = {n: m for n, m in model.base_model.model.named_modules() if getattr(m, "lora_A", None)}
    assert set(layers) == {t.module for t in adapter.targets}
    for target, delta in adapter.targets.items():
        expected = layers[target.module].get_delta_weight("default")
        torch.testing.assert_close(delta.weight_delta(torch.zeros_like(expected)), expected, rtol=1e-5, atol=1e-5)


def test_embeddings_and_foreign_modules_are_kept(tmp_path):
    key = "lora_unet_some_novel_block"
    tensors = {
        f"{key}.lora_down.weight": torch.ones(2, 8), f"{key}.lora_up.weight": torch.ones(8, 2),
        "bundle_emb.<cat>.clip_l": torch.ones(1, 768), "bundle_emb.<cat>.clip_g_out": torch.ones(1, 1280),
    }  # fmt: skip
    adapter = read_adapter(tensors)
    again = read_adapter(adapter.save(tmp_path / "a.safetensors"))
    assert set(again.foreign) == set(adapter.foreign)
    assert set(again.embeddings["<cat>"].vectors) == {"text_encoder", "text_encoder_2_out"}
    with pytest.raises(DialectError, match="some_novel_block"):
        adapter.save(tmp_path / "b.safetensors", dialect="diffusers")
    assert not (tmp_path / "b.safetensors").exists()


def test_diffusers_loads_unet_and_text_encoder(tmp_path):
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel

    encoder = CLIPTextModel(CLIPTextConfig(hidden_size=32, intermediate_size=37, num_attention_heads=4,
                                           num_hidden_layers=2, vocab_size=100, projection_dim=32))  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae=None, text_encoder=encoder, tokenizer=None, unet=tiny_unet(), scheduler=DDIMScheduler(steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    tensors = lora_for(pipe.unet, "lora_unet_", "") | lora_for(encoder, "lora_te_", "text_model.")
    adapter = read_adapter(tensors)
    assert adapter.components == ("unet", "text_encoder")
    adapter.save(tmp_path / "x.safetensors", dialect="diffusers")
    pipe.load_lora_weights(tmp_path, weight_name="x.safetensors", adapter_name="x")
    seen = 0
    for component in ("unet", "text_encoder"):
        for name, module in getattr(pipe, component).named_modules():
            if getattr(module, "lora_A", None):
                whole = name if component == "unet" else models.canonical(name)
                theirs = module.get_delta_weight("x")
                ours = adapter.targets[component, whole].weight_delta(torch.zeros_like(theirs))
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
                seen += 1
    assert seen == len(adapter.targets)


@pytest.mark.parametrize("dialect", ["diffusers", "comfy", "lycoris", "peft", "kohya"])
@pytest.mark.parametrize("names", ["diffusers", "original"])
def test_kohya_comes_back_with_the_same_bits(dialect, names, tmp_path):
    tensors = small("sdxl-kohya-lora-sgm", 20)
    tensors = {key: t.half() if not key.endswith("alpha") else torch.tensor(8.0).half() for key, t in tensors.items()}
    if names == "diffusers":
        adapter = read_adapter(tensors)
        flat = {keys[0].split(".")[0]: t.module.replace(".", "_") for t, keys in adapter.keys.items()}
        tensors = {
            f"lora_unet_{flat[key.split('.')[0]]}.{key.split('.', 1)[1]}": tensor for key, tensor in tensors.items()
        }
    there = read_adapter(tensors).save(tmp_path / "a.safetensors", dialect=dialect)
    back = read_adapter(there).save(tmp_path / "b.safetensors", dialect="kohya")

    found = load_file(back)
    assert set(found) == set(tensors)
    assert all(found[key].dtype == t.dtype and torch.equal(found[key], t) for key, t in tensors.items())


def test_a_swapped_module_goes_back_as_it_came(tmp_path):
    """Flux' final modulation is shift|scale in Kohya's files and scale|shift in Diffusers'."""
    names = ("lora_unet_final_layer_adaLN_modulation_1", "lora_unet_double_blocks_0_img_mlp_0")
    sizes = ((6144, 3072), (12288, 3072))
    file = {}
    for name, (rows, columns) in zip(names, sizes, strict=True):
        file |= {
            f"{name}.lora_down.weight": torch.randn(2, columns), f"{name}.lora_up.weight": torch.randn(rows, 2),
            f"{name}.alpha": torch.tensor(1.0),
        }  # fmt: skip
    adapter = read_adapter(file)
    assert adapter.family == "flux1"
    again = load_file(adapter.save(tmp_path / "a.safetensors", dialect="kohya"))
    assert again.keys() == file.keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in file.items())
    ours = load_file(adapter.save(tmp_path / "b.safetensors", dialect="diffusers"))
    rows = ours["transformer.norm_out.linear.lora_B.weight"]
    assert torch.equal(rows, file[f"{names[0]}.lora_up.weight"].roll(3072, 0))
