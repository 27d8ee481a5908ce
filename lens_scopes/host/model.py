"""What there is to know about a model before it runs: its sizes, its sites, whether it can be differentiated."""

import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, count
from typing import Any

import torch
from torch import nn

from lens_scopes import sites as names

#: A hook name and what is called there: (activation, hook=...) -> activation, or None to leave it.
Hook = tuple[str, Callable[..., torch.Tensor | None]]
#: Changes an activation [batch, pos, ...] in place.
Edit = Callable[[torch.Tensor], None]

# One lock for each model: hooks and gradient flags are the model's, and two threads would see each other's.
_locks: "weakref.WeakKeyDictionary[Any, threading.RLock]" = weakref.WeakKeyDictionary()
_locks_lock = threading.Lock()

# TransformerLens tells hooks of nested contexts apart by their level, and counts its own from 0 up.
_levels = count(1)


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
        return self._points.keys()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other thread of this package runs, hooks or changes the model inside. May be nested."""
        with _locks_lock:
            lock = _locks.setdefault(self.model, threading.RLock())
        with lock:
            yield

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
        level, touched = -next(_levels), []
        try:
            with self.alone():
                for name, hook in fwd_hooks:
                    touched.append(self._points[name])
                    self._points[name].add_hook(hook, dir="fwd", level=level)
            yield
        finally:
            with self.alone():
                for point in touched:
                    point.remove_hooks(dir="fwd", level=level)

    def sites(self, asked: Any) -> names.Sites:
        """Resolve what the user asked for and check that the model has it.

        Raises:
            ValueError: a site that the model lacks; the text lists those it has.

        """
        resolved = names.resolve(asked, self.n_layers)
        missing = [name for name in resolved.names if name not in self.available]
        if missing:
            here = f"blocks.{names.layer_of(missing[0]) or 0}."
            of_block = sorted(name for name in self.available if name.startswith(here) and _is_site(name))
            have = of_block or sorted(self.available)[:20]
            why = " (blocks with parallel attention and MLP have no resid_mid)" if "resid_mid" in missing[0] else ""
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

    def refuse_dropout(self) -> None:
        """Scores of a model that rolls dice are noise.

        Raises:
            RuntimeError: the model is in train mode and has dropout.

        """
        for module in self.model.modules():
            p = module.p if isinstance(module, nn.Dropout) else getattr(module, "attention_dropout", 0.0)
            if module.training and isinstance(p, float) and p > 0:
                msg = f"the model is in train mode with dropout {p}: every pass would differ; call model.eval() first"
                raise RuntimeError(msg)

    def refuse_inference(self) -> None:
        """Nothing can be differentiated through tensors that were made under inference_mode.

        Raises:
            RuntimeError: a weight or a buffer is one.

        """
        if any(tensor.is_inference() for tensor in chain(self.model.parameters(), self.model.buffers())):
            named = chain(self.model.named_parameters(), self.model.named_buffers())
            made = next(name for name, tensor in named if tensor.is_inference())
            msg = (
                f"{made!r} of {self.name} was made under torch.inference_mode(): nothing can be differentiated "
                "through it; load the model outside"
            )
            raise RuntimeError(msg)

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
            self.refuse_inference()
            trainable = [p for p in self.model.parameters() if p.requires_grad]
            try:
                for parameter in trainable:
                    parameter.requires_grad_(False)
                yield
            finally:
                for parameter in trainable:
                    parameter.requires_grad_(True)


def in_place(edit: Edit) -> Callable[..., torch.Tensor]:
    """An edit as a hook."""

    def apply(activation: torch.Tensor, hook: object) -> torch.Tensor:  # noqa: ARG001 - TransformerLens's signature
        edit(activation)
        return activation

    return apply


def _has(model: Any, name: str) -> bool:
    try:
        return hasattr(model, name)
    except ImportError:  # TransformerLens 4 answers so for what it removed
        return False


def _is_site(name: str) -> bool:
    """Whether a hook name is one of the kinds that ``sites`` has shorthands for."""
    kind = name.split(".", 2)[-1]
    return kind in {p.split(".", 2)[-1] for p in (*names.STREAM.values(), *names.HEADS.values())}
