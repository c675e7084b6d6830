"""Gates learn strengths by adapter, block and progress, for every kind of adapter."""

from __future__ import annotations

import pytest
import torch

import diffadapt
from diffadapt import Recipe, StackError
from diffadapt.inject.schedule import Points
from tests import tiny


@pytest.fixture
def pipe(lycoris_files):
    pipe = diffadapt.enable(tiny.sd())
    for name, kind in (("a", "lora"), ("b", "oft"), ("c", "lokr")):
        pipe.load_adapter(lycoris_files[kind][0], adapter_name=name)
    pipe.scheduler.set_timesteps(1000)
    return pipe


def call(pipe, timesteps=(900, 10)):
    """The UNet on a batch whose samples are at different times."""
    g = torch.Generator().manual_seed(3)
    count = len(timesteps)
    channels, size = pipe.unet.config.in_channels, pipe.unet.config.sample_size
    latents = torch.randn(count, channels, size, size, generator=g)
    text = torch.randn(count, 7, pipe.unet.config.cross_attention_dim, generator=g)
    return pipe.unet(latents, torch.tensor(timesteps), text).sample


def varied(gates, seed=0):
    with torch.no_grad():
        gates.table.copy_(torch.randn(gates.table.shape, generator=torch.Generator().manual_seed(seed)))
    return gates


def test_they_start_with_the_strengths_in_force(case):
    owner, _, run = case
    owner.adapters.set({"a": 0.7, "b": -0.4, "c": 0.2})
    plain = run()
    gates = diffadapt.Gates(owner, ["a", "b"])
    with torch.no_grad(), owner.adapters.gated(gates):
        assert torch.allclose(run(), plain, atol=1e-6)
    assert torch.equal(run(), plain)
    owner.adapters.set({**gates.strengths(), "c": 0.2})
    assert torch.allclose(run(), plain, atol=1e-6)
    assert all(slot.rows is None for slot in owner.adapters._live.slots.values())


def test_what_is_learned_is_what_is_set(pipe):
    gates = varied(diffadapt.Gates(pipe, ["a", "b", "c"], parts=3))
    with torch.no_grad(), pipe.adapters.gated(gates):
        together = call(pipe)
    pipe.adapters.set(gates.strengths())
    for row, timestep in enumerate((900, 10)):
        with torch.no_grad():  # one sample at a time: a schedule knows one moment
            alone = pipe.unet(*inputs_of(pipe, row), torch.tensor(timestep), text_of(pipe, row)).sample
        assert torch.allclose(together[row], alone[0], atol=2e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def inputs_of(pipe, row):
    g = torch.Generator().manual_seed(3)
    channels, size = pipe.unet.config.in_channels, pipe.unet.config.sample_size
    return (torch.randn(2, channels, size, size, generator=g)[row : row + 1],)


def text_of(pipe, row):
    g = torch.Generator().manual_seed(3)
    channels, size = pipe.unet.config.in_channels, pipe.unet.config.sample_size
    torch.randn(2, channels, size, size, generator=g)
    return torch.randn(2, 7, pipe.unet.config.cross_attention_dim, generator=g)[row : row + 1]


def test_gradients_are_those_of_finite_differences(pipe):
    gates = varied(diffadapt.Gates(pipe, ["a", "b", "c"], parts=2))
    pipe.unet.double()
    pipe.unet.requires_grad_(False)
    arguments = (inputs_of(pipe, 0)[0].double(), torch.tensor(400), text_of(pipe, 0).double())

    def loss():
        return pipe.unet(*arguments).sample.square().mean()

    with pipe.adapters.gated(gates):
        loss().backward()
        assert gates.table.grad.abs().min() > 0
        for part, adapter, block in ((0, 0, 1), (1, 1, 0), (0, 2, 2), (1, 0, -1)):
            seen = gates.table.grad[part, adapter, block].item()
            at, step, found = gates.table.data, 1e-3, []
            for way in (1, -1):
                at[part, adapter, block] += way * step
                with torch.no_grad():
                    found.append(loss().item())
                at[part, adapter, block] -= way * step
            assert seen == pytest.approx((found[0] - found[1]) / (2 * step), rel=2e-3)


def test_a_planted_table_is_found_again(lycoris_files):
    """Taught by pictures made with another table, the gates come to it. Some modules in every block will do."""
    pipe = diffadapt.enable(tiny.sd())
    for name, kind in (("a", "lora"), ("b", "oft")):
        pipe.load_adapter(tiny.thinned(lycoris_files[kind][0], tiny.FEW + "|resnets_0_conv1"), adapter_name=name)
    pipe.scheduler.set_timesteps(1000)
    pipe.unet.requires_grad_(False)
    planted = varied(diffadapt.Gates(pipe, ["a", "b"], parts=2), seed=1)
    gates = diffadapt.Gates(pipe, ["a", "b"], parts=2)
    assert gates.table.shape == (2, 2, 5)
    optimizer = torch.optim.Adam(gates.parameters(), lr=0.1)
    times = [(950, 700), (500, 300), (100, 20)]
    with torch.no_grad(), pipe.adapters.gated(planted):
        wanted = [call(pipe, each) for each in times]
    losses = []
    with pipe.adapters.gated(gates):
        for step in range(90):
            loss = (call(pipe, times[step % 3]) - wanted[step % 3]).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert max(losses[-3:]) < 0.02 * max(losses[:3])


def test_a_recipe_holds_them(pipe, tmp_path):
    gates = varied(diffadapt.Gates(pipe, ["a", "b"], parts=3))
    pipe.adapters.set(gates.strengths())
    Recipe.of(pipe).save(tmp_path / "mix.json")
    parts = {part.name: part for part in Recipe.load(tmp_path / "mix.json").adapters}
    block = gates.blocks.index(("unet", "mid_block"))
    schedule = parts["b"].strength["unet"]["mid_block"]
    assert isinstance(schedule, Points)
    assert [value for _, value in schedule.pairs] == gates.table[:, 1, block].tolist()


def test_blocks_are_of_the_first_segment_and_its_number():
    from diffadapt.adapter import TargetKey
    from diffadapt.inject.gating import block_of

    blocks = {
        "down_blocks.0.attentions.1.proj_in": "down_blocks.0", "mid_block.resnets.0.conv1": "mid_block",
        "conv_in": "conv_in", "transformer_blocks.12.attn.to_q": "transformer_blocks.12",
    }  # fmt: skip
    assert {path: block_of(TargetKey("unet", path))[1] for path in blocks} == blocks


def test_what_has_no_gate_is_refused(pipe):
    for arguments, message in (
        (("a",), "different adapters"), (([],), "different adapters"), ((["a", "a"],), "different adapters"),
        ((["x"],), "No adapter is named 'x'"),
    ):  # fmt: skip
        with pytest.raises(StackError, match=message):
            diffadapt.Gates(pipe, *arguments)
    gates = diffadapt.Gates(pipe, ["a"])
    pipe.adapters.merge()
    with pytest.raises(StackError, match="merged"), pipe.adapters.gated(gates):
        pass
    pipe.adapters.unmerge()
    with pipe.adapters.gated(gates), pytest.raises(StackError, match="no timestep"):
        pipe.unet(sample=inputs_of(pipe, 0)[0])
