"""Predicted against measured effects: do they agree, and does the prediction save patches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_scopes.results import files, labelled, wellformed
from lens_scopes.results.alike import both, refuse_other_patches, refuse_other_places
from lens_scopes.results.arguments import integer, number, seeded, shown, vector
from lens_scopes.results.prediction import Prediction
from lens_scopes.results.scores import Scores
from lens_scopes.sites import named
from lens_scopes.views import markup
from lens_scopes.views.comparison import comparison_html, comparison_title
from lens_scopes.views.scores import label_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# Orders drawn for "random"; below this share of the largest effect an effect has no sign to speak of.
_DRAWS, _NOTHING = 200, 1e-6


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Predicted and measured effects of the same patches, and orders in which one could have measured them.

    Every number is about the places that were measured (not NaN).
    """

    predicted: Scores
    measured: Scores
    orders: Mapping[str, Tensor] = field(default_factory=dict)
    """By name, [shape of the values]: patches are tried from the largest magnitude down."""
    seed: int = 0
    """Of the random orders."""

    @cached_property
    def where(self) -> Bool[Tensor, "..."]:
        """The places measured."""
        return ~self.measured.values.isnan()

    @property
    def pearson(self) -> float:
        """Linear correlation; NaN where one side is constant."""
        return _correlation(*self._pair)

    @property
    def spearman(self) -> float:
        """Rank correlation, ties at their mean rank; NaN where one side is constant."""
        return _correlation(*map(_ranks, self._pair))

    @property
    def slope(self) -> float:
        """Measured per predicted, by least squares through 0: 1 where the first order is the whole effect."""
        predicted, measured = self._pair
        power = float(predicted.square().sum())
        return float((predicted * measured).sum()) / power if power else float("nan")

    @property
    def sign_agreement(self) -> float:
        """Share of effects (above 1e-6 of the largest) whose sign was predicted; NaN in squared units."""
        if self.measured.units == "squared":
            return float("nan")
        predicted, measured = self._pair
        matters = measured.abs() > _NOTHING * measured.abs().max()
        return float((predicted.sign() == measured.sign())[matters].double().mean())

    @property
    def largest_sign(self) -> float:
        """Whether the sign of the largest measured effect was predicted: 1 or 0; NaN in squared units."""
        predicted, measured = self._pair
        if self.measured.units == "squared":
            return float("nan")
        largest = measured.abs().argmax()
        return float(predicted[largest].sign() == measured[largest].sign())

    @property
    def largest_rank(self) -> int:
        """Where the prediction ranks the largest measured effect, among the places measured: 1 is first."""
        predicted, measured = (x.abs() for x in self._pair)
        return int((predicted > predicted[measured.argmax()]).sum()) + 1

    def overlap(self, k: int) -> float:
        """Share of the k largest measured effects (in magnitude) that are among the k largest predicted.

        Raises:
            ValueError: k outside 1 to the number of places measured.

        """
        k = integer(k, "overlap's k")
        predicted, measured = (x.abs() for x in self._pair)
        if not 1 <= k <= len(measured):
            msg = f"overlap(k) compares the k largest of {len(measured)} places, got k={k}"
            raise ValueError(msg)
        top = [set(x.argsort(descending=True, stable=True)[:k].tolist()) for x in (predicted, measured)]
        return len(top[0] & top[1]) / k

    def patches_to(self, share: float = 0.9) -> dict[str, float]:
        """How many patches find this share of the total effect, Σ |measured|, in each order.

        Returns:
            By order: "scope" (the prediction), the ``orders`` given, "random" (the mean of 200 seeded orders of the
            places that are not zero) and "best" (as if the effects were known: nothing can need fewer).

        Raises:
            ValueError: share outside (0, 1].

        """
        share = number(share, "share (a part of the total effect)", above=0, most=1, example=0.9)
        effect = self._pair[1].abs()
        orders = {"scope": self._pair[0], **{name: order[self.where].double() for name, order in self.orders.items()}}
        needed = {name: float(_needed(effect, order.abs(), share)) for name, order in orders.items()}
        generator = torch.Generator().manual_seed(self.seed)
        # Nobody would patch where the two runs agree: there the prediction is 0 too.
        draws = torch.rand(_DRAWS, len(effect), generator=generator, dtype=torch.float64, device="cpu") * self._not_zero
        by_chance = _needed(effect.expand_as(draws), draws, share).double().mean()
        return {**needed, "random": float(by_chance), "best": float(_needed(effect, effect, share))}

    def at(self, site: str) -> "Comparison":
        """The same for one site.

        Raises:
            KeyError: no such site.

        """
        site = named(site, self.measured.coords.get("site", ()))
        index = labelled.index_of(self.measured.coords, "site", site)

        def pick(scores: Scores) -> Scores:
            only = {**scores.coords, "site": (site,)}
            return scores.reduced("site", lambda x, axis: x.narrow(axis, index, 1), coords=only)

        orders = {name: order.narrow(0, index, 1) for name, order in self.orders.items()}
        return replace(self, predicted=pick(self.predicted), measured=pick(self.measured), orders=orders)

    def summary(self, share: float = 0.9) -> dict[str, float]:
        """The numbers above in one row."""
        count = len(self._pair[0])
        return {
            "places": float(count),
            "places_not_zero": float(self._not_zero.sum()),
            "pearson": self.pearson,
            "spearman": self.spearman,
            "sign_agreement": self.sign_agreement,
            "slope": self.slope,
            "largest_sign": self.largest_sign if count else float("nan"),
            "largest_rank": float(self.largest_rank) if count else float("nan"),
            "overlap_10": self.overlap(min(10, count)) if count else float("nan"),
            **{f"patches_{name}": needed for name, needed in self.patches_to(share).items()},
        }

    def to_dataframe(self) -> "pd.DataFrame":
        """Long form: a row per place, with its token, the predicted and the measured effect (NaN: not measured)."""
        m = self.measured
        extra = {"pos": dict(zip(m.coords["pos"], m.tokens, strict=True))} if "pos" in m.dims else {}
        columns = {"predicted": self.predicted.values, "measured": m.values, **self.orders}
        return labelled.dataframe(columns, m.dims, m.coords, extra)

    def plot(self, ax: "Axes | None" = None, *, backend: Literal["matplotlib", "plotly"] = "matplotlib") -> Any:
        """A scatter of measured against predicted, coloured by site, with the line measured = predicted.

        Args:
            ax: matplotlib's axes to draw in; None for a figure of its own.
            backend: "matplotlib" or "plotly".

        Returns:
            A ``matplotlib.figure.Figure``, or a ``plotly.graph_objects.Figure``.

        """
        from lens_scopes.plot import scatter

        names, sites = zip(*self._places, strict=True)
        title = f"{self._title}: Spearman {self.spearman:.2f}, n = {len(names)}"
        return scatter(*self._pair, names=names, groups=sites, title=title, backend=backend, ax=ax)

    def save(self, path: str | Path) -> Path:
        """Write to one safetensors file with a JSON header, whole or not at all."""
        tensors = {"predicted": self.predicted.values, "measured": self.measured.values}
        tensors |= {name: one for name, one in self.predicted._tensors().items() if name != "values"}
        # Copies: an order may be the prediction itself, and a file holds each memory once.
        tensors |= {f"order.{i}": order.clone() for i, order in enumerate(self.orders.values())}
        m = self.measured
        header = {
            "dims": m.dims,
            "coords": m.coords,
            "tokens": m.tokens,
            "orders": list(self.orders),
            "seed": self.seed,
            "meta": {"predicted": self.predicted.meta, "measured": m.meta},
        }
        return files.save(path, "Comparison", tensors, header, self._of)

    @classmethod
    def load(cls, path: str | Path) -> "Comparison":
        """Read what ``save`` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a file that is cut short, of another kind or of another schema.

        """
        return files.load(path, "Comparison", cls._of)

    @classmethod
    def _of(cls, tensors: dict[str, Tensor], header: dict[str, Any]) -> "Comparison":
        wellformed.refuse_misfit(header, wellformed.ComparisonHeader)
        sides = {side: {**header, "meta": meta} for side, meta in header["meta"].items()}
        kind = Prediction if "method" in header["meta"]["predicted"] else Scores
        predicted = kind._of({**tensors, "values": tensors["predicted"]}, sides["predicted"])
        measured = Scores._of({"values": tensors["measured"]}, sides["measured"])
        orders = {name: tensors[f"order.{i}"] for i, name in enumerate(header["orders"])}
        for name, order in orders.items():
            wellformed.refuse_shape(f"order {name!r}", order, *measured.values.shape)
            wellformed.refuse_values(f"order {name!r}", order, gaps=True)
        return cls(predicted, measured, orders, header["seed"])

    def __repr__(self) -> str:
        """One line."""
        places = int(self.where.sum())
        return f"Comparison({places} places; pearson={self.pearson:.3f}, spearman={self.spearman:.3f})"

    def _repr_html_(self) -> str:
        """Prompts, the numbers as a table, a scatter, the largest effects: escaped, no script."""
        m, names = self.measured, [name for name, _ in self._places]
        both = (x.tolist() for x in self._pair)
        return comparison_html(self._title, m.meta, m.tokens, self.summary(), names, *both)

    @property
    def _title(self) -> str:
        """The question, the model, and what was picked, summed, hooked or held."""
        return comparison_title(self.measured.meta, self.predicted.meta.get("freeze") or ())

    @cached_property
    def _places(self) -> list[tuple[str, str]]:
        """Each place measured in words, and its site."""
        m = self.measured
        found = []
        for index in self.where.nonzero().tolist():
            labels = {dim: m.coords[dim][i] for dim, i in zip(m.dims, index, strict=True)}
            words = " ".join(label_text(dim, label) for dim, label in labels.items() if dim != "pos") or "all of it"
            if "pos" in labels:
                words += f" “{markup.visible(m.tokens[index[m.dims.index('pos')]])}” at {labels['pos']}"
            site = labels.get("site", m.meta.get("selected", {}).get("site"))
            found.append((words, "all sites" if site is None else label_text("site", site)))
        return found

    @cached_property
    def _not_zero(self) -> Bool[Tensor, " place"]:
        """The places measured with an effect, predicted or found: where the runs agree, both are exactly 0."""
        predicted, measured = self._pair
        return (predicted != 0) | (measured != 0)

    @cached_property
    def _pair(self) -> tuple[Float[Tensor, " place"], Float[Tensor, " place"]]:
        return self.predicted.values[self.where].double(), self.measured.values[self.where].double()


