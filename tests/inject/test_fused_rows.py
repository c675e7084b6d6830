"""Adapters that trainers put on one fused Linear act right on Diffusers' split ones, whatever crosses the borders.

The oracle is LyCORIS on a really fused Linear, whose output is then cut.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.full import FullModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from torch import Tensor, nn

import diffadapt
from tests import tiny
from tests.algorithms.trainers import randomise

QKV = ("lora_unet_double_blocks_0_img_attn_qkv", "transformer_blocks.0", ("attn.to_q", "attn.to_k", "attn.to_v"))
LINEAR1 = (
    "lora_unet_single_blocks_0_linear1", "single_transformer_blocks.0",
    ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
)  # fmt: skip
VARIANTS = {
    "lora": (LoConModule, {"lora_dim": 5, "alpha": 3}),
    "dora_out": (LoConModule, {"lora_dim": 5, "alpha": 3, "weight_decompose": True, "wd_on_out": True}),
    "dora_in": (LoConModule, {"lora_dim": 5, "alpha": 3, "weight_decompose": True, "wd_on_out": False}),
    "loha": (LohaModule, {"lora_dim": 5, "alpha": 3}),
    "loha_dora_in": (LohaModule, {"lora_dim": 5, "alpha": 3, "weight_decompose": True, "wd_on_out": False}),
    # 144 = 9 * 16 and 336 = 14 * 24 or so: no border of w1's rows is a border of q, k or v.
    "lokr": (LokrModule, {"lora_dim": 4, "alpha": 2, "factor": 9}),
    "lokr_full": (LokrModule, {"lora_dim": 10000, "factor": 9, "full_matrix": True}),
    "lokr_dora_in": (LokrModule, {"lora_dim": 4, "factor": 9, "weight_decompose": True, "wd_on_out": False}),
    "oft": (DiagOFTModule, {"lora_dim": 9}),
    "oft_rescaled": (DiagOFTModule, {"lora_dim": 9, "rescaled": True}),
    "oft_constrained": (DiagOFTModule, {"lora_dim": 9, "constraint": 0.2}),
    "boft": (ButterflyOFTModule, {"lora_dim": 42}),
    "boft_rescaled": (ButterflyOFTModule, {"lora_dim": 42, "rescaled": True}),
    "glora": (GLoRAModule, {"lora_dim": 5, "alpha": 3}),
    "full": (FullModule, {}),
    "ia3": (IA3Module, {}),
}  # fmt: skip
ROTATIONS = (DiagOFTModule, ButterflyOFTModule)
CLOSE = {torch.float64: 2e-6, torch.float32: 1e-5}
"""Relative error of the change. Our deltas are float32; LyCORIS' rotations are, too, and outputs round with them."""


def dtype_of(variant: str) -> torch.dtype:
    return torch.float32 if VARIANTS[variant][0] in ROTATIONS else torch.float64


def trained(
    model: nn.Module, where: tuple[str, str, tuple[str, ...]], variant: str
) -> tuple[dict[str, Tensor], Callable[[Tensor], Tensor]]:
    """The adapter file of a LyCORIS module on the fused Linear, and the Linear with it."""
    prefix, block, leaves = where
    parts = [model.get_submodule(f"{block}.{leaf}") for leaf in leaves]
    rows = sum(part.out_features for part in parts)
    fused = nn.Linear(parts[0].in_features, rows).to(model.dtype).requires_grad_(False)
    fused.weight.copy_(torch.cat([part.weight for part in parts]))
    fused.bias.copy_(torch.cat([part.bias for part in parts]))
    cls, options = VARIANTS[variant]
    module = cls("name", fused, multiplier=1.0, **options).to(model.dtype)
    if cls is FullModule:
        module.apply_to()
    for name, p in module.named_parameters():
        noise = 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))).to(p)
        p.copy_((p * (1 + noise) if "dora_scale" in name else p + noise).float())
    file = {f"{prefix}.{name}": tensor.detach().clone() for name, tensor in module.state_dict().items()}
    if cls is IA3Module:
        file[f"{prefix}.weight"] = module.weight.detach().clone()
    return file, fused if cls is FullModule else module.eval()


