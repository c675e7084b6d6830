"""A sample of every algorithm of the registry, on a module that it fits: what the property tests enumerate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diffadapt.algorithms import Context, Delta, TensorGroup, parse_group
from diffadapt.algorithms.bank import Bank

MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(24, 32), (3, 5, 24)),
    "conv": (lambda: nn.Conv2d(16, 32, 3, stride=2, padding=1), (2, 16, 9, 7)),
    "conv1x1": (lambda: nn.Conv2d(24, 32, 1), (2, 24, 3, 4)),
    "conv1d": (lambda: nn.Conv1d(16, 32, 3), (2, 16, 9)),
    "grouped": (lambda: nn.Conv2d(16, 32, 3, groups=4), (2, 16, 5, 5)),
    "embedding": (lambda: nn.Embedding(30, 20), (4, 7)),
    "layer_norm": (lambda: nn.LayerNorm(12), (2, 5, 12)),
    "group_norm": (lambda: nn.GroupNorm(3, 12), (2, 12, 4, 5)),
}


@dataclass(frozen=True)
class Sample:
    """Tensor shapes by role (a Tensor is taken as it is). rows: borders at which its output rows can be separated, or
    empty. fixed: roles that hold no trained numbers. shared: what the whole file holds once."""

    name: str
    algorithm: str
    module: str
    shapes: dict[str, Any]
    writer: str = "lycoris"
    config: dict[str, Any] = field(default_factory=dict)
    rows: tuple[int, ...] = (8, 20)
    shared: dict[str, Any] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        return _filled(self.shapes)

    @property
    def context(self) -> Context:
        return Context(self.writer, self.config, bank=Bank(_filled(self.shared), (self.name,)))

    def delta(self, change: Callable[[Tensor], Tensor] = lambda t: t) -> Delta:
        tensors = {role: change(t) if t.is_floating_point() else t for role, t in self.tensors().items()}
        return parse_group(TensorGroup(self.name, tensors), self.context)

    def build(self) -> tuple[nn.Module, Tensor]:
        torch.manual_seed(3)
        make, shape = MODULES[self.module]
        module = make().requires_grad_(False)
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape))
        module.double()
        x = torch.randint(30, shape) if self.module == "embedding" else torch.randn(shape, dtype=torch.float64)
        return module, x


def _filled(shapes: dict[str, Any]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {
        role: shape if isinstance(shape, Tensor) else 0.3 * torch.randn(shape, generator=generator)
        for role, shape in shapes.items()
    }


ALPHA = torch.tensor(3.0)
LORA = {"lora_down": (4, 24), "lora_up": (32, 4), "alpha": ALPHA}
LOHA = {"hada_w1_a": (32, 2), "hada_w1_b": (2, 24), "hada_w2_a": (32, 2), "hada_w2_b": (2, 24), "alpha": ALPHA}
LOKR = {"lokr_w1": (4, 4), "lokr_w2_a": (8, 2), "lokr_w2_b": (2, 6), "alpha": ALPHA}
FROD = {"V": torch.eye(24) + 0.1, "s_indices": torch.tensor([[0, 9, 20], [3, 2, 0]])}
SCALE = 1 + torch.rand(32, 1, generator=torch.Generator().manual_seed(1))

SAMPLES = [
    Sample("lora", "lora", "linear", LORA),
    Sample("lora bias", "lora", "linear", LORA | {"lora_up_bias": (32,)}),
    Sample("lora conv", "lora", "conv", {"lora_down": (4, 16, 3, 3), "lora_up": (32, 4, 1, 1)}),
    Sample("lora 1d", "lora", "conv1d", {"lora_down": (4, 16, 3), "lora_up": (32, 4, 1)}),
    Sample("lora grouped", "lora", "grouped", {"lora_down": (4, 4, 3, 3), "lora_up": (32, 4, 1, 1)}, rows=()),
    Sample("lora tucker", "lora", "conv",
           {"lora_down": (4, 16, 1, 1), "lora_up": (32, 4, 1, 1), "lora_mid": (4, 4, 3, 3)}),
    Sample("lora embedding", "lora", "embedding", {"lora_embedding_A": (4, 30), "lora_embedding_B": (20, 4)},
           "peft", rows=()),
    Sample("loha", "loha", "linear", LOHA),
    Sample("loha dense", "loha", "linear",
           {"hada_w1_a": (32, 6), "hada_w1_b": (6, 24), "hada_w2_a": (32, 6), "hada_w2_b": (6, 24)}),
    Sample("loha tucker", "loha", "conv",
           {"hada_w1_a": (2, 32), "hada_w1_b": (2, 16), "hada_w2_a": (2, 32), "hada_w2_b": (2, 16),
            "hada_t1": (2, 2, 3, 3), "hada_t2": (2, 2, 3, 3)}),
    Sample("lokr", "lokr", "linear", LOKR),
    Sample("lokr off its borders", "lokr", "linear", LOKR, rows=(5, 13, 21)),
    Sample("lokr full", "lokr", "conv", {"lokr_w1": (4, 4), "lokr_w2": (8, 4, 3, 3)}, rows=(8, 19)),
    Sample("lokr peft full", "lokr", "conv1d", {"lokr_w1": (4, 4), "lokr_w2": (8, 4, 3)}, "peft",
           {"r": 8, "alpha": 3}, rows=(8, 19)),
    Sample("lokr tucker", "lokr", "conv",
           {"lokr_w1_a": (4, 1), "lokr_w1_b": (1, 4), "lokr_w2_a": (2, 8), "lokr_w2_b": (2, 4),
            "lokr_t2": (2, 2, 3, 3)}),
    Sample("lokr grouped", "lokr", "grouped", {"lokr_w1": (4, 2), "lokr_w2": (8, 2, 3, 3)}, rows=()),
    Sample("glora", "glora", "linear", {"a1": (24, 3), "a2": (3, 24), "b1": (32, 3), "b2": (3, 24), "alpha": ALPHA}),
    Sample("glora old", "glora", "linear",
           {"a1": (3, 24), "a2": (24, 3), "b1": (3, 24), "b2": (32, 3), "alpha": ALPHA}),
    Sample("glora conv", "glora", "conv",
           {"a1": (16, 3, 1, 1), "a2": (3, 16, 1, 1), "b1": (32, 3, 1, 1), "b2": (3, 16, 3, 3)}),
    Sample("ia3 outputs", "ia3", "linear", {"weight": (32,), "on_input": torch.tensor(0)}),
    Sample("ia3 inputs", "ia3", "conv", {"weight": (1, 16, 1, 1), "on_input": torch.tensor(1)}),
    Sample("ia3 peft", "ia3", "linear", {"ia3_l": (32, 1)}, "peft"),
    Sample("ia3 peft grouped", "ia3", "grouped", {"ia3_l": (1, 16, 1, 1)}, "peft", rows=()),
    Sample("full", "full", "conv", {"diff": (32, 16, 3, 3), "diff_b": (32,)}),
    Sample("replacement", "full", "linear", {"set_weight": (32, 24), "set_bias": (32,)}),
    Sample("bias", "full", "linear", {"diff_b": (32,)}),
    Sample("norm", "norm", "layer_norm", {"w_norm": (12,), "b_norm": (12,)}, rows=()),
    Sample("group norm", "norm", "group_norm", {"w_norm": (12,), "b_norm": (12,)}, rows=()),
    Sample("residual", "residual", "linear",
           {"bias_indices": torch.tensor([[0, 9, 31], [3, 23, 0]]), "bias_values": (3,),
            "bias_size": torch.tensor([32, 24])}),
    Sample("dora", "dora", "linear", LORA | {"dora_scale": SCALE}),
    Sample("dora inputs", "dora", "linear", LORA | {"dora_scale": SCALE[:24].T}, rows=()),
    Sample("dora loha", "dora", "linear", LOHA | {"dora_scale": SCALE}),
    Sample("dora lokr", "dora", "linear", LOKR | {"dora_scale": SCALE}),
    Sample("dora lokr inputs", "dora", "linear", LOKR | {"dora_scale": SCALE[:24].T}, rows=()),
    Sample("dora conv inputs", "dora", "grouped",
           {"lora_down": (4, 4, 3, 3), "lora_up": (32, 4), "dora_scale": SCALE[:4].T[..., None, None]}, rows=()),
    Sample("dora peft conv", "dora", "conv1x1", LORA | {"dora_scale": SCALE.T[..., None, None]}, "peft"),
    Sample("dora embedding", "dora", "embedding",
           {"lora_embedding_A": (4, 30), "lora_embedding_B": (20, 4), "dora_scale": SCALE[:20, 0]}, "peft", rows=()),
    Sample("tlora", "tlora", "linear",
           {"q_layer": (3, 24), "p_layer": (32, 3), "lambda_layer": (1, 3), "alpha": ALPHA}, rows=()),
    Sample("sum", "sum", "linear", LORA | {"diff_b": (32,)}),
    Sample("sum of weights", "sum", "linear", LORA | {"diff": (32, 24), "ia3_l": (32, 1)}),
    Sample("adalora", "adalora", "linear", {"lora_down": (4, 24), "lora_up": (32, 4), "lora_E": (4, 1)}, "peft",
           {"lora_alpha": 3, "init_r": 4}),
    Sample("kasa", "kasa", "linear", {"lora_down": (4, 24), "lora_up": (32, 4), "lora_diag": (4,)}, "peft",
           {"lora_alpha": 3, "r": 4}, rows=()),
    Sample("oft", "oft", "linear", {"oft_blocks": (8, 4, 4), "alpha": torch.tensor(0.0), "rescale": SCALE}),
    Sample("oft conv", "oft", "conv", {"oft_blocks": (8, 4, 4), "alpha": torch.tensor(0.001)}),
    Sample("boft", "boft", "linear", {"oft_blocks": (3, 4, 8, 8), "alpha": torch.tensor(0.0)}, rows=()),
    Sample("oft flux", "oft", "linear",
           {"oft_blocks.0": (2, 4, 4), "oft_blocks.1": (2, 12, 12), "alpha": torch.tensor(0.01)}, "kohya", rows=(8,)),
    Sample("oft diag", "oft_diag", "linear", {"oft_diag": (8, 4, 4)}),
    Sample("oft peft", "oft_peft", "linear", {"oft_R": (6, 6)}, "peft",
           {"oft_block_size": 4, "use_cayley_neumann": False}),
    Sample("oft peft old", "oft_peft", "linear", {"oft_r": (4, 8, 8)}, "peft", {"r": 4}, rows=(8, 16)),
    Sample("oft peft middle", "oft_peft", "linear", {"oft_r": (4, 6, 6), "oft_s": (32, 1)}, "peft", {"r": 4}),
    Sample("boft peft", "boft_peft", "linear", {"boft_R": (1, 6, 4, 4), "boft_s": (32, 1)}, "peft"),
    Sample("hra", "hra", "linear", {"hra_u": (24, 4)}, "peft"),
    Sample("glora peft", "glora_peft", "linear",
           {"glora_A.Xd": (32, 3), "glora_A.Xu": (3, 24), "glora_B.X": (32, 1), "glora_C.zeros": torch.zeros(24, 1),
            "glora_D.X": (32,), "glora_E.X": (1,)}, "peft"),
    Sample("glora peft products", "glora_peft", "linear",
           {**{f"glora_{x}.Xd": (32, 3) for x in "AB"}, **{f"glora_{x}.Xu": (3, 24) for x in "AB"},
            "glora_C.zeros": torch.zeros(24, 1), "glora_D.X": (32,), "glora_E.X": (32,)}, "peft"),
    Sample("vera", "vera", "linear", {"vera_lambda_b": (32,), "vera_lambda_d": (4,)}, "peft", rows=(),
           shared={"vera_A": (4, 30), "vera_B": (40, 4)}),
    Sample("pvera", "pvera", "linear", {"pvera_lambda_b": (32,), "pvera_lambda_d": (8,)}, "peft", rows=(),
           shared={"pvera_A": (8, 30), "pvera_B": (40, 4)}),
    Sample("randlora", "randlora", "linear", {"randlora_lambda": (5, 5), "randlora_gamma": (5, 24)}, "peft",
           {"randlora_alpha": 3}, (), {"randlora_A": (5, 1, 30), "randlora_B": (40, 6, 5)}),
    Sample("fourierft", "fourierft", "linear", {"fourierft_spectrum": (20,)}, "peft",
           {"scaling": 9, "random_loc_seed": 5}, ()),
    Sample("waveft", "waveft", "linear", {"waveft_spectrum": (20,)}, "peft",
           {"scaling": 9, "random_loc_seed": 5, "wavelet_family": "db2"}, ()),
    Sample("c3a", "c3a", "linear", {"c3a_kernel": (4, 3, 8)}, "peft"),
    Sample("vblora", "vblora", "linear", {"vblora_logits_A": (3, 3, 10), "vblora_logits_B": (4, 3, 10)}, "peft",
           {"topk": 2}, shared={"vblora_vector_bank": (10, 8)}),
    Sample("unilora", "unilora", "linear",
           {"unilora_indices_A": torch.arange(72).reshape(3, 24) % 11, "unilora_scales_A": (3, 24),
            "unilora_indices_B": torch.arange(96).reshape(32, 3) % 7, "unilora_scales_B": (32, 3)}, "peft",
           shared={"unilora_theta_d": (11,)}),
    Sample("shira", "shira", "linear",
           {"shira_weight": (56,), "shira_indices": torch.stack([torch.arange(56) % 32, torch.arange(56) * 5 % 24])},
           "peft", {"r": 1}),
    Sample("supertuning", "supertuning", "linear",
           {"supertuning_values": (4,), "supertuning_indices": torch.tensor([0, 250, 330, 767])}, "peft",
           {"sparsity": 0.9947}, ()),
    Sample("supra", "supertuning", "linear",
           {"supertuning_values": (4,), "supertuning_indices": torch.tensor([0, 250, 330, 767]),
            "supertuning_lora_A": (3, 24), "supertuning_lora_B": (32, 3)}, "peft",
           {"lora_alpha": 2, "sparsity": 0.9947}),
    Sample("miss", "miss", "linear", {"miss_block": (5, 32)}, "peft", rows=()),
    Sample("miss bat", "miss_bat", "linear", {"bone_block": (8, 4, 4)}, "peft"),
    Sample("road", "road", "linear", {"road_theta": (64,), "road_alpha": (64,)}, "peft",
           {"variant": "road_4", "group_size": 4}),
    Sample("delora", "delora", "linear",
           {"delora_A": (3, 24), "delora_B": (32, 3), "delora_lambda": torch.tensor([4.0]),
            "delora_w_norm": torch.linspace(1, 2, 24)}, "peft"),
    Sample("hira", "hira", "conv", {"hira_A": (3, 16, 3, 3), "hira_B": (32, 3, 1, 1)}, "peft"),
    Sample("hira embedding", "hira", "embedding", {"hira_embedding_A": (3, 30), "hira_embedding_B": (20, 3)}, "peft",
           rows=()),
    Sample("gralora", "gralora", "linear",
           {"gralora_A": (4, 6, 8), "gralora_B": (4, 8, 8), "gralora_A_general": (2, 24), "gralora_B_general": (32, 2)},
           "peft", {"alpha": 3}),
    Sample("deft", "deft", "linear", {"deft_P": (32, 3), "deft_R": (3, 24)}, "peft", {"decomposition_method": "qr"},
           ()),
    Sample("psoft", "psoft", "linear", {"psoft_R": (6,), "psoft_R.vector_a": torch.linspace(0.5, 1.5, 4)}, "peft",
           {"ab_svd_init": "psoft_init"}, ()),
    Sample("tinylora", "tinylora", "linear", {"tinylora_A": (2, 24), "tinylora_B": (32, 2), "tinylora_P": (5, 2, 2)},
           "peft", rows=(), shared={"tinylora_v.0": (5,)}),
    Sample("osf", "osf", "linear",
           {"osf_svd_params.U_low": (32, 4), "osf_svd_params.S_low": (4,), "osf_svd_params.V_low": (4, 24)}, "peft",
           rows=()),
    Sample("peanut", "peanut", "linear",
           {"peanut_A": (4, 32), "peanut_B": (32, 4), "peanut_encoders.0": (4, 4), "peanut_decoders.0": (4, 4)}, "peft",
           {"act_fn": "gelu", "scaling": 0.5}, ()),
    Sample("frod", "frod", "linear", {"frod_lambda_l": (24,), "frod_lambda_s_values": (3,)}, "peft", rows=(),
           shared={f"frod_{what}.{name}": t for name in ("frod", "m", "attn1_to_q") for what, t in FROD.items()}),
    Sample("tokens", "tokens", "embedding", {"trainable_tokens_delta": (3, 20)}, "peft", {"token_indices": [1, 4, 9]},
           ()),
    Sample("beft", "beft", "linear", {"beft_bias": (1, 32)}, "peft"),
    Sample("bdlora", "bdlora", "linear", {"lora_down": (4, 12), "lora_up": (32, 4)}, "peft",
           {"r": 4, "lora_alpha": 3, "use_bdlora": {"nblocks": 2, "target_modules_bd_a": ["bdlora", "m", "to_q"]}}),
    Sample("qalora", "qalora", "linear", {"lora_down": (4, 6), "lora_up": (32, 4)}, "peft",
           {"r": 4, "lora_alpha": 3, "use_qalora": True, "qalora_group_size": 4}),
]  # fmt: skip
