"""A metric belongs to the run whose logits it is given; a scope's number and its arguments are its own."""

from dataclasses import dataclass, replace

import pytest
import torch

import lens_scopes as ls
import tiny
from lens_scopes import patching

pytestmark = pytest.mark.host

IDS = tiny.tokens(6)
OTHER = [*IDS[:2], IDS[2] + 1, *IDS[3:]]
HOSTS = [pair for pair in tiny.HOSTS if pair[0] in ("gpt2", "llama", "gemma2")]
SCOPES = [
    ls.Temperature(),
    ls.Semantic(7),
    ls.Direction(torch.ones(tiny.D_MODEL)),
    ls.Direction(torch.ones(tiny.D_MODEL), site="blocks.0.hook_resid_post"),
]


@pytest.fixture(params=HOSTS, ids=tiny.host_id)
def model(request):
    return tiny.host(*request.param, torch.float32)


def both():
    return torch.tensor([IDS]), torch.tensor([OTHER])


# Runs


@pytest.mark.parametrize("scope", SCOPES, ids=repr)
def test_logits_of_an_earlier_run_are_refused(model, scope):
    first, second = both()
    with patching.metric(model, IDS, scope) as metric:
        early = model(first)
        right = metric(early)
        model(second)
        with pytest.raises(RuntimeError, match="another came after it"):
            metric(early)
        assert torch.equal(metric(model(first)), right)


@pytest.mark.parametrize("scope", SCOPES, ids=repr)
def test_own_calls_inside_the_block_are_not_the_users_run(model, scope):
    first, _ = both()
    with patching.metric(model, IDS, scope) as metric:
        logits = model(first)
        right = metric(logits)
        ls.score(model, OTHER, ls.Fisher(4))
        ls.flow(model, OTHER, ls.Semantic(7))
        patching.measure(model, OTHER, IDS, ls.Temperature(), sites="embed")
        ls.evaluate.leave_one_out(model, [OTHER])
        assert torch.equal(metric(logits), right)


def test_logits_that_were_changed_are_refused(model):
    with patching.metric(model, IDS, ls.Semantic(7)) as metric, pytest.raises(RuntimeError, match="not seen the run"):
        metric(model(both()[0]) + 1)


def test_gradients_flow_through_a_metric(model):
    with patching.metric(model, IDS, ls.Temperature()) as metric, torch.enable_grad():
        kept = []

        def keep(x, hook):
            kept.append(x.detach().requires_grad_())
            return kept[0]

        with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", keep)]):
            value = metric(model(both()[0]))
        (gradient,) = torch.autograd.grad(value, kept[0])
    scores = ls.score(model, IDS, ls.Temperature(), sites=["blocks.0.hook_resid_pre"])
    assert torch.allclose(gradient[0].norm(dim=-1), scores.values[0].to(gradient), rtol=1e-4, atol=1e-6)


# Numbers


@dataclass(frozen=True)
class Mine:
    """A user's scope with a number of its own."""

    kind: str = "right"

    def __call__(self, state):
        return state.rows(7)

    def value(self, state):
        z = state.logits
        return {
            "right": lambda: z[..., 7],
            "mean": lambda: z[..., 7].mean(),
            "first run": lambda: z[7] if z.ndim == 1 else z[0],
            "mixes": lambda: z[..., 7] - z.mean(),
            "number": lambda: float(z.flatten()[7]),
        }[self.kind]()


def test_a_number_of_ones_own(model):
    found, expected = (patching.measure(model, IDS, OTHER, scope, sites="embed") for scope in (Mine(), ls.Semantic(7)))
    # The difference of two logits is off by the rounding of the logits.
    assert torch.allclose(found.values, expected.values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("mean", "one number per run"),
        ("first run", "one number per run"),
        ("number", "one number per run"),
        ("mixes", "must not mix runs"),
    ],
)
def test_a_number_that_is_wrong_over_a_batch_is_refused(model, kind, text):
    for call in (patching.measure, patching.predict):
        with pytest.raises(ValueError, match=text):
            call(model, IDS, OTHER, Mine(kind), sites="embed")
    with pytest.raises(ValueError, match=text), patching.metric(model, IDS, Mine(kind)):
        pass


# What scopes do to what they get


