"""PEFT's patterns against PEFT's own matching, and configs that are hostile or broken."""

from __future__ import annotations

import json

import pytest
from peft.utils.other import get_pattern_key

from diffadapt.algorithms.peft_fields import Otherwise
from diffadapt.dialects.peft_config import ModulePattern, PeftConfig, configs_of
from diffadapt.dialects.peft_writing import Described, peft_config
from diffadapt.errors import DialectError

MODULES = [
    "conv_in", "down_blocks.0.attentions.1.proj_in", "down_blocks.10.attentions.1.proj_in", "mid_block.attn1.to_q",
    "mid_block.attn2.to_q", "controlnet_cond_embedding.conv_in", "xto_q",
]  # fmt: skip
PATTERNS = [
    {"to_q": 1}, {"attn1.to_q": 1, "to_q": 2}, {"to_q": 2, "attn1.to_q": 1}, {r".*attn\d.to_q": 3}, {"^conv_in": 4},
    {"conv_in": 4}, {r"^conv_in$": 5, "conv_in": 6}, {r"down_blocks\.\d+\..*": 7}, {"o_q": 1}, {"to_(q|k)": 1},
    {"mid_block.attn1": 1}, {"proj_in|to_q": 9},
]  # fmt: skip


@pytest.mark.parametrize("patterns", PATTERNS, ids=str)
def test_patterns_match_as_in_peft(patterns):
    ours = ModulePattern(patterns, "rank_pattern")
    for module in MODULES:
        assert ours.of(module) == patterns.get(get_pattern_key(patterns, module)), module


def test_numbers_of_a_module():
    config = PeftConfig({"r": 8, "lora_alpha": 16, "rank_pattern": {"to_q": 4}, "alpha_pattern": {"to_q": 2}})
    assert (config.of("x.to_q")["r"], config.of("x.to_q")["lora_alpha"]) == (4, 2)
    assert (config.of("x.to_k")["r"], config.of("x.to_k")["lora_alpha"]) == (8, 16)
    loha = PeftConfig({"r": 8, "alpha": 16, "alpha_pattern": {"to_q": 2}})
    assert loha.of("to_q")["alpha"] == 2


def test_components_of_the_header():
    header = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "text_encoder.r": 2, "text_encoder_2.r": 3, "r": 1})}
    configs = configs_of(header, None)
    assert {c: config.config["r"] for c, config in configs.items()} == {
        "unet": 4, "text_encoder": 2, "text_encoder_2": 3, None: 1,
    }  # fmt: skip


@pytest.mark.parametrize("pattern", [r"(a+)+b", r"(x|x)*y", r"((a*)*)*", r"(.*)*", ".a" * 1000, "[", "a{99999999999}"])
def test_dangerous_patterns_are_refused(pattern):
    with pytest.raises(DialectError, match="rank_pattern"):
        PeftConfig({"rank_pattern": {pattern: 1}}).of("a" * 60)


def test_many_patterns():
    names = [f"down_blocks.{i}.attentions.0.transformer_blocks.{j}.attn1.to_q" for i in range(40) for j in range(40)]
    config = PeftConfig({"r": 4, "rank_pattern": {name: i for i, name in enumerate(names)}})
    assert [config.of(name)["r"] for name in names] == list(range(1600))


@pytest.mark.parametrize("text", ["{", "[1]", "null", "nan", "[" * 100000])
def test_broken_headers_are_refused(text):
    with pytest.raises(DialectError, match="lora_adapter_metadata"):
        configs_of({"lora_adapter_metadata": text}, None)
    with pytest.raises(DialectError, match="rank_pattern"):
        PeftConfig({"rank_pattern": [1]})


def test_config_that_is_written_reads_back():
    numbers = {"conv_in": (4, 2.0), "block.conv_in": (8, 8.0), "to_q": (8, 8.0), "block.to_q": (8, 1.5)}
    config = PeftConfig(peft_config({name: lora(*said) for name, said in numbers.items()}, "peft"))
    for name, (rank, alpha) in numbers.items():
        assert (config.of(name)["r"], config.of(name)["lora_alpha"]) == (rank, alpha)


def lora(rank, alpha, **more):
    return Described("lora", {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, **more})


def test_lists_and_mappings_of_modules_are_united_and_what_they_do_not_depend_on_gives_way():
    blocks = {"nblocks": 2, "target_modules_bd_a": ["to_q"], "target_modules_bd_b": []}
    modules = {
        "a.to_q": lora(4, 4.0, use_bdlora=blocks, use_dora=Otherwise(False)),
        "text_model.a.to_k": lora(4, 4.0, use_bdlora={**blocks, "target_modules_bd_a": ["to_k"]}, use_dora=True),
    }
    config = peft_config(modules, "peft")
    assert config["use_bdlora"] == {**blocks, "target_modules_bd_a": ["to_k", "to_q"]}
    assert config["use_dora"] is True
    assert config["target_modules"] == ["a.to_k", "a.to_q"]
    assert peft_config({"a.to_q": modules["a.to_q"]}, "peft")["use_dora"] is False


def test_what_one_config_cannot_say_is_refused():
    loha = Described("loha", {"peft_type": "LOHA", "r": 4, "alpha": 4.0})
    with pytest.raises(DialectError, match="loha, lora"):
        peft_config({"a": lora(4, 4.0), "b": loha}, "peft")
    with pytest.raises(DialectError, match="use_dora once for all modules"):
        peft_config({"a": lora(4, 4.0, use_dora=True), "b": lora(4, 4.0, use_dora=False)}, "peft")
    tokens = Described("tokens", {"peft_type": "TRAINABLE_TOKENS", "token_indices": (1, 2)})
    with pytest.raises(DialectError, match="beside a LoRA only"):
        peft_config({"a": loha, "b": tokens}, "peft")
    with pytest.raises(DialectError, match="describes tlora"):
        peft_config({"a": Described("tlora", None)}, "peft")
