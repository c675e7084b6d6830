"""PEFT's further methods: a config for every option that changes the maths, and the modules it is trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import peft
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig

from tests.algorithms.peft_folders import LINEARS

WITH_BIAS = ("tall", "wide", "square")
CONVOLUTIONS = ("conv1", "conv3", "conv1d", "conv3d")


@dataclass(frozen=True)
class Case:
    """A PEFT config class and its options. merged: False where a merge is refused. around_one: parameters of mean 1."""

    name: str
    config: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)
    modules: tuple[str, ...] = LINEARS
    merged: bool = True
    around_one: tuple[str, ...] = ()
    tolerance: float = 1e-6
    also: tuple[str, ...] = ()
    """Modules that are replaced whole."""

    def build(self) -> Any:
        return self.config(target_modules=list(self.modules), **self.options)


def _many(name: str, config: Callable[..., Any], variants: dict[str, dict[str, Any]], **rest: Any) -> list[Case]:
    shared = rest.pop("options", {})
    return [Case(f"{name} {key}".strip(), config, {**shared, **own}, **rest) for key, own in variants.items()]


DRAWN = {"save_projection": False, "projection_prng_key": 7}
CASES = [
    *_many("glora", peft.GloraConfig, {
        "": {"config_A_B": "lora", "config_C": "none", "config_D_E": "vector"},
        "constant": {"config_A_B": "constant", "config_C": "none", "config_D_E": "constant"},
        "weight only": {"config_A_B": "vector", "config_C": "none", "config_D_E": "none"},
    }, options={"r": 3}),
    *_many("glora C", peft.GloraConfig, {
        "lora": {"config_A_B": "lora", "config_C": "lora", "config_D_E": "constant"},
        "vector": {"config_A_B": "vector", "config_C": "vector", "config_D_E": "vector"},
    }, options={"r": 3}),
    *_many("vera", peft.VeraConfig, {"": {}, "drawn": DRAWN}, options={"r": 4}),
    *_many("pvera", peft.PveraConfig, {"": {}, "drawn": DRAWN}, options={"r": 4}),
    *_many("randlora", peft.RandLoraConfig, {
        "": {}, "sparse": {"sparse": True}, "drawn": DRAWN, "drawn sparse": {**DRAWN, "sparse": True},
        "drawn very sparse": {**DRAWN, "very_sparse": True},
    }, options={"r": 5, "randlora_alpha": 7}),
    Case("fourierft", peft.FourierFTConfig, {"n_frequency": 50, "scaling": 11.0}),
    *_many("waveft", peft.WaveFTConfig, {
        "": {}, "direct": {"use_idwt": False}, "db2": {"wavelet_family": "db2"}, "db7": {"wavelet_family": "db7"},
        "sym9": {"wavelet_family": "sym9"}, "coif2": {"wavelet_family": "coif2"},
        "proportional": {"proportional_parameters": True},
    }, options={"n_frequency": 50, "scaling": 11.0}),
    Case("c3a", peft.C3AConfig, {"block_size": 8}),
    *_many("vblora", peft.VBLoRAConfig, {
        "": {"topk": 2}, "topk only": {"topk": 3, "save_only_topk_weights": True},
    }, options={"r": 3, "num_vectors": 10, "vector_length": 8}),
    Case("unilora", peft.UniLoraConfig, {"r": 3, "theta_d_length": 40, "save_indices": True}),
    Case("shira", peft.ShiraConfig, {"r": 2}),
    *_many("supertuning", peft.SupertuningConfig, {
        "": {}, "found": {"save_precomputed_indices": False}, "supra": {"r": 3, "lora_alpha": 5.0},
        "found smallest": {"save_precomputed_indices": False, "select_top": False},
    }, options={"sparsity": 0.9}),
    Case("miss", peft.MissConfig, {"r": 5}),
    Case("miss mini", peft.MissConfig, {"r": 4, "mini_r": 8, "init_weights": "mini"}),
    Case("miss bat", peft.MissConfig, {"r": 8, "init_weights": "bat"}, WITH_BIAS),
    *_many("road", peft.RoadConfig, {v: {"variant": f"road_{v}"} for v in "124"}, options={"group_size": 8},
           around_one=("road_alpha",)),
    Case("delora", peft.DeloraConfig, {"r": 3, "delora_lambda": 4}, around_one=("delora_lambda",)),
    Case("hira", peft.HiraConfig, {"r": 3}, (*LINEARS, *CONVOLUTIONS, "embedding")),
    *_many("gralora", peft.GraloraConfig, {
        "": {"r": 4, "gralora_k": 2}, "hybrid": {"r": 8, "gralora_k": 4, "hybrid_r": 2},
    }, options={"alpha": 5}),
    *_many("deft", peft.DeftConfig, {
        "relu": {"decomposition_method": "relu"}, "qr": {"decomposition_method": "qr", "alpha": 6},
        "para relu": {"decomposition_method": "relu", "para": True},
        "para qr": {"decomposition_method": "qr", "para": True},
    }, options={"r": 3}),
    *_many("psoft", peft.PsoftConfig, {
        "": {}, "pissa": {"ab_svd_init": "pissa_init"}, "series": {"use_cayley_neumann": True},
        "short series": {"use_cayley_neumann": True, "cayley_neumann_eps": 0.5, "num_cayley_neumann_terms": 3},
        "free": {"psoft_orth": False, "psoft_mag_a": False}, "low rank": {"psoft_svd": "lowrank", "psoft_mag_b": False},
    }, options={"r": 4, "psoft_alpha": 7}, around_one=("vector",)),
    *_many("tinylora", peft.TinyLoraConfig, {"": {}, "tied": {"weight_tying": 0.5}, "one": {"weight_tying": 1.0}},
           options={"r": 2, "u": 5}, modules=(*LINEARS, "embedding")),
    Case("osf", peft.OSFConfig, {"effective_rank": 6}),
    *_many("peanut", peft.PeanutConfig, {"": {"act_fn": "relu"}, "deep": {"depth": 2, "act_fn": "gelu"}},
           options={"r": 4}),
    Case("frod", peft.FrodConfig, {"progressbar": False}),
    Case("beft", peft.BeftConfig, modules=WITH_BIAS),
    Case("beft without a bias", peft.BeftConfig, modules=("bare",), merged=False),
    Case("ln tuning", peft.LNTuningConfig, modules=("normed",)),
    Case("trainable tokens", peft.TrainableTokensConfig, {"token_indices": [1, 4, 7]}, ("embedding",)),
    # What other files test delta by delta, here from a whole folder.
    *_many("lora", peft.LoraConfig, {
        "": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True},
        "gaussian": {"init_lora_weights": "gaussian"},
    }, options={"r": 4, "lora_alpha": 7}, modules=(*LINEARS, *CONVOLUTIONS)),
    Case("lora bias", peft.LoraConfig, {"r": 4, "lora_bias": True}, (*WITH_BIAS, *CONVOLUTIONS)),
    Case("lora embedding", peft.LoraConfig, {"r": 4}, ("embedding",)),
    *_many("lora", peft.LoraConfig, {
        "orthogonal": {"init_lora_weights": "orthogonal"},
        "bd": {"use_bdlora": BdLoraConfig(
            target_modules_bd_a=["tall"], target_modules_bd_b=["wide", "square"], nblocks=2, match_strict=False)},
        "mica": {"init_lora_weights": "mica"}, "velora": {"velora_config": VeloraConfig(num_groups=4)},
        "monteclora": {"monteclora_config": MontecloraConfig(num_samples=3)},
        "trained biases": {"bias": "lora_only"},
    }, options={"r": 4, "lora_alpha": 7}),
    # PEFT took a part of the weight out by a decomposition in float32, whose rounding this does not repeat.
    *_many("lora", peft.LoraConfig, {
        "kasa": {"kasa_config": KasaConfig()}, "pissa": {"init_lora_weights": "pissa"},
        "olora": {"init_lora_weights": "olora"},
    }, options={"r": 4, "lora_alpha": 7}, tolerance=5e-6),
    Case("lora saved modules", peft.LoraConfig, {"r": 4, "modules_to_save": ["normed", "conv1"]},
         also=("normed", "conv1")),
    Case("lora trainable tokens", peft.LoraConfig, {"r": 4, "trainable_token_indices": {"embedding": [0, 3]}},
         also=("embedding",)),
    Case("adalora", peft.AdaLoraConfig, {"init_r": 4, "target_r": 2, "total_step": 100, "lora_alpha": 5},
         (*LINEARS, "conv1", "conv3")),
    *_many("loha", peft.LoHaConfig, {"": {}, "tucker": {"use_effective_conv2d": True}}, options={"r": 3, "alpha": 5},
           modules=(*LINEARS, "conv1", "conv3", "conv1d")),
    *_many("lokr", peft.LoKrConfig, {
        "": {}, "tucker": {"use_effective_conv2d": True}, "both": {"decompose_both": True},
    }, options={"r": 3, "alpha": 5}, modules=(*LINEARS, "conv1", "conv3", "conv1d")),
    *_many("oft", peft.OFTConfig, {"": {"use_cayley_neumann": False}, "series": {}}, options={"oft_block_size": 4},
           modules=(*LINEARS, "conv1")),
    Case("boft", peft.BOFTConfig, {"boft_block_size": 4}, (*LINEARS, "conv1", "conv3"), around_one=("boft_s",)),
    *_many("hra", peft.HRAConfig, {"": {}, "orthonormal": {"apply_GS": True}}, options={"r": 4},
           modules=(*LINEARS, "conv1", "conv3")),
    Case("ia3", peft.IA3Config, {"feedforward_modules": ["tall", "conv1"]}, (*LINEARS, "conv1", "conv3", "conv3d"),
         around_one=("ia3_l",)),
]  # fmt: skip
