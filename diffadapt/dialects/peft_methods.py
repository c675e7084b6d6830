"""Every method that PEFT can save, what kind of change it is, and whether it can act on a diffusion model here.

Data, held against the installed PEFT by a test, and rendered as docs/peft.md, which the same test
compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from diffadapt.errors import NotAnAdapterError


class Verdict(StrEnum):
    """What kind of change a method makes."""

    WEIGHT = "weight delta"
    SCALING = "activation scaling"
    TOKENS = "tokens"
    SCHEDULE = "needs a schedule"
    BASE = "changes the base"
    NOT_IMAGES = "not for images"


class Method(NamedTuple):
    """One `peft_type`. why: a sentence; loads: whether its folders load; modules: what it is trained and loads on."""

    verdict: Verdict
    why: str
    loads: bool = True
    modules: str = "Linear"


_W, _S, _T = Verdict.WEIGHT, Verdict.SCALING, Verdict.TOKENS
_R, _B, _N = Verdict.SCHEDULE, Verdict.BASE, Verdict.NOT_IMAGES
METHODS: Mapping[str, Method] = {
    "LORA": Method(
        _W,
        "A low-rank pair; also rsLoRA, DoRA, LoRA-FA, EVA, MiCA, VeLoRA, MonteCLoRA, BD-LoRA, QALoRA, KaSA; "
        "PiSSA and OLoRA with what they took out of the base. CorDA, LoRA-GA and LoftQ only where PEFT "
        "converted them. aLoRA and Arrow depend on the input, a LoRA on a grouped convolution sees all groups: "
        "refused.",
        modules="Linear, Conv1d/2d/3d, Embedding",
    ),
    "ADALORA": Method(_W, "A low-rank pair with singular values, pruned in training.", modules="Linear, Conv2d"),
    "ADAMSS": Method(
        _W,
        "Low-rank changes of clusters of rows, but which rows are which is not saved: PEFT clusters the base "
        "weight again with scikit-learn's k-means when it loads.",
        loads=False,
    ),
    "BOFT": Method(_W, "Butterfly rotations of the inputs.", modules="Linear, Conv2d"),
    "OFT": Method(
        _W,
        "Rotations of the inputs, or outputs in PEFT up to 0.13. On a kernel larger than 1 x 1 PEFT's forward "
        "is no change of the weight.",
        modules="Linear, Conv2d 1 x 1, Embedding",
    ),
    "HRA": Method(_W, "Householder reflections of the inputs.", modules="Linear, Conv2d"),
    "LOHA": Method(_W, "An elementwise product of two low-rank pairs.", modules="Linear, Conv1d/2d"),
    "LOKR": Method(_W, "A Kronecker product.", modules="Linear, Conv1d/2d"),
    "VERA": Method(_W, "Two vectors around a random pair that all modules share, saved or drawn again from its seed."),
    "PVERA": Method(_W, "VeRA with a mean and a variance, of which the mean acts."),
    "RANDLORA": Method(_W, "A sum of random bases with trained scales, saved or drawn again from the seed."),
    "FOURIERFT": Method(_W, "A few frequencies of the change, at places drawn from a seed."),
    "WAVEFT": Method(
        _W,
        "A few wavelet coefficients of the change, at places drawn from a seed; coif3 to coif5 are refused.",
    ),
    "C3A": Method(_W, "Blocks that are circular convolutions."),
    "VBLORA": Method(_W, "A low-rank pair mixed from one bank of vectors."),
    "UNILORA": Method(
        _W,
        "A low-rank pair whose numbers are taken from one vector; only with save_indices=True, as the file "
        "names no module otherwise.",
    ),
    "TINYLORA": Method(
        _W,
        "A random mixture of the weight's principal parts; only with save_projection=True, which tells a "
        "layer's place.",
        modules="Linear, Embedding",
    ),
    "SHIRA": Method(_W, "A few numbers of the weight."),
    "SUPERTUNING": Method(_W, "A few numbers of the weight, largest or smallest, and a LoRA beside them."),
    "MISS": Method(_W, "One block, repeated over the weight (Bone); `bat` also multiplies the weight's tiles."),
    "BONE": Method(_W, "The name of MiSS up to PEFT 0.17."),
    "DELORA": Method(_W, "A low-rank pair with normalised factors and one strength."),
    "HIRA": Method(_W, "The weight times a low-rank matrix.", modules="Linear, Conv1d/2d/3d, Embedding"),
    "GRALORA": Method(_W, "A low-rank pair per block of the weight."),
    "GLORA": Method(_W, "The weight and the bias scaled and moved elementwise; path C moves the bias by the weight."),
    "DEFT": Method(_W, "A subspace of the outputs taken out and another put in; PaRa, which only takes out."),
    "PSOFT": Method(_W, "A rotation among the weight's principal parts."),
    "OSF": Method(_W, "The weight's smallest singular parts, replaced."),
    "PEANUT": Method(_W, "A small network's answer to the weight."),
    "FROD": Method(
        _W,
        "The weight anew from a basis that modules share; only with save_projection=True, as the basis comes "
        "from all weights together.",
    ),
    "ROAD": Method(
        _S,
        "Pairs of outputs are rotated and scaled, which is a linear map of the weight's rows and the bias.",
    ),
    "IA3": Method(
        _S,
        "Channels are multiplied, which is a linear map of the weight's rows or columns.",
        modules="Linear, Conv2d/3d",
    ),
    "BEFT": Method(_W, "A change of the bias alone."),
    "LN_TUNING": Method(_B, "Whole norm layers, which take the place of the model's.", modules="LayerNorm"),
    "TRAINABLE_TOKENS": Method(_B, "Rows of an embedding, which take the place of the model's.", modules="Embedding"),
    "LILY": Method(_R, "A router weighs its experts by the batch it sees.", loads=False),
    "XLORA": Method(_R, "A router weighs its LoRAs by the tokens of a language model.", loads=False),
    "POLY": Method(_R, "A router weighs its LoRAs by the task, which every call would have to name.", loads=False),
    "PROMPT_TUNING": Method(_T, "Trained vectors stand before a language model's input.", loads=False),
    "MULTITASK_PROMPT_TUNING": Method(_T, "Prompt tuning with a vector per task.", loads=False),
    "P_TUNING": Method(_T, "An encoder makes the vectors that stand before a language model's input.", loads=False),
    "PREFIX_TUNING": Method(
        _T, "Trained keys and values stand before those of every attention; on or off.", modules="language model"
    ),
    "CPT": Method(_T, "Context tokens of a classification prompt are trained.", loads=False),
    "ADAPTION_PROMPT": Method(_T, "Trained tokens behind a gate enter a Llama's attention.", loads=False),
    "CARTRIDGE": Method(_T, "A trained key-value cache stands before a language model's.", loads=False),
    "SHADOW": Method(
        _N,
        "A second network runs beside a decoder-only language model and corrects its blocks.",
        loads=False,
    ),
}  # fmt: skip
"""PEFT's `peft_type` -> what is to be said of it."""

