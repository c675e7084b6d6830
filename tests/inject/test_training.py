"""Gradients flow into live adapters: every algorithm learns in place, is saved, and is itself when loaded again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import diffadapt
from tests import tiny

NAMES = [name for name in tiny.LYCORIS if name not in ("full",)]


@pytest.mark.parametrize("name", NAMES)
def test_train_in_place_and_save(name, lycoris_files, tmp_path):
    pipe = diffadapt.enable(tiny.sd())
    pipe.unet.requires_grad_(False)
    before = tiny.snapshot(pipe.unet)
    pipe.load_adapter(lycoris_files[name][0], adapter_name="a", trainable=True)
    parameters = pipe.adapters.parameters("a")
    assert parameters
    assert all(p.dtype == torch.float32 and p.requires_grad for p in parameters)
    torch.manual_seed(0)
    goal = torch.randn(1, 4, 8, 8)
    optimizer = torch.optim.Adam(parameters, lr=2e-3)
    losses = []
    for _ in range(6):
        loss = (pipe.unet(*tiny.inputs()).sample - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    trained = tiny.run(pipe.unet)
    assert tiny.same_bits(pipe.unet, before)
    path = pipe.adapters.save("a", tmp_path / "trained.safetensors")
    again = diffadapt.enable(tiny.sd())
    assert again.load_adapter(path, adapter_name="b").complete
    assert tiny.relative(tiny.run(again.unet), trained, tiny.run(tiny.unet())) < 2e-5


def test_the_full_difference_learns_too(lycoris_files):
    pipe = diffadapt.enable(tiny.sd())
    pipe.unet.requires_grad_(False)
    pipe.load_adapter(lycoris_files["full"][0], adapter_name="a", trainable=True)
    pipe.unet(*tiny.inputs()).sample.square().mean().backward()
    assert all(p.grad is not None for p in pipe.adapters.parameters())


def test_an_adapter_that_is_not_trainable_gets_no_gradient(lycoris_files):
    pipe = diffadapt.enable(tiny.sd())
    pipe.load_adapter(lycoris_files["lora"][0], adapter_name="a")
    assert pipe.adapters.parameters() == []
    sample, timestep, text = tiny.inputs()
    pipe.unet(sample.requires_grad_(), timestep, text).sample.sum().backward()
    assert sample.grad is not None


class Unknown(torch.nn.Module):
    """A transformer of no family."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(6, 6) for _ in range(2)]).requires_grad_(False)

    def forward(self, x):
        return self.blocks[1](self.blocks[0](x))


def test_an_adapter_of_an_unknown_family_is_saved_as_it_has_become(tmp_path):
    """Only the model itself can name its modules: the file keeps the names that it came with, each once."""
    file = {f"transformer.blocks.{i}.lora_A.weight": torch.ones(2, 6) for i in range(2)}
    file |= {f"transformer.blocks.{i}.lora_B.weight": torch.zeros(6, 2) for i in range(2)}
    owner = diffadapt.enable(SimpleNamespace(components={"transformer": Unknown()}))
    owner.load_adapter(file, adapter_name="a", trainable=True)
    assert len(owner.adapters["a"].foreign) == 2
    model, x = owner.components["transformer"], torch.ones(1, 6)
    model(x).square().mean().backward()
    with torch.no_grad():
        for parameter in owner.adapters.parameters("a"):
            parameter.sub_(parameter.grad)
        trained = model(x)
    path = owner.adapters.save("a", tmp_path / "trained.safetensors")
    assert load_file(path).keys() == file.keys()
    again = diffadapt.enable(SimpleNamespace(components={"transformer": Unknown()}))
    assert again.load_adapter(path).complete
    torch.testing.assert_close(again.components["transformer"](x), trained)
    assert not torch.equal(trained, Unknown()(x))
