"""The two values that meet in a scope: the state at the end of the model, and the cotangents a scope makes of it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_scopes.results.arguments import integer, shown, vector
from lens_scopes.sites import FINAL, one

# Rows of the unembedding that are held in float32 at one time (32 MB at d_model 2048).
_ROWS = 4096
# Cotangents between this length and its inverse have squares in float32, times what the model makes of them.
_SHORT = 1e-6
#: Below this length of a cotangent scores are near the end of float32, whose digits end at 1e-38.
NO_LENGTH = 1e-30


@dataclass(frozen=True, eq=False)
class FinalState:
    """The end of the model at one position of one prompt: everything that a scope may look at.

    y is the input of the unembedding (after the final norm, its weight and bias); z = U(y) are the model's real
    logits, soft-cap and logit scale included. Every scope is written with W̃ = ∂z/∂y [vocab, d_model], which is the
    unembedding matrix where logits are linear in y and diag(slope) times it under a soft-cap.

    y, logits and stream have a leading axis where a scope's ``value`` is asked about many runs at once.
    """

    y: Float[Tensor, "*run d_model"]
    logits: Float[Tensor, "*run vocab"]
    weight: Float[Tensor, "vocab d_model"]
    """The unembedding matrix W_U, transposed, in the model's dtype."""
    slope: Float[Tensor, " vocab"] | None
    """∂z/∂(raw logits), element by element; None where it is 1 everywhere."""
    tokens: tuple[int, ...]
    position: int
    index: int
    """Which of the requested positions this is (0 where only one was asked for)."""
    count: int
    """How many positions were requested."""
    constant_norm: bool
    """Whether the final norm makes ‖y‖ a constant (its weight is folded into the unembedding, or untrained)."""
    norm_has_bias: bool
    """Whether the final norm is a LayerNorm, which has a bias to be folded as well."""
    token_id: Callable[[str | int], int]
    twin: Callable[[str], tuple[str, int] | None] = field(default=lambda text: None)  # noqa: ARG005
    """The token that differs from a text by a leading blank, and its id, if there is one."""
    stream: Mapping[str, Float[Tensor, "*run d_model"]] = field(default_factory=dict)
    """The residual stream at this position, by hook name, at the sites that are open."""

    @cached_property
    def probs(self) -> Float[Tensor, "*run vocab"]:
        """softmax(z), in float64."""
        return torch.softmax(self.logits.double(), dim=-1)

    def logit(self, token: int) -> Float[Tensor, "*run"]:
        """One token's logit: ``logits[..., token]``, where it can be had without the whole vocabulary's."""
        return self.logits[..., token]

    @property
    def next_token(self) -> int:
        """The text's own token after this position.

        Raises:
            ValueError: the position is the last.

        """
        if self.position + 1 >= len(self.tokens):
            msg = (
                f"position {self.position} is the last of the text: nothing follows it that could be explained; name "
                f"earlier positions, e.g. range({self.position}), or a span of a Text"
            )
            raise ValueError(msg)
        return self.tokens[self.position + 1]

    def at(self, site: str) -> Float[Tensor, "*run d_model"]:
        """The activation that cotangents at a site are contracted with: y, or the stream at an open site."""
        return self.y if site == FINAL else self.stream[site]

    @property
    def unembed(self) -> Float[Tensor, "vocab d_model"]:
        """W̃ = ∂z/∂y in full. ``rows`` and ``pull`` give parts of it without the memory."""
        return self.rows(slice(None))

    def rows(self, which: slice | int | Tensor | list[int]) -> Float[Tensor, "*rows d_model"]:
        """Rows of W̃: ∂(logit)/∂y of the given tokens."""
        rows = self.weight[which].to(self.y.dtype)
        return rows if self.slope is None else rows * self.slope[which][..., None]

    def chunks(self) -> Iterator[tuple[slice, Float[Tensor, "rows d_model"]]]:
        """W̃ in runs of rows, each with the tokens it belongs to."""
        for start in range(0, len(self.logits), _ROWS):
            which = slice(start, start + _ROWS)
            yield which, self.rows(which)

    def pull(self, at_logits: Float[Tensor, "*k vocab"]) -> Float[Tensor, "*k d_model"]:
        """A cotangent at the logits pulled back to y: W̃ᵀc. Many cost hardly more than one."""
        scaled = (at_logits if self.slope is None else at_logits * self.slope).to(self.y.dtype)
        return sum((scaled[..., which] @ rows for which, rows in self._runs()), scaled.new_zeros(()))

    def times(self, right: Float[Tensor, "d_model k"]) -> Float[Tensor, "vocab k"]:
        """W̃ @ right: how far the logits move along each column."""
        moved = torch.cat([rows @ right for _, rows in self._runs()])
        return moved if self.slope is None else moved * self.slope[:, None]

    def square_lengths(self) -> Float[Tensor, " vocab"]:
        """‖w̃_w‖² of every word, in float64."""
        lengths = torch.cat([torch.linalg.vector_norm(rows, dim=1) for _, rows in self._runs()]).double()
        return (lengths if self.slope is None else lengths * self.slope).square()

    def _runs(self) -> Iterator[tuple[slice, Float[Tensor, "rows d_model"]]]:
        """W_U, transposed: whole, or in runs of rows where each has to be widened first."""
        size = len(self.weight) if self.weight.dtype == self.y.dtype else _ROWS
        for start in range(0, len(self.weight), size):
            which = slice(start, start + size)
            yield which, self.weight[which].to(self.y.dtype)


