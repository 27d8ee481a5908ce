"""Predictions that are nearly certain, of scopes with one cotangent: digits where there are any, else a refusal."""

import math

import mpmath
import pytest
import torch

import lens_scopes as ls
import tiny
from report import assert_close
from test_fisher_split import certain, random_state

LEADS = [0.0, 5.0, 30.0, 45.0, 60.0]


def entropy_of(state):
    """H and ∂H/∂z at 200 digits."""
    with mpmath.workdps(200):
        e = [mpmath.exp(mpmath.mpf(float(z))) for z in state.logits]
        p = [one / mpmath.fsum(e) for one in e]
        entropy = -mpmath.fsum(x * mpmath.log(x) for x in p)
        return float(entropy), [float(-x * (mpmath.log(x) + entropy)) for x in p]


@pytest.mark.parametrize("lead", LEADS)
def test_entropy_keeps_its_digits(lead):
    state = random_state(torch.float32, vocab=40, width=6, lead=lead)
    entropy, slope = entropy_of(state)
    made = ls.Entropy()(state)
    assert made.notes["entropy"] == pytest.approx(entropy, rel=1e-9)
    assert float(ls.Entropy().value(state)) == pytest.approx(entropy, rel=1e-9)
    vector = made.vectors[0].double() * made.root_weights()
    assert_close(vector, torch.tensor(slope, dtype=torch.float64) @ state.weight.double(), 1e-5)


def test_the_gradient_of_the_entropy_is_a_number_also_where_a_probability_is_none():
    state = random_state(torch.float64, vocab=9, width=3)
    logits = state.logits.clone().requires_grad_()
    (slope,) = torch.autograd.grad(ls.Entropy().value(type(state)(**{**vars(state), "logits": logits})), logits)
    assert_close(slope, torch.tensor(entropy_of(state)[1], dtype=torch.float64), 1e-9)


@pytest.mark.host
@pytest.mark.parametrize("lead", [10.0, 45.0, 60.0])
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_so_do_scores_flows_and_predictions(backend, lead):
    """Where the square of a gradient is no number in float32."""
    model, state = certain(backend, lead)
    ids = tiny.tokens()
    other = [*ids[:2], (ids[2] + 1) % tiny.VOCAB, *ids[3:]]
    slope = torch.tensor(entropy_of(state)[1], dtype=torch.float64) @ state.weight.double()
    size = float(slope.norm())
    direction = ls.Direction((slope / size).to(state.y))
    for call in (
        lambda scope: ls.score(model, ids, scope).values,
        lambda scope: ls.score(model, ids, scope, along="activation").values,
        lambda scope: ls.score(model, ids, scope, position=[3, -1]).sel(target_pos=len(ids) - 1).values,
        lambda scope: ls.flow(model, ids, scope).total,
        lambda scope: ls.flow(model, ids, scope).heads,
        lambda scope: ls.patching.predict(model, other, ids, scope, method="gradient").values,
    ):
        assert_close(call(ls.Entropy()).double() / size, call(direction), 1e-4)


@pytest.mark.parametrize("lead", [80.0, 800.0])
def test_what_has_come_to_rest_is_refused(lead):
    state = random_state(torch.float32, lead=lead)
    with pytest.raises(ValueError, match=r"certain \(1 − p = 1e-\d+\).*use Semantic"):
        ls.Entropy()(state)


@pytest.mark.host
@pytest.mark.parametrize("lead", [60.0, 80.0, 150.0])
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_certain_continuation(backend, lead):
    model, state = certain(backend, lead)
    ids, top = tiny.tokens(), int(state.logits.argmax())
    if lead > 70:
        with pytest.raises(ValueError, match="certain"):
            ls.score(model, ids, ls.Continuation([top]))
        return
    others = state.logits.double().clone()
    others[top] = -torch.inf
    rest = others.softmax(-1)
    vector = state.weight.double()[top] - rest @ state.weight.double()
    direction = ls.score(model, ids, ls.Direction((vector / vector.norm()).to(state.y))).values
    found = ls.score(model, ids, ls.Continuation([top])).values.double()
    log_odds = float(others.logsumexp(-1) - state.logits[top].double())
    size = math.exp(log_odds) * float(vector.norm())
    assert_close(found[:, :-1] / size, direction, 1e-4)  # the answer itself is the last token
