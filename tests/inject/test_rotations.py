"""A lone rotation on a processor's activations is added run by run; the result is that of the general way."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import diffadapt
from diffadapt.algorithms.forms import Rotate
from diffadapt.algorithms.layer import Layer

LINEAR = Layer.of(nn.Linear(24, 24))


@pytest.mark.parametrize("shifted", [False, True])
def test_added_is_the_change_added(shifted):
    form = Rotate(torch.randn(3, 8, 8))
    v, shift = torch.randn(2, 5, 24), torch.randn(24) if shifted else None
    expected = v + 0.7 * form.change(v if shift is None else v - shift, LINEAR)
    torch.testing.assert_close(form.added(v, 0.7, torch.empty_like(v), shift), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(form.added(v, 0.7, v, shift), expected, rtol=1e-5, atol=1e-5)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(32, 256), nn.Linear(256, 64, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(torch.relu(self.one(x)))


def file(role: str) -> dict[str, torch.Tensor]:
    """LyCORIS' OFT turns outputs, PEFT's (0.16 on) inputs."""
    generator = torch.Generator().manual_seed(0)
    if role == "oft_blocks":
        return {
            "lycoris_one.oft_blocks": 0.2 * torch.randn(32, 8, 8, generator=generator),
            "lycoris_one.alpha": torch.tensor(0.0),
            "lycoris_two.oft_blocks": 0.2 * torch.randn(8, 8, 8, generator=generator),
            "lycoris_two.alpha": torch.tensor(0.0),
        }
    return {
        "one.oft_R.weight": 0.2 * torch.randn(4, 28, generator=generator),
        "two.oft_R.weight": 0.2 * torch.randn(32, 28, generator=generator),
    }


@pytest.mark.parametrize("role", ["oft_blocks", "oft_R"])
@pytest.mark.parametrize("stack", [{"a": 0.6}, {"a": 0.6, "b": 1.3}])
def test_with_and_without_gradients(role, stack):
    torch.manual_seed(0)
    model = diffadapt.enable(Pair())
    for name in ("a", "b"):
        model.load_adapter(file(role), adapter_name=name)
    model.adapters.set(stack)
    x = torch.randn(3, 7, 32)
    kept = x.clone()
    general = model(x).detach()  # with gradients on, in the general way
    with torch.no_grad():
        quick = model(x)
    assert torch.equal(x, kept)
    torch.testing.assert_close(quick, general, rtol=1e-5, atol=1e-5)
    model.adapters.merge()
    torch.testing.assert_close(model(x).detach(), general, rtol=1e-4, atol=1e-5)
