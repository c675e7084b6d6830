"""The adapters that PEFT holds in a pipeline's models: those of `unet.add_adapter`, `unet.load_lora_adapter` and of
loads before the take-over. They stay PEFT's; the pipeline's methods act on them through Diffusers' own code.
"""

from __future__ import annotations

from typing import Any

from torch import nn


def held(pipe: Any) -> dict[str, nn.Module]:
    """The models that hold PEFT adapters, by component."""
    models = {name: getattr(pipe, name, None) for name in getattr(pipe, "_lora_loadable_modules", ())}
    return {name: m for name, m in models.items() if isinstance(m, nn.Module) and getattr(m, "peft_config", None)}


def names(pipe: Any) -> dict[str, list[str]]:
    """PEFT's adapters by component."""
    return {component: list(vars_of(model)) for component, model in held(pipe).items()}


def vars_of(model: nn.Module) -> dict[str, Any]:
    config: dict[str, Any] = model.peft_config  # type: ignore[assignment]
    return config


def layers(model: nn.Module) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def active(pipe: Any) -> list[str]:
    """PEFT's adapters in force in any model."""
    found = [layer.active_adapters for model in held(pipe).values() for layer in layers(model)[:1]]
    return list(dict.fromkeys(name for group in found for name in group))


def merged(pipe: Any) -> set[str]:
    """PEFT's adapters that are fused."""
    return {name for model in held(pipe).values() for layer in layers(model) for name in layer.merged_adapters}


def silence(pipe: Any, components: list[str]) -> None:
    """Put PEFT's adapters out of force in some components, as loading or setting others does in Diffusers."""
    from diffusers.utils import set_weights_and_activate_adapters

    for component, model in held(pipe).items():
        if component in components:
            set_weights_and_activate_adapters(model, [], [])


def original(pipe: Any, method: str, *args: Any, **kwargs: Any) -> None:
    """Run Diffusers' own method for the adapters that PEFT holds; nothing where there are none."""
    if held(pipe):
        getattr(type(pipe), method)(pipe, *args, **kwargs)