def test_scopes_that_edit_what_they_get(model):
    """The result is that of the scope that does not, and the model and its probabilities stay."""
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def edits(state):
        row = state.rows(7).clone()
        state.logits.fill_(0)
        state.y.mul_(3)
        for x in state.stream.values():
            x.zero_()
        return row

    found, expected = (ls.score(model, IDS, scope, along="activation") for scope in (edits, lambda s: s.rows(7)))
    assert torch.equal(found.values, expected.values)
    assert found.meta["predictions"] == expected.meta["predictions"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_scope_that_edits_the_unembedding_is_found_out(backend):
    model = tiny.fresh_host("llama", backend)

    def edits(state):
        state.weight[7] = 0
        return state.rows(8)

    with pytest.raises(RuntimeError, match=r"changed state\.weight in place"):
        ls.score(model, IDS, edits)


def test_squared_scopes_leave_no_graph(model):
    """Weights and vectors that require grad: what is kept holds no graph."""

    def learned(state):
        vectors = torch.stack([state.rows(7), state.rows(8)]).requires_grad_()
        return ls.Cotangents(vectors * 2, torch.ones(2, requires_grad=True) * 3, squared=True)

    scores = ls.score(model, IDS, learned)
    flow = ls.flow(model, IDS, learned)
    plain = ls.score(model, IDS, lambda s: ls.Cotangents(2 * s.rows([7, 8]), 3 * torch.ones(2), squared=True))
    assert not scores.values.requires_grad
    assert not any(getattr(flow, name).requires_grad for name in ("total", "heads", "mlps", "skip", "stream"))
    assert torch.equal(scores.values, plain.values)


# Shares


def test_shares_of_shares_are_the_same_shares(model):
    flow = ls.flow(model, IDS, ls.Semantic(7), sources=[0, 2, 3], edges=True)
    once = flow.share()
    twice = once.share()
    for name in ("total", "heads", "mlps", "skip", "stream", "composition", "edges"):
        assert torch.equal(getattr(twice, name), getattr(once, name)), name
    with pytest.raises(ValueError, match="do not add up"):
        once.top()
    one = flow.sel(source=2)
    assert one.share().top().share.tolist() == pytest.approx(one.top().share.tolist(), rel=1e-5)
    with pytest.raises(ValueError, match=r"before flow\.share\(\)"):
        once.check(model)


def test_sel_of_shares_keeps_shares(model):
    flow = ls.flow(model, IDS, ls.Semantic(7), sources="each")
    assert torch.allclose(flow.share().sel(source=2).heads, flow.sel(source=2).share().heads)
    assert replace(flow).units == "norm"


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_shares_of_several_sources_are_not_summed(backend):
    model = tiny.host("gpt2", backend)
    flow = ls.flow(model, tiny.tokens(), ls.Semantic(7), sources="each", edges=True).share()
    for asked in (
        lambda: flow.show("heads"),
        lambda: flow.show("edges"),
        lambda: flow.plot("stream"),
        lambda: ls.report(flow, "nowhere.html"),
        lambda: ls.profile([flow, flow], "head"),
    ):
        with pytest.raises(ValueError, match="shares of several sources do not add up"):
            asked()
    assert "choose one, sel(source=...)" in flow._repr_html_()
    assert "share of" in flow.sel(source=2)._repr_html_()
    with pytest.raises(ValueError, match=r"ask the flow, not flow.share\(\)"):
        flow.sel(source=2).paths(2)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_model_that_has_changed_is_not_asked(backend):
    model = tiny.fresh_host("gpt2", backend)
    flow, jacobian = ls.flow(model, tiny.tokens(), ls.Semantic(7)), ls.jacobian(model, tiny.tokens())
    tangent = torch.ones(1, *jacobian.shape[1:], dtype=torch.float64)
    before = flow.paths(2), jacobian.jvp(tangent)
    with model.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", lambda x, hook: x * 0)]):
        for ask in (flow.orders, flow.paths, lambda: jacobian.jvp(tangent)):
            with pytest.raises(RuntimeError, match="has changed since"):
                ask()
    assert flow.paths(2).equals(before[0])
    assert torch.equal(jacobian.jvp(tangent), before[1])
    with torch.no_grad():
        model.W_U.data.mul_(2)
    with pytest.raises(RuntimeError, match=r"has changed since .* run lens_scopes.flow again"):
        flow.paths()
