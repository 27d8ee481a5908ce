"""A small language model that comes with the package, and prompts whose causes are known.

>>> from lens_scopes import demo
>>> case = demo.cases("translation", n=1)[0]
>>> len(case.tokens) == len(case.corrupted_tokens)
True
"""

from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from lens_scopes.demo.draft import Case
from lens_scopes.demo.generators import GENERATORS
from lens_scopes.results.arguments import integer

if TYPE_CHECKING:
    from lens_scopes.host.loading import Backend

__all__ = ["KINDS", "MODEL_DIR", "Case", "cases", "load"]

KINDS = tuple(GENERATORS)
MODEL_DIR = Path(__file__).parent / "model"


def load(backend: "Backend" = "auto") -> Any:
    """Load the demo model, raw, in eval mode and float32, as a HookedTransformer or a TransformerBridge.

    Equivalent to `lens_scopes.load(lens_scopes.demo.MODEL_DIR, backend=backend)`, named "demo".
    """
    import lens_scopes

    model = lens_scopes.load(str(MODEL_DIR), backend=backend)
    model.cfg.model_name = "demo"
    return model


def cases(kind: str | None = None, n: int = 100, seed: int = 0) -> list[Case]:
    """Held-out cases, which the model was never trained on; the first ones do not change when n grows.

    Args:
        kind: one of `KINDS`; None takes the kinds in turn.
        n: how many.
        seed: another seed gives other cases.
    """
    if kind is not None and kind not in KINDS:
        msg = f"there is no kind {kind!r} of case; write one of {', '.join(KINDS)}, or None for all in turn"
        raise ValueError(msg)
    n = integer(n, "n (the number of cases)", 0, 10**6)
    seed = integer(seed, "seed (another one gives other cases)")
    streams = {name: Random(f"cases {name} {seed}") for name in KINDS}
    wanted = cycle(KINDS if kind is None else (kind,))
    return [GENERATORS[name](streams[name], True).case() for name in islice(wanted, n)]