def output(model: nn.Module, where: tuple[str, str, tuple[str, ...]], x: Tensor) -> Tensor:
    return torch.cat([model.get_submodule(f"{where[1]}.{leaf}")(x) for leaf in where[2]], dim=-1)


def error(seen: Tensor, truth: Tensor) -> float:
    return float((seen - truth).norm() / truth.norm())


@pytest.mark.parametrize("where", [QKV, LINEAR1], ids=["qkv", "linear1"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_fused_layer_is_cut_exactly(variant, where):
    model = tiny.flux().to(dtype_of(variant))
    file, module = trained(model, where, variant)
    x = torch.randn(2, 7, 48, generator=torch.Generator().manual_seed(5)).to(model.dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    base = output(model, where, x)
    change = module(x) - base
    assert change.norm() > 0.01 * base.norm()
    diffadapt.enable(model)
    report = model.load_adapter(file, adapter_name="fused")
    assert len(report.applied) == len(where[2])
    assert report.complete
    assert error(output(model, where, x) - base, change) < CLOSE[x.dtype]
    model.adapters.set({"fused": 0.5})
    assert error(output(model, where, x) - base, change / 2) < CLOSE[x.dtype]
    model.adapters.set({"fused": 1.0})
    model.adapters.merge()
    assert error(output(model, where, x) - base, change) < CLOSE[x.dtype]
    model.adapters.unmerge()
    model.adapters.remove("fused")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("variant", ["dora_in", "oft", "lokr"])
@torch.no_grad()
def test_parts_see_the_base_weights_while_others_are_merged(variant):
    """Merging changes to_q before to_k's turn comes: to_k's change is still that of the base."""
    model = tiny.flux().to(dtype_of(variant))
    file, module = trained(model, QKV, variant)
    x = torch.randn(2, 7, 48).to(model.dtype)
    base = output(model, QKV, x)
    diffadapt.enable(model)
    model.load_adapter(file, adapter_name="one")
    model.load_adapter(file, adapter_name="two")
    model.adapters.merge(["one"])
    model.adapters.set({"one": 0.25, "two": 0.75})
    assert error(output(model, QKV, x) - base, module(x) - base) < CLOSE[x.dtype]
    model.adapters.merge()
    assert error(output(model, QKV, x) - base, module(x) - base) < CLOSE[x.dtype]


@pytest.mark.parametrize("variant", ["lora", "dora_in", "oft"])
@torch.no_grad()
def test_a_split_adapter_acts_after_the_model_is_fused(variant):
    model = tiny.flux().to(dtype_of(variant))
    file, module = trained(model, QKV, variant)
    x = torch.randn(2, 7, 48).to(model.dtype)
    base = output(model, QKV, x)
    change = module(x) - base
    diffadapt.enable(model)
    model.load_adapter(file, adapter_name="fused")
    model.fuse_qkv_projections()
    attention = model.transformer_blocks[0].attn
    assert error(attention.to_qkv(x) - base, change) < CLOSE[x.dtype]
    model.adapters.merge()
    assert error(attention.to_qkv(x) - base, change) < CLOSE[x.dtype]


@torch.no_grad()
def test_exchanged_halves_with_a_rotation():
    """The final modulation is shift|scale for BFL and scale|shift for Diffusers, for a rotation of rows too."""
    model = tiny.flux()
    ours = model.norm_out.linear
    native = nn.Linear(48, 96).requires_grad_(False)
    native.weight.copy_(ours.weight.roll(48, 0))
    native.bias.copy_(ours.bias.roll(48, 0))
    module = DiagOFTModule("name", native, multiplier=1.0, lora_dim=12)
    randomise(module.parameters())
    prefix = "lora_unet_final_layer_adaLN_modulation_1"
    file = {f"{prefix}.{name}": tensor.detach().clone() for name, tensor in module.state_dict().items()}
    x = torch.randn(3, 48)
    base = ours(x)
    change = module(x).roll(48, -1) - base
    diffadapt.enable(model)
    model.load_adapter(file, adapter_name="a")
    assert error(ours(x) - base, change) < CLOSE[x.dtype]
    model.adapters.merge()
    assert error(ours(x) - base, change) < CLOSE[x.dtype]
