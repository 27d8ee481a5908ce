"""Ablation curves: how fast the prediction falls when the tokens that a method ranks highest are taken out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from lens_scopes.evaluate.ablation import Ablation, Replace
from lens_scopes.evaluate.intervals import FEWEST, bootstrap_interval, interval_text
from lens_scopes.evaluate.protocol import Protocol, Question, ask, skipped
from lens_scopes.host.prompts import Prompt
from lens_scopes.host.undo import guarded
from lens_scopes.results import files, labelled
from lens_scopes.results.arguments import Integer, integer, listed, shown, vector
from lens_scopes.results.provenance import Meta, versions
from lens_scopes.results.scores import Scores
from lens_scopes.views import markup

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

FRACTIONS = (0.05, 0.1, 0.2)
#: From nothing to everything.
FULL_CURVE = tuple(n / 20 for n in range(21))

Mode = Literal["comprehensiveness", "sufficiency"]
Ranking = Scores | Float[Tensor, " _pos"] | Float[np.ndarray, " _pos"] | Sequence[float]


@dataclass(frozen=True, eq=False, repr=False)
class Curve:
    """Change of the watched token's log probability, prompt by prompt, at each share of tokens."""

    deltas: Float[Tensor, "prompt fraction"]
    """log p(ablated) − log p(clean), float64; the more negative, the more the prediction hung on what was taken out."""
    fractions: tuple[float, ...]
    meta: Meta = field(default_factory=Meta)
    """replace, mode, skip, protocol, model, seed, and by prompt the watched token and the number of tokens."""

    def __post_init__(self) -> None:
        """Check the shape."""
        if self.deltas.ndim != 2 or self.deltas.shape[1] != len(self.fractions):
            msg = f"deltas have shape {tuple(self.deltas.shape)}, there are {len(self.fractions)} fractions"
            raise ValueError(msg)

    @property
    def mean(self) -> Float[Tensor, " fraction"]:
        """Over prompts."""
        return self.deltas.mean(0)

    @property
    def aopc(self) -> Float[Tensor, " prompt"]:
        """Mean change over the fractions, per prompt: the area over the perturbation curve, with sign."""
        return self.deltas.mean(1)

    def aupc(self) -> float:
        """The authors' table: trapezoids over the fractions, not divided by the width."""
        return float(torch.trapezoid(self.mean, torch.tensor(self.fractions, dtype=torch.float64, device="cpu")))

    def interval(self, level: float = 0.95, seed: int = 0) -> Float[Tensor, "2 fraction"]:
        """Studentised bootstrap interval of the mean, over prompts; NaN for fewer than 10 of them."""
        return bootstrap_interval(self.deltas, level, seed)

    def to_dataframe(self) -> "pd.DataFrame":
        """Long form: a row per prompt and fraction."""
        coords = {"prompt": tuple(range(len(self.deltas))), "fraction": self.fractions}
        return labelled.dataframe({"delta": self.deltas}, ("prompt", "fraction"), coords, {})

    def plot(self, ax: "Axes | None" = None, label: str | None = None) -> "Axes":
        """The mean with its 95 % interval (none for fewer than 10 prompts) against the share of tokens."""
        import matplotlib.pyplot as plt

        ax = ax or plt.subplots(figsize=(5, 3.5), layout="constrained")[1]
        low, high = self.interval()
        (line,) = ax.plot(self.fractions, self.mean, marker=".", label=label)
        if len(self.deltas) >= FEWEST:
            ax.fill_between(self.fractions, low, high, alpha=0.2, color=line.get_color())
        ax.set(xlabel="share of tokens", ylabel="change of log p")
        return ax

    def save(self, path: str | Path) -> Path:
        """Write to one safetensors file with a JSON header, whole or not at all."""
        return files.save(path, "Curve", {"deltas": self.deltas}, {"fractions": self.fractions, "meta": self.meta})

    @classmethod
    def load(cls, path: str | Path) -> "Curve":
        """Read what ``save`` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a file that is cut short, of another kind or of another schema.

        """
        return files.load(path, "Curve", cls._of)

    @classmethod
    def _of(cls, tensors: dict[str, Tensor], header: dict[str, Any]) -> "Curve":
        return cls(tensors["deltas"], tuple(header["fractions"]), header["meta"])

    def __repr__(self) -> str:
        """One line."""
        shown = ", ".join(f"{f:g}: {m:.3f}" for f, m in zip(self.fractions, self.mean.tolist(), strict=True))
        return f"Curve({len(self.deltas)} prompts, {self.meta.get('replace')}; {shown})"

    def _repr_html_(self) -> str:
        """A table of means and intervals: escaped, no script."""
        low, high = self.interval()
        rows = [
            (f"{f:g}", markup.number(m), interval_text(a, b, len(self.deltas), ".3g"))
            for f, m, a, b in zip(self.fractions, *(x.tolist() for x in (self.mean, low, high)), strict=True)
        ]
        title = f"{self.meta.get('mode', 'ablation')} ({self.meta.get('replace')}), {len(self.deltas)} prompts"
        table = markup.numbers(("share of tokens", "change of log p", "95 % interval"), rows)
        return markup.figure(title, table, note=coinciding(self.fractions, self.meta.get("taken", ())))


