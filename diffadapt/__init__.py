"""diffadapt: any community adapter onto any Diffusers pipeline, live or merged, and back to the very bits.

import diffadapt

pipe = diffadapt.enable(pipe)
report = pipe.load_adapter("pixel-art.safetensors", adapter_name="pixel", weight=0.8)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diffadapt.adapter import Adapter, Embedding, Metadata, TargetKey
from diffadapt.combine import combine
from diffadapt.errors import (
    AlgorithmError,
    CombineError,
    DialectError,
    DiffAdaptError,
    MergeError,
    NonFiniteError,
    NotAnAdapterError,
    RecipeError,
    SourceError,
    StackError,
    TargetError,
    TrainingError,
    UnsafeFileError,
)
from diffadapt.inject.block_weights import block_strength
from diffadapt.inject.composite import composite
from diffadapt.inject.gates import Gates
from diffadapt.inject.placement import UnmatchedKeysWarning
from diffadapt.inject.regional import regional
from diffadapt.inject.stack import PipelineAdapters
from diffadapt.pipeline import enable, load_adapter
from diffadapt.reading import read_adapter
from diffadapt.recipe.recipe import Recipe
from diffadapt.report import LayerMerge, LoadReport, MergeReport
from diffadapt.schedule import Schedule, switch

if TYPE_CHECKING:
    from diffadapt.base_pipeline import GuessedBaseWarning, pipeline_for
    from diffadapt.combine import balance, compare, extract, resize, similarity, to_lora
    from diffadapt.explain.effect import effect

__version__ = "0.1.0"

_LATER = {
    **dict.fromkeys(("balance", "compare", "extract", "resize", "similarity", "to_lora"), "diffadapt.combine"),
    **dict.fromkeys(("GuessedBaseWarning", "pipeline_for"), "diffadapt.base_pipeline"),
    "effect": "diffadapt.explain.effect",
}
"""What is imported when it is asked for, and where it is."""

__all__ = [
    "Adapter",
    "AlgorithmError",
    "CombineError",
    "DialectError",
    "DiffAdaptError",
    "Embedding",
    "Gates",
    "GuessedBaseWarning",
    "LayerMerge",
    "LoadReport",
    "MergeError",
    "MergeReport",
    "Metadata",
    "NonFiniteError",
    "NotAnAdapterError",
    "PipelineAdapters",
    "Recipe",
    "RecipeError",
    "Schedule",
    "SourceError",
    "StackError",
    "TargetError",
    "TargetKey",
    "TrainingError",
    "UnmatchedKeysWarning",
    "UnsafeFileError",
    "balance",
    "block_strength",
    "combine",
    "compare",
    "composite",
    "effect",
    "enable",
    "extract",
    "load_adapter",
    "pipeline_for",
    "read_adapter",
    "regional",
    "resize",
    "similarity",
    "switch",
    "to_lora",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import sys
    from importlib import import_module

    import_module(_LATER[name])
    # `diffadapt.combine` is the function; the module of that name is found among the modules.
    return getattr(sys.modules[_LATER[name]], name)
