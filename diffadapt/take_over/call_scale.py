"""The strength of one call: `pipe(..., cross_attention_kwargs={"scale": 0.5})`.

Diffusers hands the scale to the denoiser with every step, and to `encode_prompt` as `lora_scale`; both then scale
PEFT's layers. Here a hook on each model and a stand-in for `encode_prompt` scale the stack for as long as they run.
"""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from diffadapt.inject.stack import PipelineAdapters

KWARGS = ("cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs")


class ModelScale:
    """The hooks on one model: every adapter is scaled while its forward runs, and no longer, however it ends.

    A model has one, however many pipelines share it. stacks: of the taken-over ones, one entry for each.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.stacks: list[PipelineAdapters] = []
        self.running: ExitStack | None = None
        self.handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(self.before, with_kwargs=True),
            model.register_forward_hook(self.after, always_call=True),
        ]

    @staticmethod
    def on(model: nn.Module) -> ModelScale | None:
        """The hooks that a model has already."""
        owners = (getattr(hook, "__self__", None) for hook in model._forward_pre_hooks.values())
        return next((owner for owner in owners if isinstance(owner, ModelScale)), None)

    def release(self, stack: PipelineAdapters) -> None:
        """One pipeline less; the last one takes the hooks away."""
        self.stop()
        self.stacks.remove(stack)
        if not self.stacks:
            for handle in self.handles:
                handle.remove()

    def start(self, factor: float) -> None:
        with ExitStack() as entered:
            for stack in {id(stack): stack for stack in self.stacks}.values():
                entered.enter_context(stack.scaled(factor))
            self.running = entered.pop_all()

    def stop(self) -> None:
        if self.running is not None:
            running, self.running = self.running, None
            running.close()

    def before(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self.stop()  # a call that an interrupt ended: hooks do not run on those
        for name in KWARGS:
            given = kwargs.get(name)
            if isinstance(given, dict) and given.get("scale") is not None:
                self.start(given["scale"])
                if getattr(model, "peft_config", None):  # Diffusers scales PEFT's layers by it
                    return None
                rest = {key: value for key, value in given.items() if key != "scale"}
                return args, {**kwargs, name: rest}
        return None

    def after(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.stop()


class EncodePrompt:
    """A pipeline's `encode_prompt`, with the adapters at `lora_scale` while it runs."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(type(self.pipe).encode_prompt.__get__(self.pipe))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        method = type(self.pipe).encode_prompt
        bound = inspect.signature(method).bind(self.pipe, *args, **kwargs)
        scale = bound.arguments.get("lora_scale")
        if scale is None:
            return method(self.pipe, *args, **kwargs)
        encoders = [model for name, model in self.pipe.components.items() if name.startswith("text_encoder")]
        if not any(getattr(model, "peft_config", None) for model in encoders):
            del bound.arguments["lora_scale"]  # there is nothing of PEFT's for Diffusers to scale
        with self.pipe.adapters.scaled(scale):
            return method(*bound.args, **bound.kwargs)


class CallScale:
    """Everything that scales one pipeline's adapters for one call."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.models: list[tuple[ModelScale, PipelineAdapters]] = []
        if hasattr(type(pipe), "encode_prompt"):
            vars(pipe)["encode_prompt"] = EncodePrompt(pipe)

    def watch(self) -> None:
        """Hook the models that the pipeline has now."""
        stack: PipelineAdapters = self.pipe.adapters
        models = [getattr(self.pipe, name) for name in stack.components() if hasattr(self.pipe, name)]
        if [id(hooks.model) for hooks, _ in self.models] != [id(model) for model in models]:
            self.unhook()
            self.models = [(ModelScale.on(model) or ModelScale(model), stack) for model in models]
            for hooks, _ in self.models:
                hooks.stacks.append(stack)

    def unhook(self) -> None:
        for hooks, stack in self.models:
            hooks.release(stack)
        self.models = []

    def remove(self) -> None:
        """Leave the pipeline without hooks and with its own `encode_prompt`."""
        self.unhook()
        vars(self.pipe).pop("encode_prompt", None)
