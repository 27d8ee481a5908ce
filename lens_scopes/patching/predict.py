"""The first-order effect of activation patching at every place at once: two forwards, one backward."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lens_scopes.calculus.describe import describe
from lens_scopes.calculus.finite import refuse_nonfinite
from lens_scopes.calculus.memory import prompts_at_once
from lens_scopes.calculus.pair import Pair
from lens_scopes.calculus.pullback import Rows, pull_back
from lens_scopes.calculus.trace import Trace, trace
from lens_scopes.host import token_texts
from lens_scopes.host.prompts import Positions, Prompt
from lens_scopes.host.undo import guarded
from lens_scopes.results.given import Integer, integer
from lens_scopes.results.scores import Scores
from lens_scopes.scopes.protocol import Scope, cotangents_at, text_of
from lens_scopes.scopes.quantity import quantities
from lens_scopes.scopes.state import Cotangents
from lens_scopes.sites import EMBED, Sites, at_or_after


@guarded
def predict(
    model: Any,
    clean: Prompt,
    corrupted: Prompt,
    scope: Scope,
    *,
    position: Positions = -1,
    sites: str | list[str] | tuple[str, ...] | None = None,
    steps: Integer = 1,
) -> Scores:
    """What patching each place from the corrupted towards the clean run should do to what the scope measures.

    ⟨J_{a,t}ᵀv, a_t^clean − a_t^corrupted⟩, J and v from the corrupted run: attribution patching with the scope's
    metric; positive raises it. A Fisher Scope has no sign and predicts ½ Σ λ_i ⟨J_tᵀu_i, Δa_t⟩², the second-order term
    of KL(p_corrupted ‖ p_patched). With ``steps`` > 1 the gradient is the mean over midpoints of the straight line
    between the two prompts' embeddings (integrated gradients, Sundararajan et al. 2017): then the predictions at
    "embed" sum to the whole difference of the metric between the prompts.

    Args:
        model: a HookedTransformer or TransformerBridge, in eval mode. It is left as it came.
        clean: the prompt that activations are taken from.
        corrupted: the prompt that they are patched into, of the same length.
        scope: token targets mean what they mean on the clean prompt; a ``Continuation`` is the same tokens on both.
        position: whose next-token prediction is measured.
        sites: see ``score``; "z", "q", "k", "v" give an effect per head.
        steps: points of the integration path; 1 is the gradient at the corrupted run.

    Returns:
        Scores with axes ("site", "pos"(, "head")), units "signed" ("squared" for Fisher). With ``steps`` > 1
        ``meta["gap"]`` is what the points missed, in the metric's units: its difference between the prompts minus the
        sum of the predictions at "embed", whichever sites were asked for. A model may switch between two points of the
        path: a large gap asks for more steps.

    Raises:
        ValueError: prompts of different length; steps > 1 with Fisher; or see ``score``.
        IndexError: a position outside the prompts.
        RuntimeError: see ``score``.

    """
    pair = Pair.of(model, clean, corrupted, scope, position)
    wanted = pair.host.sites(sites)
    steps = integer(steps, "steps (they count the points of the path)", 1)
    # The ends of the path of integration.
    opened = wanted.names if steps == 1 or EMBED in wanted.names else (*wanted.names, EMBED)
    clean_run = pair.trace(pair.clean, opened)
    pair = pair.resolved(clean_run)
    run = pair.trace(pair.corrupted, opened)
    (made,) = cotangents_at(pair.scope, run.ends(0))
    if not made.squared and len(made.vectors) > 1:
        msg = f"{len(made.vectors)} cotangents in norm units have no common sign; return one, or squared=True"
        raise ValueError(msg)
    if made.squared and steps > 1:
        msg = f"steps={steps}: {pair.scope!r} predicts a squared form, which no path integral completes; write steps=1"
        raise ValueError(msg)
    _refuse_later(pair, wanted, made)
    delta = {name: _wide(clean_run.sites[name][0].detach()) - _wide(run.sites[name][0].detach()) for name in opened}
    ends = {} if made.squared else _metric(pair.scope, run, clean_run)
    meta = describe(run, 0, [made], pair.asked, ())
    meta |= {
        "units": "squared" if made.squared else "signed",
        "along": "tensor",
        "patching": "predicted",
        "steps": steps,
        "clean_token_ids": pair.clean.tolist(),
        "metric": ends or None,
    }
    if steps == 1:
        found = {name: rows[0] for name, rows in _contract(run, [made], delta).items()}
    else:
        corrupted_end = run.sites[EMBED].detach()
        del clean_run
        found = _integrate(pair, delta, corrupted_end, steps)
        meta["gap"] = ends["clean"] - ends["corrupted"] - float(found[EMBED].sum())
    refuse_nonfinite(run.host, run.tokens, {name: found[name] for name in wanted.names})
    rows = torch.stack([found[name] for name in wanted.names], 1)
    probes = None
    if made.squared:
        rows = rows.square() / 2
        probes = rows[-made.probes :] if made.probes else None
    texts = token_texts(pair.host, pair.corrupted.tolist())
    return Scores(rows.sum(0), *axes(wanted, rows.shape[1:]), texts, meta, probes)


def axes(wanted: Sites, shape: torch.Size) -> tuple[tuple[str, ...], dict[str, tuple]]:
    """Names and labels of ("site", "pos"(, "head"))."""
    dims = ("site", "pos", "head")[: len(shape)]
    return dims, {"site": wanted.names, **{dim: tuple(range(n)) for dim, n in zip(dims[1:], shape[1:], strict=True)}}


def _contract(run: Trace, made: list[Cotangents], delta: dict[str, Tensor]) -> dict[str, Tensor]:
    """√w_i⟨J_tᵀv_i, Δa_t⟩ for every prompt of the run, cotangent and place: by site, each [batch, row, pos(, head)]."""
    parts = [
        {name: (_wide(gradients[name]) * moved).sum(-1).transpose(0, 1).cpu() for name, moved in delta.items()}
        for _, gradients in pull_back(run, Rows.of([[one] for one in made]), made[0].site)
    ]
    found = {name: torch.cat([part[name] for part in parts], 1) for name in delta}
    weights = torch.stack([one.root_weights() for one in made])
    if made[0].squared:  # a weight may be no number in float32
        found = {name: rows.double() for name, rows in found.items()}
    return {
        name: rows * weights.to(rows).reshape(*weights.shape, *[1] * (rows.ndim - 2)) for name, rows in found.items()
    }


def _integrate(
    pair: Pair, delta: dict[str, Tensor], corrupted: Float[Tensor, "1 pos d_model"], steps: int
) -> dict[str, Float[Tensor, "row pos ..."]]:
    """The mean over midpoints of the line between the embeddings; each site keeps its own Δa."""
    midpoints = (torch.arange(steps, dtype=torch.float64, device="cpu") + 0.5) / steps
    size = prompts_at_once(pair.host, len(pair.corrupted))
    names = [*delta, *pair.inner(list(delta))]
    total = dict.fromkeys(delta, torch.zeros((), device="cpu"))
    for alphas in tqdm(midpoints.split(size), desc="integrating", leave=False, disable=steps <= size):
        line = corrupted + alphas.to(corrupted)[:, None, None] * delta[EMBED].to(corrupted)

        def place(activation: Tensor, hook: object, line: Tensor = line) -> Tensor:  # noqa: ARG001
            return line.to(activation)

        with pair.host.hooks([(EMBED, place)]):
            run = trace(pair.host, pair.corrupted.expand(len(alphas), -1), names, pair.positions)
            made = [cotangents_at(pair.scope, run.ends(b))[0] for b in range(len(alphas))]
            for name, rows in _contract(run, made, delta).items():
                total[name] = total[name] + rows.sum(0)
    return {name: rows / steps for name, rows in total.items()}


def _metric(scope: Scope, corrupted: Trace, clean: Trace) -> dict[str, float]:
    """What the scope measures on both runs."""
    value = quantities(scope, corrupted.ends(0))
    found = {name: value(run.ends(0)) for name, run in (("corrupted", corrupted), ("clean", clean))}
    refuse_nonfinite(corrupted.host, corrupted.tokens, found, f"the number of {text_of(scope)}")
    return {name: float(number) for name, number in found.items()}


def _refuse_later(pair: Pair, wanted: Sites, made: Cotangents) -> None:
    late = at_or_after(made.site, wanted.names, pair.host.n_layers)
    if late:
        msg = f"the direction reads {made.site}; patches at or after it do not reach it: {', '.join(late)}"
        raise ValueError(msg)


def _wide(x: Tensor) -> Tensor:
    """Half precision is contracted in float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
