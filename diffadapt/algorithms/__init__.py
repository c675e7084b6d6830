"""Algorithms by name, in the order in which they look at a module's tensors. A new one: its file and a line here."""

from __future__ import annotations

from diffadapt.algorithms.adalora import AdaLoRA
from diffadapt.algorithms.base import Context, Delta, TensorGroup
from diffadapt.algorithms.base_changing import KaSA, repair
from diffadapt.algorithms.bdlora import BlockLoRA
from diffadapt.algorithms.beft import BEFT
from diffadapt.algorithms.boft import BOFT
from diffadapt.algorithms.boft_peft import PeftBOFT
from diffadapt.algorithms.c3a import C3A
from diffadapt.algorithms.deft import DEFT
from diffadapt.algorithms.delora import DeLoRA
from diffadapt.algorithms.dora import DoRA
from diffadapt.algorithms.fourierft import FourierFT
from diffadapt.algorithms.frod import FRoD
from diffadapt.algorithms.full import Full
from diffadapt.algorithms.glora import GLoRA
from diffadapt.algorithms.glora_peft import PeftGLoRA
from diffadapt.algorithms.gralora import GraLoRA
from diffadapt.algorithms.hira import HiRA
from diffadapt.algorithms.hra import HRA
from diffadapt.algorithms.ia3 import IA3
from diffadapt.algorithms.loha import LoHa
from diffadapt.algorithms.lokr import LoKr
from diffadapt.algorithms.lora import LoRA
from diffadapt.algorithms.miss import BatMiSS, MiSS
from diffadapt.algorithms.norm import Norm
from diffadapt.algorithms.oft import OFT
from diffadapt.algorithms.oft_diag import OFTDiag
from diffadapt.algorithms.oft_flux import SplitOFT
from diffadapt.algorithms.oft_peft import PackedOFT
from diffadapt.algorithms.oft_peft_old import OldInputOFT, OldOutputOFT
from diffadapt.algorithms.osf import OSF
from diffadapt.algorithms.peanut import PEANuT
from diffadapt.algorithms.psoft import PSOFT
from diffadapt.algorithms.qalora import QALoRA
from diffadapt.algorithms.randlora import RandLoRA
from diffadapt.algorithms.residual import Residual
from diffadapt.algorithms.road import RoAd
from diffadapt.algorithms.shira import SHiRA
from diffadapt.algorithms.supertuning import SuperTuning
from diffadapt.algorithms.tinylora import TinyLoRA
from diffadapt.algorithms.tlora import TLoRA
from diffadapt.algorithms.total import Sum
from diffadapt.algorithms.trained_tokens import TrainedTokens
from diffadapt.algorithms.unilora import UniLoRA
from diffadapt.algorithms.vblora import VBLoRA
from diffadapt.algorithms.vera import PVeRA, VeRA
from diffadapt.algorithms.waveft import WaveFT
from diffadapt.errors import AlgorithmError

ALGORITHMS: tuple[type[Delta], ...] = (
    DoRA,  # before those it modifies
    Full,  # before LoRA: ai-toolkit's full rank is half a pair
    AdaLoRA,  # before LoRA: a pair with one tensor more, like KaSA
    KaSA,
    BlockLoRA,  # before LoRA: their factors are short
    QALoRA,
    LoRA,
    LoHa,
    LoKr,
    GLoRA,
    IA3,
    Norm,
    Residual,
    TLoRA,
    OFT,
    BOFT,
    SplitOFT,
    OFTDiag,
    PackedOFT,
    OldOutputOFT,
    OldInputOFT,
    PeftBOFT,
    HRA,
    PeftGLoRA,
    VeRA,
    PVeRA,
    RandLoRA,
    FourierFT,
    C3A,
    WaveFT,
    VBLoRA,
    UniLoRA,
    SHiRA,
    SuperTuning,
    MiSS,
    BatMiSS,
    RoAd,
    DeLoRA,
    HiRA,
    GraLoRA,
    DEFT,
    PSOFT,
    TinyLoRA,
    OSF,
    PEANuT,
    FRoD,
    TrainedTokens,
    BEFT,
)

__all__ = ["ALGORITHMS", "Context", "Delta", "TensorGroup", "parse_group"]


def parse_group(group: TensorGroup, context: Context) -> Delta:
    """The delta that the tensors of one module make, a `Sum` where several algorithms share it.

    Empties the group. Raises AlgorithmError for tensors that nothing explains, and for a group without any.
    """
    found: list[Delta] = []
    for algorithm in ALGORITHMS:
        if not len(group):
            break
        if (delta := algorithm.parse(group, context)) is not None:
            found.append(repair(delta, context))
    if len(group):
        left = ", ".join(sorted(group.keys.get(role, role) for role in group))
        raise AlgorithmError(f"{group.name}: no algorithm explains {left}.")
    if not found:
        raise AlgorithmError(f"{group.name}: holds no tensors.")
    return found[0] if len(found) == 1 else Sum(tuple(found))
