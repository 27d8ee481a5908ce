"""Derivatives that do not arrive: where a host drops what a hook returns, where a user's hook cuts, under autocast."""

import warnings

import pytest
import torch

import lens_scopes as ls
import tiny
from lens_scopes import patching
from report import assert_close

pytestmark = pytest.mark.host

BRIDGE = pytest.mark.skipif("bridge" not in tiny.BACKENDS, reason="TransformerLens 2 has no bridges")
SMALL = [pair for pair in tiny.HOSTS if pair[0] in ("gpt2", "llama")]


@pytest.fixture(params=SMALL, ids=tiny.host_id)
def pair(request):
    return request.param


def products(jacobian):
    """J u by forward mode, and from the rows of J, which reverse mode gives."""
    tangents = torch.randn(3, *jacobian.shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return jacobian.jvp(tangents), torch.einsum("poi,kpi->ko", jacobian.dense(), tangents)


# Hosts


@BRIDGE
@pytest.mark.parametrize("target", ["final", "blocks.1.hook_resid_post"])
def test_granites_tangents_arrive(target):
    """Its host lets go of a dual tensor whose value is what it was: the product was 0 in silence."""
    pushed, dense = products(ls.jacobian(tiny.fresh_host("granite", "bridge"), tiny.tokens(), target=target))
    assert pushed.abs().max() > 0.01
    assert_close(pushed, dense, 1e-5)


@BRIDGE
@pytest.mark.parametrize("sites", [None, "resid_mid", "attn_out", "mlp_out", "z"])
def test_granites_scores_are_right_or_refused(sites):
    model = tiny.fresh_host("granite", "bridge")
    try:
        scores = ls.score(model, tiny.tokens(), ls.Semantic(7), sites=sites)
    except RuntimeError as refusal:
        assert "does not go on with what the hook" in str(refusal)  # noqa: PT017 - either of two ways is right
        assert sites is not None
    else:
        assert scores.values.any()
        assert scores.check(model)["max_error"] < 2e-3


@BRIDGE
def test_granites_flow_is_right_or_refused():
    model = tiny.fresh_host("granite", "bridge")
    try:
        flow = ls.flow(model, tiny.tokens(), ls.Semantic(7))
    except RuntimeError as refusal:
        assert "hook" in str(refusal)  # noqa: PT017 - either of two ways is right
        return
    assert flow.heads.abs().max() > 0.01
    assert flow.check(model)["max_error"] < 1e-5
    paths = flow.paths(25)
    assert float(paths.influence[:-1].sum()) == pytest.approx(float(flow.total.sum()), rel=1e-5)


@pytest.mark.parametrize("kind", ["resid_mid", "attn_out", "mlp_out", "resid_post"])
def test_tangents_enter_whole(pair, kind):
    """On a Bridge resid_mid is the second norm's input alone: what is put there does not reach the skip connection."""
    source = f"blocks.0.hook_{kind}"
    jacobian = ls.jacobian(tiny.host(*pair), tiny.tokens(), source=source)
    assert_close(*products(jacobian), 1e-5)


# Users' hooks


def test_a_hook_that_cuts_is_named(pair):
    model = tiny.fresh_host(*pair)
    model.add_hook("blocks.1.hook_resid_pre", lambda x, hook: x.detach().clone())
    with pytest.warns(UserWarning, match=r"nothing of hook_embed reaches final: its scores are 0.*blocks\.1"):
        scores = ls.score(model, tiny.tokens(), ls.Semantic(7))
    assert not scores.sel(site="embed").values.any()
    assert scores.sel(site="blocks.1.hook_resid_post").values.any()
    with pytest.warns(UserWarning, match="nothing of hook_embed"):
        assert not ls.flow(model, tiny.tokens(), ls.Semantic(7)).total.any()
    jacobian = ls.jacobian(model, tiny.tokens())
    with pytest.warns(UserWarning, match="nothing of hook_embed"):
        assert not jacobian.jvp(torch.ones(1, *jacobian.shape[1:], dtype=torch.float64)).any()


def test_a_hook_that_does_not_cut_is_no_matter(pair):
    model = tiny.fresh_host(*pair)
    expected = ls.score(model, tiny.tokens(), ls.Semantic(7)).values
    model.add_hook("blocks.1.hook_resid_pre", lambda x, hook: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(ls.score(model, tiny.tokens(), ls.Semantic(7)).values, expected)


def test_frozen_attention_cuts_queries_and_keys_without_a_word(pair):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ls.score(tiny.host(*pair), tiny.tokens(), ls.Semantic(7), sites="q", freeze="attention")
    assert not found.values.any()


def test_meta_names_the_hooks_in_force(pair):
    model, ids = tiny.fresh_host(*pair), tiny.tokens()
    other = [*ids[:2], ids[2] + 1, *ids[3:]]
    calls = {
        "score": lambda: ls.score(model, ids, ls.Semantic(7)),
        "flow": lambda: ls.flow(model, ids, ls.Semantic(7)),
        "predict": lambda: patching.predict(model, ids, other, ls.Semantic(7)),
        "measure": lambda: patching.measure(model, ids, other, ls.Semantic(7), sites="embed"),
        "loo": lambda: ls.evaluate.leave_one_out(model, [ids])[0],
        "curve": lambda: ls.evaluate.ablation_curve(model, [ids], [torch.arange(7.0)]),
    }
    assert {name: call().meta["hooks"] for name, call in calls.items()} == {name: [] for name in calls}
    model.add_hook("blocks.0.hook_resid_post", lambda x, hook: None)
    handle = model.unembed.register_forward_hook(lambda module, given, out: None)
    expected = ["blocks.0.hook_resid_post", "unembed"]
    for name, call in calls.items():
        assert [one for one in call().meta["hooks"] if "_original" not in one] == expected, name
    handle.remove()
    with patching.metric(model, ids, ls.Temperature()):
        assert ls.score(model, ids, ls.Semantic(7)).meta["hooks"] == expected[:1], (
            "this package's own are not the user's"
        )


# Autocast


def test_autocast_is_off_inside(pair):
    """Products in bfloat16 were off by 1 %, under a meta that said float32."""
    model, ids = tiny.fresh_host(*pair, torch.float32), tiny.tokens()
    other = [*ids[:2], ids[2] + 1, *ids[3:]]
    scope = ls.Metric(lambda z: (z[0, -1] @ z[0, -1]).sqrt(), name="length of z")
    jacobian = ls.jacobian(model, ids)
    u, v = torch.ones(1, *jacobian.shape[1:]), torch.ones(1, jacobian.shape[0])
    calls = [
        lambda: ls.score(model, ids, scope).values,
        lambda: ls.score(model, ids, ls.Fisher(4)).values,
        lambda: ls.flow(model, ids, scope).heads,
        lambda: jacobian.vjp(v),
        lambda: jacobian.jvp(u),
        lambda: patching.predict(model, ids, other, scope).values,
        lambda: patching.measure(model, ids, other, scope, sites="embed").values,
        lambda: ls.evaluate.ablation_curve(model, [ids], [torch.arange(7.0)]).deltas,
        lambda: ls.evaluate.compare_methods(model, [ids], ["semantic", "integrated_gradients"]).values,
        lambda: torch.tensor(ls.score(model, ids, ls.Semantic(7)).check(model)["max_error"]),
    ]
    expected = [call() for call in calls]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for call, right in zip(calls, expected, strict=True):
            assert torch.equal(call(), right)
        with pytest.raises(ValueError, match="no site"):
            ls.score(model, ids, scope, sites="nowhere")
        assert torch.is_autocast_enabled("cpu")
