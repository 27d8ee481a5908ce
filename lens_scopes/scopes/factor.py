"""The Fisher matrix as directions and probes, without ever meeting most words more than once.

With r the likeliest word's row of W̃, ρ = 1 − p_top, q the distribution of all other words, R_w = w̃_w − r and
δ = Σ_w q_w R_w, the mean is r + ρδ and

    F/ρ = Σ_{w≠top} q_w (R_w − ρδ)(R_w − ρδ)ᵀ + p_top ρ δδᵀ = BᵀB.

Nothing in it cancels, however sure the model is, and nothing underflows: ρ, which may be 1e-300, stands outside.

A real vocabulary is *split*. A few thousand likely words are *heavy*: their rows of B are held and their directions
found. Every other word goes with a random sign into one of the probes; those sums come from the one sweep over W̃ that
gives the mean.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_scopes.scopes.prediction import Prediction
from lens_scopes.scopes.state import FinalState

#: Where ρ is below e^-60 the likeliest word's own row is 1e-26 of the whole: less than any rounding.
_NEGLIGIBLE = -60.0
# Heavy words of an estimate: so many, doubled until they hold this share of what is not p_top.
_HEAVY, _HEAVY_SHARE = 2048, 0.97
# Heavy words of a truncation: so many, doubled until they hold this share of tr F.
_TRUNCATED, _TRUNCATED_SHARE = 8192, 0.99
# Above this width the directions of heavy words are found by block iteration.
_WIDE, _BLOCK, _ITERATIONS = 1024, 64, 3
_ROWS = 4096


@dataclass(frozen=True, eq=False)
class Rows:
    """The factor B [vocab, d_model] of F/ρ = BᵀB: a row √(p_w/ρ) g_w for every word, centred before it is weighted."""

    state: FinalState
    prediction: Prediction
    root: Float[Tensor, " vocab"]
    """√(p_w/ρ), float64."""
    offset: Float[Tensor, " d_model"]
    """δ."""
    tail: Float[Tensor, " d_model"]
    """Σ q_w w̃_w of all words but the heavy ones."""
    swept: Float[Tensor, "probe d_model"]
    """Signed sums of the tail's rows, from the sweep over W̃ that gave the mean."""

    @classmethod
    def of(
        cls,
        state: FinalState,
        heavy: Int[Tensor, " words"] | None = None,
        signs: Float[Tensor, "probe vocab"] | None = None,
    ) -> "Rows":
        """One sweep over W̃.

        Args:
            state: the end of the model.
            heavy: words that are in no sum; the likeliest is one of them.
            signs: which other words go into which sum, and with which sign.

        """
        prediction = Prediction.of(state.logits)
        root, r = prediction.log_others.div(2).exp(), state.rows(prediction.top)
        light = root.clone()
        inside: Tensor | float = 0.0
        if heavy is not None:
            light[heavy] = 0
            inside = root[heavy].square().to(r) @ state.rows(heavy)
        asked = light.square()[None].to(r)
        if signs is not None:
            asked = torch.cat([asked, signs * light.to(r)])
        tail, swept = state.pull(asked).tensor_split([1])
        if prediction.log_rest > _NEGLIGIBLE:
            root[prediction.top] = ((prediction.log_top - prediction.log_rest) / 2).exp()
        offset = tail[0] - r + inside
        sums = asked[1:].sum(-1, keepdim=True, dtype=torch.float64).to(r)
        swept = swept - sums * (r + float(prediction.log_rest.exp()) * offset)
        return cls(state, prediction, root, offset, tail[0], swept)

    @property
    def mean(self) -> Float[Tensor, " d_model"]:
        """E_p[w̃] = r + ρδ."""
        return self.state.rows(self.prediction.top) + self._rest * self.offset

    @property
    def _rest(self) -> float:
        return float(self.prediction.log_rest.exp())

    def words(self, which: slice | Int[Tensor, " words"]) -> Float[Tensor, "words d_model"]:
        """Rows of B."""
        rows = self.state.rows(which) - self.state.rows(self.prediction.top) - self._rest * self.offset
        return rows * self.root[which, None].to(rows)

    def energy(self) -> Float[Tensor, " vocab"]:
        """‖B_w‖², what each word carries of tr F/ρ, in float64: a product with W̃."""
        mean, top = self.mean, self.prediction.top
        along = self.state.times(mean[:, None])[:, 0].double()
        energy = self.root.square() * (self.state.square_lengths() - 2 * along + mean.double().square().sum())
        energy[top] = self.words(torch.tensor([top], device="cpu")).double().square().sum()
        return energy.clamp(min=0)

    def energy_outside(self, heavy: Int[Tensor, " words"]) -> float:
        """Σ ‖B_w‖² of all words but the heavy ones that it was made with, in float64: without a product with W̃."""
        q, mean = self.root.square(), self.mean.double()
        q[heavy] = 0
        found = q @ self.state.square_lengths() - 2 * self.tail.double() @ mean + mean.square().sum() * q.sum()
        return max(0.0, float(found))


@dataclass(frozen=True, eq=False)
class Factored:
    """F/ρ = E[VᵀV] with V the directions and, each with a random sign in one of the sums, the words of the tail."""

    rows: Rows
    directions: Float[Tensor, "n d_model"]
    """Rows whose outer products add up to F/ρ without its tail; the leading eigenvectors first."""
    heavy: int
    """How many words the directions are made of."""
    tail: float = 0.0
    """The tail's share of tr F/ρ, in the same units."""

    @property
    def log_rest(self) -> float:
        """log ρ."""
        return float(self.rows.prediction.log_rest)

    @property
    def energy(self) -> Float[Tensor, " n"]:
        """What each direction carries of tr F/ρ."""
        return self.directions.double().square().sum(-1)

    def trace(self) -> float:
        """tr F/ρ."""
        return float(self.energy.sum()) + self.tail


