"""P-tuning: a network makes the vectors of a placeholder while it is trained."""

from __future__ import annotations

import peft
import pytest
import torch
from peft.tuners.p_tuning import PromptEncoder as PeftPromptEncoder
from torch import nn

from diffadapt.errors import StackError
from diffadapt.training.tokens import PromptEncoder
from tests.training import text
from tests.training.text import adapter, pipeline, train

PROMPT = "a <thing> on a blue background"


@pytest.mark.parametrize("kind", ["mlp", "lstm"])
def test_p_tuning(kind, tmp_path):
    """The vectors begin as the word's, the network is PEFT's, and what is saved are plain vectors."""
    pipe = pipeline("unet")
    start = adapter(pipe, {"<thing>": ("circle", 3)}).embeddings["<thing>"].vectors["text_encoder"]
    generator = torch.Generator().manual_seed(0)
    made = PromptEncoder(start, kind=kind, hidden=48, generator=generator)
    assert torch.equal(made(), start)
    for parameter in made.mlp_head[-1].parameters():
        nn.init.normal_(parameter)
    config = peft.PromptEncoderConfig(
        num_virtual_tokens=3, token_dim=64, encoder_hidden_size=48, num_transformer_submodules=1,
        encoder_reparameterization_type=kind.upper(), encoder_dropout=0.0,
    )  # fmt: skip
    theirs = PeftPromptEncoder(config)
    theirs.load_state_dict({key: value for key, value in made.state_dict().items() if key != "start"})
    torch.testing.assert_close(made() - start, theirs(torch.arange(3)[None])[0], rtol=1e-4, atol=1e-4)

    pipe.adapters.add("p", "p_tuning", tokens={"<thing>": ("circle", 3)}, kind=kind, hidden=48)
    before = len(pipe.adapters.parameters("p"))
    assert before == sum(1 for _ in made.parameters())
    goal = text.encoded(pipe, "a star on a blue background").detach()
    size = goal.numel()
    losses = train(pipe, lambda: (text.encoded(pipe, PROMPT)[:size] - goal).square().mean(), 50, 1e-3)
    assert losses[-1] < 0.8 * losses[0]
    trained = text.encoded(pipe, PROMPT).detach()
    path = pipe.adapters.save("p", tmp_path / "p.safetensors")
    again = pipeline("unet")
    again.load_textual_inversion(str(path))
    torch.testing.assert_close(text.encoded(again, PROMPT), trained, rtol=1e-5, atol=1e-5)


def test_an_unknown_network_leaves_nothing_behind():
    pipe = pipeline("unet")
    words = len(pipe.tokenizer)
    with pytest.raises(StackError, match="no prompt encoder 'cnn'; choose"):
        pipe.adapters.add("p", "p_tuning", tokens={"<thing>": "circle"}, kind="cnn")
    assert pipe.adapters.names == ()
    assert len(pipe.tokenizer) == words
    assert all(parameter.requires_grad for parameter in pipe.unet.parameters())
