"""Strength by block as people share it: vectors of numbers, and the names of presets.

    block_strength("1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0")     17 numbers: a LoRA of Stable Diffusion 1 or 2
    block_strength("MIDD"), block_strength("MIDD:0.8")      a preset; all its numbers times 0.8
    block_strength("IN04:0.5,OUT03-OUT05")                  these blocks alone; the others are at 0
    block_strength("NOUT11", "sd1")                         every block but this one

The first number is the text encoders' (Flux: CLIP's, then T5's). Blocks that a shorter vector leaves out are at 0;
what belongs to no block (a UNet's time embedding and its last layer) keeps strength 1. The block numbers are those of
the original code: `IN04` is `input_blocks.4`, in Diffusers `down_blocks.1.resnets.0` and `down_blocks.1.attentions.0`.

Source of the layouts, the names, the presets and of what is left at 0 or 1: sd-webui-lora-block-weight
(https://github.com/hako-mikan/sd-webui-lora-block-weight), its README and its default presets; of the presets for 12
numbers: the preset file of ComfyUI-Inspire-Pack. Vectors of 57 and 19 numbers are Flux's blocks (double, then single)
without text encoders and outer layers, as loaders with one number per block show them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from diffadapt.errors import StackError
from diffadapt.inject.scaling import DEFAULT, Strength

BASE = "BASE"


def _run(word: str, numbers: Sequence[int]) -> tuple[str, ...]:
    return tuple(f"{word}{n:02}" for n in numbers)


_DOUBLE, _SINGLE = _run("D", range(19)), _run("S", range(38))

LAYOUTS: Mapping[int, tuple[str, tuple[str, ...]]] = {
    12: ("sdxl", (BASE, *_run("IN", (4, 5, 7, 8)), "M00", *_run("OUT", range(6)))),
    17: ("sd1", (BASE, *_run("IN", (1, 2, 4, 5, 7, 8)), "M00", *_run("OUT", range(3, 12)))),
    20: ("sdxl", (BASE, *_run("IN", range(9)), "M00", *_run("OUT", range(9)))),
    26: ("sd1", (BASE, *_run("IN", range(12)), "M00", *_run("OUT", range(12)))),
    61: ("flux", ("CLIP", "T5", "IN", *_DOUBLE, *_SINGLE, "OUT")),
    57: ("flux", (*_DOUBLE, *_SINGLE)),
    19: ("flux", _DOUBLE),
}
"""Number of numbers -> the kind of model, and the name of the block that each number is for."""

_FULL = {"sd1": 26, "sdxl": 20, "flux": 61}
"""The layout of a kind that has all its blocks."""

USUAL = {"sd1": 17, "sdxl": 12, "flux": 61}
"""The layout that a kind's presets are written in."""

_SD1 = {
    "NONE": "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "ALL": "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1",
    "INS": "1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "IND": "1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "INALL": "1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "MIDD": "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0",
    "OUTD": "1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0",
    "OUTS": "1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1",
    "OUTALL": "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1",
    "ALL0.5": ",".join(["0.5"] * 17),
}
_SDXL = {
    "NONE": "0,0,0,0,0,0,0,0,0,0,0,0",
    "ALL": "1,1,1,1,1,1,1,1,1,1,1,1",
    "INALL": "1,1,1,1,1,0,0,0,0,0,0,0",
    "MIDALL": "1,0,0,0,0,1,0,0,0,0,0,0",
    "OUTALL": "1,0,0,0,0,0,1,1,1,1,1,1",
}
_FLUX = {"NONE": ",".join("0" * 61), "ALL": ",".join("1" * 61), "FLUXALL": ",".join("1" * 61)}


def _table(texts: Mapping[str, str]) -> dict[str, tuple[float, ...]]:
    return {name: tuple(map(float, text.split(","))) for name, text in texts.items()}


PRESETS: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "sd1": _table(_SD1), "sdxl": _table(_SDXL), "flux": _table(_FLUX),
}  # fmt: skip
"""Kind of model -> name -> numbers, in the order of that kind's usual layout (17, 12, 61 numbers)."""

