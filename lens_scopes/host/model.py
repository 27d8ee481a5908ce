"""What there is to know about a model before it runs: its sizes, its sites, whether it can be differentiated."""

import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property, wraps
from itertools import count
from typing import Any

import torch
from torch import nn

from lens_scopes import sites as names
from lens_scopes.host.differentiable import refuse_inference
from lens_scopes.host.undo import undone

#: A hook name and what is called there: (activation, hook=...) -> activation, or None to leave it.
Hook = tuple[str, Callable[..., torch.Tensor | None]]
#: Changes an activation [batch, pos, ...] in place.
Edit = Callable[[torch.Tensor], None]

# One lock for each model: hooks and gradient flags are the model's, and two threads would see each other's.
_locks: "weakref.WeakKeyDictionary[Any, threading.RLock]" = weakref.WeakKeyDictionary()

# TransformerLens tells hooks of nested contexts apart by their level, and counts its own from 0 up.
_levels = count(1)

# What a Bridge's attention keeps from a pass, graph and all: the stream between two steps, and its latest pattern.
_NOTES = ("_captured_pre_ln_residual", "_pattern")


@dataclass(frozen=True, eq=False)
class Host:
    """A HookedTransformer or TransformerBridge, seen through what the two have in common."""

    model: Any

    def __post_init__(self) -> None:
        """Refuse what is not a TransformerLens model.

        Raises:
            TypeError: the object lacks hooks, a configuration or an unembedding.

        """
        missing = [name for name in ("hook_dict", "hooks", "cfg", "unembed") if not _has(self.model, name)]
        if missing:
            msg = (
                f"expected a TransformerLens model (HookedTransformer or TransformerBridge), got "
                f"{type(self.model).__name__}, which has no {', '.join(missing)}; for a Hugging Face model write "
                "lens_scopes.load(name_or_directory)"
            )
            raise TypeError(msg)

    @property
    def cfg(self) -> Any:
        """The model's own configuration."""
        return self.model.cfg

    @property
    def is_bridge(self) -> bool:
        """Whether the model wraps a Hugging Face (or native) module."""
        return _has(self.model, "adapter") and _has(self.model, "original_model")

    @property
    def name(self) -> str:
        """What the model calls itself: the last part of its name or directory."""
        return str(getattr(self.cfg, "model_name", None) or type(self.model).__name__).rstrip("/").rsplit("/", 1)[-1]

    @property
    def n_layers(self) -> int:
        """How many blocks."""
        return int(self.cfg.n_layers)

    @property
    def n_ctx(self) -> int:
        """How many positions the model was built for."""
        return int(self.cfg.n_ctx)

    @property
    def has_mlps(self) -> bool:
        """Whether blocks have an MLP: attention-only models keep the name of its hook, which never fires."""
        return not getattr(self.cfg, "attn_only", False)

    @property
    def last_residual(self) -> str:
        """The last site before the final norm."""
        return names.STREAM["resid_post"].format(self.n_layers - 1)

    @cached_property
    def embedding(self) -> torch.Tensor:
        """W_E [vocab, d_model]. A Bridge makes it anew each time it is asked."""
        return self.model.W_E

    @property
    def vocab(self) -> int:
        """How many token ids the embedding knows."""
        return int(self.embedding.shape[0])

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.embedding.dtype

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, None where it has none."""
        return getattr(self.model, "tokenizer", None)

    @cached_property
    def _points(self) -> Mapping[str, Any]:
        """TransformerLens's HookPoint by name, aliases included. A Bridge makes this anew each time it is asked."""
        return dict(self.model.hook_dict)

    @property
    def available(self) -> Collection[str]:
        """Hook names that can be asked for, aliases included."""
        if self.has_mlps:
            return self._points.keys()
        return [name for name in self._points if ".mlp." not in name and not name.endswith("hook_mlp_out")]

    def alone(self) -> AbstractContextManager:
        """No other thread of this package runs, hooks or changes the model inside. May be nested.

        The lock itself: an interrupt on its way through a generator would leave it locked.
        """
        # One step of a dict: a lock around it could be left locked by an interrupt.
        return _locks.setdefault(self.model, threading.RLock())

    @contextmanager
    def hooks(self, fwd_hooks: Sequence[Hook]) -> Iterator[None]:
        """Forward hooks by name, after the user's own; only these are removed at the end.

        Equivalent to ``model.hooks(fwd_hooks=...)``, which on a Bridge of TransformerLens 3 looks all of the model's
        names up again for every hook: a second for a flow of twelve layers.
        """
        with self.alone(), self.attached(fwd_hooks):
            yield

    @contextmanager
    def attached(self, fwd_hooks: Sequence[Hook]) -> Iterator[None]:
        """The same for a user's own block, in which other threads must be able to go on: the model is not locked."""
        level = -next(_levels)
        points = [self._points[name] for name, _ in fwd_hooks]
        ours = [_of_this_thread(hook) for _, hook in fwd_hooks]

        def undo() -> None:
            with self.alone():
                for point in points:
                    point.remove_hooks(dir="fwd", level=level)
                    take_out(point, ours)

        with undone(undo):
            with self.alone():
                for point, hook in zip(points, ours, strict=True):
                    point.add_hook(hook, dir="fwd", level=level)
            yield

    def run(self, tokens: torch.Tensor) -> torch.Tensor:
        """The logits of one pass. What the host notes on its modules meanwhile is put back."""
        with undone(self.notes()):
            return self.model(tokens)

    def notes(self) -> Callable[[], None]:
        """What puts the host's own notes back to what they are now."""
        noted = [(module, name, vars(module)[name]) for module, name in self._noting]

        def undo() -> None:
            for module, name, note in noted:
                setattr(module, name, note)

        return undo

    @cached_property
    def _noting(self) -> list[tuple[nn.Module, str]]:
        modules = self.model.modules() if self.is_bridge else ()
        return [(module, name) for module in modules for name in _NOTES if name in vars(module)]

    def hooked(self) -> tuple[str, ...]:
        """Where hooks are in force that are neither this package's nor the host's own: they change what is measured."""
        called: dict[int, list[str]] = {}
        for name, point in self._points.items():
            called.setdefault(id(point), []).append(name)
        found = [
            next((name for name in called[id(point)] if name == names.EMBED or _is_site(name)), called[id(point)][0])
            for point in {id(p): p for p in self._points.values()}.values()
            if any(map(_is_anothers, (*point.fwd_hooks, *point.bwd_hooks)))
        ]
        for name, module in self.model.named_modules():
            hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
            if any(_is_foreign(function) for some in hooks for function in some.values()):
                found.append(name)
        return tuple(dict.fromkeys(found))

    def sites(self, asked: Any, *ends: str) -> names.Sites:
        """Resolve what the user asked for, of scopes that read the model at ``ends``, and check that the model has it.

        Raises:
            ValueError: a site that the model lacks; the text lists those it has.

        """
        resolved = names.resolve(asked, self.n_layers, ends)
        missing = [name for name in resolved.names if name not in self.available]
        if missing:
            here = f"blocks.{names.layer_of(missing[0]) or 0}."
            of_block = sorted(name for name in self.available if name.startswith(here) and _is_site(name))
            have = of_block or sorted(self.available)[:20]
            why = (
                " (blocks with parallel attention and MLP, or without MLP, have no resid_mid)"
                if "mid" in missing[0]
                else ""
            )
            msg = f"{self.name} has no site {missing[0]!r}{why}; it has {', '.join([names.EMBED, *have])}"
            raise ValueError(msg)
        half = [name for name in resolved.names if self.is_bridge and name.endswith(".hook_resid_mid")]
        half = [name for name in half if name.replace("hook_resid_mid", "hook_attn_out") not in self.available]
        if half:
            msg = (
                f"{half[0]!r} of {self.name} follows no attention: there TransformerLens hooks what the MLP reads, not "
                "what goes past it, and a gradient would be half of it; choose resid_pre or resid_post"
            )
            raise ValueError(msg)
        return resolved

    @property
    def is_compiled(self) -> bool:
        """Whether the model as a whole goes through torch.compile, which leaves a HookedTransformer's hooks out."""
        return hasattr(self.model, "_orig_mod") or getattr(self.model, "_compiled_call_impl", None) is not None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Parameters need no gradients inside: less memory, and only activations are differentiated. Restored after.

        Raises:
            RuntimeError: weights or buffers made under inference_mode, of which no gradient can be taken.

        """
        with self.alone():
            refuse_inference(self.model)
            trainable = [p for p in self.model.parameters() if p.requires_grad]

            def undo() -> None:
                while trainable:
                    trainable[-1].requires_grad_(True)
                    trainable.pop()

            with undone(undo):
                for parameter in list(trainable):
                    parameter.requires_grad_(False)
                yield


def _of_this_thread(ours: Callable[..., torch.Tensor | None]) -> Callable[..., torch.Tensor | None]:
    """A hook that lets the runs of other threads pass: a user's own run beside a call of this package goes its own way.

    What is run again inside a backward pass is this package's, whatever the thread (a GPU has one of its own).
    """
    own = threading.get_ident()

    @wraps(ours)
    def call(activation: torch.Tensor, hook: object) -> torch.Tensor | None:
        again = torch._C._current_graph_task_id() != -1
        return ours(activation, hook=hook) if again or threading.get_ident() == own else None

    return call


def in_place(edit: Edit) -> Callable[..., torch.Tensor]:
    """An edit as a hook."""

    def apply(activation: torch.Tensor, hook: object) -> torch.Tensor:  # noqa: ARG001 - TransformerLens's signature
        edit(activation)
        return activation

    return apply


def take_out(module: nn.Module, hooks: Sequence[Callable]) -> None:
    """Remove functions from torch's forward hooks, bare or wrapped by TransformerLens.

    It keeps notes of its own; an interrupt between torch's and its would leave a hook that nobody removes.
    """
    for key, function in list(module._forward_hooks.items()):
        inside = [function, *(cell.cell_contents for cell in getattr(function, "__closure__", None) or ())]
        if any(one is hook for one in inside for hook in hooks):
            del module._forward_hooks[key]


def _is_anothers(handle: Any) -> bool:
    """Ours are told by their level (``Host.attached``); TransformerLens 4 hangs some into OPT when it loads it."""
    hosts_own = handle.is_permanent and hasattr(handle, "user_hook") and not _is_foreign(handle.user_hook)
    return (handle.context_level or 0) >= 0 and not hosts_own


def _is_foreign(function: Callable) -> bool:
    """Whether a hook of torch's is the user's own: the libraries that models come from have theirs."""
    module = getattr(getattr(function, "func", function), "__module__", "") or ""
    return not module.startswith(("transformer_lens", "transformers.", "accelerate.", "lens_scopes."))


def _has(model: Any, name: str) -> bool:
    try:
        return hasattr(model, name)
    except ImportError:  # TransformerLens 4 answers so for what it removed
        return False


def _is_site(name: str) -> bool:
    """Whether a hook name is one of the kinds that ``sites`` has shorthands for."""
    kind = name.split(".", 2)[-1]
    return kind in {p.split(".", 2)[-1] for p in (*names.STREAM.values(), *names.HEADS.values())}
