"""One forward pass kept alive: the open sites of a batch of equally long prompts, and the state at the end of each."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_scopes.calculus.budget import outgrows_budget
from lens_scopes.calculus.finite import refuse_nonfinite
from lens_scopes.host import Host, Readout, read_out, run_to_last_residual, token_id, twin_of
from lens_scopes.host.axes import refuse_axes
from lens_scopes.host.capture import Captured
from lens_scopes.host.checkpointing import checkpointing
from lens_scopes.host.differentiable import refuse_dropout
from lens_scopes.host.freeze import freezing_hooks, holding
from lens_scopes.host.model import Hook
from lens_scopes.host.readout import final_norm, raw_logits
from lens_scopes.scopes.state import FinalState, FinalStates
from lens_scopes.sites import EMBED, FINAL


@dataclass(frozen=True, eq=False)
class Trace:
    """The graph of one forward pass, from the sites to y. It lives as long as this object does."""

    host: Host
    readout: Readout
    tokens: Int[Tensor, "batch pos"]
    positions: tuple[int, ...]
    sites: Mapping[str, Tensor]
    """By name, [batch, pos, d_model] or [batch, pos, head, d_head]."""
    handles: Mapping[str, Tensor]
    last: Float[Tensor, "batch position d_model"]
    """The last residual stream at the positions, inside the graph."""
    y: Float[Tensor, "batch position d_model"]
    """The input of the unembedding at the positions, inside the graph."""
    raw: Float[Tensor, "batch position vocab"]
    """Logits before the output transform, outside the graph."""
    held: tuple[Hook, ...] = ()
    """The hooks of a frozen linearisation."""
    hooked: tuple[str, ...] = ()
    """Where the user's own hooks were in force."""

    def state(self, prompt: int, index: int) -> FinalState:
        """What a scope gets to see: the end of one prompt at one of the positions. It does not hold the graph."""
        host = self.host
        work = torch.promote_types(self.y.dtype, torch.float32)
        raw = self.raw[prompt, index]
        slope = self.readout.slope(raw)
        return FinalState(
            # Copies: a scope may edit what it gets.
            y=self.y[prompt, index].detach().to(work, copy=True),
            logits=self.readout.transform(raw).detach().to(work, copy=True),
            weight=self.readout.weight,
            slope=None if slope is None else slope.to(work),
            tokens=tuple(self.tokens[prompt].tolist()),
            position=self.positions[index],
            index=index,
            count=len(self.positions),
            constant_norm=self.readout.constant_norm,
            norm_has_bias=self.readout.norm_has_bias,
            token_id=lambda token: token_id(host, token),
            twin=lambda text: twin_of(host, text),
            stream={
                name: site[prompt, self.positions[index]].detach().to(work, copy=True)
                for name, site in self.sites.items()
                if site.ndim == 3
            },
        )

    def ends(self, prompt: int) -> list[FinalState]:
        """The end of one prompt at each of the positions."""
        return [self.state(prompt, index) for index in range(len(self.positions))]

    def states(
        self, reference: FinalState, last: Float[Tensor, "row d_model"], stream: Mapping[str, Tensor]
    ) -> FinalState:
        """The ends of other runs with the same way out, from their last residual streams at the position.

        Args:
            reference: the state of this run at the position.
            last: by run.
            stream: of the runs, at the open sites.

        """
        y = final_norm(self.host, last).to(reference.y)
        read = partial(self._reading(reference), y)
        # Copies: a scope may edit what it gets.
        return FinalStates(reference, y.clone(), read, {name: at.to(y, copy=True) for name, at in stream.items()})

    def _reading(self, reference: FinalState) -> Callable[[Tensor, int | None], Tensor]:
        host, readout, dtype = self.host, self.readout, self.raw.dtype
        allowed = (1e-5 if dtype in (torch.float32, torch.float64) else 1e-2) * reference.logits.abs().max()
        as_it_is = not any(name.startswith("unembed") for name in self.hooked)

        def whole(y: Tensor) -> Tensor:
            return readout.transform(raw_logits(host, y.to(dtype))).to(reference.logits)

        def column(y: Tensor, token: int) -> Tensor:
            raw = y.to(dtype) @ readout.weight[token]
            bias = getattr(host.model, "b_U", None)
            return readout.transform(raw if bias is None else raw + bias[token]).to(reference.logits)

        def read(y: Tensor, token: int | None) -> Tensor:
            if token is None:
                return whole(y)
            # One row of the unembedding is enough where it gives what the model's own run gave.
            enough = as_it_is and (column(reference.y, token) - reference.logits[token]).abs() <= allowed
            return column(y, token) if enough else whole(y)[..., token]

        return read

    def logits(self, prompt: int, index: int) -> Float[Tensor, " vocab"]:
        """The model's logits of one prompt at one of the positions, in float32 or wider."""
        raw = self.raw[prompt, index]
        return self.readout.transform(raw).detach().to(torch.promote_types(raw.dtype, torch.float32))

    def output(self, site: str) -> Float[Tensor, "batch position d_model"]:
        """The tensor that cotangents at a site are contracted with: y, or an inner site at the positions."""
        return self.y if site == FINAL else self.sites[site][:, list(self.positions)]


def trace(
    host: Host,
    tokens: Int[Tensor, "batch pos"],
    sites: Sequence[str],
    positions: Sequence[int],
    freeze: Sequence[str] = (),
) -> Trace:
    """Run the model once on prompts of one length and keep the given sites open; ``freeze``: see ``host.freeze``.

    Raises:
        ValueError: NaN or infinity at the end; the text names the first site that has it. Or a site that is not
            laid out by position.
        RuntimeError: dropout in train mode, a hook that never fires, or a readout that does not match the model.

    """
    refuse_dropout(host.model)
    with host.alone(), torch.inference_mode(mode=False):
        tokens = tokens.clone()  # ids made under inference_mode cannot enter a graph
        held = freezing_hooks(host, freeze)
        kept = host.hooked() or held or not outgrows_budget(host, *tokens.shape)
        with nullcontext() if kept else checkpointing(host):
            # All that is inside a block is open where the embedding is.
            opened = sites if kept else list(dict.fromkeys([EMBED, *sites]))
            captured = run_to_last_residual(host, tokens, opened, hooks=held)
        refuse_axes(host, tokens, captured.sites)
        return trace_of(host, tokens, captured, positions, held)


def trace_of(
    host: Host,
    tokens: Int[Tensor, "batch pos"],
    captured: Captured,
    positions: Sequence[int],
    held: Sequence[Hook] = (),
) -> Trace:
    """The trace of a run that was captured already: its way out, at the positions.

    Raises:
        ValueError: NaN or infinity at the end; the text names the first site that has it.
        RuntimeError: a readout that does not match the model.

    """
    with host.alone(), torch.inference_mode(mode=False):
        readout = read_out(host, tokens)
        with torch.enable_grad(), host.frozen(), holding(host, held):
            last = captured.last[:, list(positions)]
            y = final_norm(host, last)
        with torch.no_grad():
            raw = raw_logits(host, y)
            for values in (y, raw):
                refuse_nonfinite(host, tokens, {FINAL: values})
    ends = (last, y, raw, tuple(held), host.hooked())
    return Trace(host, readout, tokens, tuple(positions), captured.sites, captured.handles, *ends)