_RANGE = re.compile(r"([A-Z]+\d*)-([A-Z]+\d*)")
_SYNONYMS = {"MID": "M00", "M": "M00", "TE": BASE}


def kind_of(models: Mapping[str, Any]) -> str | None:
    """ "sd1", "sdxl" or "flux" for the models of a pipeline by component; None where no shared vector is for them."""
    unet, transformer = models.get("unet"), models.get("transformer")
    blocks = list(getattr(unet, "down_blocks", ()))
    if blocks:
        # The vectors number two layers in every block; there are smaller models.
        usual = all(len(getattr(block, "resnets", ())) == 2 for block in blocks)
        return {4: "sd1", 3: "sdxl"}.get(len(blocks)) if usual else None
    known = ("FluxTransformer2DModel", "FluxControlNetModel")
    return "flux" if type(transformer).__name__ in known else None


def preset(name: str, kind: str = "sd1") -> tuple[float, ...]:
    """The numbers of a preset, in the order of the kind's usual layout. Raises StackError for a name nobody has."""
    vectors = PRESETS[_checked(kind)]
    if name.upper() not in vectors:
        raise StackError(f"No preset of {kind} is named {name!r}. There are: {', '.join(vectors)}; and block names.")
    return vectors[name.upper()]


def block_strength(spec: str | Sequence[float], kind: str | None = None) -> Strength:
    """The strength, in the grammar of `scaling`, that a vector of block weights means.

    spec: numbers or their text, a preset's name with or without a factor ("MIDD:0.8"), a line of a preset file
        ("MINE:1,0,..."), or blocks and ranges of blocks with their numbers ("IN04:0.5,OUT03-OUT05").
    kind: "sd1" (also SD 2), "sdxl" or "flux"; default: what the number of numbers says, "sd1" for names.
    Raises StackError for a count that no layout has, a wrong kind, an unknown name, and for what is no number.
    """
    if kind is not None:
        _checked(kind)
    kind, values = _read(spec, kind) if isinstance(spec, str) else _vector(list(spec), kind)
    return _flux(values) if kind == "flux" else _unet(values, _FULL[kind])


def _checked(kind: str) -> str:
    if kind not in PRESETS:
        raise StackError(f"No kind of model is named {kind!r}; block weights are for {', '.join(PRESETS)}.")
    return kind


Blocks = dict[str, float]


def _read(text: str, kind: str | None) -> tuple[str, Blocks]:
    """The kind and the numbers by block of a text."""
    _, colon, rest = text.strip().partition(":")
    if colon and rest.count(",") + 1 in LAYOUTS and ":" not in rest:
        text = rest  # a line of a preset file: its name says nothing about its numbers
    terms = [term.strip() for term in text.split(",")]
    if not re.match(r"[A-Za-z]", terms[0]) or (len(terms) in LAYOUTS and not any(":" in t for t in terms)):
        return _vector(terms, kind)
    name, _, factor = terms[0].partition(":")
    if len(terms) == 1 and name.upper() in PRESETS[kind or "sd1"]:
        kind = kind or "sd1"
        numbers = [value * number(factor or "1", text) for value in preset(name, kind)]
        return kind, dict(zip(LAYOUTS[USUAL[kind]][1], numbers, strict=True))
    if kind is None:
        kind = "flux" if re.fullmatch(r"N?(CLIP|T5|[DS]\d+.*|IN|OUT)", name.upper()) else "sd1"
    return kind, _by_name(terms, kind, text)


def _vector(numbers: Sequence[Any], kind: str | None) -> tuple[str, Blocks]:
    """The kind and the numbers by block of a list."""
    if len(numbers) not in LAYOUTS:
        raise StackError(f"{len(numbers)} block weights were given; lists have {', '.join(map(str, sorted(LAYOUTS)))}.")
    own, names = LAYOUTS[len(numbers)]
    if kind not in (None, own):
        wanted = ", ".join(str(count) for count, (k, _) in sorted(LAYOUTS.items()) if k == kind)
        raise StackError(f"{len(numbers)} block weights are for {own}; the model is {kind}, whose lists have {wanted}.")
    text = ",".join(map(str, numbers))
    return own, {name: number(value, text) for name, value in zip(names, numbers, strict=True)}