@guarded
def ablation_curve(
    model: Any,
    prompts: Sequence[Prompt],
    scores: Sequence[Ranking],
    *,
    fractions: Sequence[float] = FRACTIONS,
    replace: Replace = "zero",
    protocol: Protocol = None,
    mode: Mode = "comprehensiveness",
    skip: Sequence[Integer] = (),
    corpus: Sequence[Integer] | None = None,
    seed: int = 0,
) -> Curve:
    """Take out the top-ranked share of each prompt's tokens and follow the clean prediction's log probability.

    Of n ranked tokens max(1, ⌊n·f⌋) go (none at f = 0), highest score first, as in arXiv 2601.16407.

    Args:
        model: a HookedTransformer or TransformerBridge, in eval mode. It is left as it came.
        prompts: see ``score``.
        scores: for each prompt one number per token: Scores with a single site, or tensors [pos]. Signed ones are
            ranked by value, not by magnitude.
        fractions: shares of tokens; ``FULL_CURVE`` for all of it.
        replace: "zero", "mean", "delete" or "resample" (see ``lens_scopes.evaluate.ablation``).
        protocol: None, or "paper" (see ``lens_scopes.evaluate.protocol``).
        mode: "comprehensiveness" takes the top tokens out; "sufficiency" takes out all others.
        skip: positions that are never taken out nor ranked, e.g. (0,) for the first token, a common attention sink.
        corpus: token ids that "resample" draws from; None: those of all prompts.
        seed: of the draws.

    Returns:
        A Curve with one row per prompt.

    Raises:
        ValueError: not one score per prompt and token, an unknown option; or see ``score``.
        IndexError: a skipped position outside one of the prompts.
        TypeError: a single string or Scores instead of a list.

    """
    if isinstance(scores, Scores) or not isinstance(scores, Sequence | Tensor | np.ndarray):
        msg = f"scores is a list with one ranking per prompt, got {shown(scores)}; of a single prompt write [scores]"
        raise TypeError(msg)
    fractions, skip = shares(fractions), [integer(one, _SKIP) for one in listed(skip)]
    questions = ask(model, prompts, protocol, seed)
    if len(scores) != len(questions):
        msg = f"{len(questions)} prompts but scores for {len(scores)}; give one entry per prompt"
        raise ValueError(msg)
    refuse_mode(mode)
    ablation = Ablation.of(questions, replace, corpus, seed)
    deltas = []
    for number, (question, ranking) in enumerate(zip(tqdm(questions, desc="ablating"), scores, strict=True)):
        masks = out_masks(per_token(ranking, question), question, fractions, mode, skip, protocol)
        deltas.append(change(ablation, question, number, masks))
    meta: Meta = {
        "replace": replace,
        "mode": mode,
        "skip": skip,
        "protocol": protocol,
        "seed": seed,
        "model": questions[0].host.name,
        "hooks": list(questions[0].host.hooked()),
        "watched": [q.watched for q in questions],
        "lengths": [len(q.tokens) for q in questions],
        "taken": [counts(len(ranked_positions(q, skip, protocol)), fractions) for q in questions],
        "versions": versions(),
    }
    return Curve(torch.stack(deltas), fractions, meta)


