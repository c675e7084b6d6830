"""What a training run is told: a TOML file of tables, a frozen dataclass for each of them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from diffadapt.errors import SourceError, TrainingError

from .parsing import nested, parse, setting

Names = str | tuple[str, ...] | Mapping[str, Any]
Number = int | Mapping[str, Any]
Schedule = Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]
Kind = Literal["style", "dreambooth"]


@dataclass(frozen=True)
class Data:
    """The pictures."""

    folder: str = setting("", "pictures, each with its caption in name.txt beside it, or all in a metadata.jsonl")
    prompt: str = setting("", "the caption of pictures without one; of dreambooth, with the subject's identifier")
    resolution: int = setting(512, "height and width in pixels; with buckets, the root of the area", 16, 4096)
    buckets: bool = setting(False, "keep the pictures' aspect ratios (up to 2:1) instead of a square from the middle")
    flip: bool = setting(False, "also show every picture mirrored, at random")
    prompt_dropout: float = setting(0.1, "the share of captions that are left empty, for guidance", 0.0, 0.99)
    prompt_length: int = setting(0, "tokens of T5's prompts (SD3, Flux); 0: as many as the pipeline takes", 0, 4096)


@dataclass(frozen=True)
class Prior:
    """Dreambooth: pictures of the subject's class, made by the pipeline itself, so that the class stays what it was."""

    prompts: tuple[str, ...] = setting((), "what they show, one after the other; none: no such pictures")
    pictures: int = setting(100, "how many there are to be", 1)
    folder: str = setting("", "where they are, and missing ones are made; default: 'class' in the output")
    weight: float = setting(1.0, "of their loss", 0.0)


@dataclass(frozen=True)
class Adapter:
    """What is trained: the arguments of `pipe.adapters.add`."""

    algorithm: str = setting("lora", "lora, dora, loha, lokr, oft, boft, ...: see `diffadapt.training.methods`")
    rank: Number = setting(16, "a number, or a table by component, block or pattern; 0: the algorithm's default")
    alpha: float | Mapping[str, Any] = setting(0.0, "a number or a table; 0: the rank")
    targets: Names = setting("", "attn, ff, conv, all, a pattern, several, or a table by component; default: attn")
    exclude: Names = setting((), "the same, left out")
    init: str = setting("default", "default, gaussian, orthogonal, pissa, olora")
    dropout: float = setting(0.0, "see `diffadapt.inject.learner.Dropouts`", 0.0, 0.99)
    rank_dropout: float = setting(0.0, "", 0.0, 0.99)
    module_dropout: float = setting(0.0, "", 0.0, 0.99)
    options: Mapping[str, Any] = setting({}, "the algorithm's own, as {factor = 4}")
    tokens: Mapping[str, Any] = setting({}, "placeholders to train and where they begin, as {'<star>' = 'circle'}")
    start_from: str = setting("", "an adapter file of any dialect that is trained on, instead of a new one")
    dialect: str = setting("", "of the file that is written; default: the algorithm's own")


@dataclass(frozen=True)
class Loss:
    """How noise is drawn and errors are weighed."""

    timesteps: Literal["auto", "uniform", "logit_normal"] = setting(
        "auto", "auto: logit_normal for flow matching (SD3, Flux), uniform for the others"
    )
    logit_mean: float = setting(0.0, "of logit_normal; above 0: noisier")
    logit_std: float = setting(1.0, "of logit_normal", 0.0)
    shift: float = setting(0.0, "of flow matching's times; 0: as the pipeline's scheduler has it", 0.0)
    min_snr: float = setting(0.0, "the gamma of min-SNR weighting (5 is usual); 0: none", 0.0)
    guidance: float = setting(1.0, "what models with distilled guidance (Flux.1-dev) are told", 0.0)


@dataclass(frozen=True)
class Training:
    """Optimizer, schedule, precision."""

    steps: int = setting(1000, "of the optimizer", 1)
    batch: int = setting(1, "pictures at once, in each process", 1)
    accumulate: int = setting(1, "batches for a step", 1)
    learning_rate: float = setting(1e-4, "", 0.0)
    token_learning_rate: float = setting(0.0, "of placeholders; 0: the same", 0.0)
    schedule: Schedule = setting("cosine", "of the learning rate")
    warmup: int = setting(0, "steps in which it rises", 0)
    weight_decay: float = setting(0.01, "", 0.0)
    betas: tuple[float, ...] = setting((0.9, 0.999), "AdamW's two")
    clip: float = setting(1.0, "the largest norm of the gradients; 0: any", 0.0)
    ema: float = setting(0.0, "decay of the averaged weights, which samples and the result have; 0: none", 0.0, 1.0)
    mixed_precision: Literal["no", "bf16", "fp16"] = setting("no", "of the computation (Accelerate)")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "of the pipeline's own, frozen weights")
    gradient_checkpointing: bool = setting(False, "less memory, a third more time")


