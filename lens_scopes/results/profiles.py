"""Profiles: means over prompts with standard errors. The unit of sampling is the prompt, however long it is."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_scopes.results import files, wellformed
from lens_scopes.results.arguments import shown
from lens_scopes.results.provenance import Meta, taken_text

if TYPE_CHECKING:
    import pandas as pd

By = Literal["site", "relative_position", "token", "span", "head"]
#: What one prompt's number is, for readers.
_STATISTIC = {
    "site": "all positions of a prompt joined",
    "head": "all positions of a prompt joined",
    "relative_position": "mean over a prompt's tokens there",
    "token": "mean over its places in a prompt",
    "span": "all tokens of the span joined",
}
_AXIS = {
    "site": "site",
    "head": "head",
    "relative_position": "place in the prompt: 0 is its beginning, 1 the position explained",
    "token": "token",
    "span": "span",
}


@dataclass(frozen=True, eq=False, repr=False)
class Profile:
    """A mean over prompts for each label, with its standard error."""

    each: Float[Tensor, "prompt label"]
    """float64; NaN where a prompt does not have the label."""
    labels: tuple[str, ...]
    by: str
    """ "site", "relative_position", "token", "span" or "head"."""
    unit: str
    """What the numbers are, in words."""
    lengths: tuple[float, ...] | None = None
    """Of spans, the mean number of tokens: a long span is large because it is long."""
    meta: Meta = field(default_factory=Meta)
    """The facts in which all results agree."""

    def __post_init__(self) -> None:
        """Check the shape."""
        if self.each.ndim != 2 or self.each.shape[1] != len(self.labels):
            msg = f"each has shape {tuple(self.each.shape)}, there are {len(self.labels)} labels"
            raise ValueError(msg)

    @property
    def mean(self) -> Float[Tensor, " label"]:
        """Over the prompts that have the label."""
        return self.each.nanmean(0)

    @property
    def prompts(self) -> Int[Tensor, " label"]:
        """How many prompts have the label."""
        return self.each.isfinite().sum(0)

    @property
    def stderr(self) -> Float[Tensor, " label"]:
        """Standard deviation over prompts / √prompts; NaN for a label of one prompt."""
        n = self.prompts
        squares = (self.each - self.mean).square().nansum(0)
        return torch.where(n > 1, (squares / (n - 1).clamp(min=1) / n.clamp(min=1)).sqrt(), torch.nan)

    @property
    def ordered(self) -> bool:
        """Whether the labels follow one another, as sites and places do."""
        return self.by in ("site", "relative_position")

    @property
    def axis(self) -> str:
        """What the labels are, in words."""
        return _AXIS[self.by]

    @property
    def title(self) -> str:
        """One line: what was asked, of how many prompts, and what one prompt's number is."""
        asked = f"{self.meta['scope']['text']} on {self.meta.get('model', 'a model')}" if "scope" in self.meta else ""
        asked += f" ({taken})" if asked and (taken := self._taken()) else ""
        told = f"mean over {len(self.each)} prompts by {self.by.replace('_', ' ')} ({self._statistic()})"
        return f"{asked}: {told}" if asked else told

    def _taken(self) -> str:
        """What all prompts' results are parts of, but for positions, which are in the statistic."""
        picked = {dim: label for dim, label in self.meta.get("selected", {}).items() if dim != "pos"}
        summed = [dim for dim in self.meta.get("summed", ()) if dim != "pos"]
        return taken_text({**self.meta, "selected": picked, "summed": summed})

    def _statistic(self) -> str:
        """What one prompt's number is, for readers."""
        picked = self.meta.get("selected", {}).get("pos")
        if self.by in ("site", "head") and picked is not None:
            return f"at position {picked}"
        if self.by in ("site", "head") and "pos" in self.meta.get("summed", ()):
            return "positions of a prompt summed"
        return _STATISTIC[self.by]

    def to_dataframe(self) -> "pd.DataFrame":
        """A row per label: label, mean, stderr, prompts; of spans also length, the mean number of tokens."""
        import pandas as pd

        frame = pd.DataFrame({self.by: self.labels})
        if self.lengths is not None:
            frame["length"] = self.lengths
        frame["mean"], frame["stderr"] = self.mean.tolist(), self.stderr.tolist()
        frame["prompts"] = self.prompts.tolist()
        return frame

    def save(self, path: str | Path) -> Path:
        """Write to one safetensors file with a JSON header, whole or not at all."""
        header = {key: getattr(self, key) for key in ("labels", "by", "unit", "meta")}
        header["lengths"] = self.lengths or ()
        return files.save(path, "Profile", {"each": self.each}, header, self._of)

    @classmethod
    def load(cls, path: str | Path) -> "Profile":
        """Read what ``save`` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a file that is cut short, of another kind or of another schema.

        """
        return files.load(path, "Profile", cls._of)

    @classmethod
    def _of(cls, tensors: dict[str, Tensor], header: dict[str, Any]) -> "Profile":
        wellformed.refuse_misfit(header, wellformed.ProfileHeader)
        lengths = tuple(header["lengths"]) or None
        each, labels = tensors["each"], header["labels"]
        wellformed.refuse_shape("each", each, len(each), len(labels))
        wellformed.refuse_values("each", each, gaps=True)
        if len(set(labels)) < len(labels) or (lengths is not None and len(lengths) != len(labels)):
            msg = f"labels are {shown(labels)}, one each, and lengths {shown(lengths)}, one for each"
            raise ValueError(msg)
        return cls(tensors["each"], tuple(header["labels"]), header["by"], header["unit"], lengths, header["meta"])

    def show(self) -> Any:
        """The table and its picture, as ``ls.show(profile)``."""
        from lens_scopes.views.show import show

        return show(self)

    def plot(self, **options: Any) -> Any:
        """A matplotlib Figure (or a plotly one): a line with a band of ± 1 standard error where labels have an order,
        points with bars where they have none; see ``lens_scopes.plot.plot``.
        """  # noqa: D205
        from lens_scopes.plot import plot  # pyright: ignore[reportMissingImports]

        return plot(self, **options)

    def __repr__(self) -> str:
        """One line."""
        return f"Profile({len(self.labels)} labels by {self.by}, {len(self.each)} prompts; {self.unit})"

    def _repr_html_(self) -> str:
        """A table of the labels with their means and errors: escaped, inline style, no script."""
        from lens_scopes.views.profiles import profile_html

        return profile_html(self)
