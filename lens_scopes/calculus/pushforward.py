"""Jacobian-vector products: a tangent set at one place of the stream, and what becomes of it everywhere after."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lens_scopes.calculus.reach import refuse_lost
from lens_scopes.host import Host, run_to_last_residual
from lens_scopes.host.capture import entrance
from lens_scopes.host.freeze import holding
from lens_scopes.host.model import Hook
from lens_scopes.host.readout import final_norm
from lens_scopes.host.undo import undone
from lens_scopes.sites import FINAL

# torch has one level of dual numbers for the whole process, not one for each thread.
_one_at_a_time = threading.RLock()


class Visitor(Protocol):
    """Who sees what passes. A pass that has to begin anew gets a new one: nothing is seen twice."""

    def visit(self, name: str, value: Tensor, tangent: Tensor) -> None:
        """Called at each site in the order of the forward pass, with its value and its tangent [lane, pos, ...]."""
        ...


@dataclass(eq=False)
class Tangents:
    """The visitor that keeps every tangent, by site."""

    at: dict[str, Tensor] = field(default_factory=dict)

    def visit(self, name: str, value: Tensor, tangent: Tensor) -> None:  # noqa: ARG002
        """Keep the tangent."""
        self.at[name] = tangent


@dataclass(frozen=True, eq=False)
class Pushed:
    """The tangent at the end, by which of the two ways it was computed, and who saw the pass."""

    y: Float[Tensor, "lane *position d_model"] | None
    """With an axis for the positions where a list of them was asked for; None where the pass was stopped earlier."""
    method: str
    """ "forward mode", or "two reverse passes" where an operation of the model has no forward-mode derivative."""
    visitor: Any


@dataclass(frozen=True, eq=False)
class _Push:
    """What is pushed from where, and who is to see it."""

    host: Host
    tokens: Int[Tensor, "lane pos"]
    source: str
    tangents: Float[Tensor, "lane pos d_model"]
    position: int | list[int]
    sites: Sequence[str]
    visitor: Callable[[], Visitor]
    hooks: Sequence[Hook]
    until: str | None


def push_forward(
    host: Host,
    tokens: Int[Tensor, " pos"],
    source: str,
    tangents: Float[Tensor, "lane pos d_model"],
    *,
    position: int | list[int],
    sites: Sequence[str] = (),
    visitor: Callable[[], Visitor] = Tangents,
    hooks: Sequence[Hook] = (),
    until: str | None = None,
) -> Pushed:
    """J·u for several tangents u at one site of one prompt, each in a lane of the batch, from one pass.

    Equivalent to multiplying the tangents by the dense Jacobians from ``source`` to every later site and to y. Tangents
    of the sites are handed to a visitor as they appear; one that does not keep them makes memory independent of depth.

    Args:
        host: the model.
        tokens: [pos], one prompt.
        source: the site whose activation is moved.
        tangents: the directions, one lane each.
        position: where y is read, one place or several.
        sites: hook names to visit; the source itself is visited if it is among them.
        visitor: makes the one who sees them, anew for each attempt at the pass.
        hooks: run before the visits; what they detach, does not move (``host.freeze``).
        until: stop after this site.

    """
    lanes = tokens.reshape(1, -1).expand(len(tangents), -1)
    source = entrance(host, source)  # where a value that is given back goes on whole
    push = _Push(host, lanes, source, tangents, position, sites, visitor, hooks, until)
    try:
        with host.alone(), _one_at_a_time:
            pushed = _forward_mode(push)
    except (NotImplementedError, RuntimeError) as failure:
        if isinstance(failure, torch.OutOfMemoryError) or "forward" not in str(failure).lower():
            raise
        pushed = None
    return pushed or _two_reverse_passes(push)


def _forward_mode(push: _Push) -> Pushed | None:
    """None where the tangent did not arrive: some hosts go on without the one that a hook's value carries."""
    host, visitor = push.host, push.visitor()
    arrived: list[bool] = []

    def start(activation: Tensor, hook: object) -> Tensor:  # noqa: ARG001
        return forward_ad.make_dual(activation.detach(), push.tangents.to(activation))

    def seeing(name: str) -> Callable[..., Tensor]:
        def see(activation: Tensor, hook: object) -> Tensor:  # noqa: ARG001
            value, tangent = forward_ad.unpack_dual(activation)
            visitor.visit(name, value, torch.zeros_like(value) if tangent is None else tangent)
            arrived[:] = [tangent is not None]
            return activation

        return see

    with torch.inference_mode(mode=False), torch.enable_grad(), _dual_level(), _still_weights(len(push.tokens)):
        all_hooks = [(push.source, start), *push.hooks, *((name, seeing(name)) for name in push.sites)]
        last = run_to_last_residual(host, push.tokens, hooks=all_hooks, until=push.until).last
        if push.until is not None:
            return Pushed(None, "forward mode", visitor) if arrived == [True] else None
        with host.frozen(), holding(host, push.hooks):
            y = final_norm(host, last[:, push.position])
        tangent = forward_ad.unpack_dual(y).tangent
        return None if tangent is None else Pushed(tangent, "forward mode", visitor)


