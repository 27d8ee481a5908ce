"""One sweep over the unembedding for all positions of a text, where each on its own would read it anew."""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lens_scopes.scopes.state import FinalState

# Rows of the unembedding that are held in float32 at one time.
_ROWS = 4096


def pull_each(
    states: Sequence[FinalState], at_logits: Callable[[slice], Float[Tensor, "target rows"]]
) -> Float[Tensor, "target d_model"]:
    """A cotangent at the logits of each state, given in runs of the vocabulary, pulled back to y by one sweep of W_U.

    Equivalent to ``pull`` of each state's own, which reads the whole unembedding for every one of them.
    """
    first = states[0]
    out = first.y.new_zeros(len(states), len(first.y))
    for which in _runs(len(first.logits)):
        part = at_logits(which)
        if any(state.slope is not None for state in states):
            slopes = [first.weight.new_ones(()).expand_as(s.logits) if s.slope is None else s.slope for s in states]
            part = part * torch.stack([slope[which] for slope in slopes])
        out += part.to(out.dtype) @ first.weight[which].to(out.dtype)
    return out


def log_prob_gradients(
    states: Sequence[FinalState], ids: Sequence[int]
) -> tuple[Float[Tensor, "position d_model"], Float[Tensor, " position"]]:
    """∂ log p_x/∂y = W̃ᵀ(onehot − p) of one token at every position, by one sweep over the unembedding; and log p_x.

    1 − p is what the other tokens have, not a difference: it keeps its digits where p is nearly 1.
    """
    tops = torch.stack([state.logits.max() for state in states])[:, None]
    # What the others have is summed without the target: 1 − p is their share, not a difference.
    others = torch.stack([_without(state, token, top) for state, token, top in zip(states, ids, tops, strict=True)])
    target = torch.stack([s.logits[token] for s, token in zip(states, ids, strict=True)])[:, None]
    above = (target - tops).double()
    whole = others + above.exp()
    columns = torch.tensor(ids, device=whole.device)

    def at_logits(which: slice) -> Float[Tensor, "position rows"]:
        part = torch.stack([state.logits[which] for state in states])
        c = (part - tops).exp() / -whole.to(part)
        mine = ((columns >= which.start) & (columns < which.start + part.shape[1])).nonzero()[:, 0]
        c[mine, columns[mine] - which.start] = (others / whole)[mine, 0].to(c)
        return c

    return pull_each(states, at_logits), (above - whole.log())[:, 0]


def _without(state: FinalState, token: int, top: Float[Tensor, "1"]) -> Float[Tensor, "1"]:
    """Σ_w exp(z_w − z_top) over all tokens but one, in float64."""
    e = (state.logits - top).exp()
    e[token] = 0
    return e.sum(dtype=torch.float64)[None]


def log_prob(logits: Float[Tensor, "*run vocab"], token: int) -> Float[Tensor, "*run"]:
    """log p of a token, in float64: the exponentials in the logits' own dtype, what they add up to in float64.

    Equivalent to ``logits.double().log_softmax(-1)[..., token]`` up to the rounding of the logits, at a third of the
    time.
    """
    top = logits.detach().amax(-1, keepdim=True)
    whole = (logits - top).exp().sum(-1, dtype=torch.float64).log()
    return (logits[..., token] - top[..., 0]).double() - whole


def distances(
    states: Sequence[FinalState], points: Float[Tensor, "position d_model"]
) -> Float[Tensor, "position vocab"]:
    """‖w̃_w − point‖² of every token at every position, up to rounding of ‖w̃_w‖²."""
    found = []
    for which in _runs(len(states[0].logits)):
        rows = states[0].weight[which].to(points.dtype)
        slopes = [1.0 if state.slope is None else state.slope[which] for state in states]
        products, lengths = points @ rows.T, rows.square().sum(-1)
        each = [s**2 * lengths - 2 * s * product for s, product in zip(slopes, products, strict=True)]
        found.append(torch.stack(each) + points.square().sum(-1, keepdim=True))
    return torch.cat(found, 1).clamp(min=0)


def _runs(vocab: int) -> Iterator[slice]:
    return (slice(start, start + _ROWS) for start in range(0, vocab, _ROWS))