def compare(
    predicted: Scores,
    measured: Scores,
    *,
    orders: Mapping[str, Scores | Tensor | np.ndarray | Sequence[Any]] | None = None,
    seed: int = 0,
) -> Comparison:
    """Predicted and measured effects side by side.

    Args:
        predicted: what ``predict`` returned, or other predictions of the same patches, in their units.
        measured: what ``measure`` returned; NaN where nothing was measured.
        orders: other proposals for the order of patches, by name: scores of the same places, or tensors of the same
            shape, for instance norms, a flow's stream or TransformerLens's attribution patching. A prediction by path
            brings its own: "gradient", "path" and "spread".
        seed: of the random orders.

    Raises:
        ValueError: results about different places, prompts, positions, scopes, models, treatments or units (the text
            says which, as far as both sides' ``meta`` tell), or nothing measured.
        TypeError: something that is no Scores.

    """
    for name, given in (("predicted", predicted), ("measured", measured)):
        if not isinstance(given, Scores):
            msg = f"compare takes Scores, {name} got {shown(given)}; write what predict and measure returned"
            raise TypeError(msg)
    refuse_other_places("predicted and measured", predicted, measured)
    if predicted.tokens != measured.tokens:
        msg = (
            f"compare needs results about the same prompt, and tokens differ: {both(predicted.tokens, measured.tokens)}"
        )
        raise ValueError(msg)
    refuse_other_patches(predicted.meta, measured.meta)
    if measured.values.isnan().all():
        msg = "nothing was measured (all NaN); widen where="
        raise ValueError(msg)
    there = ~measured.values.isnan()
    if not all(side.values[there].isfinite().all() for side in (predicted, measured)):
        msg = "compare needs finite numbers where something was measured; predicted or measured hold NaN or infinity"
        raise ValueError(msg)
    own = {name: getattr(predicted, name, None) for name in ("gradient", "path", "spread")}
    tensors = {name: order for name, order in own.items() if order is not None and order is not predicted.values}
    if not isinstance(orders, Mapping | None):
        raise TypeError(f"orders is a dict of proposals by name, got {shown(orders)}; write orders={{'mine': ...}}")  # noqa: EM102
    for name, order in (orders or {}).items():
        if isinstance(order, Scores):
            refuse_other_places(f"the order {name!r} and measured", order, measured)
        values = order.values if isinstance(order, Scores) else vector(order, f"the order {name!r} (or Scores)")
        if values.shape != measured.values.shape:
            msg = f"the order {name!r} has shape {tuple(values.shape)}, the effects {tuple(measured.values.shape)}"
            raise ValueError(msg)
        if not values[there].isfinite().all():
            raise ValueError(f"the order {name!r} holds NaN or infinity where it was measured; write finite numbers")  # noqa: EM102
        tensors[name] = values.detach().cpu()
    return Comparison(predicted, measured, tensors, seeded(seed))


def _needed(
    effect: Float[Tensor, "*order place"], order: Float[Tensor, "*order place"], share: float
) -> Int[Tensor, "*order"]:
    """How many places, in descending order, until their effects sum to the share of the total; 0 if there is none."""
    found = effect.gather(-1, order.argsort(dim=-1, descending=True, stable=True)).cumsum(-1)
    total = found[..., -1:]
    # The last sum is the total up to rounding.
    return ((found < share * total * (1 - 1e-12)).sum(-1) + 1) * (total[..., 0] > 0)


def _correlation(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> float:
    x, y = x - x.mean(), y - y.mean()
    scale = float(x.norm() * y.norm())
    return float(x @ y) / scale if scale else float("nan")


def _ranks(x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    from scipy.stats import rankdata

    return torch.from_numpy(rankdata(x.numpy()))
