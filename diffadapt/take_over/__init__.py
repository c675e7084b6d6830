"""Diffusers' own LoRA methods on one pipeline, going through diffadapt: an existing script gains every format.

Where it differs from Diffusers, on purpose: `unfuse_lora` restores the very bits; adapters that are active beside
fused ones still act; a new weight for a fused adapter reaches the weights; a file that matches nothing raises; a
call's scale does not outlive the call. The models' own methods (`unet.load_lora_adapter`, `unet.add_adapter`, ...) and
`save_lora_weights` stay Diffusers'.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from diffadapt.errors import StackError
from diffadapt.take_over.call_scale import ModelScale
from diffadapt.take_over.methods import TakenOver

METHODS = (
    "load_lora_weights", "unload_lora_weights", "set_adapters", "get_active_adapters", "get_list_adapters",
    "delete_adapters", "enable_lora", "disable_lora", "fuse_lora", "unfuse_lora", "set_lora_device",
)  # fmt: skip
_OWN = "_diffadapt_taken_over"


def take_over(pipe: Any) -> None:
    """Put our methods in the place of Diffusers' on this pipeline, not on its class. Idempotent.

    Called by `diffadapt.enable(pipe, take_over=True)`. Raises StackError for a bare model, which has no such methods.
    """
    if isinstance(pipe, nn.Module):
        raise StackError(
            f"take_over=True replaces the LoRA methods of a pipeline; {type(pipe).__name__} is a model. "
            "Use `load_adapter` and `adapters`, or enable its pipeline."
        )
    own = vars(pipe)
    if _OWN not in own:
        _share(pipe)
        taken = TakenOver(pipe)
        own[_OWN] = taken
        own.update({name: getattr(taken, name) for name in METHODS})
    own[_OWN].scale.watch()


def _share(pipe: Any) -> None:
    """Let a pipeline made of another's models (`from_pipe`) have its adapters too: they act on the models of both."""
    models = {name: component.model for name, component in pipe.adapters.components().items()}
    hooks = [found for name in models if (found := ModelScale.on(getattr(pipe, name))) is not None]
    for stack in (stack for found in hooks for stack in found.stacks):
        others = {name: component.model for name, component in stack.components().items()}
        if not len(pipe.adapters) and all(others.get(name) is model for name, model in models.items()):
            vars(pipe)["adapters"] = stack
            return


def give_back(pipe: Any) -> None:
    """Give the pipeline Diffusers' methods back. Loaded adapters stay where they are, under `pipe.adapters`."""
    own = vars(pipe)
    taken = own.pop(_OWN, None)
    if taken is not None:
        taken.scale.remove()
        for name in (*METHODS, "_merged_adapters"):
            own.pop(name, None)
