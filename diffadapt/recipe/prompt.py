"""Adapters named in a prompt, as web UIs write them: found, taken out, and written back.

    <lora:name>  <lora:name:0.8>  <lora:name:te:unet>  <lora:name:te:unet:dyn>  <lora:name:te=0.2:unet=0.5:dyn=8>
    <lora:name:1:lbw=INALL>  <lora:name:1:lbw=1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0:lbwe=ATTN:x=0.5>  <lora:name:1:1:MIDD>
    <lora:name:1:start=3:stop=10>  <lora:name:1:step=3-10>  <lora:name:1:stop=0.4>  <lora:name:1:stop=40%>  <lyco:name>

What A1111's web UI (`modules/extra_networks.py`, `extra_networks_lora.py`) takes for a tag is one here, and only that:
`<`, a word, a colon, anything up to `>`. Other angle brackets stay text, also `<lora>` and `< lora:x>`. The text around
a tag stays as it was, with the gap that the tag leaves. The second number defaults to the first; the first scales text
encoders, the second all else. The names after `=` are those of the extension sd-webui-lora-block-weight (`lbw`, or its
short form `w`; `lbwe`, `x`, `start`, `stop`, `step`); a third or fourth place that is no number holds its block list
and element list, as in its first versions. `end` is read as `stop`. Further names are kept.

Where A1111 drops a tag with a line in its log (an unknown kind, a weight that is no number), this is an error that
names the tag. A name that holds `:`, `<`, `>` or a quote stands in double quotes, with backslashes before `"` and
`\\`; A1111 cannot load such a name. A step is a whole number; a number with a point, or a percentage, is a part of the
run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from diffadapt.errors import RecipeError
from diffadapt.io import limits
from diffadapt.io.plain_json import clip

KINDS: Final = ("lora", "lyco")
# Bounded repeats: a prompt of unclosed brackets must not cost a scan to its end for each of them.
_TAG = re.compile(r'<(\w{1,64}+):("(?:\\.|[^"\\]){1,1024}+"(?::[^>]{0,4096}+)?+|[^>]{1,4096}+)>', re.DOTALL)
_QUOTED = re.compile(r'"((?:\\.|[^"\\])+)"(?=:|$)', re.DOTALL)
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?\s*")
_WHOLE = re.compile(r"\s*\d{1,9}\s*")
_NEEDS_QUOTES = re.compile(r'[:<>"]|^\s|\s$')


@dataclass(frozen=True)
class Mention:
    """One adapter that a prompt names.

    te, unet: the strengths of the text encoders and of the rest; unet None: as te.
    dyn: use only so many ranks (A1111). lbw: a preset's name, numbers by block, or such a list with `R`, `U` or `X` in
    it, as text. lbwe: a preset of elements. x: what `X` stands for in lbw.
    start, stop: where it comes into force and where it goes out: an int is a step, a float a part of the run (0 to 1).
    other: further names and their values. at: the place in the clean prompt; None is its end.
    """

    name: str
    te: float = 1.0
    unet: float | None = None
    kind: str = "lora"
    dyn: int | None = None
    lbw: str | tuple[float, ...] | None = None
    lbwe: str | None = None
    x: float | None = None
    start: float | int | None = None
    stop: float | int | None = None
    other: tuple[tuple[str, str], ...] = ()
    at: int | None = field(default=None, compare=False)

    @property
    def rest(self) -> float:
        """The strength of everything but the text encoders."""
        return self.te if self.unet is None else self.unet

    def __str__(self) -> str:
        """The tag, in its shortest form."""
        parts = [_quoted(self.name)]
        if self.unet is not None or self.te != 1.0 or not self._names_only():
            parts.append(_text(self.te))
        if self.unet is not None:
            parts.append(_text(self.unet))
        if self.lbw is not None:
            parts.append("lbw=" + (self.lbw if isinstance(self.lbw, str) else ",".join(map(_text, self.lbw))))
        named = {"lbwe": self.lbwe, "x": self.x, "dyn": self.dyn, "start": self.start, "stop": self.stop}
        for key, value in (*named.items(), *self.other):
            if value is not None:
                parts.append(f"{key}={value if isinstance(value, str) else _moment(value)}")
        return f"<{self.kind}:{':'.join(parts)}>"

    def _names_only(self) -> bool:
        return self == Mention(self.name, self.te, self.unet, self.kind)


def parse_prompt(text: str) -> tuple[str, tuple[Mention, ...]]:
    """Take the adapters out of a prompt: the text without its tags, and what they say, in their order.

    Raises RecipeError for a tag that cannot be followed (a hypernetwork, an unknown kind, no name, a weight that is no
    number), and for a prompt of more than 65,536 characters.
    """
    if len(text) > limits.METADATA_CHARACTERS:
        raise RecipeError(f"The prompt has {len(text)} characters; expected at most {limits.METADATA_CHARACTERS}.")
    clean: list[str] = []
    mentions: list[Mention] = []
    end = length = 0
    for match in _TAG.finditer(text):
        clean.append(text[end : match.start()])
        length += match.start() - end
        mentions.append(replace(parse_tag(match.group(0)), at=length))
        end = match.end()
    return "".join((*clean, text[end:])), tuple(mentions)


def write_prompt(prompt: str, mentions: Sequence[Mention]) -> str:
    """Put tags back into a clean prompt: the way back from `parse_prompt`.

    Raises RecipeError where the result would not be read as what was given: a prompt that holds what looks like a tag,
    a mention whose parts hold `:` or `>`.
    """
    text = insert_tags(prompt, mentions)
    again, found = parse_prompt(text)
    wanted = sorted(mentions, key=lambda mention: len(prompt) if mention.at is None else mention.at)
    if again != prompt or list(found) != wanted:
        raise RecipeError(f"{clip(text)} would be read back as another prompt. Expected a prompt without tags in it.")
    return text


def insert_tags(prompt: str, mentions: Sequence[Mention]) -> str:
    """As `write_prompt`, without the check that the result can be read back."""
    text, end = [], 0
    places = [(len(prompt) if m.at is None else min(max(m.at, 0), len(prompt)), m) for m in mentions]
    for at, mention in sorted(places, key=lambda pair: pair[0]):
        text += [prompt[end:at], str(mention)]
        end = at
    return "".join((*text, prompt[end:]))


def parse_tag(tag: str) -> Mention:
    """Read one whole tag, `<lora:...>`. Raises RecipeError, which names the tag, for one that cannot be followed."""
    match = _TAG.fullmatch(tag)
    if match is None:
        raise RecipeError(f"{clip(tag)} is no tag. Expected <lora:name:weight>.")
    kind, body = match.group(1).lower(), match.group(2)
    if kind.startswith("hyper"):
        raise RecipeError(f"{clip(tag)} names a hypernetwork, which is no adapter of weights and is not loaded.")
    if kind not in KINDS:
        raise RecipeError(f"{clip(tag)} is of an unknown kind. Expected <lora:...> or <lyco:...>.")
    quoted = _QUOTED.match(body)
    if quoted:
        name, rest = re.sub(r"\\(.)", r"\1", quoted.group(1), flags=re.DOTALL), body[quoted.end() + 1 :]
        items = rest.split(":") if quoted.end() < len(body) else []
    else:
        first, *items = body.split(":")
        name = first.strip()
    if not name:
        raise RecipeError(f"{clip(tag)} names no adapter. Expected <lora:name:weight>.")
    return _Tag(tag, kind, name, items).mention()


class _Tag:
    """The items after a tag's name, by place and by name."""

    def __init__(self, tag: str, kind: str, name: str, items: Sequence[str]) -> None:
        self.tag, self.kind, self.name = tag, kind, name
        named = [item.partition("=")[::2] for item in items if "=" in item]
        self.named = {key.strip().lower(): value for key, value in named}
        self.places = [item for item in items if "=" not in item]
        if len(self.places) > 3:
            raise RecipeError(f"{clip(tag)} has {len(self.places)} values after its name; expected at most three.")

    def mention(self) -> Mention:
        te = self.number("te", self.places[0] if self.places else "1")
        second, third = [*self.places[1:], None, None][:2]
        blocks = self.take("lbw", self.take("w"))
        elements = self.take("lbwe")
        if second is not None and blocks is None and not _NUMBER.fullmatch(second):
            second, blocks = None, second
        if third is not None and elements is None and not _WHOLE.fullmatch(third):
            third, elements = None, third
        unet = self.number("unet", second)
        dyn = self.take("dyn", third)
        if dyn is not None and not _WHOLE.fullmatch(dyn):
            raise self.error("dyn", dyn, "a whole number")
        start, stop = self.window()
        return Mention(
            name=self.name, te=1.0 if te is None else te, unet=unet, kind=self.kind,
            dyn=None if dyn is None else int(dyn), lbw=self.blocks(blocks), lbwe=elements, x=self.number("x", None),
            start=start, stop=stop, other=tuple(self.named.items()),
        )  # fmt: skip

    def take(self, key: str, default: str | None = None) -> str | None:
        value = self.named.pop(key, None)
        return default if value is None else value

    def error(self, key: str, value: str, expected: str) -> RecipeError:
        return RecipeError(f"{clip(self.tag)}: {key} is {clip(value, 40)}; expected {expected}.")

    def number(self, key: str, default: str | None) -> float | None:
        text = self.take(key, default)
        if text is None:
            return None
        value = float(text) if _NUMBER.fullmatch(text) else float("inf")
        if value in (float("inf"), float("-inf")):
            raise self.error("the weight" if text is default else key, text, "a number")
        return value

    def blocks(self, text: str | None) -> str | tuple[float, ...] | None:
        """Numbers as such; a preset's name, and a list with letters in it, as the text it is."""
        if text is None or not text.strip():
            return None
        parts = text.split(",")
        if all(_NUMBER.fullmatch(part) for part in parts):
            return tuple(self.finite(part) for part in parts)
        return text.strip()

    def finite(self, part: str) -> float:
        if float(part) in (float("inf"), float("-inf")):
            raise self.error("lbw", part, "finite numbers")
        return float(part)

    def window(self) -> tuple[float | int | None, float | int | None]:
        start, stop = self.take("start"), self.take("stop", self.take("end"))
        step = self.take("step")
        if step is not None:
            start, dash, stop = step.partition("-")
            if not dash:
                raise self.error("step", step, "two steps, as in step=5-10")
        return self.moment("start", start), self.moment("stop", stop)

    def moment(self, key: str, text: str | None) -> float | int | None:
        if text is None:
            return None
        if _WHOLE.fullmatch(text):
            return int(text)
        percent = text.rstrip().endswith("%")
        digits = text.rstrip().removesuffix("%")
        value = float(digits) / (100 if percent else 1) if _NUMBER.fullmatch(digits) else -1.0
        if not 0 <= value <= 1:
            raise self.error(key, text, "a step (a whole number), or a part of the run: 0.0 to 1.0 or a percentage")
        return value


def _quoted(name: str) -> str:
    if not _NEEDS_QUOTES.search(name):
        return name
    return '"' + re.sub(r'(["\\])', r"\\\1", name) + '"'


def _text(value: float) -> str:
    """The shortest text that is read as this number: 1 for 1.0."""
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def _moment(value: float | int) -> str:
    """As `repr`: the point tells a part of the run (1.0) from a step (1)."""
    return repr(value)
