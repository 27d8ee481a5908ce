"""NaN and infinity are refused wherever numbers leave, with the place where they begin."""

import pytest
import torch

import lens_scopes as ls
import tiny
from lens_scopes import patching

pytestmark = pytest.mark.host

IDS = tiny.tokens(6)
OTHER = [*IDS[:2], IDS[2] + 1, *IDS[3:]]
LONG = torch.full((tiny.D_MODEL,), 3e38)
SMALL = [pair for pair in tiny.HOSTS if pair[0] in ("gpt2", "llama")]


@pytest.fixture(params=SMALL, ids=tiny.host_id)
def pair(request):
    return request.param


def broken(pair, value=float("nan")):
    """A weight of the second block's MLP is not finite."""
    model = tiny.fresh_host(*pair, torch.float32)
    with torch.no_grad():
        (model.blocks[1].mlp.W_out if pair[1] == "hooked" else model.blocks[1].mlp.out.weight)[0, 0] = value
    return model


CALLS = {
    "score": lambda m: ls.score(m, IDS, ls.Semantic(7)),
    "flow": lambda m: ls.flow(m, IDS, ls.Semantic(7)),
    "jacobian": lambda m: ls.jacobian(m, IDS),
    "predict": lambda m: patching.predict(m, IDS, OTHER, ls.Semantic(7)),
    "measure": lambda m: patching.measure(m, IDS, OTHER, ls.Semantic(7)),
    "metric": lambda m: patching.metric(m, IDS, ls.Semantic(7)).__enter__(),
    "curve": lambda m: ls.evaluate.ablation_curve(m, [IDS], [torch.arange(6.0)]),
    "leave_one_out": lambda m: ls.evaluate.leave_one_out(m, [IDS]),
    "compare_methods": lambda m: ls.evaluate.compare_methods(m, [IDS], ["last_first", "random"], baseline="random"),
}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("call", CALLS)
def test_a_model_that_is_not_finite(pair, call, value):
    with pytest.raises(ValueError, match=r"NaN or infinity: the activation at blocks\.1\.hook_mlp_out .*float32"):
        CALLS[call](broken(pair, value))


def test_results_of_a_model_that_has_since_broken(pair):
    model = tiny.fresh_host(*pair, torch.float32)
    scores, flow = ls.score(model, IDS, ls.Semantic(7)), ls.flow(model, IDS, ls.Semantic(7))
    for check in (scores.check, flow.check):
        with pytest.raises(ValueError, match="NaN or infinity"):
            check(broken(pair))


def test_gradients_that_overflow(pair):
    model = tiny.host(*pair, torch.float32)
    jacobian = ls.jacobian(model, IDS)
    long = torch.full((1, tiny.D_MODEL), 3e38)
    calls = [
        lambda: ls.score(model, IDS, ls.Direction(LONG)),
        lambda: ls.flow(model, IDS, ls.Direction(LONG)),
        lambda: patching.predict(model, IDS, OTHER, ls.Direction(LONG)),
        lambda: patching.measure(model, IDS, OTHER, ls.Direction(LONG)),
        lambda: jacobian.vjp(long),
        lambda: jacobian.jvp(long[:, None].expand(1, 6, -1)),
    ]
    for n, call in enumerate(calls):
        with pytest.raises(ValueError, match="NaN or infinity"):
            print(n, call())


def test_a_number_of_a_scope_that_is_not_finite(pair):
    """Its gradient is fine: only what it measures is not."""

    class Infinite(ls.Semantic):
        def value(self, state):
            return super().value(state) * float("inf")

    model = tiny.host(*pair, torch.float32)
    for call in (patching.predict, patching.measure):
        with pytest.raises(ValueError, match="NaN or infinity"):
            call(model, IDS, OTHER, Infinite(7))


def test_comparisons_and_rankings_of_what_is_not_finite(pair):
    model = tiny.host(*pair, torch.float32)
    predicted = patching.predict(model, IDS, OTHER, ls.Semantic(7), method="gradient")
    measured = patching.measure(model, IDS, OTHER, ls.Semantic(7))
    predicted.values[0, 0] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        patching.compare(predicted, measured)
    measured.values[0, 0] = torch.nan  # not measured: then the prediction there is no matter
    assert patching.compare(predicted, measured).pearson == patching.compare(predicted, measured).pearson
    effects = ls.evaluate.leave_one_out(model, [IDS])[0]
    with pytest.raises(ValueError, match="finite"):
        ls.evaluate.rank_of_top(torch.full((6,), torch.nan), effects)
