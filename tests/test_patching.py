"""Predicted and measured patches against the bare Hugging Face model and against TransformerLens's own tools."""

import functools
import math
import re
from contextlib import nullcontext

import pytest
import scipy.stats
import torch

import lens_scopes as ls
import oracles
import tiny
from double import Double
from lens_scopes import patching
from lens_scopes.views import comparison, markup
from report import assert_close

# Of random models gradient and path often disagree.
pytestmark = [pytest.mark.host, pytest.mark.filterwarnings("ignore:.*(have different signs|points of the path miss)")]

POSITION, TARGET, VERSUS = 5, 7, 11
CLEAN, CORRUPTED = tiny.tokens(7, seed=0), tiny.tokens(7, seed=1)
CORRUPTED[0] = CLEAN[0]  # one position is the same in both
KINDS = (None, "resid_pre", "resid_mid", "attn_out", "mlp_out", "z", "q", "k", "v")
VECTOR = torch.randn(tiny.D_MODEL, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
SCOPES = {
    "semantic": ls.Semantic(TARGET, VERSUS),
    "temperature": ls.Temperature(),
    "direction": ls.Direction(VECTOR),
    "fisher": ls.Fisher(None),
    "metric": ls.Metric(lambda z: z[0, -1].log_softmax(-1)[TARGET]),
    "function": lambda state: state.rows(TARGET),
}
#: What each scope measures, from y and the logits of the patched and of the corrupted run.
VALUES = {
    "semantic": lambda y, z, y0, z0: z[TARGET] - z[VERSUS] - z0[TARGET] + z0[VERSUS],
    "temperature": lambda y, z, y0, z0: y.norm() - y0.norm(),
    "direction": lambda y, z, y0, z0: VECTOR @ (y - y0),
    "fisher": lambda y, z, y0, z0: (z0.softmax(-1) * (z0.log_softmax(-1) - z.log_softmax(-1))).sum(),
    "metric": lambda y, z, y0, z0: z.log_softmax(-1)[TARGET] - z0.log_softmax(-1)[TARGET],
}


@functools.cache
def truth_of(architecture):
    return oracles.dense(tiny.hugging_face(architecture), CORRUPTED, POSITION)


@functools.cache
def differences(pair):
    """a_clean − a_corrupted by site, from TransformerLens's own cache."""
    with Double() if pair[1] == "bridge" else nullcontext():
        clean, corrupted = (tiny.host(*pair).run_with_cache(torch.tensor([ids]))[1] for ids in (CLEAN, CORRUPTED))
    return {site: (clean[site] - corrupted[site])[0] for site in oracles.places(tiny.hugging_face(pair[0]))}


def exactly(pair):
    return Double() if pair[1] == "bridge" else nullcontext()


def tolerance(pair):
    return 1e-10 if pair[0] == "gpt2" else tiny.tolerance(*pair)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pair", tiny.HOSTS, ids=tiny.host_id)
def test_predictions_are_dense_jacobians_times_differences(pair, kind):
    if kind == "resid_mid" and pair[0] == "neox":
        pytest.skip("parallel blocks have no resid_mid")
    truth = truth_of(pair[0])
    vector = truth.unembed[TARGET] - truth.unembed[VERSUS]
    with exactly(pair):
        found = patching.predict(
            tiny.host(*pair),
            CLEAN,
            CORRUPTED,
            ls.Semantic(TARGET, VERSUS),
            position=POSITION,
            sites=kind,
            method="gradient",
        )
    assert found.units == "signed"
    for n, site in enumerate(found.coords["site"]):
        expected = (truth.pulled(site, vector) * differences(pair)[site]).sum(-1)
        assert_close(found.values[n], expected, 10 * tolerance(pair), f"{site}")


@pytest.mark.parametrize("pair", [("gpt2", b) for b in tiny.BACKENDS] + [("llama", b) for b in tiny.BACKENDS])
def test_fisher_predicts_half_the_quadratic_form(pair):
    truth, site = truth_of(pair[0]), "blocks.0.hook_resid_post"
    with exactly(pair):
        found = patching.predict(tiny.host(*pair), CLEAN, CORRUPTED, ls.Fisher(None), position=POSITION, sites=[site])
    pushed = torch.einsum("ytd,td->ty", truth.jacobians[site], differences(pair)[site])
    assert found.units == "squared"
    assert_close(found.values[0], torch.einsum("ty,yx,tx->t", pushed, truth.fisher, pushed) / 2, 1e-6)


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("pair", tiny.HOSTS, ids=tiny.host_id)
def test_measured_effects_are_those_of_the_bare_model(pair, name):
    """Every place of four kinds of sites, patched in Hugging Face's own model by its own modules."""
    hf, sites = tiny.hugging_face(pair[0]), ["embed", "blocks.0.hook_attn_out", "blocks.1.hook_mlp_out"]
    with exactly(pair):
        found = patching.measure(tiny.host(*pair), CLEAN, CORRUPTED, SCOPES[name], position=POSITION, sites=sites)
    before = oracles.final_state(hf, CORRUPTED, POSITION, {})
    for n, site in enumerate(found.coords["site"]):
        expected = torch.zeros(len(CLEAN), dtype=torch.float64)
        for t in range(POSITION + 1):
            delta = torch.zeros_like(differences(pair)[site])
            delta[t] = differences(pair)[site][t]
            with torch.no_grad():
                expected[t] = VALUES[name](*oracles.final_state(hf, CORRUPTED, POSITION, {site: delta}), *before)
        assert_close(found.values[n], expected, 10 * tolerance(pair), f"{name} {site}")


GETTERS = {
    "resid_pre": "get_act_patch_resid_pre",
    "resid_mid": "get_act_patch_resid_mid",
    "attn_out": "get_act_patch_attn_out",
    "mlp_out": "get_act_patch_mlp_out",
    "z": "get_act_patch_attn_head_out_by_pos",
    "q": "get_act_patch_attn_head_q_by_pos",
    "k": "get_act_patch_attn_head_k_by_pos",
    "v": "get_act_patch_attn_head_v_by_pos",
}


@pytest.mark.parametrize("kind", GETTERS)
@pytest.mark.parametrize("pair", tiny.HOSTS, ids=tiny.host_id)
def test_measured_effects_are_those_of_transformer_lens_getters(pair, kind):
    """The metric in TransformerLens's hands, one place per forward, against ``measure``."""
    import transformer_lens.patching

    if kind == "resid_mid" and pair[0] == "neox":
        pytest.skip("parallel blocks have no resid_mid")
    model, scope = tiny.host(*pair), ls.Temperature()
    found = patching.measure(model, CLEAN, CORRUPTED, scope, sites=kind)
    clean_cache = model.run_with_cache(torch.tensor([CLEAN]))[1]
    getter = getattr(transformer_lens.patching, GETTERS[kind])
    with torch.no_grad(), patching.metric(model, CLEAN, scope) as metric:
        theirs = getter(model, torch.tensor([CORRUPTED]), clean_cache, metric)
        before = metric(model(torch.tensor([CORRUPTED])))
    assert_close(found.values, theirs - before, 2e-5, relative_to=float(found.values.abs().max()) + float(before) / 10)


@pytest.mark.parametrize("pair", [p for p in tiny.HOSTS if p[1] == "bridge"], ids=tiny.host_id)
def test_predictions_at_nodes_are_attribution_patching(pair):
    """Heads and MLPs, with the scope's metric in TransformerLens's own hands."""
    from transformer_lens.tools.analysis import EdgeAttributionConfig, attribution_patch

    model, scope = tiny.host(*pair), ls.Semantic(TARGET, VERSUS)
    with patching.metric(model, CLEAN, scope) as metric:
        nodes = attribution_patch(
            model, torch.tensor([CLEAN]), torch.tensor([CORRUPTED]), metric, EdgeAttributionConfig(granularity="node")
        ).node_scores
    heads = patching.predict(model, CLEAN, CORRUPTED, scope, sites="z", method="gradient").values
    mlps = patching.predict(model, CLEAN, CORRUPTED, scope, sites="mlp_out", method="gradient").values
    compared = {"attn_head_out": [], "mlp_out": []}
    for node, theirs in nodes.items():
        if node.kind in compared:
            at = (node.layer, node.position)
            compared[node.kind].append((heads[(*at, node.head)] if node.kind == "attn_head_out" else mlps[at], theirs))
    for kind, ours in {"attn_head_out": heads, "mlp_out": mlps}.items():
        assert len(compared[kind]) == ours.numel()
        assert_close(*map(torch.tensor, zip(*compared[kind], strict=True)), 1e-5, kind)


@pytest.mark.parametrize("name", ["semantic", "temperature", "direction", "metric"])
def test_the_path_integral_is_complete_at_the_embedding(name):
    """Σ_t predicted = metric(clean) − metric(corrupted), with an error that falls with the square of the step."""
    gaps = []
    for steps in (100, 200, 400):
        found = patching.predict(
            tiny.host("gpt2", tiny.BACKENDS[0]),
            CLEAN,
            CORRUPTED,
            SCOPES[name],
            sites="embed",
            method="fixed",
            steps=steps,
        )
        missed = found.meta["metric"]["clean"] - found.meta["metric"]["corrupted"] - float(found.values.sum())
        assert found.meta["gap"] == pytest.approx(missed, rel=1e-9)
        gaps.append(abs(missed))
    assert gaps[2] < 1e-4
    assert 3 < gaps[0] / gaps[1] < 5
    assert 3 < gaps[1] / gaps[2] < 5


@pytest.mark.parametrize("sites", ["z", "resid_post"])
def test_the_gap_is_that_of_the_path_whatever_the_sites(sites):
    model, scope = tiny.host("gpt2", tiny.BACKENDS[0]), ls.Semantic(TARGET, VERSUS)
    for method in ("fixed", "path"):
        found, at_embed = (
            patching.predict(model, CLEAN, CORRUPTED, scope, sites=s, method=method, steps=7) for s in (sites, "embed")
        )
        assert found.meta["gap"] == pytest.approx(at_embed.meta["gap"], rel=1e-6)
    assert "gap" not in patching.predict(model, CLEAN, CORRUPTED, scope, sites=sites, method="gradient").meta


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_gradient_costs_two_forwards_and_one_backward(backend, monkeypatch):
    model, forwards, backwards, grad = tiny.host("gpt2", backend), [], [], torch.autograd.grad
    scope = ls.Semantic(TARGET)
    ls.score(model, CLEAN, scope)  # the readout is verified once per model
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kwargs: backwards.append(1) or grad(*args, **kwargs))
    with model.hooks(fwd_hooks=[("hook_embed", lambda activation, hook: forwards.append(1))]):
        patching.predict(model, CLEAN, CORRUPTED, scope, method="gradient")
    assert (len(forwards), len(backwards)) == (2, 1)


