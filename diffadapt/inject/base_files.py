"""The base model's own safetensors files, mapped: the cheapest memory of a merge."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from diffadapt.adapter import TargetKey
from diffadapt.io.checkpoint import RawCheckpoint
from diffadapt.io.source import read_checkpoint


class BaseFiles:
    """Parameters of a pipeline as the folder it was loaded from holds them. Nothing is copied; a file that is missing
    or differs only means that a merge keeps a copy instead."""

    def __init__(self, owner: Any, folder: Path | None) -> None:
        """folder: of the pipeline (one sub-folder per component) or of the bare model; default: where it is from."""
        origin = getattr(getattr(owner, "config", None), "_name_or_path", None) or getattr(owner, "name_or_path", None)
        self.folder = folder or (Path(origin) if origin and Path(origin).is_dir() else None)
        self.bare = isinstance(owner, nn.Module)
        self._open = cache(self._read)

    def _read(self, component: str) -> dict[str, RawCheckpoint]:
        """Key -> the file that holds it, over all shards of a component."""
        if self.folder is None:
            return {}
        place = self.folder if self.bare else self.folder / component
        every = sorted(place.glob("*.safetensors"))
        shards = [p for p in every if ".fp16." not in p.name] or every
        index = next(iter(place.glob("*.safetensors.index.json")), None)
        if index is not None:
            names = set(json.loads(index.read_text())["weight_map"].values())
            shards = [p for p in shards if p.name in names]
        found: dict[str, RawCheckpoint] = {}
        for shard in shards:
            raw = read_checkpoint(shard)
            found.update(dict.fromkeys(raw.tensors, raw))
        return found

    def parameter(self, key: TargetKey, name: str) -> Tensor | None:
        """The stored parameter `name` of a module, mapped, or None."""
        files = self._open(key.component)
        for full in (f"{key.module}.{name}", f"text_model.{key.module}.{name}"):
            if full in files:
                return files[full].tensors[full]
        return None
