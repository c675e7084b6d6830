"""What can be trained from the start, by the name a user gives. A new method: its algorithm's `fresh`, a line here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diffadapt.algorithms.adalora import AdaLoRA
from diffadapt.algorithms.base import Delta
from diffadapt.algorithms.boft import BOFT
from diffadapt.algorithms.boft_peft import PeftBOFT
from diffadapt.algorithms.dora import DoRA
from diffadapt.algorithms.dylora import DyLoRA
from diffadapt.algorithms.fourierft import FourierFT
from diffadapt.algorithms.full import Full
from diffadapt.algorithms.glora import GLoRA
from diffadapt.algorithms.hra import HRA
from diffadapt.algorithms.ia3 import IA3
from diffadapt.algorithms.loha import LoHa
from diffadapt.algorithms.lokr import LoKr
from diffadapt.algorithms.lora import LoRA
from diffadapt.algorithms.norm import Norm
from diffadapt.algorithms.oft import OFT
from diffadapt.algorithms.oft_peft import PackedOFT
from diffadapt.algorithms.tlora import TLoRA
from diffadapt.algorithms.vblora import VBLoRA
from diffadapt.algorithms.vera import VeRA
from diffadapt.errors import StackError


@dataclass(frozen=True)
class Method:
    """A way to train. home: the dialect that its own library reads. fixed: options that the name stands for. rank: the
    default; None where there is none."""

    delta: type[Delta]
    home: str
    rank: int | None = 16
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> Mapping[str, Any]:
        """What a user may set, and its defaults."""
        kinds: dict[str, type[Delta]] = {"lora": LoRA, "loha": LoHa, "lokr": LoKr}
        inner = kinds.get(self.fixed.get("inner", ""))
        return {**({} if inner is None else inner.options), **self.delta.options}


METHODS: Mapping[str, Method] = {
    "lora": Method(LoRA, "diffusers"),
    "rslora": Method(LoRA, "diffusers", fixed={"rank_stabilised": True}),
    "dora": Method(DoRA, "diffusers", fixed={"inner": "lora"}),
    "loha": Method(LoHa, "kohya", 8),
    "loha_dora": Method(DoRA, "kohya", 8, {"inner": "loha", "detached": False}),
    "lokr": Method(LoKr, "kohya"),
    "lokr_dora": Method(DoRA, "kohya", fixed={"inner": "lokr", "detached": False}),
    "oft": Method(OFT, "kohya"),
    "oft_dora": Method(OFT, "kohya", fixed={"rescaled": True}),
    "oft_peft": Method(PackedOFT, "peft", 32),
    "boft": Method(BOFT, "kohya", 32),
    "boft_peft": Method(PeftBOFT, "peft", 4),
    "glora": Method(GLoRA, "kohya"),
    "ia3": Method(IA3, "kohya", None),
    "ia3_peft": Method(IA3, "peft", None, {"peft": True}),
    "dylora": Method(DyLoRA, "kohya"),
    "adalora": Method(AdaLoRA, "peft", 12),
    "tlora": Method(TLoRA, "kohya"),
    "vera": Method(VeRA, "peft", 256),
    "vblora": Method(VBLoRA, "peft", 4),
    "fourierft": Method(FourierFT, "peft", None),
    "hra": Method(HRA, "peft", 8),
    "full": Method(Full, "kohya", None),
    "norm": Method(Norm, "kohya", None),
}
"""name -> method. `oft_dora`: no trainer has DoRA over OFT; LyCORIS' factor for every row of a rotated weight
(`rescaled`) is what magnitudes come to where the direction is a rotation's."""

P_TUNING, PREFIX = "p_tuning", "prefix_tuning"
TEXT: Mapping[str, tuple[str, ...]] = {
    "textual_inversion": (), P_TUNING: ("kind", "hidden", "layers"), PREFIX: ("virtual_tokens", "component", "start"),
}  # fmt: skip
"""What is trained in front of a text encoder -> the options that it has."""


def method_named(name: str) -> Method:
    """The method of a name. Raises StackError for one that there is not, with those that there are."""
    if name not in METHODS:
        known = ", ".join((*METHODS, *TEXT))
        raise StackError(f"No algorithm {name!r} can be trained here. There are: {known}.")
    return METHODS[name]