def test_a_long_path_runs_in_parts(monkeypatch):

    model, scope = tiny.host("gpt2", tiny.BACKENDS[0]), ls.Semantic(TARGET)
    whole = {m: patching.predict(model, CLEAN, CORRUPTED, scope, method=m, steps=10) for m in ("fixed", "two-scale")}
    monkeypatch.setattr("lens_scopes.calculus.memory._TOKENS", 3 * len(CLEAN))
    for method, expected in whole.items():
        found = patching.predict(model, CLEAN, CORRUPTED, scope, method=method, steps=10)
        assert_close(found.values, expected.values, 1e-12)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_an_inner_direction(backend):
    """⟨v, resid_post of block 0⟩: linear in what is patched before it in the same block's output, so exact there."""
    model, site = tiny.host("gpt2", backend), "blocks.0.hook_resid_post"
    scope = ls.Direction(VECTOR, site=site)
    both = [
        f(model, CLEAN, CORRUPTED, scope, sites=["blocks.0.hook_mlp_out"]) for f in (patching.predict, patching.measure)
    ]
    assert_close(both[0].values, both[1].values, 1e-10)
    assert both[0].meta["metric"] == pytest.approx(both[1].meta["metric"], rel=1e-9)
    with pytest.raises(ValueError, match="at or after it"):
        patching.predict(model, CLEAN, CORRUPTED, scope, sites="resid_post")


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_one_weighted_cotangent_counts_by_the_root_of_its_weight(backend):
    """√4 = 2 times what it is without a weight, predicted and measured alike."""
    model = tiny.host("gpt2", backend)

    def scope(weights):
        return lambda state: ls.Cotangents(VECTOR[None].to(state.y), weights=weights)

    plain, weighted = scope(None), scope(torch.tensor([4.0]))
    for function in (patching.predict, patching.measure):
        found = function(model, CLEAN, CORRUPTED, weighted, sites="resid_pre")
        assert_close(found.values, 2 * function(model, CLEAN, CORRUPTED, plain, sites="resid_pre").values, 1e-12)
    path = patching.predict(model, CLEAN, CORRUPTED, weighted, sites="embed", method="fixed", steps=400)
    ends = path.meta["metric"]
    change = ends["clean"] - ends["corrupted"]
    assert_close(path.values.sum(), change, 1e-3, "what is predicted along the path adds up to what is measured")


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_target_left_out_is_the_clean_prediction(backend):
    model = tiny.host("gpt2", backend)
    top = int(model(torch.tensor([CLEAN]))[0, -1].argmax())
    assert top != int(model(torch.tensor([CORRUPTED]))[0, -1].argmax())
    for function in (patching.predict, patching.measure):
        found, named = (function(model, CLEAN, CORRUPTED, scope) for scope in (ls.Semantic(), ls.Semantic(top)))
        assert torch.equal(found.values, named.values)
        assert found.meta["targets"][0]["id"] == top