@dataclass(frozen=True)
class Samples:
    """Pictures on the way: the pipeline with and without the adapter."""

    every: int = setting(0, "steps between two sheets; 0: only at the end", 0)
    prompts: tuple[str, ...] = setting((), "what is drawn; none: no sheets")
    seed: int = setting(0, "of their noise")
    options: Mapping[str, Any] = setting({}, "of the pipeline's call, as {num_inference_steps = 20}")


@dataclass(frozen=True)
class Checkpoints:
    """From which a run goes on."""

    every: int = setting(200, "steps between two", 1)
    keep: int = setting(2, "how many of the newest stay", 1)


@dataclass(frozen=True)
class Settings:
    """A whole run. model: an embedded pipeline ("unet", "dit"), a folder of Diffusers, or a Hub id."""

    kind: Kind = setting("style", "'style': pictures with captions; 'dreambooth': one subject under an identifier")
    model: str = setting("unet", "a pipeline of Diffusers, as a folder or Hub id; or an embedded one, unet or dit")
    name: str = setting("adapter", "of the adapter and its file")
    output: str = setting("out/training", "the folder of everything that the run writes")
    seed: int = setting(0, "of all that is drawn", 0)
    data: Data = nested(Data)
    prior: Prior = nested(Prior)
    adapter: Adapter = nested(Adapter)
    loss: Loss = nested(Loss)
    training: Training = nested(Training)
    samples: Samples = nested(Samples)
    checkpoints: Checkpoints = nested(Checkpoints)
    folder: Path = field(default_factory=Path, metadata={"hidden": True})

    def __post_init__(self) -> None:
        """Raise TrainingError for what contradicts itself."""
        if self.kind == "dreambooth" and not self.data.prompt:
            raise TrainingError("kind is 'dreambooth': data.prompt is needed, such as 'a photo of sks dog'.")
        if self.kind == "style" and self.prior.prompts:
            raise TrainingError("prior.prompts belongs to kind = 'dreambooth'; leave it out for a style.")
        if len(self.training.betas) != 2 or not all(0 <= beta < 1 for beta in self.training.betas):
            raise TrainingError(
                f"training.betas is {list(self.training.betas)}; expected two numbers from 0 to below 1."
            )
        if Path(self.name).name != self.name or not self.name:
            raise TrainingError(f"name is {self.name!r}; expected a word that can be a file's name.")

    def path(self, text: str) -> Path:
        """A path of the settings, which is meant from the folder of their file."""
        return self.folder / Path(text).expanduser()

    @property
    def out(self) -> Path:
        """Where the run writes."""
        return self.path(self.output)


def read_settings(file: str | Path, changes: Mapping[str, Any] | None = None) -> Settings:
    """The settings of a TOML file. Relative paths in it are meant from its folder.

    changes: "table.key" -> what stands in its place, as the command's --set. Raises SourceError for a file that cannot
    be read or is no TOML, TrainingError for an unknown key and a wrong value, which names it and what is expected.
    """
    path = Path(file)
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SourceError(
            f"{path}: no TOML: {error}. `diffadapt train --example style` writes one to begin with."
        ) from error
    return settings_of(given, changes, path.parent)


def settings_of(given: Mapping[str, Any], changes: Mapping[str, Any] | None = None, folder: Path = Path()) -> Settings:
    """The settings of tables. folder: where relative paths begin. Errors as for `read_settings`."""
    whole: dict[str, Any] = {key: dict(value) if isinstance(value, Mapping) else value for key, value in given.items()}
    for key, value in (changes or {}).items():
        table, inner = whole, key.split(".")
        for word in inner[:-1]:
            table = table.setdefault(word, {})
            if not isinstance(table, dict):
                raise TrainingError(f"{key}: {word} is no table of settings.")
        table[inner[-1]] = value
    return parse(Settings, whole, folder=folder)
