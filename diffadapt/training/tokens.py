"""Fresh placeholders for textual inversion, and the small network that may make their vectors in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self, TypeAlias

import torch
from torch import Tensor, nn

from diffadapt.adapter import Embedding
from diffadapt.errors import StackError
from diffadapt.inject.embeddings import tokenizer_of
from diffadapt.inject.locate import components, unwrap, weight_of
from diffadapt.inject.vocabulary import knows, spelt, taken_message

Start: TypeAlias = "str | tuple[str, int] | Tensor | Mapping[str, Tensor]"
"""What vectors start from: a word or phrase that the text encoders know, or "random", maybe with the number of vectors;
or the vectors themselves."""

RANDOM = "random"
_SAMPLED = 4096
"""Rows of a matrix whose mean and spread stand for all of it."""


def new_embeddings(
    owner: Any,
    tokens: str | Sequence[str] | Mapping[str, Start],
    *,
    vectors: int = 1,
    encoders: Sequence[str] | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Embedding]:
    """Start vectors for placeholders, in float32 on the CPU, for an `Adapter`'s `embeddings`. Changes nothing.

    tokens: the placeholders, or what each starts from: {"<cat>": "small cat"}; default "random", normal numbers with
        the mean and the spread of the encoder's matrix. A phrase gives the vectors of its tokens, in order, from the
        beginning again where more are wanted, and the means of neighbours where fewer are. Vectors of one's own:
        (n, dim), or of each encoder by its name.
    vectors: how many a placeholder gets that has no number of its own: {"<cat>": ("small cat", 3)}.
    encoders: of the pipeline, by name; default all that have a tokenizer.
    Raises StackError for a placeholder that is empty or in a tokenizer, a word that the encoder does not know, vectors
    that do not fit, and a pipeline without a text encoder.
    """
    starts = _starts(tokens)
    if not starts:
        raise StackError("There is no placeholder to train: name one, such as '<cat>'.")
    parts = _encoders(owner, encoders)
    found: dict[str, Embedding] = {}
    for token, start in starts.items():
        start, count = start if isinstance(start, tuple) else (start, vectors)
        if count < 1:
            raise StackError(f"{token!r} is to have {count} vectors; expected at least 1.")
        rows = {name: _rows(start, name, token, count, part, generator) for name, part in parts.items()}
        for name, (tokenizer, _) in parts.items():
            _check(token, rows[name].shape[0], tokenizer)
        found[token] = Embedding(token, rows)
    return found


def _starts(tokens: str | Sequence[str] | Mapping[str, Start]) -> dict[str, Start]:
    if isinstance(tokens, Mapping):
        return dict(tokens)
    return dict.fromkeys([tokens] if isinstance(tokens, str) else tokens, RANDOM)


def _encoders(owner: Any, names: Sequence[str] | None) -> dict[str, tuple[Any, nn.Embedding]]:
    """The tokenizer and the input embedding of the text encoders, by component."""
    parts = {name: part.model for name, part in components(owner).items() if "text_encoder" in name}
    with_both = {name: (tokenizer_of(owner, name), model) for name, model in parts.items()}
    there = {name: both for name, both in with_both.items() if both[0] is not None}
    if not there:
        raise StackError(
            f"A {type(owner).__name__} has no text encoder with a tokenizer beside it (text_encoder and tokenizer, "
            "text_encoder_2 and tokenizer_2, ...): there is nothing that could read a placeholder."
        )
    unknown = [name for name in names or () if name not in there]
    if unknown:
        raise StackError(f"{unknown[0]!r} is no text encoder with a tokenizer here; there are {', '.join(there)}.")
    chosen = there if names is None else {name: there[name] for name in names}
    return {
        name: (tokenizer, unwrap(model).get_input_embeddings())  # type: ignore[operator]
        for name, (tokenizer, model) in chosen.items()
    }


def _check(token: str, count: int, tokenizer: Any) -> None:
    """Raise StackError for a placeholder that cannot be added."""
    if not token.strip() or token != token.strip():
        raise StackError(f"{token!r} is no placeholder; expected a word such as '<cat>', without spaces around it.")
    taken = next((name for name in spelt(token, count) if knows(tokenizer, name)), None)
    if taken is not None:
        raise StackError(taken_message(taken))


def _rows(
    start: str | Tensor | Mapping[str, Tensor],
    name: str,
    token: str,
    count: int,
    part: tuple[Any, nn.Embedding],
    generator: torch.Generator | None,
) -> Tensor:
    """The start vectors of a placeholder in one encoder."""
    tokenizer, matrix = part
    if not isinstance(start, str):
        return _given(start, name, token, matrix.embedding_dim)
    weight = weight_of(matrix).detach()
    if start == RANDOM:
        sample = weight[:: max(1, len(weight) // _SAMPLED)].to("cpu", torch.float32)
        drawn = torch.randn(count, matrix.embedding_dim, generator=generator)
        return drawn * sample.std() + sample.mean()
    ids = _ids(start, tokenizer, name)
    known = weight[torch.tensor(ids, device=weight.device)].to("cpu", torch.float32)
    if count >= len(ids):
        return known[torch.arange(count) % len(ids)].clone()
    return torch.stack([neighbours.mean(0) for neighbours in torch.tensor_split(known, count)])


def _ids(words: str, tokenizer: Any, name: str) -> list[int]:
    """The ids of words as they stand within a prompt: with a space before them, where that makes a difference."""
    spellings = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (f" {words}", words)]
    ids: list[int] = min(spellings, key=len)
    if not words.strip() or not ids:
        raise StackError(f"{words!r} has no token of {name}; start from a word, 'random' or vectors.")
    if tokenizer.unk_token_id in ids:
        raise StackError(
            f"{words!r} is no word that {name} knows (its tokens are {tokenizer.convert_ids_to_tokens(ids)}); start "
            "from another word, 'random' or vectors."
        )
    return ids


def _given(start: Tensor | Mapping[str, Tensor], name: str, token: str, width: int) -> Tensor:
    """Vectors of one's own, checked."""
    given = start if isinstance(start, Tensor) else start.get(name)
    if given is None:
        raise StackError(
            f"There are no start vectors of {token!r} for {name}; give them, or leave it out of `encoders`."
        )
    rows = given.reshape(1, -1) if given.ndim == 1 else given
    if rows.ndim != 2 or rows.shape[1] != width or not rows.shape[0]:
        raise StackError(
            f"The start vectors of {token!r} for {name} are {tuple(given.shape)}; expected (n, {width}), the width of "
            "this text encoder. Give each encoder its own: {'text_encoder': ..., 'text_encoder_2': ...}."
        )
    return rows.detach().to("cpu", torch.float32, copy=True)