def test_only_the_places_asked_for_are_measured():
    model, scope = tiny.host("gpt2", tiny.BACKENDS[0]), ls.Semantic(TARGET)
    whole = patching.measure(model, CLEAN, CORRUPTED, scope, sites="z")
    where = torch.zeros_like(whole.values, dtype=torch.bool)
    where[1, 3:, 2] = True
    part = patching.measure(model, CLEAN, CORRUPTED, scope, sites="z", where=where)
    assert part.values[~where].isnan().all()
    assert_close(part.values[where], whole.values[where], 1e-12)
    assert part.meta["measured"] == int(where.sum())
    assert torch.equal(whole.values[0, 0], torch.zeros(tiny.HEADS, dtype=torch.float64))  # the same token in both runs
    with pytest.raises(ValueError, match=r"where is a bool tensor shaped like the values, \(2, 7, 4\)"):
        patching.measure(model, CLEAN, CORRUPTED, scope, sites="z", where=where[0])


def test_any_hook_of_a_stream_can_be_patched():
    """A site that TransformerLens's patching has no name for."""
    model, site = tiny.host("gpt2", tiny.BACKENDS[0]), "blocks.1.ln2.hook_normalized"
    measured = patching.measure(model, CLEAN, CORRUPTED, ls.Semantic(TARGET), sites=[site])
    mlp_out = patching.measure(model, CLEAN, CORRUPTED, ls.Semantic(TARGET), sites=["blocks.1.hook_mlp_out"])
    assert_close(measured.values, mlp_out.values, 1e-10)


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda f, m: f(m, CLEAN, CORRUPTED[:-1], ls.Semantic()), ValueError, "clean has 7 tokens and corrupted 6"),
        (lambda f, m: f(m, CLEAN, CORRUPTED, ls.Semantic(), position=[1, 2]), ValueError, "one position"),
        (lambda f, m: f(m, CLEAN, CORRUPTED, ls.Semantic(), position=9), IndexError, "outside the prompt"),
        (lambda f, m: f(m, CLEAN, CORRUPTED, ls.Semantic(9999)), ValueError, "9999"),
        (lambda f, m: f(m, CLEAN, CORRUPTED, lambda state: state.rows([1, 2])), ValueError, "2 cotangents"),
    ],
)
@pytest.mark.parametrize("function", [patching.predict, patching.measure])
def test_errors_say_what_to_write(function, call, error, text):
    with pytest.raises(error, match=text):
        call(function, tiny.host("gpt2", tiny.BACKENDS[0]))