@contextmanager
def _dual_level() -> Iterator[None]:
    """torch's own, of which there is one; left for certain: an interrupt on the way out would keep it for good."""
    pending = [forward_ad._current_level < 0]  # inside a user's own level, torch refuses another

    def leave() -> None:
        with _one_at_a_time:
            if pending[0] and forward_ad._current_level >= 0:
                forward_ad.exit_dual_level()
            pending[0] = False

    with undone(leave):
        forward_ad.enter_dual_level()
        yield


@contextmanager
def _still_weights(lanes: int) -> Iterator[None]:
    """On torch's stack of modes, and off it for certain: an interrupt in torch's own lines leaves it either way."""
    mode = _StillWeights(lanes)

    def leave() -> None:
        while any(one is mode for one in torch.overrides._get_current_function_mode_stack()):
            torch.overrides._pop_mode()

    with undone(leave):
        torch.overrides._push_mode(mode)
        yield


class _StillWeights(TorchFunctionMode):
    """Linear layers whose weights do not move: the tangent goes through the same layer, without its bias.

    Autograd would also multiply the activation with the weight's tangent, a matrix of zeros: a third matrix product
    for each layer, which is most of what a pass costs. And where all lanes hold the same value (one prompt, several
    tangents), the layer's own output is worked out for one of them: a hook that treats them differently parts them.
    """

    def __init__(self, lanes: int):
        super().__init__()
        self.lanes = lanes

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if kwargs or function not in (functional.linear, torch.addmm):
            return function(*args, **(kwargs or {}))
        at = 1 if function is torch.addmm else 0  # addmm(bias, activation, weight), linear(activation, weight, bias)
        activation, weight = args[at : at + 2]
        value, tangent = forward_ad.unpack_dual(activation)
        still = (x for x in args if isinstance(x, Tensor) and x is not activation)
        if tangent is None or any(forward_ad.unpack_dual(x).tangent is not None for x in still):
            return function(*args)
        moved = tangent @ weight if function is torch.addmm else functional.linear(tangent, weight)
        return forward_ad.make_dual(self._once(lambda x: function(*args[:at], x, *args[at + 1 :]), value), moved)

    def _once(self, layer: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
        """The layer's output; lanes come first, alone or together with positions."""
        if self.lanes == 1 or not value.numel() or value.shape[0] % self.lanes:
            return layer(value)
        by_lane = value.unflatten(0, (self.lanes, -1))
        if not torch.equal(by_lane, by_lane[:1].expand_as(by_lane)):
            return layer(value)
        out = layer(by_lane[0])
        return out.expand(self.lanes, *out.shape).flatten(0, 1).contiguous()  # some layers write into it


def _two_reverse_passes(push: _Push) -> Pushed:
    """J u as ∂⟨Jᵀc, u⟩/∂c: a backward pass with dummy cotangents c, then one through that pass."""
    host, visitor, tangents = push.host, push.visitor(), push.tangents
    opened = [push.source, *(name for name in push.sites if name != push.source)]
    with torch.inference_mode(mode=False), torch.enable_grad(), host.frozen():
        captured = run_to_last_residual(host, push.tokens, opened, hooks=push.hooks, until=push.until)
        with holding(host, push.hooks):
            y = None if push.until is not None else final_norm(host, captured.last[:, push.position])
        start = captured.sites[push.source]
        outputs = [*(captured.sites[name] for name in opened[1:]), *([] if y is None else [y])]
        dummies = [torch.zeros_like(out, requires_grad=True) for out in outputs]
        reached = [(out, c) for out, c in zip(outputs, dummies, strict=True) if out.grad_fn is not None]
        back = _back(reached, start)
        moved = [None] * len(dummies)
        if back is not None:
            moved = torch.autograd.grad(back, dummies, tangents.to(back), allow_unused=True)
    if outputs and moved[-1] is None:
        refuse_lost(host, [push.source], push.until or FINAL, {name for name, _ in push.hooks})
    found = [torch.zeros_like(c) if m is None else m for m, c in zip(moved, dummies, strict=True)]
    by_name = {push.source: tangents.to(start)} | dict(zip(opened[1:], found, strict=False))
    for name in push.sites:
        same = captured.sites[name] is start  # a site under another name: nothing happens in between
        visitor.visit(name, captured.sites[name].detach(), by_name[push.source] if same else by_name[name])
    return Pushed(None if y is None else found[-1], "two reverse passes", visitor)


def _back(reached: Sequence[tuple[Tensor, Tensor]], start: Tensor) -> Tensor | None:
    """Jᵀc at the source, in a graph that knows c; None where nothing of the source arrives."""
    outputs = [out for out, _ in reached]
    if not outputs:
        return None
    cotangents = [c for _, c in reached]
    return torch.autograd.grad(outputs, start, cotangents, create_graph=True, allow_unused=True)[0]
