"""Scores: labelled numbers and how they were obtained; what users keep."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from lens_scopes.results import difference, files, labelled, spans, wellformed
from lens_scopes.results.arguments import probability, shown
from lens_scopes.results.provenance import Meta, Units, lengths, scope_text, taken_text, target_text
from lens_scopes.results.text import position_of
from lens_scopes.sites import named

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from lens_scopes.views.show import Shown


_S = TypeVar("_S", bound="Scores")


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
        texts = isinstance(self.tokens, tuple | list) and all(isinstance(one, str) for one in self.tokens)
        if not texts or not isinstance(self.meta, Mapping):
            msg = (
                f"tokens are texts, meta is a dict, got {shown(self.tokens)} and {shown(self.meta)}; write ('a', ' b')"
            )
            raise TypeError(msg)
        if not isinstance(self.probes, Tensor | None):
            raise TypeError(f"probes are a tensor [probe, ...] or None, got {shown(self.probes)}; leave them out")  # noqa: EM102
        if self.probes is not None and self.probes.shape[1:] != self.values.shape:
            msg = f"probes have shape {tuple(self.probes.shape)}, values {tuple(self.values.shape)}"
            raise ValueError(msg)
        if "pos" in self.dims and len(self.tokens) != len(self.coords["pos"]):
            msg = f"{len(self.tokens)} tokens for {len(self.coords['pos'])} positions; write one text for each"
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
        holds the exact score: of 16 passes, in 92 to 99 % by prompt on a real model (nominally 95 %).

        Raises:
            ValueError: the scores are no estimate, or level is not between 0 and 1.

        """
        if self.probes is None or self.stderr is None:
            msg = (
                f"only estimates have an interval, got {scope_text(self.meta, '?')}, which has no interval (exact, or "
                "biased by truncation); write score(..., Fisher(passes=16))"
            )
            raise ValueError(msg)
        level = probability(level, "level")
        from scipy.stats import t

        degrees = self.meta.get("degrees", len(self.probes) - 1)
        times = float(t.ppf((1 + level) / 2, degrees))
        if "difference" in self.meta:  # of either sign: no side of it is a sum of squares
            return self.values - times * self.stderr, self.values + times * self.stderr
        probed = self.probes.sum(0)
        # Nothing probed has no error: 0/0 is 0 here.
        spread = torch.where(self.stderr == 0, 0.0, self.stderr / probed)
        factor = (times * spread).exp()
        certain = self.values - probed
        return certain + probed / factor, certain + probed * factor

    def sel(self, **labels: Any) -> "Scores":
        """The part at one label of each named axis, which is dropped: ``scores.sel(site="hook_embed")``.

        Sites also go by what pictures call them ("1 resid_post"), and by their kind where one only has it ("embed");
        positions by the text of their token, where it stands once (``scores.sel(pos=" France")``), and spans that were
        joined by name by that: ``scores.sel(pos="question")``.

        Raises:
            KeyError: an axis or a label that is not there, a kind that several sites have, or a text that several
                tokens have.

        """
        picked = self
        for dim, label in labels.items():
            name = named(label, picked.coords.get("site", ())) if dim == "site" else label
            if dim == "pos" and dim in picked.dims and isinstance(name, str) and "aggregated" not in picked.meta:
                name = position_of(name, picked.tokens)
            index = labelled.index_of(picked._names() if isinstance(name, str) else picked.coords, dim, name)
            name = picked.coords[dim][index]
            kept: Meta = {"selected": {**picked.meta.get("selected", {}), dim: name}}
            picked = picked._drop(dim, lambda x, axis, i=index: x.select(axis, i), kept)
        return picked

    def sum(self, dim: str) -> "Scores":
        """The plain sum over an axis, with the standard error of the sum.

        Raises:
            KeyError: no such axis.

        """
        there = self.coords.get(dim) if isinstance(dim, str) else None
        labelled.index_of(self.coords, dim, there[0] if there else None)
        return self._drop(dim, lambda x, axis: x.sum(axis), {"summed": [*self.meta.get("summed", ()), dim]})

    def _drop(self, dim: str, reduce: Callable[[Tensor, int], Tensor], meta: Meta) -> "Scores":
        labels = {
            "dims": tuple(d for d in self.dims if d != dim),
            "coords": {d: c for d, c in self.coords.items() if d != dim},
        }
        return self.reduced(dim, reduce, **labels, meta=self.meta | meta)

    def reduced(self, dim: str, reduce: Callable[[Tensor, int], Tensor], **changed: Any) -> "Scores":
        """Every tensor reduced along an axis, ``reduce(tensor, axis)``, and the fields that change with it."""
        axis = self.dims.index(dim)
        probes = None if self.probes is None else reduce(self.probes, axis + 1)
        return replace(self, values=reduce(self.values, axis), probes=probes, **changed)

    def _names(self) -> Mapping[str, tuple]:
        """The labels of each axis as they are shown: spans that were joined by name have one."""
        named = "pos" in self.dims and self.meta.get("aggregated") in ("role", "span")
        return {**self.coords, "pos": self.tokens} if named else self.coords

    def aggregate(
        self, by: str | spans.Spans | None = None, *, chars: Mapping[str, spans.Range] | None = None
    ) -> "Scores":
        """Tokens joined to spans: root-sum-square for norms, sum for squared and signed units.

        A token belongs to the span that has most of its visible characters; ``meta["straddling"]`` lists those that are
        partly outside, ``meta["joined"]`` the positions of every span. The "pos" axis keeps the first of each. Long
        spans are large because they are long: their number of tokens stands beside them in every view and table.

        Args:
            by: "word" (the default: runs between blanks), "sentence", "line", "role" (the messages of a chat), "span"
                (those that the prompt came with), or names with token ranges, texts that stand once in the prompt, and
                ``...`` for all other tokens: ``{"system": (0, 40), "question": "Which landmark?", "rest": ...}``.
                Tokens without a span are left out. In sentences, lines and words a special token stands alone.
            chars: further names, with ranges of characters, counted after the special tokens at the prompt's beginning.

        Raises:
            ValueError: another word, spans that overlap, have no token or are not in the prompt, a text that does not
                stand exactly once, roles that are not known; scores that were joined before, without positions, or
                that are a difference of norms, which do not add up (join both sides first).
            TypeError: a span that is neither a range, a text nor ``...``.

        """
        if "pos" not in self.dims or "aggregated" in self.meta:
            have = (
                f"were joined by {self.meta.get('aggregated')}" if "pos" in self.dims else f"have the axes {self.dims}"
            )
            msg = f"aggregate joins positions, and these scores {have}; join the scores of single tokens"
            raise ValueError(msg)
        if "difference" in self.meta and self.meta["difference"][0].get("units") == "norm":
            msg = "a difference of norms does not add up over tokens: a.aggregate(...) - b.aggregate(...)"
            raise ValueError(msg)
        found = spans.joined(self.tokens, self.meta, by, chars)
        members = torch.tensor([i for span in found.positions for i in span], device="cpu")
        group = torch.tensor([n for n, span in enumerate(found.positions) for _ in span], device="cpu")

        def join(x: Tensor, at: int) -> Tensor:
            x = x.index_select(at, members)
            x = x.square() if self.units == "norm" else x
            shape = [*x.shape]
            shape[at] = len(found.positions)
            together = x.new_zeros(shape).index_add_(at, group, x)
            return together.sqrt() if self.units == "norm" else together

        meta: Meta = {
            "aggregated": found.by,
            "joined": [list(span) for span in found.positions],
            "straddling": list(found.straddling),
            "joined_tokens": list(self.tokens),
        }
        coords = {**self.coords, "pos": tuple(span[0] for span in found.positions)}
        return self.reduced("pos", join, coords=coords, tokens=found.names, meta=self.meta | meta)

    def __sub__(self, other: "Scores") -> "Scores":
        """a − b, place by place, in signed units, with the standard error of the difference where one is an estimate.

        Estimates of the same prompt, position and seed are paired: what both err by together is not in the error. Spans
        that were joined by name agree if their names do, in whatever prompts. ``meta["difference"]`` has both sides.

        Raises:
            ValueError: other units, axes, labels or tokens (the text says which), or estimates that draw the same
                random signs with other numbers of passes.

        """
        if not isinstance(other, Scores):
            return NotImplemented
        sides = ((one.dims, one.coords, one.tokens, one.meta) for one in (self, other))
        difference.refuse_other_labels(*sides)
        probes, degrees = difference.probes_of(self.probes, other.probes, self.meta, other.meta)
        meta = difference.facts_of(self.meta, other.meta)
        if probes is not None:
            meta["degrees"] = degrees
        return replace(self, values=self.values - other.values, meta=meta, probes=probes)

    def to_dataframe(self) -> "pd.DataFrame":
        """Long form: a row per value; positions as numbers, their tokens beside them; stderr where there is one.

        Where several positions are explained, "target" is the token explained, which comes after "target_pos".

        Joined tokens have a column "length": how many they are (of a difference of prompts: of both sides).
        """
        columns = self._columns()
        # A position explained is a single token, also where the others are joined.
        extra = {"target_pos": dict(enumerate(self.meta.get("joined_tokens", self.tokens)))}
        extra |= {"pos": dict(zip(self.coords["pos"], self.tokens, strict=True))} if "pos" in self.dims else {}
        frame = labelled.dataframe(columns, self.dims, self.coords, extra)
        if "target_pos" in self.dims and any(targets := self.meta.get("targets", ())):
            texts = (labelled.whole(target_text(target)) for target in targets)
            told = dict(zip(self.meta.get("positions", ()), texts, strict=False))
            frame.insert(list(frame.columns).index("target_pos_token") + 1, "target", frame.target_pos.map(told))
        if "pos" in self.dims and (found := lengths(self.meta)):
            by_position = dict(zip(self.coords["pos"], found, strict=True))
            numbers = all(one.isdigit() for one in found)
            at = [int(by_position[p]) if numbers else by_position[p] for p in frame.pos]
            frame.insert(list(frame.columns).index("pos_token") + 1, "length", at)
        return frame

    def _columns(self) -> dict[str, Tensor]:
        """The numbers of a table, each shaped like the values."""
        return {"score": self.values} | ({} if self.stderr is None else {"stderr": self.stderr})

    def to_xarray(self) -> "xr.Dataset":
        """A Dataset of ``score``, and ``stderr`` where there is one, by these axes; ``token`` lies along pos.

        ``attrs["meta"]`` is ``meta`` as JSON text.

        Raises:
            ImportError: xarray is not installed.

        """
        variables = {name: (self.dims, values) for name, values in self._columns().items()}
        dataset = labelled.dataset(variables, self.coords, self.tokens, files.as_text(self.meta))
        found = lengths(self.meta) if "pos" in self.dims else []
        return dataset.assign_coords(length=("pos", found)) if found else dataset

    def save(self, path: str | Path) -> Path:
        """Write to one safetensors file with a JSON header, whole or not at all."""
        header = {"dims": self.dims, "coords": self.coords, "tokens": self.tokens, "meta": self.meta}
        return files.save(path, type(self).__name__, self._tensors(), header, self._of)

    def _tensors(self) -> dict[str, Tensor]:
        """What a file holds beside the header."""
        return {"values": self.values} | ({} if self.probes is None else {"probes": self.probes})

    @classmethod
    def load(cls: type[_S], path: str | Path) -> _S:
        """Read what ``save`` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a file that is cut short, of another kind or of another schema.

        """
        return files.load(path, cls.__name__, cls._of)

    @classmethod
    def _of(cls: type[_S], tensors: dict[str, Tensor], header: dict[str, Any]) -> _S:
        wellformed.refuse_misfit(header, wellformed.ScoresHeader)
        coords = {dim: tuple(labels) for dim, labels in header["coords"].items()}
        labels = (tuple(header["dims"]), coords, tuple(header["tokens"]), header["meta"])
        found = cls(tensors["values"], *labels, tensors.get("probes"))
        wellformed.refuse_scores(found.values, *labels)
        if found.probes is not None:
            wellformed.refuse_shape("probes", found.probes, *found.probes.shape)
        wellformed.refuse_values("probes", found.probes, gaps="patching" in found.meta)
        return found

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
        """A view ("layers", "heads", "targets", "tokens", "explorer") and a static one; see ``show``."""
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
        patches = f"{self.meta['patching']} effects of " if "patching" in self.meta else ""
        part = f", {part}" if (part := taken_text(self.meta)) else ""
        asked = f"{patches}{scope_text(self.meta, '?')}{'' if patches else times}"
        model = self.meta.get("model", "?")
        return f"{type(self).__name__}({shape or 'one value'}; {asked}, {self.units}, {model}{part})"

    def _repr_html_(self) -> str:
        """A token strip or a table of sites by tokens: escaped, inline style, no script; fits untrusted notebooks."""
        from lens_scopes.views.scores import scores_html

        return scores_html(self)
