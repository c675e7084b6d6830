"""The placeholders of adapters in a tokenizer: put in, spelt out where they have several vectors, taken out again.

A placeholder of n vectors is n tokens, named as Diffusers names them: `<cat>`, `<cat>_1`, ... A prompt says `<cat>`
once. Diffusers' pipelines spell it out before they tokenise, but only those with its TextualInversionLoaderMixin, and
chat templates never do, so that the tokenizer does it here, whoever calls it. It is done to the text and not to the
ids, because padding and truncation come after; and it leaves a placeholder that is spelt out already as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from copy import deepcopy
from typing import Any, Self

from diffadapt.errors import TargetError

_KEY = "_diffadapt_vocabulary"


class Vocabulary:
    """What adapters have added to one tokenizer. placeholders: token -> the names of its vectors' tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.placeholders: dict[str, list[str]] = {}
        self._uses: dict[str, int] = {}
        self._watchers: list[Callable[[], None]] = []

    @classmethod
    def of(cls, tokenizer: Any) -> Self:
        """The vocabulary of a tokenizer; there is one each, also where two encoders share a tokenizer."""
        found = vars(tokenizer).get(_KEY)
        return found if isinstance(found, cls) else cls(tokenizer)

    def __deepcopy__(self, memo: dict[int, Any]) -> Vocabulary:
        twin = Vocabulary.__new__(Vocabulary)
        memo[id(self)] = twin
        vars(twin).update({name: deepcopy(value, memo) for name, value in vars(self).items()})
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle holds: watchers are of a text encoder, which is no part of a tokenizer's."""
        return {**vars(self), "_watchers": []}

    def add(self, token: str, count: int, watcher: Callable[[], None]) -> None:
        """Put a placeholder of `count` vectors in. watcher: called where ids have changed.

        Raises TargetError where the tokenizer has one of the names already.
        """
        self._watchers.append(watcher)
        if token in self.placeholders:
            self._uses[token] += 1
            return
        names = spelt(token, count)
        taken = next((name for name in names if knows(self.tokenizer, name)), None)
        if taken is not None:
            raise TargetError(taken_message(taken))
        self.tokenizer.add_tokens([_token(name) for name in names])
        self.placeholders[token], self._uses[token] = names, 1
        vars(self.tokenizer)[_KEY] = self
        self._wrap()

    def remove(self, token: str, watcher: Callable[[], None]) -> None:
        """Take a placeholder out, unless another encoder's vectors need it: the tokenizer is as before."""
        self._watchers.remove(watcher)
        self._uses[token] -= 1
        if self._uses[token]:
            return
        names = self.placeholders.pop(token)
        _take_out(self.tokenizer, names)
        if not self.placeholders:
            vars(self.tokenizer).pop(_KEY, None)
        self._wrap()
        for watch in self._watchers:  # what was added later has moved up
            watch()

    def ids(self, token: str) -> list[int]:
        """The ids of a placeholder's tokens."""
        found: list[int] = self.tokenizer.convert_tokens_to_ids(self.placeholders[token])
        return found

    def expanded(self, text: Any) -> Any:
        """A text, or a list of texts at any depth, with placeholders of several vectors spelt out."""
        if isinstance(text, (list, tuple)):
            return type(text)(self.expanded(part) for part in text)
        if not isinstance(text, str):
            return text
        return re.sub(self._pattern(), self._whole, text) if self.placeholders else text

    def _pattern(self) -> str:
        """Any placeholder (the longest is tried first), and further names of its own behind it."""
        any_of = "|".join(map(re.escape, sorted(self.placeholders, key=len, reverse=True)))
        return rf"(?P<token>{any_of})(?!_\d)(?P<further>(?:\s+(?P=token)_\d+)*)"

    def _whole(self, hit: re.Match[str]) -> str:
        """A placeholder with all its names, each once."""
        names, further = self.placeholders[hit["token"]], hit["further"].split()
        if len(names) == 1:
            return hit[0]
        count = len(names) - 1
        return " ".join([*names, *(further[count:] if further[:count] == names[1:] else further)])

    def _wrap(self) -> None:
        """Have the tokenizer spell out, as long as there is something to spell."""
        several = any(len(names) > 1 for names in self.placeholders.values())
        kind = type(self.tokenizer)
        if several and not issubclass(kind, Spelling):
            self.tokenizer.__class__ = _spelling(kind)  # and not a method of its own: a call looks in the class
        elif not several and issubclass(kind, Spelling):
            self.tokenizer.__class__ = kind.__mro__[2]


