"""From what a user asks for to an adapter that has learnt nothing yet: weights, tokens, a prefix."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffadapt.adapter import Adapter, TargetKey
from diffadapt.inject.locate import Component
from diffadapt.training.building import adapter_of, untrained
from diffadapt.training.methods import P_TUNING, PREFIX
from diffadapt.training.plan import Plan

if TYPE_CHECKING:
    from diffadapt.inject.placement import Loaded


def fresh_adapter(
    plan: Plan,
    parts: Mapping[str, Component],
    owner: object,
    weight_of: Callable[[TargetKey], Callable[[], Tensor]],
) -> Adapter:
    """The untrained adapter. Errors as for `pipe.adapters.add`."""
    from diffadapt.training.tokens import new_embeddings

    plan.check()
    generator = torch.Generator().manual_seed(plan.seed)
    if plan.algorithm == PREFIX:
        return _prefixed(plan, parts, owner, generator)
    embeddings = new_embeddings(owner, plan.tokens, generator=generator) if plan.tokens else {}
    if plan.of_text:
        return adapter_of(plan.name, "diffusers", {}, owner, embeddings=embeddings)
    adapter = untrained(plan, parts, owner, weight_of)
    if plan.init in ("eva", "loftq"):
        from diffadapt.training.calibrated import eva, loftq

        change = eva if plan.init == "eva" else loftq
        adapter = change(plan, adapter, parts, owner, weight_of)
    return dataclasses.replace(adapter, embeddings=embeddings)


def finish(plan: Plan, loaded: Loaded) -> None:
    """What has to wait until the adapter is on the pipeline: P-tuning trains what makes the vectors.

    Raises StackError for an adapter that is not to be trained, and for an unknown kind of network.
    """
    if plan.algorithm == P_TUNING:
        from diffadapt.training.tokens import PromptEncoder

        dropout = loaded.learner.dropouts.dropout if loaded.learner is not None else 0.0
        generator = torch.Generator().manual_seed(plan.seed)
        loaded.embeddings.reparametrise(PromptEncoder.of(generator=generator, dropout=dropout, **plan.options))


def _prefixed(plan: Plan, parts: Mapping[str, Component], owner: object, generator: torch.Generator) -> Adapter:
    """A prefix for a text encoder, by default the first."""
    from diffadapt.training.prefixes import new_prefix

    options = dict(plan.options)
    component = options.pop("component", None) or next((name for name in parts if "text_encoder" in name), "")
    prefix = new_prefix(owner, component, generator=generator, **options)
    return adapter_of(plan.name, "peft", {}, owner, prefixes={component: prefix})
