"""The user's own hooks as data: where they hang, and which functions they are."""

from types import FunctionType
from typing import Any

from lens_scopes.host.model import Host
from lens_scopes.results import sameness


def hooks_of(host: Host) -> dict[str, Any]:
    """Where the user's own hooks are in force, and which functions they are; empty where there are none."""
    places = dict(host.model.named_modules()) | dict(host.model.hook_dict)
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    every = {name: [one for kind in kinds for one in getattr(places[name], kind).values()] for name in host.hooked()}
    if not every:
        return {}
    functions = {name: [sameness.identity(_given(one)) for one in some] for name, some in every.items()}
    return {"hooks": list(every), "hook functions": functions | {"text": f"those at {', '.join(every)}"}}


def _given(hook: Any) -> Any:
    """The function that the user gave: TransformerLens registers one of its own, which remembers it."""
    if not isinstance(hook, FunctionType) or not hook.__module__.startswith("transformer_lens"):
        return hook
    cells = zip(hook.__code__.co_freevars, hook.__closure__ or (), strict=True)
    inner = {name: cell.cell_contents for name, cell in cells}
    return inner["hook"] if "hook" in inner else _given(inner["full_hook"]) if "full_hook" in inner else hook