class FinalStates(FinalState):
    """The ends of many runs at one position, whose logits are worked out only when somebody looks at them.

    Args:
        reference: what the runs have in common: tokens, position, unembedding.
        y: of each run.
        read: from a token to its logit, [run]; from None to the logits of all.
        stream: of each run, at the open sites.

    """

    def __init__(
        self,
        reference: FinalState,
        y: Float[Tensor, "run d_model"],
        read: Callable[[int | None], Tensor],
        stream: Mapping[str, Float[Tensor, "run d_model"]],
    ):
        shared = {one.name: getattr(reference, one.name) for one in fields(FinalState) if one.name != "logits"}
        vars(self).update(shared | {"y": y, "stream": stream, "_read": read})

    @cached_property
    def logits(self) -> Float[Tensor, "run vocab"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """All of them."""
        return vars(self)["_read"](None)

    def logit(self, token: int) -> Float[Tensor, " run"]:
        """From that token's row of the unembedding alone."""
        return self.logits[..., token] if "logits" in vars(self) else vars(self)["_read"](token)


@dataclass(frozen=True, eq=False)
class Cotangents:
    """Vectors at y (or at an inner site) to be pulled back together, and how their lengths become a score.

    With g_i = J_tᵀv_i the score of token t is Σ_i w_i‖g_i‖² if ``squared``, else its square root: one vector of weight
    1 gives the norm ‖J_tᵀv‖, a Fisher Scope the squared form Σ_i λ_i‖J_tᵀu_i‖². A row that spans positions has a vector
    at each of them, and g_i is the sum of what comes back from all.
    """

    vectors: Float[Tensor, "k d_model"] | Float[Tensor, "k position d_model"]
    weights: Float[Tensor, " k"] | None = None
    squared: bool = False
    probes: int = 0
    """How many of the last vectors are random probes: their scatter gives the standard error (needs ``squared``)."""
    site: str = FINAL
    """Where the vectors live: "final" for y, else the hook name of a residual-stream site."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """JSON-like facts for the result's ``meta``: target, coverage, ...; of rows that span positions "each" is a list of
    such facts, one mapping for every position, and "value" the number that they are the gradient of, where known."""
    scatter: float = 1.0
    """What the probes' deviations from their mean are multiplied by: below 1 where each has seen part of the others."""

    def __post_init__(self) -> None:
        """Keep the numbers as tensors, and check their shapes against each other."""
        axes = ("k", "position", "d_model") if getattr(self.vectors, "ndim", 2) == 3 else ("k", "d_model")
        object.__setattr__(self, "vectors", vector(self.vectors, "Cotangents: vectors", *axes))
        if self.weights is not None:
            object.__setattr__(self, "weights", vector(self.weights, "Cotangents: weights", "k"))
        if self.weights is not None and self.weights.shape != self.vectors.shape[:1]:
            msg = f"Cotangents got {len(self.vectors)} vectors but {len(self.weights)} weights; write one for each"
            raise ValueError(msg)
        if not len(self.vectors):
            msg = "Cotangents need at least one vector, got none; write vectors [k, d_model] with k > 0"
            raise ValueError(msg)
        if self.weights is not None and not (self.weights.isfinite().all() and (self.weights >= 0).all()):
            msg = (
                "Cotangents weights are finite and not negative (they multiply squares), got "
                f"{self.weights.tolist()}; write the sign into the vector"
            )
            raise ValueError(msg)
        object.__setattr__(self, "site", one(self.site))
        if not isinstance(self.notes, Mapping):
            msg = f"Cotangents: notes are a dict of facts, got {shown(self.notes)}; write e.g. notes={{'target': 42}}"
            raise TypeError(msg)
        object.__setattr__(self, "probes", integer(self.probes, "Cotangents: probes"))
        if self.probes and not self.squared:
            msg = "random probes estimate a sum of squares: Cotangents(..., probes=m) needs squared=True"
            raise ValueError(msg)
        if not 0 <= self.probes <= len(self.vectors):
            msg = f"probes counts the last vectors, 0 to {len(self.vectors)} of them, got {self.probes}"
            raise ValueError(msg)

    @property
    def spans(self) -> bool:
        """Whether each row has a vector at every position explained."""
        return self.vectors.ndim == 3

    def of_ordinary_length(self, name: str) -> "Cotangents":
        """The same with a vector of length 1, and its square as weight: lengths below 1e-19 have no square in float32.

        Raises:
            ValueError: a vector below what scores, in float32, have digits for.

        """
        if self.squared or len(self.vectors) > 1 or self.weights is not None:
            return self
        length = float(torch.linalg.vector_norm(self.vectors.double()))
        if length == 0 or _SHORT < length < 1 / _SHORT:
            return self
        if length < NO_LENGTH:
            msg = (
                f"{name} gave a cotangent of length {length:.0e}, of which scores keep no digits: what it measures has "
                "come to rest (a prediction that is certain?); use Semantic, whose logits move on"
            )
            raise ValueError(msg)
        weight = torch.tensor([length**2], dtype=torch.float64, device=self.vectors.device)
        return replace(self, vectors=(self.vectors.double() / length).to(self.vectors), weights=weight)

    def scaled(self) -> tuple["Cotangents", float]:
        """The same with a largest weight of 1, and that weight, for squared units: 1e-200 is no number in float32."""
        if not self.squared or self.weights is None or not (largest := float(self.weights.max())):
            return self, 1.0
        return replace(self, weights=self.weights.double() / largest), largest

    def root_weights(self) -> Float[Tensor, " k"]:
        """√w_i in float64 on the CPU; 1 where no weights are given."""
        return (
            torch.ones(len(self.vectors), dtype=torch.float64, device="cpu")
            if self.weights is None
            else self.weights.double().sqrt().cpu()
        )