# LoRA configs whose effect depends on what a forward sees.
_INPUT_DEPENDENT = {
    "alora_invocation_tokens": "aLoRA acts only behind certain tokens of a language model's prompt",
    "arrow_config": "Arrow routes every token to the LoRA that fits it",
}


def refuse_method(config: Mapping[str, Any] | None, name: str) -> None:
    """Raise NotAnAdapterError for the folder `name` whose PEFT config is of a method that has no weight change to load.

    A `peft_type` that is not in the table is let through: its tensors decide.
    """
    if not config:
        return
    kind = str(config.get("peft_type") or "").rpartition(".")[2].upper()
    method = METHODS.get(kind)
    if method is not None and not method.loads:
        raise NotAnAdapterError(f"{name}: peft_type {kind} cannot be loaded ({method.verdict}). {method.why}")
    for field, why in _INPUT_DEPENDENT.items():
        if config.get(field):
            raise NotAnAdapterError(
                f"{name}: peft_type {kind} with {field} cannot be loaded ({Verdict.SCHEDULE}). {why}: no one change of "
                "the weights does that."
            )


def table() -> str:
    """The table as Markdown."""
    rows = [
        f"| {kind} | {method.verdict} | {'yes' if method.loads else 'no'} | {method.modules if method.loads else ''} | "
        f"{method.why} |"
        for kind, method in sorted(METHODS.items())
    ]
    return "\n".join(["| `peft_type` | what it is | loads | on | |", "|---|---|:-:|---|---|", *rows])


def document() -> str:
    """The text of docs/peft.md."""
    return f"""# PEFT's methods

Written by `document` of `diffadapt/dialects/peft_methods.py`. A test holds it against the table there, and that against
the methods of the installed PEFT.

{table()}

- *weight delta*, *activation scaling*: a change of the weight or the bias; loads live and merged.
- *changes the base*: whole tensors or rows that take the place of the model's; load as the difference.
- *tokens*: vectors or keys and values that a text encoder reads before or within a prompt. A prefix loads on a text
  encoder that is a language model; the others are refused.
- *needs a schedule*, *not for images*: nothing that a weight could hold; a folder is refused, with the sentence here.

Where a method draws numbers from a seed, they are drawn with torch's generator on the CPU, as PEFT draws them. The file
says what was drawn only where `save_projection` (or its like) was on, and that is the safe way to save.

Every method that loads is also written, with `dialect="peft"` into a folder, for PEFT to load with the same effect: the
fields of its config without which the tensors mean nothing, ranks and their like by module, and what all modules share
once. What was drawn from a seed and not saved stays so; VeLoRA and MonteCLoRA come back as the LoRA that they made.
BONE is the exception: PEFT no longer reads it, and neither does it a QALoRA off a GPTQ base.
"""
