"""Ctrl-C at any point: hooks, flags, modes, weights and every module's own attributes are as they were, each time."""

import random
import sys

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import lens_scopes as ls
import tiny
from lens_scopes import patching

# An interrupt may hit in a finaliser, where Python can only print it.
pytestmark = [pytest.mark.host, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]

IDS = tiny.tokens(5)
OTHER = [*IDS[:2], IDS[2] + 1, *IDS[3:]]
VERBS = {
    "score": lambda model: ls.score(model, IDS, ls.Fisher(4)),
    "flow": lambda model: ls.flow(model, IDS, ls.Semantic(7)),
    "measure": lambda model: patching.measure(model, IDS, OTHER, ls.Temperature(), sites="z"),
    "compare_methods": lambda model: ls.evaluate.compare_methods(model, [IDS], ["semantic", "integrated_gradients"]),
}


class Interrupting:
    """Raises KeyboardInterrupt at the n-th call or line of code of this package, TransformerLens, torch or contextlib.

    Those are where Python looks for signals; a real one cannot be aimed.
    """

    WHERE = ("lens_scopes", "transformer_lens", "torch", "contextlib", "threading")

    def __init__(self, at: int | None = None, inside: str | None = None) -> None:
        self.at, self.inside, self.count, self.where = at, inside, 0, ""

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_):
        sys.settrace(self.before)

    def trace(self, frame, event, _):
        name = frame.f_globals.get("__name__", "")
        if name.split(".")[0] not in self.WHERE:
            return None
        if event in ("call", "line") and self.inside in (None, frame.f_code.co_name):
            self.count += 1
            if self.count == self.at:
                self.where = f"{name}.{frame.f_code.co_name}:{frame.f_lineno}"
                sys.settrace(None)
                raise KeyboardInterrupt
        return self.trace


def state_of(model) -> dict:
    """Everything that a call could leave behind, in a form that compares."""
    found: dict = {"grad": torch.is_grad_enabled(), "inference": torch.is_inference_mode_enabled()}
    found["dual"] = forward_ad._current_level
    found["modes"] = len(torch.overrides._get_current_function_mode_stack())
    found["level"] = getattr(model, "context_level", None)
    for name, module in model.named_modules():
        found[name] = {key: _plain(value) for key, value in vars(module).items() if key != "_modules"}
    for name, parameter in model.named_parameters():
        found["parameter " + name] = (parameter.requires_grad, parameter.grad, parameter._version)
    return found


def _plain(value):
    if isinstance(value, Tensor):
        return (id(value), value._version)
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, bool | int | float | str | type(None)) else id(value)


def difference(before: dict, after: dict) -> list[str]:
    keys = {key for key in {*before, *after} if before.get(key) != after.get(key)}
    return sorted(
        f"{key}: " + str([k for k in {**before[key], **after[key]} if before[key].get(k) != after[key].get(k)])
        if isinstance(before.get(key), dict) and isinstance(after.get(key), dict)
        else f"{key}: {before.get(key)} {after.get(key)}"
        for key in keys
    )


def interrupted(backend: str, verb: str, times: int) -> None:
    model, call = tiny.fresh_host("llama", backend), VERBS[verb]
    model.add_hook("blocks.0.hook_resid_post", lambda x, hook: None)
    for n, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(n % 2 == 0)
    expected = call(model)
    call(model)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    with Interrupting() as whole:
        call(model)
    before, draw, stopped = state_of(model), random.Random(0), 0
    for _ in range(times):
        with Interrupting(draw.randint(1, whole.count)) as somewhere:
            try:
                call(model)
            except KeyboardInterrupt:
                stopped += 1
        assert state_of(model) == before, (somewhere.where, difference(before, state_of(model)))
    unnoticed = times - stopped  # in a finaliser
    assert unnoticed <= max(2, times // 10), "it hit where nobody noticed"
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    again = call(model)
    name = "total" if verb == "flow" else "values"
    assert torch.equal(getattr(again, name), getattr(expected, name))


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_few_interrupts(backend, verb):
    interrupted(backend, verb, 8)


@pytest.mark.parametrize("inside", ["_push_mode", "_pop_mode"])
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_an_interrupt_inside_torch_s_own_stack_of_modes(backend, inside):
    """Where it hits, forward mode is on the stack or already off it."""
    model, call = tiny.fresh_host("llama", backend), VERBS["flow"]
    call(model)
    before = state_of(model)
    with Interrupting(inside=inside) as whole:
        call(model)
    for at in sorted({1, 2, whole.count - 1, whole.count}):
        with Interrupting(at, inside), pytest.raises(KeyboardInterrupt):
            call(model)
        assert state_of(model) == before, at


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_thousand_interrupts(backend, verb):
    """1,000 over the verbs of a host."""
    interrupted(backend, verb, 1000 // len(VERBS))
