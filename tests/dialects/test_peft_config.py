"""PEFT's patterns against PEFT's own matching, and configs that are hostile or broken."""

from __future__ import annotations

import json

import pytest
from peft.utils.other import get_pattern_key

from diffadapt.dialects.peft_config import ModulePattern, PeftConfig, configs_of
from diffadapt.dialects.peft_writing import Numbers, peft_config
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
    modules = {
        "conv_in": Numbers(4, 2.0, "lora"), "block.conv_in": Numbers(8, 8.0, "lora"), "to_q": Numbers(8, 8.0, "lora"),
        "block.to_q": Numbers(8, 1.5, "lora"),
    }  # fmt: skip
    config = PeftConfig(peft_config(modules, "peft"))
    for name, numbers in modules.items():
        assert (config.of(name)["r"], config.of(name)["lora_alpha"]) == (numbers.rank, numbers.alpha)
    with pytest.raises(DialectError, match="loha"):
        peft_config({"a": Numbers(4, 4.0, "lora"), "b": Numbers(4, 4.0, "loha")}, "peft")
