"""What one session sees of the library: all of it, and its own uploads, which nobody else sees."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from diffadapt.errors import RecipeError, SourceError
from diffadapt.recipe import Part, Recipe
from diffadapt.recipe.sources import matches

from .cards import Card, Fit
from .library import Held, Library

_ORDER = {"green": 0, "amber": 1, "grey": 2, "red": 3}


class Shelf:
    """The files of a session by id: the only way from a name on the page to a path."""

    def __init__(self, library: Library, own: Mapping[str, Held] | None = None) -> None:
        self.library, self._own = library, own if own is not None else {}

    def _held(self) -> dict[str, Held]:
        return {**self.library.held(), **self._own}

    def cards(self, words: str = "", family: str = "", algorithm: str = "", only_fitting: bool = False) -> list[Card]:
        """The cards that a search leaves: those that fit first, then by name."""
        found = [
            held.card
            for held in self._held().values()
            if held.card.matches(words)
            and family in ("", held.card.family)
            and (not algorithm or algorithm in held.card.algorithms.split(", "))
        ]
        levels = {card.id: self.fit(card).level for card in found}
        if only_fitting:
            found = [card for card in found if levels[card.id] in ("green", "amber")]
        return sorted(found, key=lambda card: (_ORDER[levels[card.id]], card.name.lower(), card.id))

    def families(self) -> list[str]:
        return sorted({held.card.family for held in self._held().values() if held.card.family})

    def algorithms(self) -> list[str]:
        return sorted({one for held in self._held().values() for one in held.card.algorithms.split(", ") if one})

    def fit(self, card: Card) -> Fit:
        """How a card's file and the pipeline go together."""
        return self.library.fit(card)

    def _get(self, card_id: str) -> Held:
        found = self._own.get(card_id) or self.library.held().get(card_id)
        if found is None:
            raise SourceError(f"{card_id!r} is not in the library. Choose one of its cards.")
        return found

    def card(self, card_id: str) -> Card:
        """Raises SourceError for an id that is not there."""
        return self._get(card_id).card

    def path(self, card_id: str) -> Path:
        """Where a card's file is. Raises SourceError; see `card`."""
        path: Path = self._get(card_id).path
        return path

    def named(self, name: str) -> Card | None:
        """The card that a prompt's tag means: its id, its name, or either without regard to case; of several that one
        which fits the pipeline best."""
        held = self._held()
        if name in held:
            return held[name].card
        cards = self.cards()
        for fold in (str, str.lower):
            for card in cards:
                if fold(name) in (fold(card.id), fold(card.name), fold(os.path.splitext(card.id)[0])):
                    return card
        return None

    def holding(self, part: Part) -> Card | None:
        """The card of the file that a recipe's part is: by its hash where it has one, else by its file, where that is
        a card's id (see `mix.Row.to_part`), else by its name."""
        held, file = self._held(), part.file or ""
        by_name = held[file].card if file in held else self.named(part.name) or (self.named(file) if file else None)
        if not part.has_hash:
            return by_name
        first = [by_name] if by_name else []
        alike = [one.card for one in held.values() if part.size in (None, one.card.size) and one.card != by_name]
        return next((card for card in [*first, *alike] if matches(part, held[card.id].path)), None)

    def resolve(self, recipe: Recipe) -> Recipe:
        """The recipe with the places of the shelf's files; places that it came with are not followed.

        Raises RecipeError, which names the adapters that are not there.
        """
        parts: list[Part] = []
        missing: list[str] = []
        for part in recipe.adapters:
            card = self.holding(part)
            if card is None:
                missing.append(part.label)
                continue
            parts.append(replace(part.without_path(), source=str(self.path(card.id))))
        if missing:
            raise RecipeError(
                f"The library does not have {', '.join(missing)}. Put the file into its folder or upload it, or switch "
                "the adapter off."
            )
        return replace(recipe, adapters=tuple(parts))
