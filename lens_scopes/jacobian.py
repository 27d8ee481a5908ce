"""The Jacobian itself: between two places of the stream, as an operator, in dense blocks, by its singular vectors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lens_scopes.calculus.finite import refuse_nonfinite
from lens_scopes.calculus.memory import lanes_at_once, rows_at_once
from lens_scopes.calculus.pullback import Rows, pull_back
from lens_scopes.calculus.pushforward import push_forward
from lens_scopes.calculus.subspace import largest
from lens_scopes.calculus.trace import Trace, trace
from lens_scopes.host import Host, encode, token_texts
from lens_scopes.host.fingerprint import fingerprint, refuse_changed
from lens_scopes.host.prompts import Positions, Prompt, positions_of, spans_of
from lens_scopes.host.undo import guarded
from lens_scopes.results.arguments import Integer, integer, is_integer, vector
from lens_scopes.scopes.state import Cotangents
from lens_scopes.sites import FINAL, depth

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Svd:
    """The largest singular triplets of J as a matrix [d_out, pos · d_in]: J ≈ Σ_i S_i U_i V_iᵀ; ``U, S, V = svd``."""

    U: Float[Tensor, "k d_out"]
    S: Float[Tensor, " k"]
    V: Float[Tensor, "k pos d_in"]
    residual: Float[Tensor, " k"]
    """How well each is known: ‖J V_i − S_i U_i‖ / S_0."""

    def __iter__(self) -> Iterator[Tensor]:
        """U, S and V, as a tuple of torch's has them."""
        return iter((self.U, self.S, self.V))


@guarded
def jacobian(
    model: Any,
    prompt: Prompt,
    source: str = "embed",
    target: str = FINAL,
    *,
    position: Positions = -1,
    freeze: Sequence[str] = (),
) -> "Jacobian":
    """J = ∂(target at position)/∂(source at every position), from one forward pass that stays open.

    Args:
        model: a HookedTransformer or TransformerBridge in eval mode; left as it came.
        prompt: see ``score``.
        source: "embed" or the hook name of a residual-stream site.
        target: "final" (y, the input of the unembedding) or the hook name of a later site.
        position: where the target is read: an index; or a list, "all" or a Text's span, which give ``vjp`` and ``jvp``
            an axis for them.
        freeze: see ``score``.

    Raises:
        ValueError: a site that the model lacks, that has a head axis, or a target that is not after the source.
        IndexError: a position outside the prompt.

    """
    host = Host(model)
    ids = encode(host, prompt)
    positions = positions_of(position, len(ids), spans_of(prompt))
    asked = [source] if target == FINAL else [source, target]
    names = [host.sites(site) for site in asked]
    if any(len(found.names) != 1 or found.per_head for found in names):
        msg = f"jacobian goes from one residual-stream site to another, got {source!r} and {target!r}; write hook names"
        raise ValueError(msg)
    start, end = names[0].names[0], FINAL if target == FINAL else names[1].names[0]
    if depth(start, host.n_layers) >= depth(end, host.n_layers):
        msg = f"the target {end!r} is not after the source {start!r}: its Jacobian is zero; swap them"
        raise ValueError(msg)
    open_sites = [start] if end == FINAL else [start, end]
    run = trace(host, ids[None], open_sites, positions, freeze)
    return Jacobian(run, start, end, fingerprint(host), several=not is_integer(position))


