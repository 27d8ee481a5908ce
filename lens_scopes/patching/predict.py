"""The effect of activation patching at every place at once, predicted from gradients between the two runs."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lens_scopes.calculus.describe import describe
from lens_scopes.calculus.finite import refuse_nonfinite
from lens_scopes.calculus.line import LARGE_GAP, Line
from lens_scopes.calculus.pair import Pair, refuse_unpredictable
from lens_scopes.calculus.trace import Trace
from lens_scopes.host import token_texts
from lens_scopes.host.prompts import Positions, Prompt
from lens_scopes.host.undo import guarded
from lens_scopes.patching.contract import contract, wide
from lens_scopes.patching.path import Path, fixed
from lens_scopes.results.arguments import Integer, integer, listed, number, shown
from lens_scopes.results.prediction import Prediction, difference_of, two_scale
from lens_scopes.results.warning import warn
from lens_scopes.scopes.protocol import Scope, cotangents_at, site_of, text_of
from lens_scopes.sites import EMBED, Sites

Method = Literal["gradient", "path", "two-scale", "fixed"]


@guarded
def predict(
    model: Any,
    clean: Prompt,
    corrupted: Prompt,
    scope: Scope,
    *,
    position: Positions = -1,
    sites: str | list[str] | tuple[str, ...] | None = None,
    method: Method | None = None,
    tol: float = 0.01,
    steps: Integer | None = None,
    freeze: Sequence[str] = (),
) -> Prediction:
    """What patching each place from the corrupted towards the clean run should do to what the scope measures.

    With g(α) = J_{a,t}ᵀv and a(α) on the straight line between the two prompts' embeddings (0 corrupted, 1 clean),
    Δa = a(1) − a(0) and D the metric's difference between the prompts, the methods are (positive raises the metric)

    - "gradient": ⟨g(0), Δa⟩, attribution patching; two forwards and one backward;
    - "path": Σ_i ½⟨g(α_i) + g(α_{i+1}), a(α_{i+1}) − a(α_i)⟩, which sums to D at "embed", up to ``meta["gap"]``;
    - "two-scale": (1 − w)·gradient + w·path with w² = min(1, abs(path / D)), the gradient where a patch does little and
      the path where it does much;
    - "fixed": ⟨mean of g at midpoints, Δa⟩, integrated gradients (Sundararajan et al. 2017) with the whole Δa.

    A Fisher Scope has no sign and predicts ½ Σ λ_i ⟨J_tᵀu_i, Δa_t⟩², the second-order term of
    KL(p_corrupted ‖ p_patched), by "gradient" only. docs/patching.md says which to trust, and how far.

    Args:
        model: a HookedTransformer or TransformerBridge, in eval mode. It is left as it came.
        clean: the prompt that activations are taken from.
        corrupted: the prompt that they are patched into, of the same length.
        scope: token targets mean what they mean on the clean prompt; a ``Continuation`` is the same tokens on both.
        position: whose next-token prediction is measured.
        sites: see ``score``; "z", "q", "k", "v" give an effect per head. ``.sum("pos")`` of them is for whole heads.
        method: see above. None is "two-scale", and "gradient" for squared scopes and with ``freeze``.
        tol: "path" and "two-scale" double the intervals, from 2 to 32, until the gap is at most this share of D.
        steps: so many intervals instead; of "fixed" the number of midpoints, which it needs.
        freeze: parts of the model that the gradient holds constant, see ``score``; "gradient" only.

    Returns:
        A Prediction with axes ("site", "pos"(, "head")), units "signed" ("squared" for Fisher), exactly 0 where the two
        runs have the same activation. ``meta`` has method, points, gap and metric.

    Raises:
        ValueError: prompts of different length; a method that the scope, ``freeze`` or ``steps`` does not go with; or
            see ``score``.
        IndexError: a position outside the prompts.
        RuntimeError: see ``score``.

    Warns:
        UserWarning: the gap is above 5 % of D; gradient and path have different signs at the largest place; or the
            metric does not differ between the prompts, so that "two-scale" is the path alone.

    """
    steps = None if steps is None else integer(steps, "steps (they count the points of the path)", 1, 10_000)
    freeze = listed(freeze)
    _refuse_request(method, tol, steps, freeze)
    pair = Pair.of(model, clean, corrupted, scope, position)
    wanted = pair.host.sites(sites, site_of(scope))
    first_order = method == "gradient" or bool(freeze)
    opened = wanted.names if first_order or EMBED in wanted.names else (*wanted.names, EMBED)
    clean_run = pair.trace(pair.clean, opened)
    pair = pair.resolved(clean_run)
    run = pair.trace(pair.corrupted, opened, freeze)
    (made,) = cotangents_at(pair.scope, run.ends(0))
    refuse_unpredictable(pair.host, wanted.names, made)
    if made.squared:
        _refuse_squared(pair.scope, method, steps)
    used = method or ("gradient" if made.squared or freeze else "two-scale")
    ends = {} if made.squared else pair.metric(run, clean_run)
    meta = describe(run, 0, [made], pair.asked, freeze)
    meta |= {
        "units": "squared" if made.squared else "signed",
        "along": "tensor",
        "patching": "predicted",
        "method": used,
        "clean_token_ids": pair.clean.tolist(),
        "clean_tokens": list(token_texts(pair.host, pair.clean.tolist())),
        "metric": ends or None,
    }
    meta |= {} if steps is None else {"steps": steps}
    estimates = {}
    if used == "gradient":
        reached = replace(run, handles={name: run.handles[name] for name in wanted.names})
        found = {name: of[0] for name, of in contract(reached, [made], _change(run, clean_run, wanted.names)).items()}
        rows, meta["points"] = torch.stack([found[name] for name in wanted.names], 1), 1
    elif used == "fixed" and steps:
        found = fixed(pair, Line.between(run, clean_run), _change(run, clean_run, opened), steps)
        rows, meta["points"] = torch.stack([found[name] for name in wanted.names], 1), steps
        meta["gap"] = ends["clean"] - ends["corrupted"] - float(found[EMBED].sum())
    else:
        path = Path(pair, run, clean_run)
        meta["gap"] = path.run(ends["clean"] - ends["corrupted"], tol, steps)
        by_site = [path.estimates(name) for name in wanted.names]
        estimates = {name: torch.stack([of[name] for of in by_site]) for name in by_site[0]}
        effects = estimates["path"]
        if used == "two-scale":
            effects = two_scale(estimates["gradient"], estimates["path"], ends).to(effects)
        rows, meta["points"] = effects[None], len(path.found)
    refuse_nonfinite(run.host, run.tokens, {name: rows[:, s] for s, name in enumerate(wanted.names)})
    probes = None
    if made.squared:
        rows = rows.square() / 2
        probes = rows[-made.probes :] if made.probes else None
    texts = token_texts(pair.host, pair.corrupted.tolist())
    found = Prediction(rows.sum(0), *axes(wanted, rows.shape[1:]), texts, meta, probes, estimates)
    _warn(found)
    return found


def axes(wanted: Sites, shape: torch.Size) -> tuple[tuple[str, ...], dict[str, tuple]]:
    """Names and labels of ("site", "pos"(, "head"))."""
    dims = ("site", "pos", "head")[: len(shape)]
    return dims, {"site": wanted.names, **{dim: tuple(range(n)) for dim, n in zip(dims[1:], shape[1:], strict=True)}}


def _change(corrupted: Trace, clean: Trace, names: Sequence[str]) -> dict[str, Tensor]:
    """Δa by site, [pos(, head), d]."""
    return {name: wide(clean.sites[name][0].detach()) - wide(corrupted.sites[name][0].detach()) for name in names}


def _refuse_request(method: Any, tol: Any, steps: int | None, freeze: Sequence[Any]) -> None:
    """Refuse what no scope can make sense of."""
    if method is not None and method not in get_args(Method):
        msg = f"method is one of {', '.join(get_args(Method))}, got {shown(method)}; write method='two-scale'"
        raise ValueError(msg)
    number(tol, "tol (a share of the metric's difference)", above=0, example=0.01)
    if freeze and method not in (None, "gradient"):
        msg = (
            f"method={method!r} with freeze={list(freeze)}: what is left is not the gradient of the metric, and sums "
            "to nothing along a path; write method='gradient', or leave freeze out"
        )
        raise ValueError(msg)
    if method == "fixed" and steps is None:
        msg = "method='fixed' is a mean over points of the path, and steps, their number, is None; write steps=8"
        raise ValueError(msg)
    if steps is not None and (method == "gradient" or freeze):
        msg = f"steps={steps}: the gradient has no path to take steps on; leave steps out, or write method='two-scale'"
        raise ValueError(msg)


def _refuse_squared(scope: Scope, method: Method | None, steps: int | None) -> None:
    if method in (None, "gradient") and steps is None:
        return
    asked = f"steps={steps}" if method is None else f"method={method!r}"
    msg = (
        f"{asked}: {text_of(scope)} predicts a squared form, which no path integral completes; "
        "write method='gradient', without steps"
    )
    raise ValueError(msg)


def _warn(found: Prediction) -> None:
    """Of what makes a prediction doubtful as a whole; once."""
    metric, gap, gradient, path = found.meta.get("metric"), found.meta.get("gap"), found.gradient, found.path
    if gap is None or metric is None or not found.values.any():
        return
    difference = difference_of(metric)
    said = []
    if difference is None and found.meta.get("method") == "two-scale":
        said.append("the metric is the same on both prompts, so that 'two-scale' is the path alone")
    elif difference is not None and abs(gap) > LARGE_GAP * abs(difference):
        said.append(
            f"{found.meta.get('points')} points of the path miss {abs(gap / difference):.0%} of the metric's "
            "difference; write more steps"
        )
    if gradient is not None and path is not None:
        place = torch.unravel_index(found.values.abs().argmax(), found.values.shape)
        if gradient[place] * path[place] < 0:
            labels = [found.coords[dim][int(i)] for dim, i in zip(found.dims, place, strict=True)]
            where = f"{labels[0]} at position {labels[1]} ({found.tokens[labels[1]]!r})"
            where += "".join(f", head {head}" for head in labels[2:])
            said.append(
                f"gradient ({float(gradient[place]):+.3g}) and path ({float(path[place]):+.3g}) have different signs "
                f"at the largest place, {where}: measure it"
            )
    if said:
        warn("; ".join(said))
