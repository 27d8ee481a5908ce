"""Scores: labelled numbers and how they were obtained; what users keep."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lens_scopes.results import files, labelled
from lens_scopes.results.provenance import Meta, Units, scope_text
from lens_scopes.sites import named

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from lens_scopes.views.show import Shown


@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """One number per place: ``values`` with named, labelled axes.

    Axes: "site" (hook names), "pos" (prompt positions, always all of them), and where asked for "target_pos" (the
    positions explained) before and "head" after them.
    """

    values: Tensor
    """float32 (float64 in squared units, or if the model is), on the CPU, outside any graph."""
    dims: tuple[str, ...]
    coords: Mapping[str, tuple]
    tokens: tuple[str, ...]
    """The text that each token of the prompt adds."""
    meta: Meta = field(default_factory=Meta)
    """How they were obtained: see ``results.provenance.Meta``."""
    probes: Tensor | None = None
    """[probe, *values.shape]: what each random probe of an estimate contributed to the values."""

    def __post_init__(self) -> None:
        """Check axes against labels."""
        labelled.check_labels(self.values, self.dims, self.coords)
        if self.probes is not None and self.probes.shape[1:] != self.values.shape:
            msg = f"probes have shape {tuple(self.probes.shape)}, values {tuple(self.values.shape)}"
            raise ValueError(msg)
        if "pos" in self.dims and len(self.tokens) != len(self.coords["pos"]):
            msg = f"{len(self.tokens)} tokens for {len(self.coords['pos'])} positions"
            raise ValueError(msg)

    @property
    def units(self) -> Units:
        """ "norm", "squared" or "signed"."""
        return self.meta.get("units", "norm")

    @property
    def stderr(self) -> Tensor | None:
        """Standard error of each value; None for what is not an estimate.

        From the scatter of the m probes, √(m/(m−1) Σ_j (X_j − X̄)²). Sums are handled rightly: errors of different
        places are correlated and must not be added in quadrature.
        """
        return None if self.probes is None else labelled.standard_error(self.probes)

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Lower and upper end of an interval that holds the exact score with a probability of about ``level``.

        What is known exactly stays. The part R that random probes stand for is between R e^-h and R e^h with
        h = t·stderr/R: it is a sum of squares, never negative and skewed. ``docs/fisher_budget.md`` says how often that
        holds the exact score: COVERS.

        Raises:
            ValueError: the scores are no estimate, or level is not between 0 and 1.

        """
        if self.probes is None or self.stderr is None:
            msg = (
                f"only estimates have an interval, got {scope_text(self.meta, '?')}, which has no interval (exact, or "
                "biased by truncation); write score(..., Fisher(passes=16))"
            )
            raise ValueError(msg)
        if not isinstance(level, int | float) or not 0 < level < 1:
            msg = f"level is a probability between 0 and 1, got {level}"
            raise ValueError(msg)
        from scipy.stats import t

        probed = self.probes.sum(0)
        # Nothing probed has no error: 0/0 is 0 here.
        spread = torch.where(self.stderr == 0, 0.0, self.stderr / probed)
        factor = (float(t.ppf((1 + level) / 2, len(self.probes) - 1)) * spread).exp()
        certain = self.values - probed
        return certain + probed / factor, certain + probed * factor

    def sel(self, **labels: Any) -> "Scores":
        """The part at one label of each named axis, which is dropped: ``scores.sel(site="hook_embed")``.

        Sites also go by what pictures call them ("1 resid_post"), and by their kind where one only has it ("embed").

        Raises:
            KeyError: an axis or a label that is not there, or a kind that several sites have.

        """
        picked = self
        for dim, label in labels.items():
            name = named(label, picked.coords.get("site", ())) if dim == "site" else label
            index = labelled.index_of(picked.coords, dim, name)
            name = picked.coords[dim][index]
            kept: Meta = {"selected": {**picked.meta.get("selected", {}), dim: name}}
            picked = picked._drop(dim, lambda x, axis, i=index: x.select(axis, i), kept)
        return picked

    def sum(self, dim: str) -> "Scores":
        """The plain sum over an axis, with the standard error of the sum.

        Raises:
            KeyError: no such axis.

        """
        labelled.index_of(self.coords, dim, self.coords[dim][0] if self.coords.get(dim) else None)
        return self._drop(dim, lambda x, axis: x.sum(axis), {"summed": [*self.meta.get("summed", ()), dim]})

    def _drop(self, dim: str, reduce: Callable[[Tensor, int], Tensor], meta: Meta) -> "Scores":
        axis = self.dims.index(dim)
        return replace(
            self,
            values=reduce(self.values, axis),
            dims=tuple(d for d in self.dims if d != dim),
            coords={d: c for d, c in self.coords.items() if d != dim},
            meta=self.meta | meta,
            probes=None if self.probes is None else reduce(self.probes, axis + 1),
        )

    def aggregate(self, by: str = "word") -> "Scores":
        """Tokens joined to words: root-sum-square for norms, sum for squared and signed units.

        Words are runs between blanks in the prompt's own text, found by character offsets; a special token is a word of
        its own. The "pos" axis keeps the first position of each word, ``meta["joined"]`` all of them.

        Raises:
            ValueError: another unit than "word", scores without a pos axis, or tokens that are joined already.

        """
        if by != "word":
            msg = f"aggregate knows 'word', got {by!r}; write aggregate('word')"
            raise ValueError(msg)
        if "pos" not in self.dims:
            msg = f"aggregate joins positions, and these scores have the axes {self.dims}"
            raise ValueError(msg)
        if "aggregated" in self.meta:
            msg = f"these tokens are joined already, to {self.meta['aggregated']}s; aggregate the scores they came from"
            raise ValueError(msg)
        spans = words(self.tokens, frozenset(self.meta.get("special", ())))
        axis = self.dims.index("pos")
        group = torch.tensor([w for w, span in enumerate(spans) for _ in span], device="cpu")

        def join(x: Tensor, at: int) -> Tensor:
            x = x.square() if self.units == "norm" else x
            shape = [*x.shape]
            shape[at] = len(spans)
            joined = x.new_zeros(shape).index_add_(at, group, x)
            return joined.sqrt() if self.units == "norm" else joined

        return replace(
            self,
            values=join(self.values, axis),
            coords={**self.coords, "pos": tuple(self.coords["pos"][span[0]] for span in spans)},
            tokens=tuple("".join(self.tokens[i] for i in span) for span in spans),
            meta=self.meta
            | {
                "aggregated": by,
                "joined": [[self.coords["pos"][i] for i in span] for span in spans],
                "joined_tokens": list(self.tokens),
            },
            probes=None if self.probes is None else join(self.probes, axis + 1),
        )

    def to_dataframe(self) -> "pd.DataFrame":
        """Long form: a row per value; positions as numbers, their tokens beside them; stderr where there is one."""
        columns = {"score": self.values} | ({} if self.stderr is None else {"stderr": self.stderr})
        # A position explained is a single token, also where the others are joined to words.
        extra = {"target_pos": dict(enumerate(self.meta.get("joined_tokens", self.tokens)))}
        extra |= {"pos": dict(zip(self.coords["pos"], self.tokens, strict=True))} if "pos" in self.dims else {}
        return labelled.dataframe(columns, self.dims, self.coords, extra)

    def to_xarray(self) -> "xr.Dataset":
        """A Dataset of ``score``, and ``stderr`` where there is one, by these axes; ``token`` lies along pos.

        ``attrs["meta"]`` is ``meta`` as JSON text.

        Raises:
            ImportError: xarray is not installed.

        """
        columns = {"score": self.values} | ({} if self.stderr is None else {"stderr": self.stderr})
        variables = {name: (self.dims, values) for name, values in columns.items()}
        return labelled.dataset(variables, self.coords, self.tokens, files.as_text(self.meta))

    def save(self, path: str | Path) -> Path:
        """Write to one safetensors file with a JSON header, whole or not at all."""
        tensors = {"values": self.values} | ({} if self.probes is None else {"probes": self.probes})
        header = {"dims": self.dims, "coords": self.coords, "tokens": self.tokens, "meta": self.meta}
        return files.save(path, "Scores", tensors, header)

    @classmethod
    def load(cls, path: str | Path) -> "Scores":
        """Read what ``save`` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a file that is cut short, of another kind or of another schema.

        """
        return files.load(path, "Scores", cls._of)

    @classmethod
    def _of(cls, tensors: dict[str, Tensor], header: dict[str, Any]) -> "Scores":
        return cls(
            tensors["values"],
            tuple(header["dims"]),
            {dim: tuple(labels) for dim, labels in header["coords"].items()},
            tuple(header["tokens"]),
            header["meta"],
            tensors.get("probes"),
        )

    def check(self, model: Any, *, scope: Any = None, places: int = 4) -> dict[str, Any]:
        """Finite differences on the live model at the largest scores; returns numbers and judges nothing.

        Args:
            model: the model that the scores came from.
            scope: the scope, where it cannot be rebuilt from ``meta`` (a function, a Metric, a Direction).
            places: how many (site, position) places to perturb.

        Returns:
            See ``lens_scopes.check.check_scores``.

        """
        from lens_scopes.check import check_scores

        return check_scores(self, model, scope=scope, places=places)

    def show(self, view: str | None = None, **options: Any) -> "Shown":
        """An interactive view ("layers", "heads", "targets", "tokens") with a static one under it; see ``show``."""
        from lens_scopes.views.show import show

        return show(self, view, **options)

    def plot(self, view: str | None = None, **options: Any) -> Any:
        """A matplotlib Figure (or a plotly one) of a view; see ``lens_scopes.plot.plot``."""
        from lens_scopes.plot import plot  # pyright: ignore[reportMissingImports]

        return plot(self, view, **options)

    def __repr__(self) -> str:
        """One line."""
        shape = ", ".join(f"{dim}={size}" for dim, size in zip(self.dims, self.values.shape, strict=True))
        times = f" × {along}" if (along := self.meta.get("along")) else ""
        return f"Scores({shape}; {scope_text(self.meta, '?')}{times}, {self.units}, {self.meta.get('model', '?')})"

    def _repr_html_(self) -> str:
        """A token strip or a table of sites by tokens: escaped, inline style, no script; fits untrusted notebooks."""
        from lens_scopes.views.scores import scores_html

        return scores_html(self)


def words(tokens: tuple[str, ...], special: frozenset[int]) -> list[list[int]]:
    """Positions joined to words by the character offsets of the tokens in their joined text."""
    text = "".join(tokens)
    starts = {found.start() for found in re.finditer(r"\S+", text)}
    spans: list[list[int]] = []
    offset = 0
    for i, token in enumerate(tokens):
        first = offset + len(token) - len(token.lstrip())
        # A token opens a word if its own first visible character does, or if nothing can be joined to what precedes.
        opens = first in starts or i in special or i - 1 in special or not spans
        if opens and not (spans and token.strip() == "" and i not in special):
            spans.append([i])
        else:
            spans[-1].append(i)
        offset += len(token)
    return spans