def test_errors_of_predict_and_metric():
    model = tiny.host("gpt2", tiny.BACKENDS[0])
    with pytest.raises(ValueError, match=r"steps .* is an integer, got 0; write 1 or more"):
        patching.predict(model, CLEAN, CORRUPTED, ls.Semantic(), steps=0)
    with pytest.raises(ValueError, match=r"steps=2: Fisher.* write method='gradient'"):
        patching.predict(model, CLEAN, CORRUPTED, ls.Fisher(), steps=2)
    with patching.metric(model, CLEAN, ls.Temperature()) as metric:
        logits = model(torch.tensor([CLEAN]))
        assert metric(logits).shape == ()
        with pytest.raises(RuntimeError, match="has not seen the run"):
            metric(logits.expand(2, -1, -1))
        with pytest.raises(ValueError, match="needs logits"):
            metric(logits[:, :3])
    with pytest.raises(RuntimeError, match="inside 'with"):
        metric(logits)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_the_model_is_left_as_it_came(backend):
    model = tiny.host("gpt2", backend)
    flags = [p.requires_grad for p in model.parameters()]
    tokens, state = torch.tensor([CLEAN]), torch.get_rng_state()
    before = model(tokens)

    def explode(z):
        raise KeyboardInterrupt

    for scope in (*SCOPES.values(), ls.Metric(explode)):
        for function in (patching.predict, patching.measure):
            with pytest.raises(KeyboardInterrupt) if getattr(scope, "fn", None) is explode else nullcontext():
                function(model, CLEAN, CORRUPTED, scope, sites="embed")
    with (
        pytest.raises(KeyboardInterrupt),
        patching.metric(model, CLEAN, ls.Direction(VECTOR, "blocks.0.hook_resid_post")),
    ):
        raise KeyboardInterrupt
    assert torch.equal(model(tokens), before)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.unembed._forward_pre_hooks
    assert not any(hook.fwd_hooks or hook.bwd_hooks for hook in model.hook_dict.values())


