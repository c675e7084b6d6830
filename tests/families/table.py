"""The table of families, dialects and algorithms in docs/families.md: `python -m tests.families.table` writes it."""

from __future__ import annotations

from pathlib import Path

import torch

from diffadapt.adapter import TargetKey
from diffadapt.dialects import DIALECTS
from diffadapt.errors import DiffAdaptError
from diffadapt.families import FAMILIES, Family, family_named
from tests.algorithms.samples import SAMPLES
from tests.dialects.test_onetrainer import FAMILY
from tests.dialects.test_onetrainer import MANIFESTS as RECORDED
from tests.families.test_converters import CASES
from tests.families.test_full_size import ALIKE, MANIFESTS, NAMED, PREFIXES
from tests.test_reading import MANIFESTS as UNET_MANIFESTS
from tests.zoo import ZOO

ZOO_CLASSES = {specimen.cls.rpartition(".")[2] for specimen in ZOO.values()}
ONETRAINER = {FAMILY.get(path.name.split(".")[0], path.name.split(".")[0]) for path in RECORDED.glob("*.json.gz")}
PATH = Path(__file__).parents[2] / "docs" / "families.md"
HEAD = """# Families, dialects, algorithms

Written by `python -m tests.families.table` from the families' data and the tests' own tables; a test holds it current.

## Families

Every family is read from LoRA files of all its Linears and convolutions, in Diffusers' names, behind each of these
prefixes: {prefixes}.

*Forward*: a tiny model of the class runs whole with LoRA, LoKr and OFT that PEFT and LyCORIS wrote, and gives their
output. *OneTrainer*: all its formats, as its own code wrote them, are read to the last key. *Original names*: also in
the names of the model's own code, fused projections included. *Traced*: every row of those
names was followed through Diffusers' own checkpoint converter. *Files*: key manifests that a trainer's code wrote, of
which every key and shape lands on the full-size model.

Algorithms do not depend on the family: what is fused, exchanged or joined here is so for all of them.

| family | model class | text encoders | original names | traced | forward | OneTrainer | files |
|---|---|---|:-:|:-:|:-:|:-:|---|
"""
ALGORITHMS = """
## Dialects and algorithms

Endings of keys are understood behind every prefix, so every dialect reads every algorithm. The table says which have a
name for each of its tensors, which writing needs (it also reads the file back, and refuses what would come out as
something else; `peft`, `diffusers` and `bare` say scales in their configs). `peft` has a method of PEFT's own for what
it writes: PEFT itself loads the folder, with the same effect. `xlabs` is read only, `kohya_oft` holds
sd-scripts' OFT alone.

"""


def _class(family: Family) -> str:
    models = [names.model for part, names in family.components.items() if names.model and "encoder" not in part]
    if not models and "unet" in family.components:
        return "UNet2DConditionModel, ControlNetModel"
    return ", ".join(dict.fromkeys(model.cls.rpartition(".")[2] for model in models))


def _encoders(family: Family) -> str:
    found = []
    for part, names in family.components.items():
        if "text_encoder" in part:
            found.append(names.model.layout if names.model else "clip")
    return ", ".join(found) or "–"


def _row(family: Family) -> str:
    native = any(names.native for names in family.components.values())
    files = [name for name, (told, _) in MANIFESTS.items() if told == family.name]
    files += [name for name, (_, told, _) in UNET_MANIFESTS.items() if told == family.name]
    classes = {names.model.cls.rpartition(".")[2] for names in family.components.values() if names.model}
    forward = bool(classes & ZOO_CLASSES) or "unet" in family.components
    traced = any(case.split()[0] == family.name for case in CASES)
    alike = f" ({ALIKE[family.name]})" if family.name in ALIKE else ""
    tested = "" if family.name in NAMED or "unet" in family.components else " (own tests)"
    return (
        f"| `{family.name}`{alike}{tested} | {_class(family)} | {_encoders(family)} | {_yes(native)} | "
        f"{_yes(traced)} | {_yes(forward)} | {_yes(family.name in ONETRAINER)} | {', '.join(files) or '–'} |"
    )


def _yes(told: bool) -> str:
    return "yes" if told else "–"


def _written() -> list[str]:
    """One row per algorithm: the dialects that have a name for each of its tensors."""
    target, family = TargetKey("unet", "mid_block.attentions.0.proj_in"), family_named("sd1")
    dialects = [dialect for dialect in DIALECTS if dialect.name not in ("xlabs", "kohya_oft")]
    able: dict[str, dict[str, bool]] = {}
    for sample in SAMPLES:
        delta = sample.delta()
        try:
            roles = delta.tensors().keys()
        except DiffAdaptError:
            roles = {"?"}
        for dialect in dialects:
            row = able.setdefault(sample.algorithm, {})
            if dialect.name == "peft":
                able_to = delta.peft_fields(target.module) is not None
            else:
                able_to = _names(dialect, target, roles, family)
            row[dialect.name] = row.get(dialect.name, False) or able_to
    head = f"| algorithm | {' | '.join(d.name for d in dialects)} |\n|---|{':-:|' * len(dialects)}"
    rows = [
        f"| {name} | {' | '.join('yes' if row[d.name] else '–' for d in dialects)} |"
        for name, row in able.items()
        if any(row.values())
    ]
    read_only = ", ".join(sorted(name for name, row in able.items() if not any(row.values())))
    return [head, *sorted(rows), *(["", f"Read, and not written: {read_only}."] if read_only else [])]


def _names(dialect, target, roles, family) -> bool:
    configured = dialect.name in ("diffusers", "bare")
    try:
        for role in roles:
            if role != "alpha" or not configured:
                dialect.join(target, role, family)
    except DiffAdaptError:
        return False
    return True


@torch.no_grad()
def document() -> str:
    """The text of docs/families.md."""
    prefixes = ", ".join(f"`{prefix}`" if prefix else "no prefix" for prefix, _ in PREFIXES)
    rows = [_row(family) for family in FAMILIES]
    return HEAD.format(prefixes=prefixes) + "\n".join(rows) + "\n" + ALGORITHMS + "\n".join(_written()) + "\n"


if __name__ == "__main__":
    PATH.write_text(document(), "utf-8")
