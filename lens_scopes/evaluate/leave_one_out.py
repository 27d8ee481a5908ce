"""Leave one token out: how far the whole distribution moves, token by token; and where a method's favourite ranks."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lens_scopes.evaluate.ablation import Ablation, Replace
from lens_scopes.evaluate.curve import Ranking
from lens_scopes.evaluate.protocol import Protocol, Question, ask
from lens_scopes.host import token_texts
from lens_scopes.host.prompts import Prompt
from lens_scopes.host.undo import guarded
from lens_scopes.results.arguments import Integer, vector
from lens_scopes.results.provenance import Meta, versions
from lens_scopes.results.scores import Scores

# What the authors clamp probabilities at, so that their "KL" is not exactly one.
_CLAMP = 1e-10


@guarded
def leave_one_out(
    model: Any,
    prompts: Sequence[Prompt],
    *,
    protocol: Protocol = None,
    replace: Replace = "zero",
    corpus: Sequence[Integer] | None = None,
    seed: int = 0,
) -> list[Scores]:
    """KL(p_clean ‖ p without the token), for each token of each prompt, one at a time.

    Args:
        model: a HookedTransformer or TransformerBridge, in eval mode. It is left as it came.
        prompts: see ``score``.
        protocol: None, or "paper": the position before the last, probabilities clamped at 1e-10.
        replace: see ``ablation_curve``.
        corpus: see ``ablation_curve``.
        seed: see ``ablation_curve``.

    Returns:
        For each prompt Scores with axis ("pos",), units "squared"; 0 after the position.

    Raises:
        ValueError: see ``ablation_curve``.
        TypeError: see ``ablation_curve``.

    """
    questions = ask(model, prompts, protocol, seed)
    ablation = Ablation.of(questions, replace, corpus, seed)
    found = []
    for number, question in enumerate(tqdm(questions, desc="leaving one out")):
        reach = question.position + 1
        rows = torch.eye(len(question.tokens), dtype=torch.bool, device="cpu")[:reach]
        moved = divergence(question.log_probs, ablation.log_probs(question, number, rows), protocol)
        values = torch.cat([moved.cpu(), torch.zeros(len(question.tokens) - reach, dtype=torch.float64, device="cpu")])
        found.append(_scores(question, values, {"replace": replace, "protocol": protocol, "seed": seed}))
    return found


def divergence(
    clean: Float[Tensor, " vocab"], other: Float[Tensor, "row vocab"], protocol: Protocol
) -> Float[Tensor, " row"]:
    """KL(clean ‖ other) of log probabilities."""
    if protocol == "paper":
        # The logarithm in float32, as the authors have it.
        lowest = float(torch.tensor(_CLAMP, device="cpu").log())
        clean, other = clean.clamp(min=lowest), other.clamp(min=lowest)
    return (clean.exp() * (clean - other)).sum(-1)


def rank_of_top(scores: Ranking, effects: Scores) -> tuple[int, float]:
    """Where the token that a method ranks first stands among all tokens by their true effect.

    Returns:
        Its rank, 0 for the largest effect, and 100 · rank / number of tokens.

    Raises:
        ValueError: scores and effects of different length.

    """
    values = scores.values.squeeze(0) if isinstance(scores, Scores) else vector(scores, "scores", "pos")
    if not values.isfinite().all():
        msg = "a ranking takes finite scores, got NaN or infinity"
        raise ValueError(msg)
    if values.shape != effects.values.shape:
        msg = f"scores have shape {tuple(values.shape)}, effects {tuple(effects.values.shape)}; pick one site"
        raise ValueError(msg)
    order = effects.values.argsort(descending=True, stable=True)
    rank = int((order == int(values.argmax())).nonzero())
    return rank, 100 * rank / len(values)


def _scores(question: Question, values: Tensor, how: Meta) -> Scores:
    host = question.host
    meta: Meta = {
        "token_ids": question.ids,
        "scope": {"kind": "leave one out", "fields": {}, "text": "leave one out"},
        "position": question.position,
        "positions": [question.position],
        "units": "squared",
        "model": host.name,
        "hooks": list(host.hooked()),
        "dtype": str(host.dtype).removeprefix("torch."),
        "versions": versions(),
        **how,
    }
    values = values.to(torch.float64 if host.dtype == torch.float64 else torch.float32)
    return Scores(values, ("pos",), {"pos": tuple(range(len(values)))}, token_texts(host, question.ids), meta)
