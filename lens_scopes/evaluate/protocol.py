"""What is asked of a prompt: which prediction is attributed, and which one the evaluation watches.

Default: the prompt's last position; attribution and evaluation aim at the same token, the clean argmax.
"paper" (arXiv 2601.16407, as coded by its authors): the prompt contains its own answer as the last token; attribution
aims at that token from the position before it, the evaluation watches the clean argmax there, every position of the
prompt is ranked, the answer included (its score is 0), and nothing is done about a first token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_scopes.calculus.finite import refuse_nonfinite
from lens_scopes.host import Host, encode, run_to_last_residual
from lens_scopes.host.differentiable import refuse_dropout
from lens_scopes.host.prompts import Prompt, one_position
from lens_scopes.host.readout import final_norm, raw_logits, read_out
from lens_scopes.results.arguments import Integer, integer, listed, shown
from lens_scopes.sites import EMBED, FINAL

Protocol = Literal["paper"] | None


@dataclass(frozen=True, eq=False)
class Question:
    """One prompt, the position asked about, the token attributed and the token watched."""

    host: Host
    tokens: Int[Tensor, " pos"]
    position: int
    target: int
    """What attribution aims at."""
    watched: int
    """Whose log probability the evaluation follows: the clean argmax."""
    log_probs: Float[Tensor, " vocab"]
    """Of the clean run at the position, float64."""
    seed: int = 0

    @property
    def model(self) -> Any:
        """The TransformerLens model."""
        return self.host.model

    @property
    def ids(self) -> list[int]:
        """The prompt as a list of token ids."""
        return self.tokens.tolist()


def ask(model: Any, prompts: Sequence[Prompt], protocol: Protocol, seed: int = 0) -> list[Question]:
    """Encode the prompts and run each once.

    Raises:
        ValueError: an unknown protocol, a prompt too short for it, no prompts; or see ``score``.
        TypeError: a single string instead of a list of prompts.

    """
    host = Host(model)
    if isinstance(prompts, str) or not isinstance(prompts, Sequence | Tensor | np.ndarray):
        msg = f"prompts is a list of prompts, got {shown(prompts)}; for a single one write [prompt]"
        raise TypeError(msg)
    if protocol not in (None, "paper"):
        msg = f"protocol is None (one target, the last position) or 'paper', got {protocol!r}; write protocol=None"
        raise ValueError(msg)
    if not len(prompts):
        msg = "prompts to evaluate on are a list, got none; write at least one prompt, e.g. ['Once upon a time']"
        raise ValueError(msg)
    refuse_dropout(host.model)
    asked = []
    for prompt in prompts:
        tokens = encode(host, prompt)
        position = len(tokens) - (2 if protocol == "paper" else 1)
        if position < 0:
            msg = "protocol='paper' takes the last token of the prompt as the answer: at least two tokens are needed"
            raise ValueError(msg)
        log_probs = run(host, tokens[None], position)[0]
        top = int(log_probs.argmax())
        target = int(tokens[-1]) if protocol == "paper" else top
        asked.append(Question(host, tokens, position, target, top, log_probs, seed))
    return asked


def skipped(skip: Sequence[Integer], length: int) -> set[int]:
    """The positions of one prompt that are never taken out nor ranked.

    Raises:
        TypeError: no integers.
        IndexError: outside the prompt.

    """
    return {one_position(integer(one, "skip is a list of positions; a position"), length) for one in listed(skip)}


def run(
    host: Host, tokens: Int[Tensor, "batch pos"], position: int, embedding: Float[Tensor, "batch pos d"] | None = None
) -> Float[Tensor, "batch vocab"]:
    """log p of the next token at the position, in float64; with other embeddings if given."""
    # In this order: leaving inference mode turns gradients on.
    with torch.inference_mode(mode=False), torch.no_grad():
        readout = read_out(host, tokens)

        edits = {} if embedding is None else {"hook_embed": put(embedding)}
        last = run_to_last_residual(host, tokens, grad=False, edits=edits).last[:, position]
        logits = readout.transform(raw_logits(host, final_norm(host, last)))
        refuse_nonfinite(host, tokens, {FINAL if embedding is None else EMBED: logits}, "the logits for what is put")
        return logits.double().log_softmax(-1)


def put(embedding: Float[Tensor, "batch pos d"]) -> Callable[[Tensor], None]:
    """An edit that overwrites an activation."""

    def edit(activation: Tensor) -> None:
        activation.copy_(embedding)

    return edit


@torch.no_grad()
def embed(host: Host, tokens: Int[Tensor, " pos"]) -> Float[Tensor, "pos d"]:
    """What hook_embed holds; no block is run."""
    return (
        run_to_last_residual(host, tokens[None], ["hook_embed"], grad=False, until="hook_embed")
        .sites["hook_embed"][0]
        .detach()
    )