def scores(values, units="signed"):
    values = torch.as_tensor(values, dtype=torch.float64)
    coords = {"site": tuple(f"blocks.{n}.hook_resid_post" for n in range(len(values)))}
    coords["pos"] = tuple(range(values.shape[1]))
    return ls.Scores(values, ("site", "pos"), coords, ("<b>", "x", "y")[: values.shape[1]], {"units": units})


def test_comparison_numbers():
    nan = math.nan
    predicted, measured = [[3.0, -2.0, 1.0], [0.5, 0.5, 9.0]], [[6.0, -3.0, 2.0], [-1.0, 0.0, nan]]
    found = patching.compare(
        scores(predicted), scores(measured), orders={"backwards": -torch.tensor(predicted).abs() + 10}
    )
    x, y = [3, -2, 1, 0.5, 0.5], [6, -3, 2, -1, 0]
    assert found.pearson == pytest.approx(scipy.stats.pearsonr(x, y).statistic)
    assert found.spearman == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    assert found.sign_agreement == 3 / 4
    assert found.overlap(2) == 1.0
    assert found.overlap(4) == 1.0
    needed = found.patches_to(0.75)  # of 12: 9
    assert needed["scope"] == needed["best"] == 2
    assert needed["backwards"] == 5
    assert 2 < needed["random"] < 5
    assert found.patches_to(0.75) == needed  # seeded
    assert found.summary()["places"] == found.summary()["places_not_zero"] == 5
    assert found.at("blocks.1.hook_resid_post").summary()["places"] == 2
    frame = found.to_dataframe()
    assert list(frame.columns) == ["site", "pos", "pos_token", "predicted", "measured", "backwards"]
    with pytest.raises(ValueError, match="overlap"):
        found.overlap(6)
    with pytest.raises(ValueError, match="share"):
        found.patches_to(0)


