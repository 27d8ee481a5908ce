"""Cuts of single places and whole heads, against whole runs by hand and against dense Jacobians of the bare model."""

import functools
import math
from contextlib import nullcontext

import pytest
import torch

import lens_scopes as ls
import oracles
import tiny
from double import Double
from lens_scopes import patching
from lens_scopes.host import Host
from report import assert_close

pytestmark = pytest.mark.host

IDS, TARGET, VERSUS = tiny.tokens(7, seed=1), 7, 11
SCOPE = ls.Semantic(TARGET, VERSUS)
HOSTS = tuple((a, b) for a in ("gpt2", "deep-llama", "gemma2") for b in tiny.BACKENDS)
KINDS = ("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v")


@functools.cache
def activations(pair):
    with Double() if pair[1] == "bridge" else nullcontext():
        return dict(tiny.host(*pair).run_with_cache(torch.tensor([IDS]))[1])


def other(by, site, activation):
    """a' at every place of a site, slowly."""
    if by == "mean":
        rest = [torch.stack([activation[s] for s in range(7) if s != t]).mean(0) for t in range(7)]
        return torch.stack(rest)
    return torch.zeros_like(activation) if by == "zero" else by.expand_as(activation)


def by_hand(model, site, at, replaced, position=-1):
    """The logit difference of one whole run with a place replaced, against none."""

    def hook(activation, hook):
        activation[(0, *at)] = replaced[at]
        return activation

    def value(hooks):
        logits = model.run_with_hooks(torch.tensor([IDS]), fwd_hooks=hooks)[0, position]
        return float(logits[TARGET] - logits[VERSUS])

    with torch.no_grad():
        return value([(site, hook)]) - value([])


