"""What a check may hold a result against: the model and the scope that it is of, place by place."""

from collections.abc import Mapping, Sequence
from typing import Any

from lens_scopes.host import Host
from lens_scopes.results.provenance import ScopeData
from lens_scopes.results.scores import Scores
from lens_scopes.scopes.protocol import Scope, data_of, opaque

# The model is another one if the probability of what was its first choice is another by more than this share: half
# precision and float32 differ by less.
_SAME = 0.3


def first_choices(meta: Mapping[str, Any]) -> list[int]:
    """By position, the token that the model of a result chose first; none in what was written by hand."""
    return [int(predictions[0]["id"]) for predictions in meta.get("predictions") or () if predictions]


def refuse_other_model(meta: Mapping[str, Any], host: Host, said: Sequence[float]) -> None:
    """Refuse a model that predicts something else than the one that the result is of.

    Args:
        meta: the result's.
        host: the model.
        said: by position, its probability of those first choices.

    Raises:
        ValueError: naming both models, and what they say.

    """
    known = [predictions[0] for predictions in meta.get("predictions") or () if predictions]
    for position, first, now in zip(meta.get("positions", ()), known, said, strict=False):
        was = first.get("p")
        if was is not None and not abs(now - was) <= _SAME * was:
            msg = (
                f"the result is of a model {meta.get('model')!r} that predicts {first['text']!r} after position "
                f"{position} with p = {was:.3g}, and {host.name!r} gives it {now:.3g}: these are other weights, or "
                "other hooks; write check(model) with the model as it was"
            )
            raise ValueError(msg)


def refuse_other_scope(known: ScopeData | None, scope: Scope) -> None:
    """Refuse to hold a result against what another scope says; of functions and tensors nobody knows.

    Raises:
        ValueError: naming both.

    """
    if not isinstance(known, Mapping) or known["kind"] == "function":  # written by hand, or a file of 0.1.0
        return
    given = data_of(scope)
    fields = known["fields"].keys() & given["fields"].keys()
    other = [
        name for name in fields if not opaque(known["fields"][name]) and known["fields"][name] != given["fields"][name]
    ]
    if known["kind"] != given["kind"] or other:
        msg = f"the result is of {known['text']}, got scope={given['text']}; leave scope out, or write the one it is of"
        raise ValueError(msg)


def refuse_unknown(meta: Mapping[str, Any], *needed: str) -> None:
    """Refuse a result that does not say what is needed to run it again."""
    missing = [key for key in needed if key not in meta]
    if missing:
        msg = (
            f"check runs what a result says about itself again, and its meta has no {', '.join(map(repr, missing))}; "
            "check what score or flow returned, or pass scope=... where the scope alone is missing"
        )
        raise ValueError(msg)


def refuse_incomparable(scores: Scores) -> None:
    """Refuse what is no derivative of the model at single places."""
    meta = scores.meta
    if "patching" in meta or "positions" not in meta or "targets" not in meta:
        msg = (
            f"check compares what score(...) returned, and {scores!r} holds {meta.get('patching', 'other')} effects; "
            "patching.compare(predicted, measured) holds predictions against patches"
        )
    elif meta.get("summed"):
        msg = f"check perturbs single places, and these scores are sums over {', '.join(meta['summed'])}; check before"
    elif meta.get("freeze"):
        msg = (
            f"scores with freeze={list(meta['freeze'])} are not the derivative of what the model computes, so finite "
            "differences of the model cannot confirm them; check the scores without freeze"
        )
    else:
        return
    raise ValueError(msg)