def test_places_where_the_runs_agree_are_no_patches_to_try():
    """They inflate what a random order needs: nobody would patch there."""
    effects = [[3.0, -2.0, 1.0]]
    alone = patching.compare(scores(effects), scores(effects))
    among = patching.compare(*(scores([*effects, *[[0.0, 0.0, 0.0]] * 9]) for _ in range(2)))
    assert (among.summary()["places"], among.summary()["places_not_zero"]) == (30, 3)
    assert alone.patches_to()["random"] <= among.patches_to()["random"] <= 3
    assert among.patches_to()["scope"] == alone.patches_to()["scope"]


def test_comparison_as_a_page_says_what_it_is_about():
    model = tiny.host("gpt2", tiny.BACKENDS[0])
    both = [f(model, CLEAN, CORRUPTED, ls.Semantic(3, 5)) for f in (patching.predict, patching.measure)]
    found = patching.compare(*both)
    page = found._repr_html_()
    meta = found.measured.meta
    assert meta["clean_tokens"] == list(ls.score(model, CLEAN, ls.Semantic(), sites="embed").tokens)
    ends = ", ".join(f"{name} {markup.number(meta['metric'][name])}" for name in ("corrupted", "clean"))
    for text in ("".join(meta["clean_tokens"]), "".join(found.measured.tokens), ends):
        assert markup.prose(text) in page
    assert "10 largest measured effects" in page
    assert page.count("patches that find 90 %") == 1
    said = [name for name in found.summary() if name not in comparison._SAID]
    assert said == ["patches_gradient", "patches_path", "patches_spread"]  # orders, by names that users give


def test_comparison_saves_shows_and_plots(tmp_path):
    pytest.importorskip("matplotlib").use("Agg")
    model = tiny.host("gpt2", tiny.BACKENDS[0])
    both = [f(model, CLEAN, CORRUPTED, ls.Fisher(4)) for f in (patching.predict, patching.measure)]
    found = patching.compare(*both, orders={"reverse": both[0].values.flip(1)})
    again = patching.Comparison.load(found.save(tmp_path / "comparison.safetensors"))
    assert again.summary() == pytest.approx(found.summary(), nan_ok=True)
    assert math.isnan(found.sign_agreement)  # squared units have no sign
    assert again.predicted.probes is not None
    assert "spearman" in found._repr_html_()
    assert "script" not in found._repr_html_()
    (drawn, *_) = found.plot().axes
    assert drawn.get_xlabel() == "predicted effect"
    torch.testing.assert_close(torch.tensor(drawn.collections[0].get_offsets()[:, 1].tolist()), found._pair[1].float())
    assert re.search(r"predicted [-\d.e]+, measured [-\d.e]+", found._repr_html_())  # on hover, place by place
    for scores, what in zip(
        both, ("predicted effects of patches (gradient)", "measured effects of patches"), strict=True
    ):
        assert f"{what}: Fisher(passes=4)" in scores._repr_html_()


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (scores([[1.0, 2.0]]), "same places"),
        (scores([[1.0, 2.0, 3.0]], "squared"), "units: 'signed' and 'squared'"),
        (scores([[math.nan] * 3]), "nothing was measured"),
    ],
)
def test_compare_refuses(other, text):
    with pytest.raises(ValueError, match=text):
        patching.compare(scores([[1.0, 2.0, 3.0]]), other)
    with pytest.raises(ValueError, match="shape"):
        patching.compare(scores([[1.0, 2.0]]), scores([[1.0, 2.0]]), orders={"wrong": torch.zeros(3)})
