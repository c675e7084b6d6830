"""Headers, read leniently."""

from __future__ import annotations

import json

import pytest

from diffadapt.metadata import base_model, read_metadata, trainer, trigger_words

TRAINERS = [
    ({"ot_branch": "master"}, None, "OneTrainer"),
    ({"software": '{"name": "ai-toolkit"}', "ss_network_dim": "4"}, None, "ai-toolkit"),
    ({"ss_network_module": "lycoris.kohya"}, None, "LyCORIS"),
    ({"ss_network_module": "networks.lora"}, None, "sd-scripts"),
    ({"ss_network_module": "networks.lora_wan"}, None, "musubi-tuner"),
    ({"lora_adapter_metadata": "{}"}, None, "diffusers"),
    ({}, {"peft_type": "LORA"}, "peft"),
    ({}, {"lycoris_config": {}}, "LyCORIS"),
    ({"format": "pt"}, None, None),
]


@pytest.mark.parametrize(("raw", "config", "name"), TRAINERS)
def test_trainer(raw, config, name):
    assert trainer(raw, config) == name


def test_base_model():
    assert base_model({"ss_base_model_version": "sdxl_base_v1-0"}) == "sdxl_base_v1-0"
    assert base_model({"ss_base_model_version": "None", "ss_v2": "True"}) == "sd_v2"
    assert base_model({"modelspec.architecture": "stable-diffusion-v1/lora"}) == "stable-diffusion-v1/lora"
    assert base_model({}, {"base_model_name_or_path": "a/b"}) == "a/b"
    assert base_model({}, {"base_model_name_or_path": None}) is None


def test_trigger_words():
    assert trigger_words({"modelspec.trigger_phrase": "ohwx man, blue"}) == ("ohwx man", "blue")
    frequency = json.dumps({"10_ohwx man": {"ohwx": 3, "a": 1}, "img": {"x": 2}, "5_": {}, '3_style "x"': {"y": 1}})
    assert trigger_words({"ss_tag_frequency": frequency})[0] == "ohwx man"
    assert trigger_words({"ss_tag_frequency": frequency[:30]}) == ("ohwx man",)
    for broken in ("None", "", "{", "[[[", '"' * 1000, "\x00"):
        assert trigger_words({"ss_tag_frequency": broken}) == ()
    assert trigger_words({"trigger_word": '["a", "b", 3]'}) == ("a", "b")


@pytest.mark.parametrize("text", ['"' * 3_000_000, '{"' + "\\" * 3_000_000, '{"1_a": {' * 300_000, "[" * 3_000_000])
def test_hostile_headers_are_hints_that_say_nothing(text):
    found = read_metadata({"ss_tag_frequency": text, "trigger_word": text, "ss_datasets": text, "software": text})
    assert found.trainer is None
