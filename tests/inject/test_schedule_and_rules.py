"""What does not simply scale: T-LoRA's timestep, and the trainers' own rules for strengths other than 1."""

from __future__ import annotations

import gc

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import save_file

import diffadapt
from diffadapt.inject.following import noise_of
from tests import tiny


@pytest.fixture(scope="module")
def tlora(tmp_path_factory):
    """A T-LoRA file on the attention's Linears, by LyCORIS."""
    from lycoris import LycorisNetwork, create_lycoris

    model = tiny.unet()
    LycorisNetwork.apply_preset({"target_module": ["Attention"]})
    LycorisNetwork.LORA_PREFIX = "lora_unet"
    gc.collect()
    gc.freeze()  # LyCORIS collects garbage once a layer here: of all that earlier tests left, too
    net = create_lycoris(model, 1.0, linear_dim=4, linear_alpha=4, algo="tlora")
    net.apply_to()
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("tlora") / "t.safetensors"
    tensors = {k: v.detach().clone().contiguous() for k, v in net.state_dict().items()}
    save_file(tensors, path)
    truths = {}
    from lycoris.modules.tlora import clear_timestep_mask, compute_timestep_mask, set_timestep_mask

    for timestep in (0, 400, 950):
        set_timestep_mask(compute_timestep_mask(timestep, 1000, 4))
        with torch.no_grad():
            sample, _, text = tiny.inputs()
            truths[timestep] = model(sample, torch.tensor([timestep]), text).sample
    clear_timestep_mask()
    net.restore()
    return path, truths


@torch.no_grad()
def at(model, timestep):
    sample, _, text = tiny.inputs()
    return model(sample, torch.tensor([timestep]), encoder_hidden_states=text).sample


def test_tlora_follows_the_timestep_as_in_training(tlora):
    path, truths = tlora
    pipe = diffadapt.enable(tiny.sd())
    bases = {t: at(pipe.unet, t) for t in truths}
    pipe.load_adapter(path, adapter_name="t")
    for timestep, truth in truths.items():
        # LyCORIS' own SVD of the base is float32: its forward is the less exact of the two.
        assert tiny.relative(at(pipe.unet, timestep), truth, bases[timestep]) < 1e-4
        assert pipe.adapters.progress == pytest.approx(1 - timestep / 1000)
    pipe.adapters.remove("t")
    assert not pipe.unet._forward_pre_hooks


def test_tlora_is_not_merged_and_says_why(tlora):
    pipe = diffadapt.enable(tiny.sd())
    before = tiny.snapshot(pipe.unet)
    pipe.load_adapter(tlora[0], adapter_name="t")
    with pytest.raises(diffadapt.MergeError, match="T-LoRA uses fewer ranks at noisier timesteps"):
        pipe.adapters.merge()
    assert tiny.same_bits(pipe.unet, before)
    report = pipe.adapters.merge(mode="auto")
    assert not report.layers
    assert len(report.live) == len(pipe.adapters["t"].targets)


def weights(pipe):
    pipe.adapters.merge()
    now = tiny.snapshot(pipe.unet)
    pipe.adapters.unmerge()
    return now


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_lycoris_stage_rule_is_its_own_forward(strength, lycoris_files, tmp_path):
    """LyCORIS' BOFT interpolates every stage; ours under "stage" equals its forward at that multiplier."""
    from lycoris import LycorisNetwork, create_lycoris
    from safetensors.torch import load_file

    path = lycoris_files["boft"][0]
    model = tiny.unet()
    LycorisNetwork.apply_preset({"target_module": ["Attention", "Transformer2DModel", "ResnetBlock2D"]})
    LycorisNetwork.LORA_PREFIX = "lora_unet"
    net = create_lycoris(model, strength, linear_dim=4, linear_alpha=2, algo="boft")
    net.apply_to()
    net.load_state_dict(load_file(path), strict=False)
    truth = tiny.run(model)
    net.restore()
    pipe = diffadapt.enable(tiny.sd())
    base = tiny.run(pipe.unet)
    pipe.load_adapter(path, adapter_name="a", strength="stage", weight=strength)
    assert tiny.relative(tiny.run(pipe.unet), truth, base) < 2e-5
    pipe.adapters.merge()
    assert tiny.relative(tiny.run(pipe.unet), truth, base) < 2e-5


def test_geodesic_stays_a_rotation(lycoris_files):
    pipe = diffadapt.enable(tiny.sd())
    before = tiny.snapshot(pipe.unet)
    key = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    pipe.load_adapter(lycoris_files["oft"][0], adapter_name="a", strength="geodesic")
    for strength in (0.3, 0.7, 2.0):
        pipe.adapters.set({"a": strength})
        turned = weights(pipe)[key]
        # A rotation of the outputs keeps the Gram matrix of the columns; the linear rule does not.
        assert torch.allclose(turned.T @ turned, before[key].T @ before[key], atol=1e-5)
    pipe.adapters.set({"a": 0.0})
    assert torch.equal(tiny.run(pipe.unet), tiny.run(tiny.unet()))


def test_peft_rule_of_dora(lycoris_files):
    """PEFT scales the LoRA and keeps the magnitudes: the rule's weights by its formula, from the file's own tensors."""
    pipe = diffadapt.enable(tiny.sd())
    before = tiny.snapshot(pipe.unet)
    path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    pipe.load_adapter(lycoris_files["dora"][0], adapter_name="a", strength="peft", weight=0.4)
    delta = pipe.adapters["a"].targets["unet", path]
    base = before[f"{path}.weight"]
    low = delta.inner.weight_delta(base)
    changed = base + 0.4 * low
    wanted = delta.magnitude.view(-1, 1) * changed / changed.norm(dim=1, keepdim=True)
    assert torch.allclose(weights(pipe)[f"{path}.weight"], wanted, atol=1e-6)
    live = tiny.run(pipe.unet)
    pipe.adapters.merge()
    assert tiny.relative(live, tiny.run(pipe.unet), tiny.run(tiny.unet())) < 2e-5


def test_a_rule_that_nothing_in_the_file_knows_is_refused(lycoris_files):
    pipe = diffadapt.enable(tiny.sd())
    with pytest.raises(diffadapt.StackError, match=r"none of its algorithms \(lora\) has a rule 'geodesic'"):
        pipe.load_adapter(lycoris_files["lora"][0], strength="geodesic")
    assert not pipe.adapters.names


@pytest.mark.parametrize(
    ("given", "steps", "noise"),
    [(500.0, 1000, 0.5), (0.5, 1000, 0.5), (400, 4, 0.4), (750.0, 4, 0.75), (0.751, 4, 0.75), (0.25, None, 0.25)],
)
def test_the_share_of_noise_however_the_timestep_is_passed(given, steps, noise):
    """Stable Diffusion passes the scheduler's timestep, Flux a thousandth of it."""
    scheduler = None
    if steps is not None:
        scheduler = DDIMScheduler(num_train_timesteps=1000, timestep_spacing="leading")
        scheduler.set_timesteps(steps)
    assert noise_of(scheduler, given) == pytest.approx(noise, abs=1e-3)
