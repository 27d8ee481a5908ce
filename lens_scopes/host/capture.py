"""One forward pass whose sites stay open for differentiation, stopped before the final norm."""

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_scopes.host.model import Hook, Host, in_place, take_out
from lens_scopes.host.undo import depth, undone
from lens_scopes.sites import FINAL


class _ReachedTheEnd(Exception):  # noqa: N818 - it is a signal, not an error
    """Raised by the hook on the last residual stream: the one way to stop early that works in every host."""


@dataclass(frozen=True, eq=False)
class Captured:
    """What one pass left behind: the sites' tensors inside the graph, and the last residual stream."""

    sites: Mapping[str, Tensor]
    """By name, each [batch, pos, ...]: the value that the model went on with."""
    handles: Mapping[str, Tensor]
    """By name, the tensor whose gradient is the site's."""
    last: Float[Tensor, "batch pos *site"]
    """The last residual stream, or the site that the run was stopped at."""


@dataclass(eq=False)
class _Recorder:
    """Hooks that open every site: a leaf where nothing upstream is differentiated, else the model's own tensor."""

    values: dict[str, Tensor] = field(default_factory=dict)

    def hook(self, name: str) -> Callable[..., Tensor]:
        def open_site(activation: Tensor, hook: object) -> Tensor:  # noqa: ARG001 - TransformerLens's signature
            if not activation.requires_grad:
                activation = activation.detach().requires_grad_()
            self.values[name] = activation
            # Always returned: on a Bridge the hook's tensor may be a view that the model only uses if it is given back.
            return activation

        return open_site


def run_to_last_residual(
    host: Host,
    tokens: Int[Tensor, "batch pos"],
    sites: Sequence[str] = (),
    *,
    grad: bool = True,
    edits: Mapping[str, Callable[[Tensor], None]] | None = None,
    hooks: Sequence[Hook] = (),
    until: str | None = None,
) -> Captured:
    """Run the blocks on the tokens; keep the given sites open; stop at the last residual stream.

    The user's own hooks stay in force. ``edits`` change activations *in place* by name: on a Bridge the only edit of
    hook_resid_mid that reaches the skip connection (an edited copy reaches the MLP alone). ``hooks`` are run first.
    ``until`` stops at an earlier site, which is then what ``last`` holds.

    Raises:
        RuntimeError: a site's hook did not fire.
        ValueError: an edit that would reach half of what a site goes to.

    """
    _refuse_split(host, edits or {})
    recorder = _Recorder()
    opened = {name: None for site in sites for name in (entrance(host, site), site)}
    all_hooks = [*hooks, *((name, recorder.hook(name)) for name in opened)]
    all_hooks += [(name, in_place(edit)) for name, edit in (edits or {}).items()]
    final = until or host.last_residual
    end: list[Tensor] = []

    def stop(activation: Tensor, hook: object) -> None:  # noqa: ARG001
        end.append(activation)
        raise _ReachedTheEnd

    with (
        torch.inference_mode(mode=False),
        torch.set_grad_enabled(grad),
        host.frozen(),
        host.hooks([*all_hooks, (final, stop)]),
        suppress(_ReachedTheEnd),
    ):
        host.run(tokens)
    silent = [name for name in opened if name not in recorder.values]
    if silent or not end:
        why = "it is compiled: pass the model that was compiled (model._orig_mod), or load it again"
        why = why if host.is_compiled else "choose another site"
        msg = f"the hook {(silent or [final])[0]!r} never fired on {host.name}; {why}"
        raise RuntimeError(msg)
    # The stop hook saw the tensor before the recorder's own hook on the same name could open it.
    last = recorder.values.get(final, end[0])
    handles = {site: recorder.values[entrance(host, site)] for site in sites}
    return Captured({site: recorder.values[site] for site in sites}, handles, last)


def _refuse_split(host: Host, edits: Collection[str]) -> None:
    """Refuse to edit a Bridge's hook_resid_mid behind a user's hook: what that returns goes to the MLP alone."""
    middle = [name for name in edits if name.endswith("hook_resid_mid")] if host.is_bridge else []
    there = host.hooked() if middle else ()
    hooked = [name for name in middle if name in there]
    if hooked:
        msg = (
            f"there is a hook of yours at {hooked[0]}, and on a TransformerBridge what it returns reaches the MLP, not "
            "the skip connection: a patch there would be half a patch; take the hook out, or patch resid_pre or "
            "resid_post"
        )
        raise ValueError(msg)


def entrance(host: Host, site: str) -> str:
    """The hook whose gradient is a site's gradient, and where a value that is given back goes on whole.

    On a Bridge hook_resid_mid is the input of the second norm: on some what the norm gets is a copy, and what is given
    back there never reaches the skip connection. hook_attn_out has the same derivative.
    """
    instead = site.replace("hook_resid_mid", "hook_attn_out")
    return instead if host.is_bridge and instead in host.available else site


@dataclass(eq=False)
class Seen:
    """What the latest run left behind: an activation, and what the unembedding made of it at one position."""

    activation: Tensor | None = None
    """[batch, pos, d_model]."""
    raw: Tensor | None = None
    """[batch, vocab], before any soft-cap or scale, outside the graph."""


@contextmanager
def watching(host: Host, site: str, position: int) -> Iterator[Seen]:
    """The latest activation at a site (or the input of the unembedding, for "final"), which runs of the block refill.

    Runs of other threads and of this package's own calls inside the block are not looked at.
    """
    seen = Seen()
    reader, level = threading.get_ident(), depth()

    def is_ours() -> bool:
        return threading.get_ident() == reader and depth() == level

    def keep(activation: Tensor, hook: object) -> None:  # noqa: ARG001 - TransformerLens's signature
        if is_ours():
            seen.activation = activation

    def end(_: object, given: tuple[Tensor, ...], raw: Tensor) -> None:
        if is_ours() and raw.ndim == 3:
            seen.activation = given[0] if site == FINAL else seen.activation
            seen.raw = raw[:, position].detach().clone() if raw.shape[1] > position else None

    with host.attached([] if site == FINAL else [(site, keep)]):
        # No hook of that name exists on every host.
        unembed = host.model.unembed
        with undone(lambda: take_out(unembed, [end])):
            unembed.register_forward_hook(end)
            try:
                yield seen
            finally:
                seen.activation = seen.raw = None
