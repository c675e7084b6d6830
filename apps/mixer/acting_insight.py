"""Looking into adapters, without a picture."""

from __future__ import annotations

from typing import Any

import gradio as gr

from . import insight, mix
from .acting import Acting, id_of


class InsightActions(Acting):
    """Looking into adapters, without a picture."""

    def why(self, mix_text: str, adapter: str, request: gr.Request | None = None) -> dict[str, Any]:
        """Say why an adapter of a mix is weak or strong: what its file asks for by block, and what of that is done.

        Args:
            mix_text: a prompt with tags, or a recipe's JSON
            adapter: its name in the mix

        Returns:
            norms by block, intended and realised, and by the norms of the base weights
        """
        shelf = self.shelf(request)
        found: dict[str, Any] = insight.effect_of(
            self.studio, shelf.resolve(self.recipe(mix_text, shelf)), adapter
        ).to_dict()
        return found

    def compare(self, mix_text: str, request: gr.Request | None = None) -> dict[str, Any]:
        """Say how the adapters of a mix go together, before a picture is made.

        Args:
            mix_text: a prompt with tags, "a star <lora:ink:0.8> <lora:glow>"

        Returns:
            cosines, energy by block, clashes, and layers unlike the rest
        """
        shelf = self.shelf(request)
        rows = mix.with_prompt([], mix_text, shelf)
        found: dict[str, Any] = insight.comparison(self.studio, shelf, rows).to_dict()
        return found

    def spectrum(self, adapter: str, request: gr.Request | None = None) -> list[dict[str, Any]]:
        """Give the singular values of the layers that an adapter changes most.

        Args:
            adapter: its id in the library, or its name

        Returns:
            for each layer: its name, its block, its singular values from the largest down
        """
        shelf = self.shelf(request)
        return [dict(one) for one in insight.spectra(self.studio, shelf, id_of(shelf, adapter))]

    def balance(self, mix_text: str, rule: str = "equal_effect", request: gr.Request | None = None) -> str:
        """Weigh the adapters of a mix so that none drowns the others.

        Args:
            mix_text: a prompt with tags, "a star <lora:ink:0.8> <lora:glow>"
            rule: "equal_effect", or "constant_total" for equal weights

        Returns:
            the prompt with the new weights
        """
        shelf = self.shelf(request)
        rows = insight.balanced(self.studio, shelf, mix.with_prompt([], mix_text, shelf), rule)
        return mix.to_prompt(rows, mix_text)