@dataclass(frozen=True, eq=False, repr=False)
class Jacobian:
    """J [d_out, pos, d_in], matrix-free: it keeps the graph of one forward pass alive and is never formed unasked."""

    run: Trace
    source: str
    target: str
    state: str
    """The model's weights and hooks when the graph was made."""
    several: bool = False
    """Whether the target is read at several positions."""

    @property
    def position(self) -> int:
        """Where the target is read; the first of several."""
        return self.run.positions[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(d_out, pos, d_in), d_out at each position."""
        _, pos, d_in = self.run.sites[self.source].shape
        return self.run.output(self.target).shape[-1], pos, d_in

    @guarded
    def vjp(
        self, cotangents: Float[Tensor, "k *position d_out"] | Float[np.ndarray, "k *position d_out"]
    ) -> Float[Tensor, "k pos d_in"]:
        """vᵀJ for k cotangents at the target, [k, d_out]; of several positions [k, position, d_out], which are summed.

        Raises:
            ValueError: another shape, or NaN or infinity in the result.

        """
        wanted = {"position": len(self.run.positions), "d_out": self.shape[0]}
        wanted = wanted if self.several else {"d_out": wanted["d_out"]}
        given = vector(cotangents, "what vjp takes", "k", *wanted)
        if tuple(given.shape[1:]) != tuple(wanted.values()) or not len(given):
            axes = ", ".join(f"{name}={size}" for name, size in wanted.items())
            msg = f"vjp takes cotangents [k, {axes}], got {tuple(given.shape)}"
            raise ValueError(msg)
        rows = Rows.of([[Cotangents(given.to(self.run.y.device), site=self.target)]])
        found = torch.cat([part[self.source][:, 0].detach() for _, part in pull_back(self.run, rows, self.target)])
        refuse_nonfinite(self.run.host, self.run.tokens, {self.source: found})
        return found

    @guarded
    def jvp(
        self, tangents: Float[Tensor, "k pos d_in"] | Float[np.ndarray, "k pos d_in"]
    ) -> Float[Tensor, "k *position d_out"]:
        """Ju for k tangents at the source, [k, d_out]; at several positions [k, position, d_out].

        Raises:
            ValueError: another shape, or NaN or infinity in the result.
            RuntimeError: the model has changed since.

        """
        given = vector(tangents, "what jvp takes", "k", "pos", "d_in")
        if given.shape[1:] != self.shape[1:] or not len(given):
            msg = f"jvp takes tangents [k, pos, d_in] with {self.shape[1:]}, got {tuple(given.shape)}"
            raise ValueError(msg)
        dtype, device = self.run.y.dtype, self.run.y.device
        refuse_changed(self.run.host, self.state, "jvp runs the live model", "jacobian")
        out = [self._push(part.to(device, dtype)) for part in given.split(lanes_at_once(self.run))]
        pushed = torch.cat(out)
        refuse_nonfinite(self.run.host, self.run.tokens, {self.target: pushed}, "the tangent")
        return pushed

    def _push(self, tangents: Tensor) -> Tensor:
        inner = () if self.target == FINAL else (self.target,)
        at = list(self.run.positions) if self.several else self.position
        pushed = push_forward(
            self.run.host, self.run.tokens[0], self.source, tangents, position=at, sites=inner, hooks=self.run.held,
            until=inner[0] if inner else None,
        )  # fmt: skip
        return pushed.y if pushed.y is not None else pushed.visitor.at[self.target][:, at]

    def _refuse_several(self, what: str) -> None:
        if self.several:
            msg = (
                f"{what} reads the target at one position, this Jacobian at {len(self.run.positions)}; write "
                "jacobian(..., position=p), or take vjp and jvp"
            )
            raise ValueError(msg)

    def dense(self) -> Float[Tensor, "pos d_out d_in"]:
        """All of J, by one pull-back per row, in chunks; positions after the target's are zero.

        Raises:
            ValueError: several positions.

        """
        self._refuse_several("dense")
        d_out, pos, d_in = self.shape
        whole = self.run.y.new_empty(pos, d_out, d_in)
        eye = torch.eye(d_out, dtype=whole.dtype, device=whole.device)
        size = rows_at_once(self.run, d_out)
        for begin in range(0, d_out, size):
            chunk = eye[begin : begin + size]
            whole[:, begin : begin + size] = self.vjp(chunk).transpose(0, 1)
        return whole

    def svd(self, k: Integer = 8, *, tol: float = 1e-4) -> Svd:
        """The k largest singular values of J as a matrix [d_out, pos · d_in], from products with blocks of vectors.

        Args:
            k: how many.
            tol: what ``residual`` may be at most. A singular value is off by about its square.

        Raises:
            ValueError: k outside 1 .. d_out, a tol that is not above 0, or several positions.

        """
        self._refuse_several("svd")
        d_out, pos, d_in = self.shape
        k = integer(k, "svd's k")
        if not 1 <= k <= min(d_out, pos * d_in):
            msg = f"svd({k}): J is {d_out} x {pos * d_in}, so k is between 1 and {min(d_out, pos * d_in)}"
            raise ValueError(msg)
        if not tol > 0:
            msg = f"svd's tol is a part of the largest singular value, above 0, got {tol}"
            raise ValueError(msg)

        def pull(rows: Tensor) -> Tensor:
            return self.vjp(rows).flatten(1).double().cpu()

        def push(rows: Tensor) -> Tensor:
            return self.jvp(rows.unflatten(1, (pos, d_in))).double().cpu()

        u, s, v, residual = largest(pull, push, d_out, k, tol)
        return Svd(u, s, v.unflatten(1, (pos, d_in)), residual)

    def decode(self, k: int = 4, *, tokens: int = 5) -> "pd.DataFrame":
        """What the singular vectors say: the output side through the unembedding, the input side through the embedding.

        Signs of a pair are fixed so that its output side raises the token it moves most. At inner sites the same two
        matrices are used directly, without the norms in between, as a first impression.

        Args:
            k: how many singular triplets.
            tokens: how many tokens to name on each side.

        Returns:
            Two rows per triplet: rank, sigma, side ("output", "input"), pos and token of the strongest input position,
            its share of ‖V_i‖², and the tokens that the vector raises and lowers most.

        """
        import pandas as pd

        host = self.run.host
        unembed, embed = self.run.readout.weight.double().cpu(), host.embedding.detach().double().cpu()
        ids = self.run.tokens[0].tolist()
        texts = token_texts(host, ids)
        rows = []
        for rank, (u, sigma, v) in enumerate(zip(*self.svd(k), strict=True)):
            logits = unembed @ u
            sign = 1.0 if float(logits.max()) >= -float(logits.min()) else -1.0
            share = v.square().sum(-1)
            at = int(share.argmax())
            for side, scores in (("output", sign * logits), ("input", sign * (embed @ v[at]))):
                row: dict[str, Any] = {"rank": rank, "sigma": float(sigma), "side": side}
                row |= (
                    {"pos": at, "token": texts[at], "share": float(share[at] / share.sum())} if side == "input" else {}
                )
                row["raises"] = [token_texts(host, [ids[0], i])[1] for i in scores.topk(tokens).indices.tolist()]
                row["lowers"] = [token_texts(host, [ids[0], i])[1] for i in (-scores).topk(tokens).indices.tolist()]
                rows.append(row)
        frame = pd.DataFrame(rows)
        frame["pos"] = frame["pos"].astype("Int64")
        return frame

    def __repr__(self) -> str:
        """One line."""
        at = f"{len(self.run.positions)} positions" if self.several else self.position
        return f"Jacobian({self.source} -> {self.target} at {at}; {self.shape} on {self.run.host.name})"
