"""PEFT's own methods from PEFT to diffadapt and back: what is written, PEFT loads with the effect that it trained."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import peft
import pytest
import torch
from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file
from torch import nn

from diffadapt.adapter import Adapter
from diffadapt.equality import difference
from diffadapt.errors import DialectError
from diffadapt.reading import read_adapter
from tests import tiny
from tests.algorithms.peft_cases import CASES, Case
from tests.algorithms.peft_folders import LINEARS, build, sample_input, write
from tests.algorithms.reference import change_error

# Nearly all come back bit for bit. PEFT makes logits of VB-LoRA's saved weights by a logarithm in float32, and PSOFT
# decomposes the base again, in float32, where the first time it had no scale of its own.
ROUNDING = 1e-6


def rewritten(folder: Path) -> Adapter:
    """What diffadapt reads from the folder "first", after it has written it to "second"."""
    adapter = read_adapter(folder / "first")
    adapter.save(folder / "second", dialect="peft")
    return adapter


def same(adapter: Adapter, again: Adapter) -> bool:
    ours, theirs = adapter.targets | adapter.foreign, again.targets | again.foreign
    return ours.keys() == theirs.keys() and all(difference(delta, theirs[key]) is None for key, delta in ours.items())


@torch.no_grad()
def errors(truth: nn.Module, folder: Path, modules: tuple[str, ...]) -> dict[str, float]:
    """How far each module of the folder that PEFT loads is from the one that PEFT trained, relative to the change."""
    again = PeftModel.from_pretrained(build(), str(folder)).eval().double().base_model.model
    base, found = build().double(), {}
    for name in modules:
        x = sample_input(name)
        wanted, before = truth.get_submodule(name)(x), base.get_submodule(name)(x)
        assert change_error(before, wanted) > 1e-3  # the adapter does something
        found[name] = change_error(again.get_submodule(name)(x), wanted, before)
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.filterwarnings("ignore")  # PEFT's own, about seeds
def test_peft_reads_back_what_it_trained(case: Case, tmp_path: Path) -> None:
    truth = write(tmp_path / "first", case.build(), case.around_one)
    adapter = rewritten(tmp_path)
    found = errors(truth, tmp_path / "second", (*case.modules, *case.also))
    assert max(found.values()) < ROUNDING, found
    assert same(adapter, read_adapter(tmp_path / "second"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.filterwarnings("ignore")
def test_the_same_keys_and_a_config_of_known_fields(case: Case, tmp_path: Path) -> None:
    write(tmp_path / "first", case.build(), case.around_one)
    rewritten(tmp_path)
    first, second = (load_file(tmp_path / part / "adapter_model.safetensors") for part in ("first", "second"))
    # VeLoRA's and MonteCLoRA's are of the training only; RandLoRA repeats its shared matrices in every module.
    left = {key for key in first.keys() - second.keys() if ".model." not in key or "randlora_" not in key}
    assert not {key for key in left if "velora" not in key and "monteclora" not in key}
    assert second.keys() <= first.keys()
    assert all(torch.equal(first[key], tensor) for key, tensor in second.items())
    config = json.loads((tmp_path / "second/adapter_config.json").read_text())
    known = {field.name for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[config["peft_type"]])}
    assert config.keys() <= known


MASKS = {
    "tall": [True, False, True, True], "wide": [False, False, True, False], "bare": [True] * 4,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_pruned_ranks_of_adalora(tmp_path: Path) -> None:
    """Ranks that differ by module are cut from `init_r` when PEFT loads, and `init_r` stays in the scale."""
    config = peft.AdaLoraConfig(target_modules=list(MASKS), init_r=4, target_r=2, total_step=100, lora_alpha=5)
    model = peft.get_peft_model(build(), config)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.copy_(0.3 * torch.randn_like(parameter))
    inner = model.base_model.model
    for name, mask in MASKS.items():
        inner.get_submodule(name).lora_E["default"][~torch.tensor(mask)] = 0
    model.peft_config["default"].rank_pattern = {f"{name}.lora_E": mask for name, mask in MASKS.items()}
    model.save_pretrained(str(tmp_path / "first"))
    adapter = rewritten(tmp_path)
    assert sorted(delta.rank for delta in adapter.foreign.values()) == [1, 3, 4]
    written = json.loads((tmp_path / "second/adapter_config.json").read_text())
    assert written["rank_pattern"] == {
        "tall.lora_E": [True, True, True, False], "wide.lora_E": [True, False, False, False],
    }  # fmt: skip
    assert max(errors(inner.eval().double(), tmp_path / "second", tuple(MASKS)).values()) < ROUNDING
    assert same(adapter, read_adapter(tmp_path / "second"))


ATTENTION = ["attn1.to_q", "attn1.to_v", "attn2.to_k", "ff.net.2"]
ON_A_UNET = {
    "lora": peft.LoraConfig(target_modules=ATTENTION, r=4, rank_pattern={"attn1.to_q": 2}, modules_to_save=["norm2"]),
    "adalora": peft.AdaLoraConfig(target_modules=ATTENTION, init_r=4, total_step=10),
    "vera": peft.VeraConfig(target_modules=ATTENTION, r=4),
    "vblora": peft.VBLoRAConfig(target_modules=ATTENTION, r=2, num_vectors=10, vector_length=8),
    "fourierft": peft.FourierFTConfig(target_modules=ATTENTION, n_frequency=40),
    "hra": peft.HRAConfig(target_modules=ATTENTION, r=4),
    "oft": peft.OFTConfig(target_modules=ATTENTION, oft_block_size=8),
    "boft": peft.BOFTConfig(target_modules=ATTENTION, boft_block_size=8),
    "ia3": peft.IA3Config(target_modules=ATTENTION, feedforward_modules=["ff.net.2"]),
    "glora": peft.GloraConfig(target_modules=ATTENTION, r=2),
    "frod": peft.FrodConfig(target_modules=ATTENTION, progressbar=False),
}


@pytest.mark.parametrize("name", ON_A_UNET)
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_a_pipelines_unet(name: str, tmp_path: Path) -> None:
    """Modules of a known family, by the picture that the whole model makes; several banks, nested names, suffixes."""
    model = peft.get_peft_model(tiny.unet(), ON_A_UNET[name])
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(str(tmp_path / "first"))
    adapter = rewritten(tmp_path)
    assert adapter.targets
    assert not adapter.foreign
    again = PeftModel.from_pretrained(tiny.unet(), str(tmp_path / "second"))
    wanted, seen, base = (tiny.run(m) for m in (model.base_model.model.eval(), again.base_model.model, tiny.unet()))
    assert tiny.relative(wanted, base, base * 0) > 1e-3
    assert torch.allclose(seen, wanted, rtol=0, atol=1e-6)  # the same numbers through the same code
    assert same(adapter, read_adapter(tmp_path / "second"))


PATTERNS = {
    "fourierft": Case("", peft.FourierFTConfig, {"n_frequency": 50, "n_frequency_pattern": {"wide": 20}}),
    "waveft": Case("", peft.WaveFTConfig, {"n_frequency": 50, "n_frequency_pattern": {"wide": 20, "bare": 30}}),
    "c3a": Case("", peft.C3AConfig, {"block_size": 8, "block_size_pattern": {"wide": 16}}),
    "hira": Case("", peft.HiraConfig, {"r": 3, "rank_pattern": {"square": 2}}),
    "delora": Case("", peft.DeloraConfig, {"r": 3, "rank_pattern": {"square": 2}}, around_one=("delora_lambda",)),
    "osf": Case("", peft.OSFConfig, {"effective_rank": 6, "rank_pattern": {"square": 9}}),
    "lora": Case("", peft.LoraConfig, {"r": 3, "rank_pattern": {"square": 2}, "alpha_pattern": {"bare": 9}}),
    "lokr factor": Case("", peft.LoKrConfig, {"r": 2, "decompose_factor": 2, "alpha": 5}),
    "oft blocks": Case("", peft.OFTConfig, {"r": 4, "oft_block_size": 0}),
    "oft adjusted": Case("", peft.OFTConfig, {"oft_block_size": 16}),
    "oft shared": Case("", peft.OFTConfig, {"oft_block_size": 4, "block_share": True, "coft": True, "eps": 0.01}),
    "boft blocks": Case("", peft.BOFTConfig, {"boft_block_size": 0, "boft_block_num": 4}, around_one=("boft_s",)),
}  # fmt: skip


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.filterwarnings("ignore")
def test_modules_that_differ(name: str, tmp_path: Path) -> None:
    """What differs between modules goes by pattern, or by the number that PEFT makes each module's own of."""
    case = PATTERNS[name]
    truth = write(tmp_path / "first", case.build(), case.around_one)
    adapter = rewritten(tmp_path)
    assert max(errors(truth, tmp_path / "second", LINEARS).values()) < ROUNDING
    assert same(adapter, read_adapter(tmp_path / "second"))


@pytest.mark.filterwarnings("ignore")
def test_shared_tensors_of_two_adapters_do_not_go_into_one_file(tmp_path: Path) -> None:
    for seed, part in enumerate(("first", "other")):
        config = peft.VeraConfig(r=4, projection_prng_key=seed, target_modules=list(LINEARS))
        write(tmp_path / part, config)
    one, other = (read_adapter(tmp_path / part) for part in ("first", "other"))
    halves = [dict(list(adapter.foreign.items())[part::2]) for part, adapter in enumerate((one, other))]
    mixed = dataclasses.replace(one, foreign=halves[0] | halves[1])
    with pytest.raises(DialectError, match="several tensors 'vera_A'"):
        mixed.save(tmp_path / "mixed", dialect="peft")
