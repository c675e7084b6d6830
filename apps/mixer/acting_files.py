"""Files that leave the mixer, and mixes that come back."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.data_classes import FileData

from diffadapt.converters.plan import Plan

from . import conversion, keep, mix
from .acting import Acting, id_of, settings, uploaded


class FileActions(Acting):
    """Files that leave the mixer, and mixes that come back."""

    def save_mix(
        self, mix_text: str, dialect: str = "kohya", method: str = "sum", rank: int = 0, dtype: str = "fp16",
        request: gr.Request | None = None,
    ) -> FileData:  # fmt: skip
        """Make one adapter file of a mix.

        Args:
            mix_text: a prompt with tags, or a recipe's JSON
            dialect: whose names the file has: kohya, diffusers, peft, comfy, lycoris, ...
            method: how the adapters are combined
            rank: of the result, 0 for exact where the method is
            dtype: fp16, bf16 or fp32

        Returns:
            the .safetensors file
        """
        session = self.session(request)
        shelf = session.shelf(self.library)
        recipe = self.recipe(mix_text, shelf, settings(method=method))
        path = keep.save_mix(self.studio, shelf, recipe, session.new_folder("mix"), dialect, rank or None, dtype)
        return FileData(path=str(path), orig_name=path.name)

    def read_recipe(self, file: FileData, request: gr.Request | None = None) -> dict[str, Any]:
        """Read a mix back from a picture, a recipe's JSON or a preset.

        Args:
            file: a .png that the mixer (or A1111) saved, a .json, or a .lset

        Returns:
            the recipe as JSON, the prompt with its tags, and the adapters that the library does not have
        """
        recipe = keep.read_recipe(uploaded(file))
        rows, missing = mix.from_recipe(recipe, self.shelf(request))
        return {"recipe": recipe.to_json(), "mix": mix.to_prompt(rows, recipe.prompt), "missing": missing}

    def convert(
        self, adapters: list[str], to: str = "", dtype: str = "", rank: int = 0, algorithm: str = "",
        request: gr.Request | None = None,
    ) -> FileData:  # fmt: skip
        """Write adapters anew in another dialect, type or rank.

        Args:
            adapters: ids of the library, or names
            to: the dialect, "" for each file's own
            dtype: fp16, bf16, fp32, "" as they are
            rank: the largest of a layer, 0 as they are
            algorithm: "lora", or "" as they are

        Returns:
            a .zip of what was written, and of report.jsonl, which says of each file what became of it
        """
        session = self.session(request)
        shelf = session.shelf(self.library)
        plan = Plan(to=to or None, dtype=dtype or None, rank=rank or None, algorithm=algorithm or None)
        ids = [id_of(shelf, one) for one in adapters]
        out = session.new_folder("converted")
        records = conversion.convert(shelf, ids, out, plan)
        path = conversion.packed(records, out)
        return FileData(path=str(path), orig_name=path.name)
