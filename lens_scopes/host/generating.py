"""What the model itself goes on to say, token by token, as a text whose ids are exactly those it was made of."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_scopes.host.capture import run_to_last_residual
from lens_scopes.host.differentiable import refuse_dropout
from lens_scopes.host.joining import extended
from lens_scopes.host.model import Host
from lens_scopes.host.prompts import Prompt, encode
from lens_scopes.host.readout import final_norm, raw_logits, read_out
from lens_scopes.host.undo import guarded
from lens_scopes.results.arguments import Integer, integer
from lens_scopes.results.text import Text


@guarded
def generate(
    model: Any, prompt: Prompt, *, max_new_tokens: Integer = 20, temperature: float = 0.0, seed: Integer = 0
) -> Text:
    """The prompt and what the model says after it, as one text with the spans "prompt" and "completion".

    The ids are the prompt's and those that were chosen; nothing is tokenised again. It ends after the EOS token, which
    is kept, or after ``max_new_tokens``. Your hooks stay in force. Every token is one forward pass over the whole text,
    without a cache; for long texts generate elsewhere and ``join`` the ids.

    Args:
        model: a HookedTransformer or TransformerBridge in eval mode; left as it came, the global random state too.
        prompt: see ``score``.
        max_new_tokens: how many tokens at most.
        temperature: 0 takes the likeliest token; above it, tokens are drawn from softmax(z / temperature).
        seed: of the draws.

    Returns:
        The Text. Spans that the prompt came with are kept, but for "prompt" and "completion".

    Raises:
        ValueError: no room in the context, less than one token, a negative temperature, NaN or infinity in the logits;
            or see ``score``.
        RuntimeError: a model in train mode with dropout, or one whose readout cannot be reproduced.
        TypeError: not a model or a prompt, or a number of tokens or seed that is no integer.

    Example:
        >>> import lens_scopes as ls
        >>> model, case = ls.demo.load(), ls.demo.cases("translation", n=1, seed=1)[0]
        >>> text = ls.generate(model, case.prompt, max_new_tokens=3)
        >>> text.part("completion").split()[0] == case.answer
        True

    """
    host = Host(model)
    refuse_dropout(host.model)
    before = encode(host, prompt).tolist()
    most, seed = integer(max_new_tokens, "max_new_tokens", 1), integer(seed, "generate's seed")
    if not temperature >= 0:
        msg = f"temperature is 0 (the likeliest token) or above, got {temperature}; write temperature=0"
        raise ValueError(msg)
    if len(before) + most > host.n_ctx:
        msg = (
            f"{len(before)} tokens and {most} new ones are more than {host.name}'s context of {host.n_ctx}; "
            f"write max_new_tokens={host.n_ctx - len(before)} or less"
        )
        raise ValueError(msg)
    generator = torch.Generator("cpu").manual_seed(seed)
    end = getattr(host.tokenizer, "eos_token_id", None)
    added: list[int] = []
    with host.alone():
        while len(added) < most and (not added or added[-1] != end):
            added.append(_choose(_last_logits(host, [*before, *added]), temperature, generator))
    return extended(host, prompt, before, added)


def _last_logits(host: Host, ids: list[int]) -> Float[Tensor, " vocab"]:
    with torch.inference_mode(mode=False), torch.no_grad():
        tokens = torch.tensor([ids], device=host.device)
        last = run_to_last_residual(host, tokens, grad=False).last[:, -1]
        return read_out(host, tokens).transform(raw_logits(host, final_norm(host, last)))[0].double()


def _choose(logits: Float[Tensor, " vocab"], temperature: float, generator: torch.Generator) -> int:
    if not logits.isfinite().all():
        msg = "NaN or infinity in the logits: there is no next token; try float32 or bfloat16"
        raise ValueError(msg)
    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial((logits / temperature).softmax(-1).cpu(), 1, generator=generator))
