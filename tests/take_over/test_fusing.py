"""fuse_lora, unfuse_lora, and what is left after unloading, against Diffusers with PEFT."""

from __future__ import annotations

import pytest
import torch

from diffadapt.errors import MergeError
from tests.take_over.pipelines import lora, run


def weights(pipe) -> dict[str, torch.Tensor]:
    parts = [name for name in pipe.components if name == "unet" or name.startswith("text_encoder")]
    return {f"{p}.{k}": v.clone() for p in parts for k, v in pipe.components[p].state_dict().items()}


def unchanged(pipe, before: dict[str, torch.Tensor]) -> bool:
    now = weights(pipe)
    return now.keys() == before.keys() and all(torch.equal(now[key], before[key]) for key in now)


def test_fuse_and_unfuse(pair) -> None:
    before = weights(pair.ours)
    pair.load("a", pair.lora(1))
    live = pair.differs()
    pair.fuse_lora()
    assert len(pair.fused) == 1
    assert pair.fused == {"a"}
    torch.testing.assert_close(pair.same(), live, atol=1e-4, rtol=0)
    assert not unchanged(pair.ours, before)
    pair.unfuse_lora()
    assert pair.fused == set()
    torch.testing.assert_close(pair.same(), live, atol=1e-4, rtol=0)
    assert unchanged(pair.ours, before)


def test_fuse_with_scale(pair) -> None:
    pair.load("a", pair.lora(1))
    scaled = pair.differs(cross_attention_kwargs={"scale": 0.6})
    pair.fuse_lora(lora_scale=0.6)
    torch.testing.assert_close(pair.same(), scaled, atol=1e-4, rtol=0)
    pair.unfuse_lora()
    # In Diffusers the scale stays with the adapters until their weights are set again.
    torch.testing.assert_close(pair.same(), scaled, atol=1e-4, rtol=0)
    pair.set_adapters("a")
    pair.differs(scaled)


def test_fuse_at_weights(pair) -> None:
    pair.load("a", pair.lora(1))
    pair.load("b", pair.lora(2))
    pair.set_adapters(["a", "b"], [{"unet": {"down": 0.2}, "text_encoder": 0.5}, 0.7])
    live = pair.differs()
    pair.fuse_lora(lora_scale=0.5)
    pair.differs(live)
    assert pair.fused == {"a", "b"}
    pair.unfuse_lora()
    pair.differs(live)


def test_fuse_some_adapters(pair) -> None:
    pair.load("a", pair.lora(1))
    pair.load("b", pair.lora(2))
    pair.set_adapters(["a", "b"])
    both = pair.differs()
    pair.set_adapters(["a"])
    one = pair.differs()
    pair.fuse_lora(adapter_names=["a"])
    assert pair.fused == {"a"}
    torch.testing.assert_close(pair.same(), one, atol=1e-4, rtol=0)
    pair.unfuse_lora()
    pair.fuse_lora(adapter_names=["b", "a"])  # "b" is not active, and is fused all the same
    assert len(pair.fused) == 2
    torch.testing.assert_close(pair.same(), both, atol=1e-4, rtol=0)
    pair.unfuse_lora()
    assert pair.fused == set()
    torch.testing.assert_close(pair.same(), one, atol=1e-4, rtol=0)


def test_fuse_one_after_the_other(pair) -> None:
    pair.load("a", pair.lora(1))
    pair.load("b", pair.lora(2))
    pair.set_adapters(["a", "b"])
    both = pair.differs()
    pair.fuse_lora(adapter_names=["a"])
    pair.fuse_lora(adapter_names=["b"])
    torch.testing.assert_close(pair.same(), both, atol=1e-4, rtol=0)