@pytest.mark.parametrize("by", ["mean", "zero", "vector"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pair", HOSTS, ids=tiny.host_id)
def test_cuts_are_measured_as_whole_runs_are(pair, kind, by):
    model, tolerance = tiny.host(*pair), 20 * tiny.tolerance(*pair)
    (site,) = Host(model).sites(["embed" if kind == "embed" else Host(model).sites(kind).names[1]]).names
    activation = activations(pair)[site][0]
    by = torch.linspace(-1, 1, activation.shape[-1], dtype=torch.float64) if by == "vector" else by
    for position in (-1, 4):
        where = torch.zeros(1, *activation.shape[:-1], dtype=torch.bool)
        where[0, 2] = where[0, 5] = True
        found = patching.ablate(model, IDS, SCOPE, sites=[site], where=where, by=by, position=position)
        assert found.measured.values[~where].isnan().all()
        assert found.predicted.values[~where].isnan().all()
        for _, *at in where.nonzero().tolist():
            expected = by_hand(model, site, tuple(at), other(by, site, activation), position)
            assert float(found.measured.values[(0, *at)]) == pytest.approx(expected, abs=tolerance), (kind, at)


@pytest.mark.parametrize("by", ["mean", "zero"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pair", tiny.HOSTS, ids=tiny.host_id)
def test_predictions_are_dense_jacobians_times_what_is_changed(pair, kind, by):
    if kind == "resid_mid" and pair[0] == "neox":
        pytest.skip("parallel blocks have no resid_mid")
    truth = oracles.dense(tiny.hugging_face(pair[0]), IDS, 6)
    with Double() if pair[1] == "bridge" else nullcontext():
        found = patching.ablate(tiny.host(*pair), IDS, SCOPE, sites=kind, where=None, by=by)
    for n, site in enumerate(found.predicted.coords["site"]):
        activation = activations(pair)[site][0]
        pulled = truth.pulled(site, truth.unembed[TARGET] - truth.unembed[VERSUS])
        summands = pulled * (other(by, site, activation) - activation)
        # Before a norm, what zero changes cancels: the gradient is orthogonal to the activation.
        scale = float(summands.abs().sum(-1).max())
        tolerance = 1e-10 if pair[0] == "gpt2" else 10 * tiny.tolerance(*pair)
        assert_close(found.predicted.values[n], summands.sum(-1), tolerance, site, relative_to=scale)


@pytest.mark.parametrize("by", ["mean", "zero"])
@pytest.mark.parametrize("pair", HOSTS, ids=tiny.host_id)
def test_whole_heads_are_cut_at_all_positions(pair, by):
    model, heads = tiny.host(*pair), [(1, 2), (0, 3)]
    found = patching.ablate(model, IDS, SCOPE, where=heads, by=by)
    each = patching.ablate(model, IDS, SCOPE, sites="z", where=None, by=by)
    assert found.measured.dims == ("site", "head")
    assert int(found.where.sum()) == 2
    for layer, head in heads:
        site = f"blocks.{layer}.attn.hook_z"
        expected = by_hand(model, site, (slice(None), head), other(by, site, activations(pair)[site][0]))
        tolerance = 20 * tiny.tolerance(*pair)
        assert float(found.measured.values[layer, head]) == pytest.approx(expected, abs=tolerance)
        summed = float(each.predicted.values[layer, :, head].sum())
        assert float(found.predicted.values[layer, head]) == pytest.approx(summed, abs=tolerance)
    assert list(found.to_dataframe().columns) == ["site", "head", "predicted", "measured"]
    assert "predicted" in found._repr_html_()


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_what_is_linear_is_predicted_exactly(backend):
    """⟨v, resid_post of block 0⟩ is linear in that block's MLP output."""
    scope = ls.Direction(torch.linspace(-1, 2, tiny.D_MODEL), site="blocks.0.hook_resid_post")
    at = {"sites": ["blocks.0.hook_mlp_out"], "where": None, "position": 3}
    found = patching.ablate(tiny.host("gpt2", backend), IDS, scope, **at, by="zero")
    assert_close(found.predicted.values, found.measured.values, 1e-10)
    assert not found.measured.values[0, 4:].any()
    with pytest.raises(ValueError, match="at or after it"):
        patching.ablate(tiny.host("gpt2", backend), IDS, scope, sites="resid_post", where=None)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
@pytest.mark.parametrize("passes", [None, 6])
def test_fisher_is_half_the_quadratic_form_and_the_divergence(backend, passes):
    model, site = tiny.host("gpt2", backend), "blocks.1.hook_attn_out"
    small = 1e-3 * torch.linspace(-1, 1, tiny.D_MODEL, dtype=torch.float64)
    by = activations(("gpt2", backend))[site][0] + small
    found = patching.ablate(model, IDS, ls.Fisher(passes), sites=[site], where=None, by=by)
    assert found.measured.units == "squared"
    if passes is None:
        assert_close(found.predicted.values, found.measured.values, 1e-2)  # to the third order in what is small
    else:
        assert found.predicted.stderr is not None


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_one_place_costs_one_run_and_one_from_its_block(backend):
    model, ran = tiny.fresh_host("deep-llama", backend), []
    patching.ablate(model, IDS, SCOPE, where=[(2, 0)])  # what is tried once per model
    hooks = [(f"blocks.{n}.hook_attn_out", lambda activation, hook, n=n: ran.append(n)) for n in range(3)]
    with Host(model).hooks(hooks):
        patching.ablate(model, IDS, SCOPE, where=[(2, 1)])
    assert ran == [0, 1, 2, 2]


def test_a_tensor_may_be_another_run():
    """Another prompt's activations are what patching puts in."""
    model, clean = tiny.host("gpt2", tiny.BACKENDS[0]), tiny.tokens(7, seed=0)
    cache = model.run_with_cache(torch.tensor([clean]))[1]
    by = torch.stack([cache[f"blocks.{n}.attn.hook_z"][0] for n in range(2)])
    found = patching.ablate(model, IDS, SCOPE, sites="z", where=None, by=by)
    measured = patching.measure(model, clean, IDS, SCOPE, sites="z")
    assert_close(found.measured.values, measured.values, 1e-10)
    predicted = patching.predict(model, clean, IDS, SCOPE, sites="z", method="gradient")
    assert_close(found.predicted.values, predicted.values, 1e-10)
    assert found.measured.meta["replace"] == "tensor"
    ends = [found.measured.meta["metric"] or {}, measured.meta["metric"] or {}]
    assert ends[0]["run"] == pytest.approx(ends[1]["corrupted"], rel=1e-9)


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"by": "median"}, ValueError, "by is .* got 'median'"),
        (
            {"by": torch.zeros(3)},
            ValueError,
            r"broadcasts to .* at blocks.1.hook_mlp_out to \(7, 16\), got Tensor \(3,\)",
        ),
        ({"by": torch.full((16,), math.nan)}, ValueError, "NaN or infinity"),
        ({"by": True}, TypeError, "by .* got True"),
        ({"where": torch.zeros(1, 7, dtype=torch.bool)}, ValueError, "asks for none"),
        ({"where": torch.zeros(2, 7, dtype=torch.bool)}, ValueError, r"shaped like the values, \(1, 7\)"),
        ({"where": [(0, 9)], "sites": None}, ValueError, "head 9 of layer 0"),
        ({"prompt": IDS[:1], "where": None}, ValueError, "the prompt has one token"),
        ({"position": 9}, IndexError, "outside the prompt"),
        ({"scope": lambda state: state.rows([1, 2])}, ValueError, "2 cotangents"),
    ],
)
def test_errors_say_what_to_write(given, error, text):
    asked = {"prompt": IDS, "scope": SCOPE, "sites": ["blocks.1.hook_mlp_out"], "where": torch.ones(1, 7) > 0} | given
    with pytest.raises(error, match=text):
        patching.ablate(tiny.host("gpt2", tiny.BACKENDS[0]), **asked)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_the_model_is_left_as_it_came(backend):
    model = tiny.host("gpt2", backend)
    flags, before = [p.requires_grad for p in model.parameters()], model(torch.tensor([IDS]))
    state = torch.get_rng_state()

    def explode(z):
        raise KeyboardInterrupt

    for scope in (SCOPE, ls.Metric(explode)):
        with nullcontext() if scope is SCOPE else pytest.raises(KeyboardInterrupt):
            patching.ablate(model, IDS, scope, where=[(0, 1)])
    assert torch.equal(model(torch.tensor([IDS])), before)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(hook.fwd_hooks or hook.bwd_hooks for hook in model.hook_dict.values())


