"""The table of PEFT's methods against the installed PEFT, its document, and folders that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from safetensors.torch import save_file
from torch import nn

import diffadapt
from diffadapt.dialects.peft_methods import METHODS, Verdict, document, refuse_method
from diffadapt.errors import DialectError, NotAnAdapterError
from tests.algorithms.peft_cases import CASES
from tests.algorithms.peft_folders import write

ROOT = Path(__file__).parents[2]
OLD = {"BONE"}
"""Names that PEFT has given up."""


def installed() -> set[str]:
    """Every method of the installed PEFT, by any of its lists."""
    listed = {*PeftType, *PEFT_TYPE_TO_CONFIG_MAPPING, *PEFT_TYPE_TO_TUNER_MAPPING}
    return {getattr(kind, "value", str(kind)) for kind in listed}


def test_every_method_of_the_installed_peft_is_in_the_table():
    assert installed() - METHODS.keys() == set()
    assert METHODS.keys() - installed() == OLD


def test_every_method_that_loads_is_tested_from_a_folder():
    loads = {kind for kind, method in METHODS.items() if method.loads}
    tested = {case.config(task_type=None).peft_type.value for case in CASES if case.config is not peft.AdaLoraConfig}
    # Prefixes are in tests/training/test_prefixes.py.
    assert loads - tested == {"ADALORA", "PREFIX_TUNING"} | OLD
    assert any(case.config is peft.AdaLoraConfig for case in CASES)


def test_the_modules_of_the_table_are_those_of_the_tests():
    words = {
        "tall": "Linear", "wide": "Linear", "square": "Linear", "bare": "Linear", "conv1": "Conv2d", "conv3": "Conv2d",
        "conv1d": "Conv1d", "conv3d": "Conv3d", "embedding": "Embedding", "normed": "LayerNorm",
    }  # fmt: skip
    for case in CASES:
        modules = METHODS[case.build().peft_type.value].modules
        spelt = modules.replace("Conv1d/2d/3d", "Conv1d, Conv2d, Conv3d").replace("Conv1d/2d", "Conv1d, Conv2d")
        spelt = spelt.replace("Conv2d/3d", "Conv2d, Conv3d")
        assert {words[name] for name in case.modules} <= set(spelt.replace(" 1 x 1", "").split(", ")), case.name


def test_the_document_is_current():
    assert (ROOT / "docs" / "peft.md").read_text() == document(), "render docs/peft.md again, as it says at its top"


@pytest.mark.parametrize("kind", [kind for kind, method in METHODS.items() if not method.loads])
def test_a_folder_without_a_weight_change_is_refused_with_its_verdict(kind, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": kind}))
    save_file({"base_model.model.layer.lora_A.weight": torch.ones(2, 4)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(NotAnAdapterError) as caught:
        diffadapt.read_adapter(tmp_path)
    message = str(caught.value)
    assert kind in message
    assert METHODS[kind].verdict in message
    assert METHODS[kind].why in message


def test_real_folders_are_refused(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8))
    peft.get_peft_model(model, peft.LilyConfig(target_modules=["0"], r=2)).save_pretrained(str(tmp_path / "lily"))
    with pytest.raises(NotAnAdapterError, match=r"LILY.*needs a schedule"):
        diffadapt.read_adapter(tmp_path / "lily")


@pytest.mark.parametrize("field", ["alora_invocation_tokens", "arrow_config"])
def test_loras_that_depend_on_the_input_are_refused(field):
    with pytest.raises(NotAnAdapterError, match=rf"{field}.*needs a schedule"):
        refuse_method({"peft_type": "LORA", field: [1, 2]}, "folder")
    refuse_method({"peft_type": "PeftType.LORA", field: None}, "folder")
    refuse_method({"peft_type": "SOMETHING_NEW"}, "folder")
    refuse_method(None, "folder")


def test_a_lora_on_a_grouped_convolution_is_no_change_of_its_weight(tmp_path):
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2))
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["0"], r=4)).save_pretrained(str(tmp_path / "grouped"))
    with pytest.raises(diffadapt.AlgorithmError, match="grouped convolution"):
        diffadapt.read_adapter(tmp_path / "grouped")


def test_verdicts_of_what_loads():
    assert {method.verdict for method in METHODS.values() if method.loads} == {
        Verdict.WEIGHT, Verdict.SCALING, Verdict.BASE, Verdict.TOKENS,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (peft.UniLoraConfig(target_modules=["tall"], r=2, theta_d_length=9), "save_indices=True"),
        (peft.TinyLoraConfig(target_modules=["tall"], r=2, u=3, save_projection=False), "save_projection=True"),
        (peft.FrodConfig(target_modules=["tall"], save_projection=False, progressbar=False), "save_projection=True"),
        (peft.WaveFTConfig(target_modules=["tall"], n_frequency=9, wavelet_family="coif4"), "coif4"),
        (peft.PveraConfig(target_modules=["tall"], r=2, sample_at_inference=True), "sample_at_inference"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.filterwarnings("ignore")
def test_what_a_file_does_not_say_is_refused_with_the_cure(config, match, tmp_path):
    write(tmp_path / "adapter", config)
    with pytest.raises((DialectError, diffadapt.AlgorithmError), match=match):
        diffadapt.read_adapter(tmp_path / "adapter")