def test_fuse_components(pair) -> None:
    pair.load("a", pair.lora(1))
    live, before = pair.differs(), weights(pair.ours)
    pair.fuse_lora(components=["unet"])
    torch.testing.assert_close(pair.same(), live, atol=1e-4, rtol=0)
    changed = {key.split(".")[0] for key, value in weights(pair.ours).items() if not torch.equal(value, before[key])}
    assert changed == {"unet"}
    pair.fuse_lora(components=["text_encoder"])
    torch.testing.assert_close(pair.same(), live, atol=1e-4, rtol=0)
    pair.unfuse_lora(components=["unet"])
    assert len(pair.fused) == 1
    torch.testing.assert_close(pair.same(), live, atol=1e-4, rtol=0)
    pair.unfuse_lora()
    assert pair.fused == set()
    assert unchanged(pair.ours, before)


@pytest.mark.parametrize("components", [[], ["vae"], ["nothing"]], ids=str)
def test_wrong_components(pair, components) -> None:
    for pipe in (pair.theirs, pair.ours):
        with pytest.raises(ValueError, match=r"not found in|empty list"):
            pipe.fuse_lora(components=components)
        with pytest.raises(ValueError, match=r"not found in|empty list"):
            pipe.unfuse_lora(components=components)


def test_scale_of_a_call_leaves_fused_weights(pair) -> None:
    pair.load("a", pair.lora(1))
    pair.fuse_lora()
    fused = pair.differs()
    torch.testing.assert_close(pair.same(cross_attention_kwargs={"scale": 0.3}), fused, atol=1e-4, rtol=0)


def test_disable_while_fused(pair) -> None:
    pair.load("a", pair.lora(1))
    before = weights(pair.ours)
    pair.fuse_lora()
    fused = pair.differs()
    pair.disable_lora()
    pair.is_base()
    assert not torch.allclose(fused, pair.base)
    pair.enable_lora()
    torch.testing.assert_close(pair.same(), fused, atol=1e-4, rtol=0)
    pair.unfuse_lora()
    torch.testing.assert_close(pair.same(), fused, atol=1e-4, rtol=0)
    now = weights(pair.ours)
    assert unchanged(pair.ours, {k: v for k, v in before.items() if k in now})


def test_unload(pair) -> None:
    before = weights(pair.ours)
    pair.load("a", pair.lora(1))
    pair.differs()
    pair.unload_lora_weights()
    pair.is_base()
    assert pair.get_list_adapters() == ({}, {})
    assert unchanged(pair.ours, before)
    pair.load("a", pair.lora(1))
    pair.differs()


def test_unload_keeps_fused_weights(pair) -> None:
    pair.load("a", pair.lora(1))
    pair.fuse_lora(lora_scale=0.7)
    fused = pair.differs()
    pair.unload_lora_weights()
    torch.testing.assert_close(pair.same(), fused, atol=1e-4, rtol=0)
    assert pair.get_list_adapters() == ({}, {})
    assert pair.get_active_adapters() == ([], [])
    assert pair.fused == {"a"}
    pair.load("b", pair.lora(2))
    pair.differs(fused)
    pair.unload_lora_weights()
    torch.testing.assert_close(pair.same(), fused, atol=1e-4, rtol=0)
    pair.unfuse_lora()
    assert pair.fused == set()
    torch.testing.assert_close(pair.same(), fused, atol=1e-4, rtol=0)


def test_unload_keeps_the_fused_components_only(pair) -> None:
    pair.load("a", pair.lora(1))
    live = pair.differs()
    pair.fuse_lora(components=["unet"])
    pair.unload_lora_weights()
    pair.differs(live)


def test_unload_after_unfuse(pair) -> None:
    before = weights(pair.ours)
    pair.load("a", pair.lora(1))
    pair.fuse_lora()
    pair.unfuse_lora()
    pair.unload_lora_weights()
    pair.is_base()
    assert unchanged(pair.ours, before)


def test_dora(pair) -> None:
    pair.load("a", pair.lora(1, text=False, use_dora=True))
    live = pair.differs()
    pair.fuse_lora()
    torch.testing.assert_close(pair.same(), live, atol=1e-3, rtol=0)
    pair.unfuse_lora()
    torch.testing.assert_close(pair.same(atol=1e-3), live, atol=1e-3, rtol=0)


# -- where we go another way than Diffusers --------------------------------------------------------------------


