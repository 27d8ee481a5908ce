"""What a result is called, and what tells it from others: titles of results, differences, and some side by side."""

from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any

from lens_scopes.results.provenance import part_text, prompt_text, scope_text, taken_text, target_text, unit_text
from lens_scopes.views import markup

# Characters of a prompt that tell it from another.
_MOST = 40
# Positions that a name lists.
_LISTED = 8
_Facts = Mapping[str, Any]


def title_of(meta: _Facts) -> str:
    """What was asked of which model; of effects of patches, whether they were predicted or measured."""
    if "difference" in meta:
        sides = meta["difference"]
        return f"{common(sides)}: {' − '.join(differing(sides, [''] * len(sides)))}"
    asked = f"{question_of(meta)} on {_model(meta)}"
    return f"{asked} ({part})" if (part := taken_text(meta)) else asked


def question_of(meta: _Facts) -> str:
    """What was asked; of a difference, what is subtracted from what."""
    return f"{_effects(meta)}: {_scope(meta)}" if "patching" in meta and "difference" not in meta else _scope(meta)


def common(metas: Sequence[_Facts]) -> str:
    """What some results have in common: the scope, the model."""
    scopes, models = ([*dict.fromkeys(map(of, metas))] for of in (_scope, _model))
    asked = scopes[0] if len(scopes) == 1 else f"{len(scopes)} scopes"
    return f"{asked} on {models[0] if len(models) == 1 else f'{len(models)} models'}"


def differing(metas: Sequence[_Facts], prompts: Sequence[str]) -> list[str]:
    """By result, in words, what tells it from the others; numbered where that is not enough."""
    found: list[list[str]] = [[] for _ in metas]
    for told in _TOLD:
        each = [told(meta) for meta in metas]
        if len(set(each)) > 1:
            for own, text in zip(found, each, strict=True):
                own.append(text)
    if len(set(prompts)) > 1:
        for own, text in zip(found, _unlike(prompts), strict=True):
            own.append(f"“{text}”")
    names = [", ".join(own) for own in found]
    if len(set(names)) == len(names):
        return names
    return [f"{n}. {name}" if name else str(n) for n, name in enumerate(names, 1)]


def prompts_of(results: Sequence[Any]) -> list[str]:
    """The prompt of each result."""
    return [prompt_text(getattr(one, "meta", {}), getattr(one, "tokens", ())) for one in results]


def quotes(result: Any) -> list[str]:
    """The prompts that a result is about, in full: of two, which is which."""
    meta = getattr(result, "meta", {})
    (own,) = prompts_of([result])
    if "clean_tokens" in meta:
        return [f"clean: {''.join(meta['clean_tokens'])}", f"corrupted: {own}"]
    if "corrupted_tokens" in meta:
        return [f"clean: {own}", f"corrupted: {''.join(meta['corrupted_tokens'])}"]
    return [own] if own else []


def _unlike(prompts: Sequence[str]) -> list[str]:
    """The words of each prompt between those that all begin with and those that all end with."""
    words = [prompt.split() for prompt in prompts]
    begin = _alike(words)
    end = _alike([one[begin:][::-1] for one in words])
    texts = []
    for one in words:
        part = markup.visible(" ".join(one[begin : len(one) - end]), _MOST) if len(one) > begin + end else ""
        texts.append(f"{'… ' * bool(begin)}{part}{' …' * bool(end)}".strip())
    return texts


def _alike(lists: Sequence[Sequence[str]]) -> int:
    """How many entries all of them begin with."""
    alike = (len(set(entries)) == 1 for entries in zip(*lists, strict=False))
    return len(list(takewhile(bool, alike)))


def _scope(meta: _Facts) -> str:
    if "difference" in meta:
        return title_of(meta)
    along = meta.get("along") if "patching" not in meta else None
    return scope_text(meta) + {"activation": " × activation", "tensor": " × direction"}.get(along or "", "")


def _model(meta: _Facts) -> str:
    return str(meta.get("model", "a model"))


def _weights(meta: _Facts) -> str:
    folded = "final norm folded" if meta.get("folded") else "final norm not folded"
    return f"{folded}, logits {'centred' if meta.get('centred') else 'not centred'}"


def _position(meta: _Facts) -> str:
    at = meta.get("selected", {}).get("target_pos", meta.get("position"))
    if isinstance(at, int):
        return "after the last token" if at == len(meta.get("token_ids", ())) - 1 else f"after position {at}"
    if isinstance(at, list) and len(at) > _LISTED:
        return f"after {len(at)} positions, {min(at)} to {max(at)}"
    return f"after positions {at}"


def _targets(meta: _Facts) -> str:
    told = [text for text in map(target_text, meta.get("targets") or ()) if text]
    return f"about {', '.join(markup.named(text) for text in told)}" if told else "about no token"


def _other_prompt(meta: _Facts) -> str:
    """The second prompt of patches and of a whole change, whose text is nowhere."""
    for key, what in (("clean_token_ids", "from the clean ids"), ("corrupted_token_ids", "against the ids")):
        if key in meta:
            return f"{what} {' '.join(map(str, meta[key]))}"
    return f"replaced by {meta['replace']}" if "replace" in meta else ""


def _effects(meta: _Facts) -> str:
    by = f" ({meta['method']})" if "method" in meta else ""
    return f"{meta['patching']} effects of patches{by}"


#: What may tell results apart, in this order.
_TOLD: tuple[Callable[[_Facts], str], ...] = (
    lambda meta: _effects(meta) if "patching" in meta else "score",
    _scope,
    _model,
    lambda meta: str(meta.get("host", "")),
    lambda meta: str(meta.get("dtype", "")),
    _weights,
    lambda meta: f"frozen: {', '.join(meta.get('freeze', ())) or 'nothing'}",
    lambda meta: part_text(meta) or "all of it",
    _position,
    _targets,
    _other_prompt,
    unit_text,
)