_SKIP = "skip is a list of positions; a position"


def shares(fractions: Sequence[float]) -> tuple[float, ...]:
    """Shares of tokens.

    Raises:
        TypeError: no numbers.
        ValueError: none, or outside 0 to 1.

    """
    found = tuple(vector(fractions, "fractions (shares of tokens between 0 and 1)", "fraction").tolist())
    if not found or not all(0 <= f <= 1 for f in found):
        msg = f"fractions are shares of tokens between 0 and 1, got {fractions!r}; write e.g. (0.05, 0.1, 0.2)"
        raise ValueError(msg)
    return found


def refuse_mode(mode: str) -> None:
    """Refuse an unknown mode.

    Raises:
        ValueError: neither "comprehensiveness" nor "sufficiency".

    """
    if mode not in get_args(Mode):
        msg = f"mode is one of {', '.join(map(repr, get_args(Mode)))}, got {mode!r}; write mode='sufficiency'"
        raise ValueError(msg)


def per_token(ranking: Ranking, question: Question) -> Float[Tensor, " pos"]:
    """One number per token of the prompt.

    Raises:
        ValueError: another shape, or NaN.

    """
    values = ranking.values if isinstance(ranking, Scores) else vector(ranking, "a ranking (or Scores)")
    values = values.squeeze(0) if values.ndim == 2 and len(values) == 1 else values
    if values.shape != question.tokens.shape or values.isnan().any():
        msg = (
            f"ranking {len(question.tokens)} tokens takes one number for each, got shape {tuple(values.shape)}"
            f"{' with NaN' if values.isnan().any() else ''}; of several sites pick one: scores.sel(site=...)"
        )
        raise ValueError(msg)
    return values.detach().cpu()


def out_masks(
    values: Float[Tensor, " pos"],
    question: Question,
    fractions: Sequence[float],
    mode: Mode,
    skip: Sequence[Integer],
    protocol: Protocol,
) -> Bool[Tensor, "fraction pos"]:
    """Which tokens go at each fraction."""
    length = len(values)
    ranked = torch.tensor(ranked_positions(question, skip, protocol), dtype=torch.long, device="cpu")
    order = ranked[values[ranked].argsort(descending=True, stable=True)]
    masks = torch.zeros(len(fractions), length, dtype=torch.bool, device="cpu")
    for row, count in zip(masks, counts(len(order), fractions), strict=True):
        row[order[:count] if mode == "comprehensiveness" else order[count:]] = True
    return masks


def ranked_positions(question: Question, skip: Sequence[Integer], protocol: Protocol) -> list[int]:
    """The positions that are ranked at all."""
    length = len(question.tokens)
    out, last = skipped(skip, length), length if protocol == "paper" else question.position + 1
    return [t for t in range(last) if t not in out]


def counts(ranked: int, fractions: Sequence[float]) -> list[int]:
    """How many of the ranked tokens each share is."""
    return [max(1, int(ranked * f)) if f > 0 else 0 for f in fractions]


def coinciding(fractions: Sequence[float], taken: Sequence[Sequence[int]]) -> str:
    """A sentence about prompts so short that different shares are the same tokens; empty where there are none.

    >>> coinciding((0.05, 0.1), [[1, 1], [1, 2]])
    'on 1 of 2 prompts some of the shares 5, 10 % are equally many tokens (on 1 all are): columns say the same there'
    """
    some = [n for n in taken if len(set(n)) < len(n)]
    if not some:
        return ""
    shares = ", ".join(f"{100 * f:g}" for f in fractions)
    every = sum(len(set(n)) == 1 for n in some)
    return (
        f"on {len(some)} of {len(taken)} prompts some of the shares {shares} % are equally many tokens "
        f"(on {every} all are): columns say the same there"
    )


def change(
    ablation: Ablation, question: Question, number: int, masks: Bool[Tensor, "row pos"]
) -> Float[Tensor, " row"]:
    """log p(watched | ablated) − log p(watched | clean)."""
    ablated = ablation.log_probs(question, number, masks)[:, question.watched]
    return (ablated - question.log_probs[question.watched]).cpu()
