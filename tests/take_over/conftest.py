"""Two pipelines side by side: a taken-over one, and Diffusers with PEFT, on the same weights."""

from __future__ import annotations

import copy
import logging
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import diffadapt
from tests.take_over import pipelines

ATOL = 1e-4


class Pair:
    """`ours` is taken over, `theirs` is Diffusers'. What is called on the pair is called on both."""

    def __init__(self, pipe: Any, base: Tensor) -> None:
        """base: what the pipeline makes without adapters."""
        self.base = base
        self.theirs = copy.deepcopy(pipe)
        self.ours = diffadapt.enable(copy.deepcopy(pipe), take_over=True)

    def lora(self, seed: int, **options: Any) -> dict[str, Tensor]:
        return pipelines.lora(self.ours, seed, **options)

    def __getattr__(self, method: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
            results = []
            for pipe in (self.theirs, self.ours):
                results.append(getattr(pipe, method)(*copy.deepcopy(args), **copy.deepcopy(kwargs)))
            return results[0], results[1]

        return call

    @property
    def fused(self) -> set[str]:
        """The fused adapters; both sides must agree."""
        assert self.theirs.fused_loras == self.ours.fused_loras
        assert self.theirs.num_fused_loras == self.ours.num_fused_loras
        found: set[str] = self.ours.fused_loras
        return found

    def load(self, name: str | None, state: dict[str, Tensor], **kwargs: Any) -> None:
        self.load_lora_weights(state, adapter_name=name, **kwargs)

    def same(self, atol: float = ATOL, **options: Any) -> Tensor:
        """Run both; they must agree. Returns the output."""
        theirs, ours = pipelines.run(self.theirs, **options), pipelines.run(self.ours, **options)
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)
        return ours

    def differs(self, other: Tensor | None = None, **options: Any) -> Tensor:
        """Run both; they must agree, and differ from `other` (default: the base's output)."""
        output = self.same(**options)
        assert not torch.allclose(output, self.base if other is None else other, atol=1e-2)
        return output

    def is_base(self, **options: Any) -> None:
        torch.testing.assert_close(self.same(**options), self.base, atol=ATOL, rtol=0)


@pytest.fixture(scope="session")
def built() -> dict[str, Any]:
    return {"sd": pipelines.sd(), "sdxl": pipelines.sdxl()}


@pytest.fixture(scope="session")
def bases(built: dict[str, Any]) -> dict[str, Tensor]:
    """What each makes without adapters."""
    return {name: pipelines.run(pipe) for name, pipe in built.items()}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Any:
    """transformers refuses every released PEFT (it asks for 0.22); the version here does what Diffusers needs of it."""
    monkeypatch.setattr("transformers.integrations.peft.check_peft_version", lambda *args, **kwargs: None)
    for name in ("diffusers", "transformers"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(params=["sd", "sdxl"])
def pair(request: pytest.FixtureRequest, built: dict[str, Any], bases: dict[str, Tensor]) -> Pair:
    return Pair(built[request.param], bases[request.param])


@pytest.fixture
def ours(built: dict[str, Any]) -> Any:
    """A taken-over SD pipeline."""
    return diffadapt.enable(copy.deepcopy(built["sd"]), take_over=True)