def number(value: Any, text: str) -> float:
    if isinstance(value, str) and value[:1].upper() in ("R", "U", "X"):
        raise StackError(
            f"{value!r} in {text!r} stands for a number that is drawn (R, U) or taken from the prompt (X); "
            "write the number itself."
        )
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise StackError(f"{value!r} in {text!r} is no number.") from None
    if isinstance(value, bool) or number != number or abs(number) == float("inf"):
        raise StackError(f"{value!r} in {text!r} is no finite number.")
    return number


def _by_name(terms: Sequence[str], kind: str, text: str) -> Blocks:
    """The numbers of blocks that are named; N before one name means all blocks but that one."""
    names = LAYOUTS[_FULL[kind]][1]
    first = terms[0].upper()
    if len(terms) == 1 and first.startswith("N") and _SYNONYMS.get(first[1:], first[1:]) in names:
        return {name: float(name != _SYNONYMS.get(first[1:], first[1:])) for name in names}
    found: Blocks = {}
    for term in terms:
        word, _, value = term.partition(":")
        for name in _range(word.strip().upper(), names, text):
            found[name] = number(value.strip() or "1", text)
    return found


def _range(word: str, names: Sequence[str], text: str) -> Sequence[str]:
    """The blocks from one name to another, in the order of the model; or the one."""
    match = _RANGE.fullmatch(word)
    ends = [_SYNONYMS.get(w, w) for w in (match.groups() if match else (word, word))]
    for end in ends:
        if end not in names:
            raise StackError(
                f"{end!r} in {text!r} is neither a preset nor a block. Presets: INALL, MIDD, OUTALL, ...; blocks: "
                f"{names[0]} to {names[-1]}."
            )
    start, stop = sorted(map(names.index, ends))
    return names[start : stop + 1]


def _unet(values: Blocks, full: int) -> Strength:
    """A UNet's strength. Three numbers of the original code are one block of Diffusers: two layers and what resamples
    on the way down, three layers on the way up."""
    # "*" takes resnets and attentions; the sampler of a block has a number of its own on the way down, and that of the
    # block's last layer on the way up. It comes later, since "*" with the number 0 takes it too.
    unet: dict[str, Strength] = {DEFAULT: 1.0, "mid": values.get("M00", 0.0)}
    samplers: dict[str, Strength] = {}
    names = LAYOUTS[full][1]
    for name in (n for n in names if n.startswith("IN")):
        block, layer = divmod(int(name[2:]) - 1, 3)
        if name == "IN00":
            unet["conv_in"] = values.get(name, 0.0)
        elif layer == 2:
            samplers[f"down_blocks.{block}.downsamplers.0"] = values.get(name, 0.0)
        else:
            unet[f"down_blocks.{block}.*.{layer}"] = values.get(name, 0.0)
    ups = [n for n in names if n.startswith("OUT")]
    for name in ups:
        block, layer = divmod(int(name[3:]), 3)
        unet[f"up_blocks.{block}.*.{layer}"] = values.get(name, 0.0)
        if layer == 2 and name != ups[-1]:
            samplers[f"up_blocks.{block}.upsamplers.0"] = values.get(name, 0.0)
    return {DEFAULT: values.get(BASE, 0.0), "unet": unet | samplers}


def _flux(values: Blocks) -> Strength:
    """A Flux transformer's strength. A list without text encoders and outer layers leaves them as they are."""
    outer = 0.0 if {"CLIP", "T5", "IN", "OUT"} & set(values) else 1.0
    model: dict[str, Strength] = {DEFAULT: 1.0}
    model |= dict.fromkeys(("x_embedder", "context_embedder", "time_text_embed"), values.get("IN", outer))
    model |= {f"double.{i}": values.get(name, 0.0) for i, name in enumerate(_DOUBLE)}
    model |= {f"single.{i}": values.get(name, 0.0) for i, name in enumerate(_SINGLE)}
    model |= dict.fromkeys(("norm_out", "proj_out"), values.get("OUT", outer))
    return {"text_encoder": values.get("CLIP", outer), "text_encoder_2": values.get("T5", outer), "transformer": model}