def whole(state: FinalState, leading: int | None = None) -> Factored:
    """The directions of all words; of a wide F none but the leading ones are eigenvectors where these suffice."""
    rows = Rows.of(state)
    made = _eigenvectors(_gram(rows)) if leading is None else _directions(rows.words(slice(None)), leading)
    return Factored(rows, made, len(state.logits))


def split(state: FinalState, exact: int, probes: int, generator: torch.Generator) -> Factored:
    """The directions of the likeliest words, and the others in sums, one for each probe."""
    vocab, d_model = len(state.logits), len(state.y)
    prediction = Prediction.of(state.logits)
    size, likeliest = _HEAVY, prediction.log_others.topk(min(_HEAVY, vocab) - 1).indices
    while size < vocab and prediction.log_others[likeliest].logsumexp(0).exp() < _HEAVY_SHARE:
        size *= 2
        likeliest = prediction.log_others.topk(min(size, vocab) - 1).indices
    if _dense_is_cheaper(vocab, d_model, len(likeliest) + 1, probes):
        return whole(state, exact)
    heavy = torch.cat([likeliest.new_tensor([prediction.top]), likeliest])
    drawn = torch.randint(0, 2 * probes, (vocab,), generator=generator, device="cpu").to(heavy.device)
    signs = state.y.new_zeros(probes, vocab)
    signs.scatter_(0, (drawn // 2)[None], (1 - 2 * (drawn % 2))[None].to(signs))
    rows = Rows.of(state, heavy, signs)
    return Factored(rows, _directions(rows.words(heavy), exact), len(heavy), rows.energy_outside(heavy))


def leading(state: FinalState, rank: int) -> Factored:
    """The leading directions of the words that carry most of tr F: at least 99 % of it."""
    vocab, d_model = len(state.logits), len(state.y)
    if _dense_is_cheaper(vocab, d_model, _TRUNCATED, 0):
        return whole(state, rank)
    rows = Rows.of(state)
    energy, order = rows.energy().sort(descending=True)
    carried = energy.cumsum(0) / energy.sum()
    size = _TRUNCATED
    while size < vocab and carried[size - 1] < _TRUNCATED_SHARE:
        size *= 2
    if _dense_is_cheaper(vocab, d_model, size, 0):
        return Factored(rows, _eigenvectors(_gram(rows)), vocab)
    directions = _directions(rows.words(order[:size]), rank)
    return Factored(rows, directions, size, float(energy[size:].sum()))


def fisher_matrix(state: FinalState) -> Float[Tensor, "d_model d_model"]:
    """F = E_{w~p}[g_w g_wᵀ] at y, in float64.

    Equivalent to ``W.T @ (diag(p) - outer(p, p)) @ W`` with W = ``state.unembed``, without its cancellation.
    """
    rows = Rows.of(state)
    return _gram(rows) * rows.prediction.log_rest.exp()


def _dense_is_cheaper(vocab: int, d_model: int, heavy: int, probes: int) -> bool:
    """By the multiplications of F from all words, against F from the heavy ones and a sweep over W̃."""
    return vocab * d_model <= 2 * heavy * d_model + (probes + 1) * vocab


def _gram(rows: Rows) -> Float[Tensor, "d_model d_model"]:
    """F/ρ, accumulated over all words in float64."""
    vocab = len(rows.root)
    parts = (rows.words(slice(start, start + _ROWS)) for start in range(0, vocab, _ROWS))
    return sum(((part.T @ part).double() for part in parts), rows.root.new_zeros(()))


def _directions(b: Float[Tensor, "n d_model"], leading: int) -> Float[Tensor, "m d_model"]:
    """Rows with the same Gram matrix, the leading eigenvectors first.

    Where there are few words or dimensions, these are all eigenvectors √λ_i u_i. Else BᵀB = BᵀQQᵀB + Bᵀ(1 − QQᵀ)B
    holds for every orthonormal Q, so an inexact Q costs scatter and never a bias.
    """
    n, d_model = b.shape
    width = max(_BLOCK, 2 * leading)
    if d_model <= n and (d_model <= _WIDE or 4 * width > d_model):
        return _eigenvectors(sum(((part.T @ part).double() for part in b.split(_ROWS)), b.new_zeros(())))
    if n <= _WIDE or 4 * width > n:
        return _signed(torch.linalg.eigh((b @ b.T).double()).eigenvectors.T.flip(0).to(b) @ b)
    block = torch.randn(d_model, width, generator=torch.Generator().manual_seed(0), device="cpu").to(b)
    for _ in range(_ITERATIONS):
        block = b.T @ (b @ torch.linalg.qr(block).Q)
    inside = torch.linalg.qr(b @ block).Q
    within = inside.T @ b
    turned = torch.linalg.eigh((within @ within.T).double()).eigenvectors.T.flip(0).to(b)
    return torch.cat([_signed(turned @ within), b - inside @ within])


def _eigenvectors(gram: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """Rows √λ_i u_i of a positive matrix, λ descending; rounding below zero is cut."""
    energy, vectors = torch.linalg.eigh(gram)
    return _signed((vectors * energy.clamp(min=0).sqrt()).T.flip(0))


def _signed(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Each with its largest component positive, so that random signs mean the same on every machine."""
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    return torch.where(largest < 0, -rows, rows)
