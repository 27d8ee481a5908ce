"""Provenance: how a result was obtained. The one schema of ``meta``, which every result carries."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, TypedDict

from lens_scopes.sites import short

Units = Literal["norm", "squared", "signed", "share"]

#: What the units are called wherever they are shown.
UNITS: Mapping[str, str] = {
    "norm": "norm",
    "squared": "squared units",
    "signed": "signed",
    "share": "share of the total",
}
_OF_DIFFERENCE = {"norm": "norms", "squared": "squared units", "signed": "signed scores"}


class _Named(TypedDict):
    id: int
    text: str
    """What it adds to the text there: blanks included."""


class Token(_Named, total=False):
    """A token of the vocabulary, as the model saw it after a position. Files of 0.1.0 have no p and rank."""

    p: float
    """The model's probability for it."""
    rank: int
    """Its place among all tokens by probability: 0 is the model's first choice."""


class Target(Token, total=False):
    """The token that is explained, and the one that it is held against."""

    versus: Token


class ScopeData(TypedDict):
    """A scope, written down."""

    kind: str
    """The name of its class."""
    fields: dict[str, Any]
    """What it was made with, JSON-like; enough to remake it unless it holds a tensor or a function."""
    text: str
    """As it is written in code."""


class Role(TypedDict):
    """A message of a chat: its role, and its tokens from start to stop."""

    role: str
    start: int
    stop: int


class Note(TypedDict, total=False):
    """What a scope says about its cotangents at one position; a scope of somebody else's says what it likes."""

    target: int
    """The id of the token explained."""
    versus: int
    """The id of the token that it is held against."""
    method: str
    """Fisher: "exact", "truncated" (biased low) or "estimate" (unbiased, with a standard error)."""
    coverage: float
    """Fisher: the share of tr F that is carried exactly."""
    passes: int
    """Fisher: how many cotangents were pulled back."""
    heavy_words: int
    """Fisher: how many words the directions are made of; all others are in the probes, or left out of a truncation."""
    basis: str
    """Fisher: where its directions are eigenvectors: "y", the input of the unembedding."""
    log_trace: float
    """Fisher: log tr F, also where tr F itself is hardly a number; absent where F is 0."""


class Meta(TypedDict, total=False):
    """The facts that travel with a result. A key is absent where it has no meaning."""

    # What was asked.
    token_ids: list[int]
    """The ids of the prompt, exactly as they ran."""
    special: list[int]
    """The positions of special tokens (BOS, a chat template's headers)."""
    own_bos: bool
    """Whether the prompt was a string that begins with the BOS as text: then it has that one, and not another."""
    roles: list[Role]
    """Of a chat: the tokens of each message; empty where its template does not say where they begin."""
    spans: dict[str, list[int]]
    """By name, [start, stop] of the spans that the prompt came with."""
    scope: ScopeData
    """What was explained."""
    position: int | list[int]
    """The position explained, or the list that was asked for or explained as one."""
    positions: list[int]
    """The positions explained, always as a list; parallel to targets, predictions and notes."""
    targets: list[Target | None]
    """By position, the token explained; None for scopes that are not about a token."""
    predictions: list[list[Token]]
    """By position, the model's first choices."""
    value: float
    """What a scope that spans positions measures on this text: Σ log p of a continuation."""
    reduce: Literal["sum"]
    """Whether the positions explained were summed, in squared units."""
    passes: int
    """How many backward passes that sum took."""
    freeze: list[str]
    """The parts of the model that were held constant."""
    along: Literal["activation", "tensor"] | None
    """None for norms; "activation" or "tensor" for products with a direction."""
    units: Units
    """What the numbers are: lengths, squared lengths, signed products, or shares of a total."""

    # Of which model.
    model: str
    """What the model calls itself."""
    host: str
    """Its TransformerLens class."""
    dtype: str
    """Of its weights."""
    folded: bool
    """Whether the final norm makes the length of y a constant: its weight is folded away, or untrained."""
    centred: bool
    """Whether the unembedding, and with it every logit, is centred."""
    hooks: list[str]
    """Where the user's own hooks were in force (hook names, or modules for torch's): part of what was measured."""
    versions: dict[str, str]
    """Of this package, TransformerLens and torch."""

    # How well it is known.
    coverage: float | list[float]
    """The share that cotangents carry exactly: a truncation misses the rest, an estimate probes it (``stderr``)."""
    notes: list[Note]
    """By position, what the scope says about its cotangents."""
    method: str
    """Flow: how tangents were pushed forward. Predicted effects: "gradient", "path", "two-scale" or "fixed"."""
    residual_inside_heads: float
    """Flow: the largest violation of a law inside heads."""
    end: str
    """Flow: the inner site where the ledger ends; absent where it goes to the end of the model."""
    edge_heads: list[list[int]]
    """Flow: [layer, head] of each map of edges, where those of some heads were asked for."""

    # What was done to it since.
    selected: dict[str, Any]
    """Axes that were dropped by ``sel``, with the label picked."""
    summed: list[str]
    """Axes that were summed."""
    aggregated: str
    """What positions were joined to: "word", "sentence", "line", "role" or "span"."""
    joined_tokens: list[str]
    """The text of every token of the prompt before they were joined."""
    joined: list[list[int]]
    """The positions of each joined entry."""
    straddling: list[int]
    """Tokens that are partly outside of the entry they were joined to."""
    difference: list["Meta"]
    """Of which two results this is the difference, as they were."""
    degrees: int
    """Of freedom of the interval of a difference of estimates."""
    together: bool
    """Flow: whether all sources share one row."""

    # Patching.
    patching: Literal["predicted", "measured"]
    """Effects of patches: whether they were predicted or measured."""
    clean_token_ids: list[int]
    """The prompt that activations came from; token_ids is the one that they were patched into."""
    clean_tokens: list[str]
    """Their texts."""
    corrupted_token_ids: list[int]
    """Integrated flow: the prompt that the change begins at; token_ids is the clean one, where it ends."""
    corrupted_tokens: list[str]
    """Their texts."""
    metric: dict[str, float] | None
    """What the scope measures on the "clean" and "corrupted" prompt, or the "run" that is cut; None if no number."""
    steps: int
    """Midpoints ("fixed") or intervals of the path, where a number was asked for."""
    points: int
    """Points of the path at which there are gradients."""
    gap: float
    """What those points missed of the metric's difference."""
    measured: int
    """How many patches were run."""
    places: list[list[str | int]]
    """The places that were patched together: site, position and head."""

    # Evaluation.
    protocol: Literal["paper"] | None
    """None, or "paper"."""
    replace: str
    """How tokens, or activations, were taken out."""
    mode: str
    """Whether the top tokens were taken out, or all others."""
    skip: list[int]
    """Positions that were never taken out."""
    seed: int
    """Of everything that was drawn."""
    watched: list[int]
    """By prompt, the token whose probability was followed."""
    lengths: list[int]
    """By prompt, the number of tokens."""
    taken: list[list[int]]
    """By prompt, how many tokens each share is."""
    references: list[str]
    """Methods that nobody asked for, which every table has."""


