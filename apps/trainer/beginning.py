"""What is there before the first step: the pipeline, the adapter, and the checks that spare a run in vain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import diffadapt
from diffadapt import shapes
from diffadapt.errors import SourceError, TrainingError
from diffadapt.training.methods import TEXT

from .settings import Settings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pipeline(settings: Settings) -> Any:
    """The pipeline that is trained on. Raises SourceError where there is none."""
    dtype = DTYPES[settings.training.dtype]
    if settings.model in shapes.PIPELINES:
        return shapes.load(settings.model, dtype)
    from diffusers import DiffusionPipeline

    beside = settings.path(settings.model)
    try:
        pipe = DiffusionPipeline.from_pretrained(str(beside) if beside.is_dir() else settings.model, torch_dtype=dtype)
    except Exception as error:  # what Diffusers says of a place that holds none is of many kinds
        why = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise SourceError(f"model = {settings.model!r}: no pipeline of Diffusers can be loaded ({why}).") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def add(pipe: Any, settings: Settings) -> Any:
    """Put the adapter onto the pipeline, or take the one of that name that is there in training; what was applied.

    Raises TargetError and StackError for targets, ranks and options that do not fit.
    """
    wanted, name = settings.adapter, settings.name
    diffadapt.enable(pipe)
    if name in pipe.adapters.names:
        return pipe.adapters.report(name)
    if wanted.start_from:
        path = settings.path(wanted.start_from)
        return pipe.load_adapter(
            str(path) if path.exists() else wanted.start_from, adapter_name=name, trainable=True, strict=True
        )
    weights = {} if wanted.algorithm in TEXT else {"rank": wanted.rank or None}  # tokens have no rank to be told
    return pipe.adapters.add(
        name, wanted.algorithm, alpha=wanted.alpha or None, targets=wanted.targets or None, exclude=wanted.exclude,
        init=wanted.init, seed=settings.seed, tokens=wanted.tokens, dropout=wanted.dropout,
        rank_dropout=wanted.rank_dropout, module_dropout=wanted.module_dropout, **weights, **wanted.options,
    )  # fmt: skip


def check(pipe: Any, settings: Settings, denoiser: nn.Module) -> None:
    """Raise TrainingError for an adapter that nothing of can be learnt, and for numbers that cannot be trained in."""
    name = settings.name
    parameters = [parameter for parameter in pipe.adapters.parameters(name) if parameter.requires_grad]
    if not parameters:
        raise TrainingError(
            f"The adapter {name!r} has no parameter to train. Add it with trainable=True, and see that adapter.targets "
            "names layers of the model."
        )
    odd = next((parameter.dtype for parameter in parameters if parameter.dtype != torch.float32), None)
    if odd is not None:
        raise TrainingError(
            f"The adapter {name!r} has parameters of {_word(odd)}, whose steps would be rounded away. Keep float32; "
            "to save memory set training.dtype for the pipeline, and training.mixed_precision."
        )
    found = Counter(_word(p.dtype) for p in denoiser.parameters() if p.dtype.is_floating_point and p.element_size() > 1)
    if len(found) > 1 and settings.training.mixed_precision == "no":
        raise TrainingError(
            f"The {type(denoiser).__name__}'s weights are of mixed dtypes: {_listed(found)}. Bring it into one, as "
            "pipe.to(torch.bfloat16), or set training.mixed_precision."
        )
    if set(found) == {"float16"} and settings.training.mixed_precision != "fp16":
        raise TrainingError(
            "The pipeline is in float16, in which gradients vanish unless the loss is scaled. Set training.dtype to "
            "'bfloat16', or training.mixed_precision to 'fp16'."
        )


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _listed(found: Mapping[str, int]) -> str:
    return ", ".join(f"{count} tensors of {name}" for name, count in found.items())


def trains_text(pipe: Any, name: str) -> bool:
    """Whether an adapter in training changes what prompts are encoded to."""
    report = pipe.adapters.report(name)
    return any("text_encoder" in component for component in report.components) or bool(tokens(pipe, name))


def tokens(pipe: Any, name: str) -> list[nn.Parameter]:
    """The parameters that are no weights' changes: placeholders and prefixes."""
    _, *others = pipe.adapters.as_module(name).adapter
    return [parameter for module in others for parameter in module.parameters()]
