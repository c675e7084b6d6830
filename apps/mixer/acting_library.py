"""What the library holds."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.data_classes import FileData

from diffadapt.combine import METHODS
from diffadapt.dialects import DIALECTS

from . import grid, insight, mix
from .acting import Acting, id_of, uploaded
from .cards import facts


class LibraryActions(Acting):
    """What the library holds."""

    def list_adapters(
        self, search: str = "", family: str = "", algorithm: str = "", only_fitting: bool = False,
        limit: int = 100, request: gr.Request | None = None,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """List the adapters of the library.

        Args:
            search: words that must all be somewhere on the card
            family: only adapters of this model family, "" for all
            algorithm: only adapters of this algorithm, "" for all
            only_fitting: leave out what does not fit the loaded pipeline
            limit: the most cards that are given

        Returns:
            for each: id, name, family, algorithms, ranks, size, trigger words, warnings, and how it fits
        """
        shelf = self.shelf(request)
        found = shelf.cards(search, family, algorithm, only_fitting)[: max(0, limit)]
        return [dict(facts(card, shelf.fit(card))) for card in found]

    def inspect_adapter(self, adapter: str, request: gr.Request | None = None) -> dict[str, Any]:
        """Say what an adapter file is and why that is thought.

        Args:
            adapter: its id in the library, or its name

        Returns:
            dialect, family, algorithms, ranks by block, trigger words, problems
        """
        shelf = self.shelf(request)
        found = insight.adapter_of(shelf, id_of(shelf, adapter)).explain(norms=True)
        said: dict[str, Any] = found.to_dict()
        return said

    def upload_adapter(self, file: FileData, request: gr.Request | None = None) -> dict[str, Any]:
        """Put an adapter file on this session's shelf; nobody else sees it.

        Args:
            file: a .safetensors file, or a pickle, of which only tensors are read

        Returns:
            its card
        """
        session = self.session(request)
        held = session.take(uploaded(file), self.library)
        return dict(facts(held.card, self.library.fit(held.card)))

    def list_choices(self) -> dict[str, list[str]]:
        """List what may be chosen elsewhere.

        Returns:
            methods of combination, dialects of files, axes of grids, presets of block weights
        """
        layout = self.studio.layout
        return {
            "methods": list(METHODS), "dialects": sorted(one.name for one in DIALECTS), "axes": list(grid.KINDS),
            "normalisations": list(mix.NORMALISATIONS), "blocks": list(layout.names) if layout else [],
            "block_presets": list(layout.presets) if layout else [],
        }  # fmt: skip
