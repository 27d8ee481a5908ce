"""A Comparison as HTML: both prompts, how well prediction and patches agree, and the largest effects."""

from collections.abc import Mapping, Sequence
from typing import Any

from lens_scopes.results.provenance import part_text, scope_text, tokens_of
from lens_scopes.views import cells, markup

_LISTED = 10
_SAID = {
    "places": "patches that were measured",
    "places_not_zero": "those with an effect, predicted or measured; it is exactly 0 where the runs agree",
    "pearson": "linear correlation of predicted and measured",
    "spearman": "rank correlation",
    "sign_agreement": "share of effects whose sign was predicted",
    "slope": "measured per predicted, by least squares through 0",
    "largest_sign": "1: the sign of the largest measured effect was predicted",
    "largest_rank": "where the prediction ranks the largest measured effect; 1 is first",
    "overlap_10": "share of the ten largest measured effects among the ten largest predicted",
    "patches_scope": "patches that find 90 % of Σ |measured|, the largest prediction first",
    "patches_random": "the same in random order of the places that are not zero (the mean of many)",
    "patches_best": "the same if the effects were known: nothing needs fewer",
}


def _said(name: str) -> str:
    order = name.removeprefix("patches_")
    return _SAID.get(name, f"the same in the order of the {order}" if order != name else "")


def comparison_html(
    title: str,
    meta: Mapping[str, Any],
    tokens: Sequence[str],
    summary: Mapping[str, float],
    places: Sequence[str],
    predicted: Sequence[float],
    measured: Sequence[float],
) -> str:
    """A self-contained fragment.

    Args:
        title: what was compared.
        meta: of the measured effects.
        tokens: of the prompt that was patched.
        summary: the numbers, by name.
        places: each place measured, in words.
        predicted: by place.
        measured: by place.

    """
    told = [(name, markup.number(value), _said(name)) for name, value in summary.items()]
    drawn = cells.scatter(predicted, measured, places) if places else ""
    top = sorted(range(len(places)), key=lambda i: -abs(measured[i]))[:_LISTED]
    rows = [(places[i], markup.number(predicted[i]), markup.number(measured[i])) for i in top]
    bars = [cells.bar(measured[i], markup.bound([measured])) for i in top]
    largest = markup.heading(f"the {len(top)} largest measured effects of {len(places)}")
    return markup.figure(
        f"{title}: predicted and measured effects of {_what(meta)}",
        markup.facts(_prompts(meta, tokens)),
        markup.predictions(meta),
        markup.beside(drawn, markup.numbers(("", "value", ""), told)),
        largest + markup.numbers(("", "predicted", "measured"), rows, bars) if top else "",
    )


def comparison_title(meta: Mapping[str, Any], frozen: Sequence[str]) -> str:
    """The scope with its targets as they read, the model, and what was picked, summed, hooked or held.

    Args:
        meta: of the measured effects.
        frozen: what was held for the predicted ones.

    """
    scope, named = meta.get("scope"), tokens_of((meta.get("targets") or [None])[0])
    told = " against ".join(markup.named(one["text"]) for one in named)
    asked = f"{scope['kind']}({told})" if told and isinstance(scope, Mapping) else scope_text(meta, "scope")
    held = f"predicted with {', '.join(frozen)} frozen" if frozen else ""
    taken = "; ".join(filter(None, (part_text(meta), held)))
    model = f" on {meta['model']}" if "model" in meta else ""
    return f"{asked}{model} ({taken})" if taken else f"{asked}{model}"


def _prompts(meta: Mapping[str, Any], tokens: Sequence[str]) -> list[tuple[str, str]]:
    """The prompts and what the scope measures on each."""
    texts = {"clean": meta["clean_tokens"], "corrupted": tokens} if "clean_tokens" in meta else {"prompt": tokens}
    told = [(name, "".join(text)) for name, text in texts.items()]
    ends = meta.get("metric") or {}
    if ends:
        told.append(("metric", ", ".join(f"{name} {markup.number(value)}" for name, value in ends.items())))
    if set(ends) >= {"clean", "corrupted"}:
        told.append(("effect of a patch", "metric(patched) − metric(corrupted); blue bars raise the metric"))
    if "run" in ends:
        told.append(("effect of a cut", "metric(cut) − metric(run); blue bars raise the metric"))
    return told


def _what(meta: Mapping[str, Any]) -> str:
    """Patches from another run, or cuts and what stands in their stead."""
    stead = {"mean": "the mean over the other positions", "zero": "zero", "tensor": "a tensor of the user's"}
    return f"cuts, replaced by {stead.get(meta['replace'], meta['replace'])}" if "replace" in meta else "patches"
