"""Several adapters: setting, weighting, switching, disabling, listing, deleting, as Diffusers does it."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from diffadapt.errors import StackError
from tests.take_over.pipelines import lora, run


@pytest.fixture
def two(pair):
    """The pair with adapters "a" and "b" on every component."""
    pair.load("a", pair.lora(1))
    pair.load("b", pair.lora(2))
    return pair


def agree(pair, method: str, *args):
    theirs, ours = getattr(pair, method)(*args)
    assert theirs == ours
    return ours


def test_the_last_load_is_active(pair) -> None:
    pair.load("a", pair.lora(1))
    first = pair.differs()
    pair.load("b", pair.lora(2))
    assert agree(pair, "get_active_adapters") == ["b"]
    pair.differs(first)


def test_a_load_leaves_other_components_alone(pair) -> None:
    pair.load("a", pair.lora(1))
    pair.load("b", pair.lora(2, text=False))
    pair.differs()
    # "a" still acts on the text encoders, as in Diffusers, whose own list shows one component's adapters only.
    assert pair.ours.get_active_adapters() == ["b", "a"]


def test_set_one_other_both(two) -> None:
    two.set_adapters("a")
    one = two.differs()
    two.set_adapters("b")
    other = two.differs(one)
    two.set_adapters(["a", "b"])
    both = two.differs(one)
    assert not torch.allclose(both, other, atol=1e-2)
    two.set_adapters(["a", "b"], [0.5, 0.6])
    two.differs(both)
    two.set_adapters(["a", "b"], [None, 0.6])
    two.differs(both)
    two.set_adapters(["a", "b"], 0.3)
    two.differs(both)


def test_disable_and_enable(two) -> None:
    two.set_adapters(["a", "b"], [0.5, 0.7])
    mixed = two.differs()
    two.disable_lora()
    two.is_base()
    assert agree(two, "get_active_adapters") == ["a", "b"]
    two.set_adapters("a")
    two.is_base()
    two.set_adapters(["a", "b"], [0.5, 0.7])
    two.enable_lora()
    torch.testing.assert_close(two.same(), mixed, atol=1e-5, rtol=0)


def test_delete(two) -> None:
    two.set_adapters("b")
    alone = two.differs()
    two.set_adapters(["a", "b"])
    two.delete_adapters("a")
    torch.testing.assert_close(two.differs(), alone, atol=1e-4, rtol=0)
    assert agree(two, "get_active_adapters") == ["b"]
    two.delete_adapters("b")
    two.is_base()
    assert agree(two, "get_list_adapters") == {}
    assert agree(two, "get_active_adapters") == []
    two.load("a", two.lora(3))
    two.differs()


def test_delete_the_active_one_activates_the_first_of_the_rest(two) -> None:
    two.load("c", two.lora(3))
    two.set_adapters("b", 0.4)
    two.set_adapters("c")
    two.delete_adapters("c")
    assert agree(two, "get_active_adapters") == ["a"]
    two.differs()


def test_delete_several_and_unknown(two) -> None:
    two.delete_adapters("nobody")
    two.differs()
    two.delete_adapters(["a", "b"])
    two.is_base()


def test_lists(pair) -> None:
    assert agree(pair, "get_list_adapters") == {}
    assert agree(pair, "get_active_adapters") == []
    pair.load("a", pair.lora(1))
    pair.load("b", pair.lora(2, text=False))
    lists = agree(pair, "get_list_adapters")
    assert lists["unet"] == ["a", "b"]
    assert lists["text_encoder"] == ["a"]
    pair.set_adapters(["b", "a"])
    assert agree(pair, "get_active_adapters") == ["b", "a"]
    pair.load("c", pair.lora(3, unet=False))
    agree(pair, "get_list_adapters")


def test_weight_zero_stays_active(two) -> None:
    two.set_adapters("a", 0.0)
    two.is_base()
    assert agree(two, "get_active_adapters") == ["a"]


def test_default_names(pair) -> None:
    for seed in (1, 2, 3):
        pair.load(None, pair.lora(seed))
    agree(pair, "get_list_adapters")
    assert pair.ours.get_list_adapters()["unet"] == ["default_0", "default_1", "default_2"]
    pair.ours.delete_adapters("default_1")
    pair.ours.load_lora_weights(pair.lora(4))
    assert pair.ours.get_list_adapters()["unet"] == ["default_0", "default_2", "default_3"]


def test_wrong_names(two) -> None:
    for pipe in (two.theirs, two.ours):
        with pytest.raises(ValueError, match="not in the list of present adapters"):
            pipe.set_adapters("test")
        with pytest.raises(ValueError, match="already in use"):
            pipe.load_lora_weights(two.lora(1), adapter_name="a")
        with pytest.raises(ValueError, match="weights"):
            pipe.set_adapters(["a", "b"], [1.0])
    with pytest.raises(StackError):
        two.ours.set_adapters("test")
    two.differs()


def test_wrong_components_are_logged(two, caplog: pytest.LogCaptureFixture) -> None:
    two.set_adapters("a", {"foo": 0.0, "bar": 0.0})
    assert "not part of the pipeline: ['bar', 'foo']" in caplog.text
    two.differs()


def test_weights_of_a_missing_component_are_logged(pair, caplog: pytest.LogCaptureFixture) -> None:
    pair.load("a", pair.lora(1, text=False))
    pair.set_adapters("a", {"text_encoder": 0.0, "unet": 0.5})
    assert "nothing for ['text_encoder']" in caplog.text
    pair.differs()


# -- weights by block ------------------------------------------------------------------------------------------

WEIGHTS = [
    {"unet": 0.5},
    {"text_encoder": 0.5},
    {"text_encoder": 2, "unet": {"down": 3}},
    {"unet": {"up": 3}},
    {"unet": {"mid": 0.0, "down": 0.0}},
    {"unet": {"mid": [0.2]}},
    {"unet": {"down": {"block_1": 0.3}, "up": {"block_0": [0.1, 0.2, 3]}}},
    {"unet": {"down": [0.3, 2]}},
    {"unet": {"up": {"block_0": [0.5]}}},
    {"unet": {"down": {"block_0": 0.0}}},
    {"unet": None, "text_encoder": 0.0},
]


@pytest.mark.parametrize(
    ("pair", "weights"),
    [*(("sd", one) for one in WEIGHTS), *(("sdxl", one) for one in WEIGHTS[2:8:2])],
    ids=str,
    indirect=["pair"],
)
def test_block_weights(pair, weights) -> None:
    pair.load("a", pair.lora(1))
    pair.set_adapters("a", weights)
    pair.same()


def test_block_weights_of_layers_beside_attentions(pair) -> None:
    modules = ["to_q", "conv1", "conv2", "proj_in", "time_emb_proj", "conv_shortcut"]
    pair.load("a", pair.lora(1, text=False, target_modules=modules))
    for weights in ({"down": 0.2}, {"up": [0.1, 0.5, 2.0]}, {"mid": 0.0}, {"down": 0.0, "mid": 3, "up": 0.5}):
        pair.set_adapters("a", {"unet": weights})
        pair.same()


def test_block_weights_of_several(two) -> None:
    first, second = {"text_encoder": 2, "unet": {"down": 3}}, {"unet": {"down": 2, "mid": 3}}
    two.set_adapters("a", first)
    one = two.differs()
    two.set_adapters("b", second)
    two.differs(one)
    two.set_adapters(["a", "b"], [first, second])
    two.differs(one)
    two.disable_lora()
    two.is_base()


def test_every_form_of_block_weights(ours) -> None:
    ours.load_lora_weights(lora(ours, 1), adapter_name="a")
    parts = [None, 2, {"block_1": 2}, {"block_1": [2, 2]}, [2, 2]]
    ups = [None, 2, {"block_0": 2}, {"block_0": [2, 2, 2]}, [2, 2, 2]]
    for text, down, mid, up in product((None, 2), parts, (None, 2), ups):
        blocks = {"down": down, "mid": mid, "up": up}
        ours.set_adapters("a", {"text_encoder": text, "unet": {k: v for k, v in blocks.items() if v is not None}})


@pytest.mark.parametrize("weights", [{"down": [1, 2, 3]}, {"up": {"block_0": [1, 2]}}, {"mid": [1, 2]}], ids=str)
def test_wrong_number_of_block_weights(two, weights) -> None:
    for pipe in (two.theirs, two.ours):
        with pytest.raises(ValueError, match="Expected"):
            pipe.set_adapters("a", {"unet": weights})


def test_weights_are_not_changed(ours) -> None:
    ours.load_lora_weights(lora(ours, 1), adapter_name="a")
    weights = {"unet": {"down": {"block_1": [0.1, 0.2]}}, "text_encoder": 0.5}
    ours.set_adapters("a", weights)
    assert weights == {"unet": {"down": {"block_1": [0.1, 0.2]}}, "text_encoder": 0.5}


def test_our_own_patterns_are_understood(ours) -> None:
    """Beyond Diffusers' vocabulary: whole path segments, as in `pipe.adapters.set`."""
    ours.load_lora_weights(lora(ours, 1, text=False), adapter_name="a")
    ours.set_adapters("a", {"unet": {"attn2": 0.0}})
    values = ours.adapters.values("a")
    assert {value for key, value in values.items() if "attn2" in key.module} == {0.0}
    assert {value for key, value in values.items() if "attn2" not in key.module} == {1.0}
    before = run(ours)
    with pytest.raises(ValueError, match="names no module"):
        ours.set_adapters("a", {"unet": {"attn7": 0.0}})
    assert torch.equal(run(ours), before)


def test_device(two) -> None:
    full = two.differs()
    two.set_lora_device(["a", "b"], "cpu")
    two.set_lora_device(["nobody"], torch.device("cpu"))
    assert torch.equal(two.same(), full)
