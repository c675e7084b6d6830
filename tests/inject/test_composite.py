"""The mean of the predictions that adapters make one by one, on a UNet and on a transformer."""

from __future__ import annotations

import pytest
import torch

import diffadapt
from diffadapt import StackError
from diffadapt.inject.schedule import first
from tests import tiny
from tests.tiny import alone


def test_one_adapter_is_that_adapter(case):
    owner, _, run = case
    wanted = alone(owner, run, {"a": 0.7})
    with diffadapt.composite(owner, ["a"]):
        assert torch.equal(run(), wanted)


def test_the_mean_of_adapters_one_by_one_with_the_rest_in_force(case):
    owner, model, run = case
    outputs = [alone(owner, run, {name: 0.7, "c": 0.3}) for name in ("a", "b")]
    owner.adapters.set({"a": 0.7, "b": 0.7, "c": 0.3})
    together = run()
    with diffadapt.composite(owner, ["a", "b"]) as same:
        assert same is owner
        seen = run()
    assert torch.allclose(seen, sum(outputs) / 2, atol=1e-6)
    assert not torch.allclose(seen, together, atol=1e-3)
    assert torch.equal(run(), together)
    assert "forward" not in vars(model)


def test_strengths_for_a_while(case):
    owner, model, run = case
    outputs = [alone(owner, run, {name: value}) for name, value in {"a": 0.5, "b": -1.0}.items()]
    owner.adapters.set({"c": 0.0})
    base = run()
    with diffadapt.composite(owner, {"a": 0.5, "b": -1.0}):
        assert torch.allclose(run(), sum(outputs) / 2, atol=1e-6)
    with pytest.raises(KeyboardInterrupt), diffadapt.composite(owner, {"a": 0.5, "b": -1.0}):
        raise KeyboardInterrupt
    assert owner.adapters.strengths == dict.fromkeys("abc", 0.0)
    assert "forward" not in vars(model)
    assert torch.equal(run(), base)


def test_a_run_that_fails_restores(case):
    owner, model, run = case
    together = run()
    handle = next(m for m in model.modules() if isinstance(m, torch.nn.SiLU)).register_forward_hook(lambda *_: 1 / 0)
    with diffadapt.composite(owner, ["a", "b"]), pytest.raises(ZeroDivisionError):
        run()
    handle.remove()
    assert torch.equal(run(), together)


def test_what_cannot_be_averaged_is_refused(case):
    owner, model, _ = case
    for adapters, message in (
        ([], "takes different adapters"), ("a", "takes different"), (["a", "a"], "takes different"),
        (["a", "x"], "No adapter is named 'x'"), ({"a": 0.0, "b": 1.0}, "'a' is not in force"),
    ):  # fmt: skip
        with pytest.raises(StackError, match=message), diffadapt.composite(owner, adapters):
            pass
    assert set(owner.adapters.strengths.values()) == {1.0}
    owner.adapters.merge(["a"])
    with pytest.raises(StackError, match="'a' is merged"), diffadapt.composite(owner, ["a", "b"]):
        pass
    owner.adapters.unmerge()
    with pytest.raises(StackError, match="has no adapters"), diffadapt.composite(tiny.sd(), ["a"]):
        pass
    assert "forward" not in vars(model)


def test_schedules_hold_within(lycoris_files):
    """Late in the denoising only b is left, so half of the base and half of b."""
    pipe = diffadapt.enable(tiny.sd())
    base = tiny.run(pipe.unet)
    for name, kind in (("a", "lora"), ("b", "oft")):
        pipe.load_adapter(lycoris_files[kind][0], adapter_name=name)
    late = alone(pipe, lambda: tiny.run(pipe.unet), {"b": 1.0})
    pipe.adapters.set({"a": first(0.4), "b": 1.0})
    with diffadapt.composite(pipe, ["a", "b"]):
        assert torch.allclose(tiny.run(pipe.unet), (base + late) / 2, atol=1e-6)