class PromptEncoder(nn.Module):
    """P-tuning: a small network that makes the vectors of a placeholder, and is trained in their place.

    Its layers are those of PEFT's P_TUNING: an embedding of the vectors' places, then an MLP, or an LSTM both ways and
    an MLP (https://huggingface.co/papers/2103.10385). What they give is added to the start vectors, and is zero at
    first: a placeholder begins as the word that it starts from. What is saved are the vectors, as textual inversion.
    """

    start: Tensor

    def __init__(
        self,
        start: Tensor,
        *,
        kind: Literal["mlp", "lstm"] = "mlp",
        hidden: int | None = None,
        layers: int = 2,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        """start: (n, dim). hidden: the network's width, default dim. layers, dropout: of the LSTM.

        Raises StackError for an unknown kind.
        """
        super().__init__()
        if kind not in ("mlp", "lstm"):
            raise StackError(f"There is no prompt encoder {kind!r}; choose 'mlp' or 'lstm'.")
        count, width = start.shape
        size = hidden or width
        with torch.random.fork_rng(devices=[]):
            if generator is not None:
                torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            self.embedding = nn.Embedding(count, width)
            if kind == "lstm":
                self.lstm_head: nn.LSTM | None = nn.LSTM(
                    width, size, layers, dropout=dropout, bidirectional=True, batch_first=True
                )
                parts: list[nn.Module] = [nn.Linear(size * 2, size * 2), nn.ReLU(), nn.Linear(size * 2, width)]
            else:
                self.lstm_head = None
                parts = [nn.Linear(width, size), nn.ReLU(), nn.Linear(size, size), nn.ReLU(), nn.Linear(size, width)]
            self.mlp_head = nn.Sequential(*parts)
        for parameter in parts[-1].parameters():
            nn.init.zeros_(parameter)
        self.register_buffer("start", start.detach().to(torch.float32, copy=True))

    @classmethod
    def of(cls, **options: Any) -> Callable[[Tensor], Self]:
        """What `InstalledEmbeddings.reparametrise` takes: makes an encoder for each placeholder, with these options."""
        return lambda start: cls(start, **options)

    def forward(self) -> Tensor:
        """The vectors, (n, dim)."""
        places = self.embedding.weight[None]
        if self.lstm_head is not None:
            places = self.lstm_head(places)[0]
        made: Tensor = self.mlp_head(places)[0]
        return self.start + made