class Spelling:
    """The tokenizer's class while it has placeholders of several vectors: spells them out in what it is given."""

    def __call__(self, text: Any = None, *args: Any, **options: Any) -> Any:
        return super().__call__(self._spelt(text), *args, **options)  # type: ignore[misc]

    def encode(self, text: Any, *args: Any, **options: Any) -> Any:
        return super().encode(self._spelt(text), *args, **options)  # type: ignore[misc]

    def tokenize(self, text: Any, *args: Any, **options: Any) -> Any:
        return super().tokenize(self._spelt(text), *args, **options)  # type: ignore[misc]

    def _spelt(self, text: Any) -> Any:
        vocabulary = vars(self).get(_KEY)
        return vocabulary.expanded(text) if isinstance(vocabulary, Vocabulary) else text

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made at run time, so that no name leads to it.
        return _empty, (type(self).__mro__[2],), dict(vars(self))


def _spelling(kind: type) -> type:
    """The class of a tokenizer, with `Spelling` in front, under the same name: pipelines are saved by it."""
    named = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (Spelling, kind), named)


def _empty(kind: type) -> Any:
    return object.__new__(_spelling(kind))


def spelt(token: str, count: int) -> list[str]:
    """The names of a placeholder's tokens."""
    return [token, *(f"{token}_{number}" for number in range(1, count))]


def knows(tokenizer: Any, token: str) -> bool:
    """Whether a tokenizer has a token of this very name."""
    index = tokenizer.convert_tokens_to_ids(token)
    return index is not None and tokenizer.convert_ids_to_tokens(index) == token


def taken_message(token: str) -> str:
    """What to say where a tokenizer has a placeholder's name already."""
    return (
        f"The tokenizer has a token {token!r} already: choose another placeholder, such as '<{token.strip('<>')}-new>',"
        " or remove the adapter (or unload the textual inversion) that brought it."
    )


def _token(name: str) -> Any:
    """A placeholder's token. It takes the spaces on its left, as words do in tokenizers that keep them: " <cat>" stands
    where " cat" would, and the names of one placeholder next to each other."""
    from transformers import AddedToken

    return AddedToken(name, lstrip=True, normalized=False, special=False)


def _take_out(tokenizer: Any, names: list[str]) -> None:
    """Remove added tokens; what was added after them moves up."""
    gone: list[int] = tokenizer.convert_tokens_to_ids(names)

    def moved(index: int) -> int:
        return index - sum(out < index for out in gone)

    backend = getattr(tokenizer, "_tokenizer", None)
    if backend is not None:  # a compiled one cannot forget: it is made anew
        whole = json.loads(backend.to_str())
        kept = [token for token in whole["added_tokens"] if token["content"] not in names]
        whole["added_tokens"] = [{**token, "id": moved(token["id"])} for token in kept]
        tokenizer._tokenizer = type(backend).from_str(json.dumps(whole))
        return
    tokens = {moved(i): token for i, token in tokenizer._added_tokens_decoder.items() if i not in gone}
    tokenizer._added_tokens_decoder.clear()
    tokenizer._added_tokens_decoder.update(tokens)
    tokenizer._added_tokens_encoder.clear()
    tokenizer._added_tokens_encoder.update({token.content: index for index, token in tokens.items()})
    for update in ("_update_trie", "_update_total_vocab_size"):
        getattr(tokenizer, update, lambda: None)()
