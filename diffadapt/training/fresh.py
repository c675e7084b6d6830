"""From what a user asks for to an adapter that has learnt nothing yet: weights, tokens, a prefix."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffadapt.adapter import Adapter, TargetKey
from diffadapt.errors import StackError
from diffadapt.inject.locate import Component
from diffadapt.training.building import Plan, Rank, adapter_of, untrained
from diffadapt.training.methods import PREFIX, TOKENS
from diffadapt.training.targets import Targets

if TYPE_CHECKING:
    from diffadapt.inject.placement import Loaded


@dataclass(frozen=True)
class Request:
    """The arguments of `pipe.adapters.add`."""

    name: str
    algorithm: str
    rank: Rank | None
    alpha: float | Mapping[str, Any] | None
    targets: Targets | None
    exclude: Targets
    init: str
    seed: int
    options: Mapping[str, Any]
    tokens: Mapping[str, Any] = field(default_factory=dict)
    data: Callable[[], object] | None = None
    base: Any = None

    @property
    def plan(self) -> Plan:
        """What concerns the weights."""
        targets = self.targets if self.targets is not None else "norm" if self.algorithm == "norm" else "attn"
        return Plan(
            self.name, self.algorithm, self.rank, self.alpha, targets, self.exclude, self.init, self.seed, self.options
        )

    def finish(self, loaded: Loaded) -> None:
        """What has to wait until the adapter is on the pipeline: P-tuning trains what makes the vectors."""
        if self.algorithm == "p_tuning":
            from diffadapt.training.tokens import PromptEncoder

            generator = torch.Generator().manual_seed(self.seed)
            loaded.embeddings.reparametrise(PromptEncoder.of(generator=generator, **self.options))


def fresh_adapter(
    request: Request,
    parts: Mapping[str, Component],
    owner: object,
    weight_of: Callable[[TargetKey], Callable[[], Tensor]],
) -> Adapter:
    """The untrained adapter. Errors as for `pipe.adapters.add`."""
    from diffadapt.training.tokens import new_embeddings

    if request.algorithm in TOKENS and not request.tokens:
        raise StackError(f"{request.algorithm} needs placeholders: tokens={{'<name>': 'a word to begin at'}}.")
    generator = torch.Generator().manual_seed(request.seed)
    embeddings = new_embeddings(owner, request.tokens, generator=generator) if request.tokens else {}
    if request.algorithm in TOKENS:
        return adapter_of(request.name, "diffusers", {}, owner, embeddings=embeddings)
    if request.algorithm == PREFIX:
        return _prefixed(request, parts, owner, generator)
    adapter = untrained(request.plan, parts, owner, weight_of)
    if request.init in ("eva", "loftq"):
        from diffadapt.training.calibrated import eva, loftq

        change = eva if request.init == "eva" else loftq
        adapter = change(request, adapter, parts, owner, weight_of)
    return dataclasses.replace(adapter, embeddings=embeddings)


def _prefixed(request: Request, parts: Mapping[str, Component], owner: object, generator: torch.Generator) -> Adapter:
    """A prefix of `virtual_tokens` (20, as PEFT's examples have) for a text encoder, by default the first."""
    from diffadapt.training.prefixes import new_prefix

    options = dict(request.options)
    count = int(options.pop("virtual_tokens", 20))
    component = options.pop("component", None) or next((name for name in parts if "text_encoder" in name), "")
    if options:
        raise StackError(f"prefix_tuning has no option {next(iter(options))!r}; it has: virtual_tokens, component.")
    prefix = new_prefix(owner, component, count, generator)
    return adapter_of(request.name, "peft", {}, owner, prefixes={component: prefix})