def test_active_beside_fused_acts(ours) -> None:
    """In PEFT a layer with fused adapters is deaf to all others; loading another there even undoes the fusion."""
    ours.load_lora_weights(lora(ours, 1), adapter_name="a")
    ours.load_lora_weights(lora(ours, 2), adapter_name="b")
    ours.set_adapters(["a", "b"])
    both = run(ours)
    ours.set_adapters("a")
    ours.fuse_lora()
    alone = run(ours)
    ours.set_adapters("b")
    torch.testing.assert_close(run(ours), both, atol=1e-4, rtol=0)
    assert ours.fused_loras == {"a"}
    ours.unload_lora_weights()
    torch.testing.assert_close(run(ours), alone, atol=1e-4, rtol=0)
    ours.load_lora_weights(lora(ours, 2), adapter_name="b")
    torch.testing.assert_close(run(ours), both, atol=1e-4, rtol=0)


def test_a_load_leaves_fused_weights(ours) -> None:
    ours.load_lora_weights(lora(ours, 1), adapter_name="a")
    ours.fuse_lora()
    ours.load_lora_weights(lora(ours, 2), adapter_name="b")
    assert ours.fused_loras == {"a"}
    mixed = run(ours)
    ours.unfuse_lora()
    ours.set_adapters(["a", "b"])
    torch.testing.assert_close(run(ours), mixed, atol=1e-4, rtol=0)


def test_a_new_weight_reaches_fused_weights(ours) -> None:
    before = weights(ours)
    ours.load_lora_weights(lora(ours, 1), adapter_name="a")
    ours.set_adapters("a", 0.4)
    live = run(ours)
    ours.set_adapters("a")
    ours.fuse_lora()
    ours.set_adapters("a", 0.4)
    assert ours.adapters.merged
    torch.testing.assert_close(run(ours), live, atol=1e-4, rtol=0)
    ours.unfuse_lora()
    assert unchanged(ours, before)


def test_delete_a_fused_adapter(ours) -> None:
    before = weights(ours)
    ours.load_lora_weights(lora(ours, 1), adapter_name="a")
    ours.fuse_lora()
    ours.delete_adapters("a")
    assert unchanged(ours, before)
    assert ours.num_fused_loras == 0


def test_fuse_an_unknown_adapter(ours) -> None:
    ours.load_lora_weights(lora(ours, 1), adapter_name="a")
    with pytest.raises(ValueError, match="not in the list of present adapters"):
        ours.fuse_lora(adapter_names=["nobody"])


def test_safe_fusing(ours) -> None:
    state = {key: tensor * 1e25 for key, tensor in lora(ours, 1).items()}
    before = weights(ours)
    ours.load_lora_weights(state, adapter_name="a")
    with pytest.raises(MergeError, match="not fused") as caught:
        ours.fuse_lora(safe_fusing=True)
    assert isinstance(caught.value, ValueError)
    assert ours.num_fused_loras == 0
    assert unchanged(ours, before)
    ours.delete_adapters("a")
    ours.load_lora_weights(lora(ours, 1), adapter_name="a")
    ours.fuse_lora(safe_fusing=True)
    assert ours.num_fused_loras == 1


@pytest.mark.parametrize("remember", ["code", "copy"])
def test_remember(ours, remember) -> None:
    before = weights(ours)
    ours.load_lora_weights(lora(ours, 1), adapter_name="a")
    ours.fuse_lora(remember=remember)
    ours.unfuse_lora()
    assert unchanged(ours, before)


def test_a_failing_fuse_changes_nothing(ours, monkeypatch: pytest.MonkeyPatch) -> None:
    ours.load_lora_weights(lora(ours, 1), adapter_name="a")
    before, live = weights(ours), run(ours)

    def fail(*args: object) -> None:
        raise MergeError("no room")

    monkeypatch.setattr("diffadapt.inject.merging.merge_module", fail)
    with pytest.raises(ValueError, match="no room"):
        ours.fuse_lora(lora_scale=0.5)
    assert unchanged(ours, before)
    assert torch.equal(run(ours), live)
    assert ours.num_fused_loras == 0
