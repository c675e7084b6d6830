"""Every method of PEFT that is a change of weights, from a folder that PEFT saved, against PEFT's own forward."""

from __future__ import annotations

import peft
import pytest
import torch

import diffadapt
from diffadapt.errors import MergeError
from tests.algorithms.peft_cases import CASES
from tests.algorithms.peft_folders import build, errors, write, write_injected


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.filterwarnings("ignore")  # PEFT's own, about seeds and merges
def test_a_saved_folder_acts_as_in_peft(case, tmp_path, record_error):
    model = write(tmp_path / "adapter", case.build(), case.around_one)
    found = errors(tmp_path / "adapter", model, (*case.modules, *case.also), case.merged)
    for where, error in found.items():
        record_error(f"peft {case.name}", where.split(",")[0], f"peft folder,{where.split(',')[1]}", error)
    worst = max(found, key=found.__getitem__)
    assert found[worst] < case.tolerance, (worst, found[worst])


# One case of each method; PEFT refuses to inject those that share tensors between modules.
ONE_EACH = {case.config: case for case in CASES if case.merged and not case.also}
SHARING = {
    peft.VeraConfig, peft.PveraConfig, peft.VBLoRAConfig, peft.UniLoraConfig, peft.TinyLoraConfig, peft.FrodConfig,
}  # fmt: skip


@pytest.mark.parametrize(
    "case", [c for config, c in ONE_EACH.items() if config not in SHARING], ids=lambda case: case.name
)
@pytest.mark.filterwarnings("ignore")
def test_an_injected_adapter_is_the_same(case, tmp_path):
    model = write_injected(tmp_path / "adapter", case.build(), case.around_one)
    found = errors(tmp_path / "adapter", model, case.modules)
    worst = max(found, key=found.__getitem__)
    assert found[worst] < case.tolerance, (worst, found[worst])


@pytest.mark.parametrize("case", [case for case in CASES if not case.merged], ids=lambda case: case.name)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_merged_says_so_and_changes_nothing(case, tmp_path):
    write(tmp_path / "adapter", case.build(), case.around_one)
    base, plain = build(), build()
    owner = diffadapt.enable(base)
    owner.load_adapter(tmp_path / "adapter", adapter_name="a")
    with pytest.raises(MergeError, match="Keep it live"):
        owner.adapters.merge()
    assert all(torch.equal(a, b) for a, b in zip(base.parameters(), plain.parameters(), strict=True))