def test_a_result_is_saved_with_what_replaced(tmp_path):
    found = patching.ablate(tiny.host("gpt2", tiny.BACKENDS[0]), IDS, ls.Fisher(6), where=[(0, 1)], by="zero")
    again = patching.Comparison.load(found.save(tmp_path / "cut.safetensors"))
    assert torch.equal(
        again.measured.values,
        found.measured.values,
    ) or again.where.equal(found.where)
    assert again.measured.meta["replace"] == "zero"
    assert again.predicted.probes is not None


@pytest.mark.parametrize(("by", "said"), [("mean", "the mean over the other positions"), ("zero", "zero")])
def test_a_page_says_what_stands_in_the_place_of_what_was_cut(by, said):
    model = tiny.host("gpt2", tiny.BACKENDS[0])
    page = patching.ablate(model, tiny.tokens(5), ls.Semantic(7), where=[(0, 1)], by=by)._repr_html_()
    assert f"effects of cuts, replaced by {said}" in page
    assert "metric(cut) − metric(run)" in page


def test_a_comparison_names_its_model_and_the_hooks_in_force():
    model = tiny.fresh_host("gpt2", tiny.BACKENDS[0])
    with model.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", lambda x, hook: 2 * x)]):
        cut = patching.ablate(model, tiny.tokens(5), ls.Semantic(7), where=[(0, 1)], by="zero")
    page = cut._repr_html_()
    assert (
        f"on {Host(model).name} (with hooks at blocks.1.hook_mlp_out): predicted and measured effects of cuts" in page
    )
