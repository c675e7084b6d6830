"""What cannot be trained is refused with what to do instead, and the pipeline is as it was."""

from __future__ import annotations

from typing import Any

import pytest

import diffadapt
from diffadapt.errors import StackError, TargetError
from tests import tiny

REFUSED: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "algorithm": (StackError, r"No algorithm 'lorra'.*There are: lora", {"algorithm": "lorra"}),
    "option": (StackError, r"lokr has no option 'facter'; it has: .*factor", {"algorithm": "lokr", "facter": 4}),
    "option's type": (TargetError, r"factor is 'x'; expected a int", {"algorithm": "lokr", "factor": "x"}),
    "init": (StackError, r"init is 'zeros'; expected one of default, gaussian", {"init": "zeros"}),
    "init of another algorithm": (
        TargetError, r"init='pissa' is a beginning of LoRA pairs; leave it out for lokr",
        {"algorithm": "lokr", "init": "pissa"},
    ),
    "word": (TargetError, r"'atn' names no module of the unet to train. Words: attn", {"targets": "atn"}),
    "exclude": (TargetError, r"'nothing.here' names no module", {"exclude": "nothing.here"}),
    "all excluded": (TargetError, r"are no module at all", {"targets": "attn", "exclude": "attn"}),
    "component": (
        TargetError, r"no component 'transformer' to train; there are text_encoder, unet|unet",
        {"targets": {"transformer": "attn"}},
    ),
    "rank": (TargetError, r"rank 500 .*1 to (32|64).*Give a smaller rank", {"algorithm": "tlora", "rank": 500}),
    "rank of a pattern": (StackError, r"nothing_here", {"rank": {"nothing_here": 4}}),
    "layer": (TargetError, r"vblora.*Leave the module out", {"algorithm": "vblora", "targets": "conv"}),
    "dropout": (StackError, r"dropout is 1.5; expected a probability from 0 to below 1", {"dropout": 1.5}),
    "no placeholders": (StackError, r"needs placeholders: tokens=", {"algorithm": "textual_inversion"}),
    "what changes weights": (
        StackError, r"textual_inversion changes no weights.*rank", {"algorithm": "textual_inversion", "tokens": "<x>"},
    ),
    "an option of tokens": (
        StackError, r"textual_inversion has no option 'hidden'; it has: none",
        {"algorithm": "textual_inversion", "tokens": {"<x>": "random"}, "rank": None, "hidden": 4},
    ),
    "name in use": (StackError, r"named 'taken' is loaded already; remove it first or choose", {"name": "taken"}),
}  # fmt: skip


def state(pipe: Any) -> dict[str, Any]:
    """What a refusal must leave alone: weights, hooks and flags of every model, and the names on the stack."""
    models = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    modules = {(part, path): m for part, model in models.items() for path, m in model.named_modules()}
    return {
        "hooks": {key: (list(m._forward_hooks), list(m._forward_pre_hooks)) for key, m in modules.items()},
        "flags": {(part, n): p.requires_grad for part, model in models.items() for n, p in model.named_parameters()},
        "names": pipe.adapters.names,
        "tokens": pipe.text_encoder.get_input_embeddings().weight.shape,
    }


@pytest.mark.parametrize("what", REFUSED)
def test_refused_and_as_before(what):
    kind, message, arguments = REFUSED[what]
    pipe = diffadapt.enable(tiny.sd())
    pipe.unet.mid_block.requires_grad_(False)
    pipe.adapters.add("taken", "lora", rank=2, targets="mid_block.**.attn2.to_k", trainable=False)
    before, bits = state(pipe), tiny.snapshot(pipe.unet)
    with pytest.raises(kind, match=message) as caught:
        pipe.adapters.add(**{"name": "new", "rank": 4, **arguments})
    assert isinstance(caught.value, diffadapt.DiffAdaptError)
    assert state(pipe) == before
    assert tiny.same_bits(pipe.unet, bits)
    pipe.adapters.add("new", "lora", rank=4)  # nothing is in the way of what is right


def test_what_only_training_has_is_refused_without():
    pipe = diffadapt.enable(tiny.sd())
    pipe.adapters.add("still", "lora", rank=2, trainable=False)
    pipe.adapters.add("on", "lora", rank=2, targets="mid_block.**.attn2.to_k")
    refused = {
        "'still' is not in training: load or add it with trainable=True": [
            lambda: pipe.adapters.as_module("still"), lambda: pipe.adapters.train("still"),
        ],
        "There is no component 'vae'": [lambda: pipe.adapters.as_module("on", "vae")],
        "checkpoint is of another adapter": [lambda: pipe.adapters.load_state_dict("on", {})],
    }  # fmt: skip
    before = state(pipe)
    for message, calls in refused.items():
        for call in calls:
            with pytest.raises(StackError, match=message):
                call()
    assert state(pipe) == before
