"""What a user asks of `pipe.adapters.add`, checked before anything is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from diffadapt.errors import StackError
from diffadapt.training import initial
from diffadapt.training.methods import PREFIX, TEXT, Method, method_named
from diffadapt.training.targets import Targets

Rank = int | Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """The arguments. rank, alpha: a number, or numbers by component, block or pattern. seed: of all draws. tokens:
    placeholders and what they start from. data, base: of EVA and LoftQ. options: the algorithm's own."""

    name: str
    algorithm: str
    rank: Rank | None = None
    alpha: float | Mapping[str, Any] | None = None
    targets: Targets | None = None
    exclude: Targets = ()
    init: str = "default"
    seed: int = 0
    tokens: Mapping[str, Any] = field(default_factory=dict)
    data: Callable[[], object] | None = None
    base: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def of_text(self) -> bool:
        """Whether tokens or a prefix are all that is trained."""
        return self.algorithm in TEXT

    @property
    def chosen(self) -> Targets:
        """The targets, or the method's usual ones."""
        return self.targets if self.targets is not None else "norm" if self.algorithm == "norm" else "attn"

    @property
    def method(self) -> Method:
        """How weights are trained. Raises StackError for an unknown algorithm."""
        return method_named(self.algorithm)

    def check(self) -> None:
        """Raise StackError for an unknown algorithm, option or beginning, and for what the algorithm has no use for."""
        if self.of_text:
            self._check_text()
            known = list(TEXT[self.algorithm])
        else:
            known = [name for name in self.method.options if name not in self.method.fixed]
        unknown = next((name for name in self.options if name not in known), None)
        if unknown is not None:
            raise StackError(f"{self.algorithm} has no option {unknown!r}; it has: {', '.join(known) or 'none'}.")
        if self.init not in initial.KNOWN:
            raise StackError(f"init is {self.init!r}; expected one of {', '.join(initial.KNOWN)}.")

    def _check_text(self) -> None:
        if self.algorithm != PREFIX and not self.tokens:
            raise StackError(f"{self.algorithm} needs placeholders: tokens={{'<name>': 'a word to begin at'}}.")
        given = {"rank": self.rank, "alpha": self.alpha, "targets": self.targets, "exclude": self.exclude or None}
        unused = [name for name, value in given.items() if value is not None]
        unused += ["init"] if self.init != "default" else []
        unused += ["tokens"] if self.algorithm == PREFIX and self.tokens else []
        if unused:
            raise StackError(
                f"{self.algorithm} changes no weights and has no use for {', '.join(unused)}; leave it out."
            )