def tokens_of(target: Target | None) -> list[Token]:
    """The token explained and the one that it is held against: none, one or two."""
    if target is None:
        return []
    return [target, target["versus"]] if "versus" in target else [target]


def target_text(target: Target | None) -> str | None:
    """The token explained, " against " the other one where there is one."""
    return " against ".join(one["text"] for one in tokens_of(target)) or None


def scope_text(meta: Mapping[str, Any], unknown: str = "scores") -> str:
    """The scope of a result in words; of a ``meta`` that was written by hand, whatever stands there."""
    scope = meta.get("scope", unknown)
    return str(scope.get("text", unknown)) if isinstance(scope, Mapping) else str(scope)


def part_text(meta: Mapping[str, Any]) -> str:
    """Which part of what was computed is left, and what else was in force, in words; empty for all of it."""
    picked = {dim: label for dim, label in meta.get("selected", {}).items() if dim != "target_pos"}
    said = [f"{dim} {short(label) if dim == 'site' else label}" for dim, label in picked.items()]
    said += [f"summed over {', '.join(meta['summed'])}"] if meta.get("summed") else []
    said += ["total over the positions explained"] if meta.get("reduce") else []
    by = meta.get("aggregated")
    said += [f"by {'named span' if by == 'span' else by}"] if by else []
    said += [f"with hooks at {', '.join(meta['hooks'])}"] if meta.get("hooks") else []
    return "; ".join(said)


def taken_text(meta: Mapping[str, Any]) -> str:
    """The same, and what was held constant."""
    frozen = f"frozen: {', '.join(meta['freeze'])}" if meta.get("freeze") else ""
    return "; ".join(filter(None, (part_text(meta), frozen)))


def plain(value: Any) -> Any:
    """A copy that is JSON-like through and through: tensors and arrays as lists, what JSON does not know as text."""
    if hasattr(value, "tolist"):  # of torch and numpy, single numbers too
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def digest(value: Any) -> str:
    """Anything JSON-like in one word, the same in every process."""
    return hashlib.blake2b(json.dumps(plain(value), sort_keys=True).encode(), digest_size=16).hexdigest()


def unit_text(meta: Mapping[str, Any]) -> str:
    """What the numbers are, in words."""
    if "difference" in meta:
        return f"difference of {_OF_DIFFERENCE[meta['difference'][0].get('units', 'norm')]}"
    return UNITS[meta.get("units", "norm")]


def lengths(meta: Mapping[str, Any]) -> list[str]:
    """How many tokens each joined entry has; of a difference, of both sides where they differ. Empty if none is."""
    own = [str(len(one)) for one in meta.get("joined", ())]
    if not own or "difference" not in meta:
        return own
    left, right = (lengths(side) for side in meta["difference"])
    return [a if a == b else f"{a} and {b}" for a, b in zip(left, right, strict=True)]


def prompt_text(meta: Mapping[str, Any], tokens: Sequence[str]) -> str:
    """The prompt of a result, also where its tokens were joined to spans with other names."""
    return "".join(meta.get("joined_tokens", tokens))


def versions() -> dict[str, str]:
    """What made a result: this package, TransformerLens, torch."""
    return {package: _version(package) for package in ("lens-scopes", "transformer-lens", "torch")}


@cache  # read from a file of the installation, which takes longer than a short prompt's score
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
