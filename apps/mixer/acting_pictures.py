"""Mixes and the pictures that they make."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.data_classes import FileData

from . import grid
from .acting import Acting, settings
from .studio import Request


class PictureActions(Acting):
    """Mixes and the pictures that they make."""

    def mix_to_recipe(
        self, mix_text: str, negative: str = "", seed: int = 0, steps: int = 0, guidance: float = -1.0,
        merged: bool = False, method: str = "sum", rank: int = 0, normalise: str = "sum", options: str = "",
        request: gr.Request | None = None,
    ) -> str:  # fmt: skip
        """Write a mix down as a recipe: JSON that makes the same picture again.

        Args:
            mix_text: a prompt with tags, "a star <lora:ink:0.8>"
            negative: what the picture should not show
            seed: of the noise
            steps: of the denoising, 0 for the pipeline's own
            guidance: the scale of the guidance, -1 for the pipeline's own
            merged: whether the weights hold the mix, instead of adapters beside them
            method: how adapters are combined, "sum" leaves them side by side
            rank: of the one adapter that another method makes, 0 for the method's own
            normalise: "sum", or "constant total" for weights whose sizes sum to 1
            options: further ones of the method, "density=0.4, seed=1"

        Returns:
            the recipe as JSON, with the hashes of its files
        """
        given = settings(negative, seed, steps, guidance, merged, method, rank, normalise, options)
        shelf = self.shelf(request)
        return self.studio.written_down(shelf.resolve(self.recipe(mix_text, shelf, given))).to_json()

    def generate(
        self, mix_text: str, negative: str = "", seed: int = 0, steps: int = 0, guidance: float = -1.0,
        width: int = 0, height: int = 0, merged: bool = False, method: str = "sum", rank: int = 0,
        normalise: str = "sum", options: str = "", request: gr.Request | None = None,
    ) -> FileData:  # fmt: skip
        """Make a picture with a mix of adapters.

        Args:
            mix_text: a prompt with tags, "a star <lora:ink:0.8>", or a recipe's JSON
            negative: what the picture should not show
            seed: of the noise
            steps: of the denoising, 0 for the pipeline's own
            guidance: the scale of the guidance, -1 for the pipeline's own
            width: in pixels, 0 for the pipeline's own
            height: in pixels, 0 for the pipeline's own
            merged: whether the weights hold the mix, instead of adapters beside them
            method: how adapters are combined, "sum" leaves them side by side
            rank: of the one adapter that another method makes, 0 for the method's own
            normalise: "sum", or "constant total" for weights whose sizes sum to 1
            options: further ones of the method, "density=0.4, seed=1"

        Returns:
            a PNG that holds its recipe and the parameters that other programs read
        """
        session = self.session(request)
        shelf = session.shelf(self.library)
        given = settings(negative, seed, steps, guidance, merged, method, rank, normalise, options)
        is_recipe = mix_text.lstrip().startswith("{")
        recipe = shelf.resolve(self.recipe(mix_text, shelf, {} if is_recipe else given))
        progress = gr.Progress()
        wanted = Request(recipe, width or None, height or None)
        drawn = self.studio.draw(wanted, lambda step: progress((step.done, step.of), unit="steps"), session.begin())
        return FileData(path=str(session.keep(drawn).path), orig_name=session.shots[-1].path.name)

    def draw_grid(
        self, mix_text: str, x: str, x_values: str, x_of: str = "", y: str = "none", y_values: str = "", y_of: str = "",
        seed: int = 0, steps: int = 0, guidance: float = -1.0, request: gr.Request | None = None,
    ) -> FileData:  # fmt: skip
        """Make a grid of pictures in which a mix changes along one or two axes.

        Args:
            mix_text: a prompt with tags, "a star <lora:ink:0.8>"
            x: what changes from column to column: weight, blocks, adapter, method, seed, steps, guidance, prompt
            x_values: apart by commas, or by semicolons where they hold commas
            x_of: the adapter whose weight or blocks change
            y: what changes from row to row, "none" for a single row
            y_values: as x_values
            y_of: as x_of
            seed: of the noise
            steps: of the denoising, 0 for the pipeline's own
            guidance: the scale of the guidance, -1 for the pipeline's own

        Returns:
            the sheet as a PNG
        """
        session = self.session(request)
        shelf = session.shelf(self.library)
        recipe = shelf.resolve(self.recipe(mix_text, shelf, settings("", seed, steps, guidance)))
        across, down = grid.Axis.parse(x, x_values, x_of), grid.Axis.parse(y, y_values, y_of)
        events = grid.draw_grid(self.studio, Request(recipe), across, down, session.begin())
        cells = [event for event in events if isinstance(event, grid.Cell)]
        path = session.new_folder("grid") / "grid.png"
        grid.sheet(cells, across, down).save(path)
        return FileData(path=str(path), orig_name=path.name)

    def list_pictures(self, request: gr.Request | None = None) -> list[dict[str, Any]]:
        """List the pictures that this session has made.

        Returns:
            for each: its label, its recipe as JSON, the seconds it took
        """
        shots = self.session(request).shots
        return [{"label": s.label, "recipe": s.recipe.to_json(), "seconds": round(s.seconds, 2)} for s in shots]

    def stop(self, request: gr.Request | None = None) -> str:
        """Stop what this session is drawing, at its next step.

        Returns:
            that it was asked to stop
        """
        self.session(request).stop.set()
        return "asked to stop"
