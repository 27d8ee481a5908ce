"""Jacobian Scopes for TransformerLens: which tokens, at which layer, through which heads, a prediction depends on."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lens_scopes.calculus.budget import memory_budget
from lens_scopes.calculus.estimate import Estimate, estimate
from lens_scopes.flow import flow
from lens_scopes.host import generate, join, load
from lens_scopes.jacobian import Jacobian, jacobian
from lens_scopes.results.flow import Flow
from lens_scopes.results.profiles import Profile
from lens_scopes.results.prompt_means import profile
from lens_scopes.results.scores import Scores
from lens_scopes.results.text import Text
from lens_scopes.scopes import Continuation, Direction, Entropy, Fisher, Metric, Semantic, Temperature
from lens_scopes.scopes.state import Cotangents, FinalState
from lens_scopes.score import score, score_batch
from lens_scopes.views.report import report
from lens_scopes.views.show import Shown, show

if TYPE_CHECKING:
    from lens_scopes import corpus, demo, evaluate, patching
    from lens_scopes.serve import serve

__version__ = "0.1.0"

__all__ = [
    "Continuation",
    "Cotangents",
    "Direction",
    "Entropy",
    "Estimate",
    "FinalState",
    "Fisher",
    "Flow",
    "Jacobian",
    "Metric",
    "Profile",
    "Scores",
    "Semantic",
    "Shown",
    "Temperature",
    "Text",
    "corpus",
    "demo",
    "estimate",
    "evaluate",
    "flow",
    "generate",
    "jacobian",
    "join",
    "load",
    "memory_budget",
    "patching",
    "profile",
    "report",
    "score",
    "score_batch",
    "serve",
    "show",
]


def __getattr__(name: str) -> Any:
    """Namespaces are imported when they are first used: whoever only scores does not wait for them."""
    if name in ("corpus", "demo", "evaluate", "patching", "serve"):
        return import_module(f"lens_scopes.{name}")
    msg = f"module 'lens_scopes' has no attribute {name!r}"
    raise AttributeError(msg)
