"""diffadapt: any community adapter onto any Diffusers pipeline, live or merged, and back to the very bits.

import diffadapt

pipe = diffadapt.enable(pipe)
report = pipe.load_adapter("pixel-art.safetensors", adapter_name="pixel", weight=0.8)
"""

from __future__ import annotations

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
    UnsafeFileError,
)
from diffadapt.inject.block_weights import block_strength
from diffadapt.inject.composite import composite
from diffadapt.inject.placement import UnmatchedKeysWarning
from diffadapt.inject.stack import PipelineAdapters
from diffadapt.pipeline import enable, load_adapter
from diffadapt.reading import read_adapter
from diffadapt.recipe.recipe import Recipe
from diffadapt.report import LayerMerge, LoadReport, MergeReport
from diffadapt.schedule import Schedule, switch

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "AlgorithmError",
    "CombineError",
    "DialectError",
    "DiffAdaptError",
    "Embedding",
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
    "UnmatchedKeysWarning",
    "UnsafeFileError",
    "block_strength",
    "combine",
    "composite",
    "enable",
    "load_adapter",
    "read_adapter",
    "switch",
]
