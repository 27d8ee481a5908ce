"""Predictions along the line between two prompts, against slow runs by hand; and what a Prediction says of itself."""

import functools
import pickle
import re
import warnings

import pytest
import torch

import lens_scopes as ls
import tiny
from lens_scopes import patching
from lens_scopes.patching.screen import _FIRST, _LATEST, _TOP
from lens_scopes.results.prediction import two_scale
from report import assert_close

# Of random models gradient and path often disagree.
pytestmark = [pytest.mark.host, pytest.mark.filterwarnings("ignore:.*(have different signs|points of the path miss)")]

TARGET, VERSUS = 7, 11
CLEAN, CORRUPTED = tiny.tokens(7, seed=0), tiny.tokens(7, seed=1)
SCOPE = ls.Semantic(TARGET, VERSUS)
HOSTS = tuple((a, b) for a in ("gpt2", "deep-llama", "gemma2") for b in tiny.BACKENDS)
SITES = {"embed": "hook_embed", "mlp_out": "blocks.0.hook_mlp_out", "z": "blocks.1.attn.hook_z"}
SITES |= {"resid_post": "blocks.1.hook_resid_post", "q": "blocks.0.attn.hook_q"}


@functools.cache
def point(pair, alpha, kind):
    """Activation and gradient of a site at one point of the line, by TransformerLens's hooks and torch alone."""
    model, held = tiny.host(*pair), {}
    with torch.no_grad():
        ends = [model.run_with_cache(torch.tensor([ids]))[1]["hook_embed"] for ids in (CORRUPTED, CLEAN)]

    def place(activation, hook):
        return (ends[0] + alpha * (ends[1] - ends[0])).requires_grad_()

    def keep(activation, hook):
        held["a"] = activation
        activation.retain_grad()
        return activation

    logits = model.run_with_hooks(torch.tensor([CORRUPTED]), fwd_hooks=[("hook_embed", place), (SITES[kind], keep)])
    (logits[0, -1, TARGET] - logits[0, -1, VERSUS]).backward()
    model.zero_grad(set_to_none=True)
    return held["a"].detach()[0], held["a"].grad[0]


def by_hand(pair, kind, n):
    """Every estimate, from n intervals."""
    a, g = (torch.stack(some) for some in zip(*(point(pair, i / n, kind) for i in range(n + 1)), strict=True))
    change, mean = a[-1] - a[0], (g[1:] + g[:-1]) / 2
    found = {
        "gradient": (g[0] * change).sum(-1),
        "clean_gradient": (g[-1] * change).sum(-1),
        "fixed": (mean.mean(0) * change).sum(-1),
        "path": (mean * (a[1:] - a[:-1])).sum(-1).sum(0),
    }
    middle = [point(pair, (i + 0.5) / n, kind)[1] for i in range(n)]
    return found, (torch.stack(middle).mean(0) * change).sum(-1)


@pytest.mark.parametrize("kind", SITES)
@pytest.mark.parametrize("pair", HOSTS, ids=tiny.host_id)
def test_every_estimate_is_what_it_is_by_hand(pair, kind):
    model, tolerance = tiny.host(*pair), 200 * tiny.tolerance(*pair)
    at = {"sites": [SITES[kind]], "steps": 3}
    expected, at_midpoints = by_hand(pair, kind, 3)
    found = patching.predict(model, CLEAN, CORRUPTED, SCOPE, method="path", **at)
    scale = float(torch.stack(list(expected.values())).abs().max())
    for name, values in expected.items():
        assert_close(found.estimates[name][0], values, tolerance, name, relative_to=scale)
    assert torch.equal(found.values, found.path)
    metric = found.meta["metric"]
    weight = (expected["path"].abs() / abs(metric["clean"] - metric["corrupted"])).clamp(max=1).sqrt()
    blend = (1 - weight) * expected["gradient"] + weight * expected["path"]
    two = patching.predict(model, CLEAN, CORRUPTED, SCOPE, **at)
    assert_close(two.values[0], blend, tolerance, "two-scale", relative_to=scale)
    assert (two.meta["method"], two.meta["points"], two.meta["steps"]) == ("two-scale", 4, 3)
    fixed = patching.predict(model, CLEAN, CORRUPTED, SCOPE, method="fixed", **at)
    assert_close(fixed.values[0], at_midpoints, tolerance, "fixed", relative_to=scale)
    assert fixed.path is fixed.spread is fixed.gradient is None


@pytest.mark.parametrize("pair", HOSTS, ids=tiny.host_id)
def test_one_interval_is_the_mean_of_both_ends(pair):
    model = tiny.host(*pair)
    found = patching.predict(model, CLEAN, CORRUPTED, SCOPE, method="path", sites="mlp_out", steps=1)
    forth = patching.predict(model, CLEAN, CORRUPTED, SCOPE, method="gradient", sites="mlp_out")
    back = patching.predict(model, CORRUPTED, CLEAN, SCOPE, method="gradient", sites="mlp_out")
    assert_close(found.values, (forth.values - back.values) / 2, 1e-6)
    assert torch.equal(forth.gradient, forth.values)
    assert_close(found.gradient, forth.values, 1e-12)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
@pytest.mark.parametrize("method", [None, "path"])
def test_points_double_until_the_path_is_complete(backend, method):
    model = tiny.host("gpt2", backend)
    loose, strict = (
        patching.predict(model, CLEAN, CORRUPTED, SCOPE, sites="embed", method=method, tol=tol) for tol in (0.5, 4e-3)
    )
    assert loose.meta["points"] < strict.meta["points"]
    for found, tol in ((loose, 0.5), (strict, 4e-3)):
        difference = found.meta["metric"]["clean"] - found.meta["metric"]["corrupted"]
        assert found.meta["points"] in (3, 5, 9, 17, 33)
        assert abs(found.meta["gap"]) <= tol * abs(difference)
        assert float(found.path.sum()) + found.meta["gap"] == pytest.approx(difference, rel=1e-9)
        fewer = patching.predict(
            model, CLEAN, CORRUPTED, SCOPE, sites="embed", method=method, steps=found.meta["points"] // 2
        )
        assert abs(fewer.meta["gap"]) > tol * abs(difference) or found.meta["points"] == 3
    same = patching.predict(
        model, CLEAN, CORRUPTED, SCOPE, sites="embed", method=method, steps=strict.meta["points"] - 1
    )
    assert_close(same.values, strict.values, 1e-12)  # the same points, whenever they were run


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_of_something_linear_every_method_is_the_patch(backend):
    """⟨v, resid_post of block 0⟩ in the same block's MLP output, and ⟨v, what block 0 reads⟩ in the embedding."""
    model = tiny.host("gpt2", backend)
    for read, site in (("resid_post", "blocks.0.hook_mlp_out"), ("resid_pre", "hook_embed")):
        scope = ls.Direction(torch.linspace(-1, 2, tiny.D_MODEL), site=f"blocks.0.hook_{read}")
        measured = patching.measure(model, CLEAN, CORRUPTED, scope, sites=[site])
        for method, steps in (("gradient", None), ("path", 2), ("two-scale", 2), ("fixed", 2)):
            found = patching.predict(model, CLEAN, CORRUPTED, scope, sites=[site], method=method, steps=steps)
            # A path of activations is the same as their difference where what is read does not change along it.
            assert_close(found.values, measured.values, 1e-6, method)


@pytest.mark.skipif("hooked" not in tiny.BACKENDS, reason="no norm, attention by position alone: HookedTransformer's")
def test_of_a_model_that_is_linear_every_method_is_the_patch():
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=2, d_model=16, n_ctx=8, d_head=4, n_heads=4, d_vocab=40, attn_only=True, normalization_type=None,
        device="cpu", seed=0, dtype=torch.float64,
    )  # fmt: skip
    model = HookedTransformer(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(0 if name.endswith(("W_Q", "W_K")) else 5)
    clean, corrupted = [1, 2, 3, 4, 5], [1, 6, 3, 7, 8]
    for sites in ("embed", "attn_out", "resid_post", "z", "v"):
        measured = patching.measure(model, clean, corrupted, ls.Semantic(7, 11), sites=sites)
        for method, steps in (("gradient", None), ("path", 4), ("two-scale", None), ("fixed", 2)):
            found = patching.predict(
                model, clean, corrupted, ls.Semantic(7, 11), sites=sites, method=method, steps=steps
            )
            assert_close(found.values, measured.values, 1e-6, f"{sites} {method}")


def test_two_scale_has_its_limits():
    gradient, difference = torch.tensor([3.0, -1.0, 2.0, 0.5], dtype=torch.float64), 4.0
    metric = {"clean": 5.0, "corrupted": 1.0}
    whole = torch.tensor([4.0, -4.0, 9.0, -5.0], dtype=torch.float64)
    assert torch.equal(two_scale(gradient, whole, metric), whole)
    assert torch.equal(two_scale(gradient, torch.zeros_like(whole), metric), gradient)
    quarter = two_scale(gradient, torch.full_like(whole, difference / 4), metric)
    assert torch.equal(quarter, gradient / 2 + 0.5)
    assert torch.equal(two_scale(gradient, whole / 9, {"clean": 1.0, "corrupted": 1.0 + 1e-7}), whole / 9)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_sums_are_blended_after_they_are_summed(backend):
    """What a whole head is measured as: patched at all positions at once."""
    found = patching.predict(tiny.host("gpt2", backend), CLEAN, CORRUPTED, SCOPE, sites="z", steps=4)
    heads, metric = found.sum("pos"), found.meta["metric"]
    assert heads.dims == ("site", "head")
    assert_close(heads.path, found.path.sum(1), 1e-12)
    assert_close(heads.values, two_scale(found.gradient.sum(1), found.path.sum(1), metric), 1e-12)
    assert float((heads.values - found.values.sum(1)).abs().max()) > 1e-3
    every = torch.stack([one.sum(1) for one in found.estimates.values()])
    assert_close(heads.spread, every.amax(0) - every.amin(0), 1e-12)
    words = found.aggregate({"first": (0, 3), "rest": ...})
    assert_close(words.values[:, 0], two_scale(found.gradient[:, :3].sum(1), found.path[:, :3].sum(1), metric), 1e-12)
    one = found.sel(site="1 z")
    assert torch.equal(one.values, found.values[1])
    assert torch.equal(one.spread, found.spread[1])


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_prediction_is_kept_like_any_scores(backend, tmp_path):
    found = patching.predict(tiny.host("gpt2", backend), CLEAN, CORRUPTED, SCOPE, sites="z", steps=2)
    assert isinstance(found, patching.Prediction)
    for again in (patching.Prediction.load(found.save(tmp_path / "p.safetensors")), pickle.loads(pickle.dumps(found))):
        assert type(again) is patching.Prediction
        assert again.estimates.keys() == found.estimates.keys()
        assert torch.equal(again.spread, found.spread)
        assert torch.equal(again.sum("pos").values, found.sum("pos").values)
        assert again.meta["gap"] == found.meta["gap"]
    with pytest.raises(ValueError, match=r"holds a Prediction, not a Scores; load it with Prediction.load"):
        ls.Scores.load(tmp_path / "p.safetensors")
    frame = found.to_dataframe()
    assert list(frame.columns)[-4:] == ["score", "gradient", "path", "spread"]
    assert frame.path.tolist() == pytest.approx(found.path.flatten().tolist())
    measured = patching.measure(tiny.host("gpt2", backend), CLEAN, CORRUPTED, SCOPE, sites="z")
    for difference in (found - measured, measured - found):
        assert type(difference) is ls.Scores
    assert_close((found - measured).values, found.values - measured.values, 1e-12)
    assert repr(found).startswith("Prediction(site=2, pos=7, head=4; ")
    assert "predicted effects of patches (two-scale)" in found._repr_html_()
    assert "predicted effects of patches (two-scale)" in ls.report([found], tmp_path / "r.html").read_text(
        encoding="utf-8"
    )
    with pytest.raises(ValueError, match="estimates are shaped like the values"):
        patching.Prediction(
            found.values, found.dims, found.coords, found.tokens, found.meta, None, {"path": torch.zeros(2)}
        )


def test_what_is_doubtful():
    found = patching.predict(tiny.host("gpt2", tiny.BACKENDS[0]), CLEAN, CORRUPTED, SCOPE, sites="mlp_out")
    every = torch.stack([found.estimates[name] for name in ("gradient", "clean_gradient", "fixed", "path")])
    assert torch.equal(found.spread, every.amax(0) - every.amin(0))
    assert 0 < int(found.doubtful().sum()) < found.values.numel()
    assert torch.equal(found.doubtful(0.3), found.spread > 0.3 * found.values.abs().max())
    plain = patching.predict(
        tiny.host("gpt2", tiny.BACKENDS[0]), CLEAN, CORRUPTED, SCOPE, sites="mlp_out", method="gradient"
    )
    with pytest.raises(ValueError, match=r"'gradient' has no path .* method='two-scale'"):
        plain.doubtful()
    with pytest.raises(ValueError, match="share"):
        found.doubtful(0)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_squared_scopes_and_frozen_models_have_the_gradient_alone(backend):
    model, site = tiny.host("gpt2", backend), "blocks.0.hook_mlp_out"
    fisher = patching.predict(model, CLEAN, CORRUPTED, ls.Fisher(None), sites=[site])
    assert (fisher.meta["method"], fisher.units, fisher.spread) == ("gradient", "squared", None)
    cache = [model.run_with_cache(torch.tensor([ids]))[1][site][0].detach() for ids in (CLEAN, CORRUPTED)]
    frozen = patching.predict(model, CLEAN, CORRUPTED, SCOPE, sites=[site], freeze=("norm",))
    expected = ls.score(model, CORRUPTED, SCOPE, sites=[site], along=(cache[0] - cache[1])[None], freeze=("norm",))
    assert_close(frozen.values, expected.values, 1e-10)
    assert (frozen.meta["method"], frozen.meta["freeze"]) == ("gradient", ["norm"])
    free = patching.predict(model, CLEAN, CORRUPTED, SCOPE, sites=[site], method="gradient")
    assert float((frozen.values - free.values).abs().max()) > 1e-3


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"method": "flow"}, ValueError, "method is one of gradient, path, two-scale, fixed, got 'flow'"),
        ({"method": "fixed"}, ValueError, "steps, their number, is None; write steps=8"),
        ({"method": "gradient", "steps": 3}, ValueError, "steps=3: the gradient has no path"),
        ({"freeze": ("norm",), "steps": 3}, ValueError, "steps=3: the gradient has no path"),
        ({"method": "path", "freeze": ("norm",)}, ValueError, "write method='gradient', or leave freeze out"),
        ({"scope": ls.Fisher(4), "method": "two-scale"}, ValueError, r"method='two-scale': Fisher\(passes=4\)"),
        ({"scope": ls.Fisher(4), "steps": 2}, ValueError, "steps=2: Fisher"),
        ({"tol": 0}, ValueError, "tol .a share of the metric's difference. is a number, above 0, got 0"),
        ({"tol": True}, TypeError, "tol .a share of the metric's difference. is a number, got True"),
        ({"steps": 0}, ValueError, "write 1 or more"),
        ({"steps": 1.5}, TypeError, "integer"),
    ],
)
def test_what_does_not_go_together_is_said(given, error, text):
    asked = {"scope": SCOPE, "sites": "mlp_out"} | given
    with pytest.raises(error, match=text):
        patching.predict(tiny.host("gpt2", tiny.BACKENDS[0]), CLEAN, CORRUPTED, **asked)


def warned(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = call()
    assert [one.category for one in caught] == [UserWarning]
    return str(caught[0].message), found


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_disagreement_at_the_largest_place_is_said(backend):
    model = tiny.host("gpt2", backend)
    for seed in range(40):
        corrupted = tiny.tokens(7, seed=seed)
        both = patching.predict(model, CLEAN, corrupted, SCOPE, sites="mlp_out", method="path", tol=1e-3)
        place = tuple(torch.unravel_index(both.values.abs().argmax(), both.values.shape))
        if both.gradient[place] * both.path[place] < 0:
            break
    else:
        pytest.fail("no pair disagrees")
    text, found = warned(
        lambda: patching.predict(model, CLEAN, corrupted, SCOPE, sites="mlp_out", method="path", tol=1e-3)
    )
    site, at = found.coords["site"][int(place[0])], int(place[1])
    assert re.search(f"different signs at the largest place, {re.escape(site)} at position {at} ", text)
    assert f"path ({float(found.path[place]):+.3g})" in text


def test_an_incomplete_path_and_no_difference_are_said():
    model = tiny.host("gpt2", tiny.BACKENDS[0])
    text, found = warned(lambda: patching.predict(model, CLEAN, CORRUPTED, SCOPE, sites="embed", steps=1))
    metric = found.meta["metric"]
    assert abs(found.meta["gap"]) > 0.05 * abs(metric["clean"] - metric["corrupted"])
    assert "2 points of the path miss" in text
    scope = ls.Metric(lambda z: z[0, -1, 7] * 0 + 1, name="one")
    flat = patching.predict(model, CLEAN, CORRUPTED, scope, sites="embed")
    assert not flat.values.any()  # nothing to say
    same = patching.predict(model, CLEAN, CLEAN, SCOPE, sites="mlp_out")
    assert not same.values.any()
    before = patching.predict(model, CLEAN, CORRUPTED, SCOPE, sites="embed").meta["metric"]
    middle = (before["clean"] + before["corrupted"]) / 2
    around = ls.Metric(lambda z: 5 + (z[0, -1, TARGET] - z[0, -1, VERSUS] - middle) ** 2, name="around")
    text, found = warned(lambda: patching.predict(model, CLEAN, CORRUPTED, around, sites="embed"))
    assert "the metric is the same on both prompts" in text
    assert torch.equal(found.values, found.path)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
@pytest.mark.parametrize("budget", [3, 12, 20, 500])
def test_screening_measures_from_the_top_until_the_top_stands(backend, budget):
    model = tiny.host("gpt2", backend)
    asked = (model, CLEAN, CORRUPTED, SCOPE)
    found = patching.screen(*asked, sites="z", budget=budget)
    predicted = patching.predict(*asked, sites="z").values.flatten()
    measured = patching.measure(*asked, sites="z").values.flatten()
    order = predicted.abs().argsort(descending=True, stable=True).tolist()
    if int((predicted != 0).sum()) <= budget:
        tried = len(order)
    else:
        tried = min(_FIRST, budget)
        while tried < budget:
            top = sorted(order[:tried], key=lambda i: -abs(float(measured[i])))[:_TOP]
            if not set(order[tried - _LATEST : tried]) & set(top):
                break
            tried = min(tried + _LATEST, budget)
    at = torch.zeros(len(order), dtype=torch.bool)
    at[order[:tried]] = True
    assert torch.equal(found.where.flatten(), at)
    assert_close(found.measured.values.flatten()[at], measured[at], 1e-10)
    assert found.measured.meta["measured"] <= budget
    assert_close(found.predicted.values.flatten(), predicted, 1e-12)
    assert list(found.orders) == ["gradient", "path", "spread"]


def test_screening_refuses_no_budget():
    with pytest.raises(ValueError, match=r"budget .* write 1 or more"):
        patching.screen(tiny.host("gpt2", tiny.BACKENDS[0]), CLEAN, CORRUPTED, SCOPE, sites="z", budget=0)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_comparison_knows_the_largest_place_and_brings_its_orders(backend, tmp_path):
    model = tiny.host("gpt2", backend)
    predicted = patching.predict(model, CLEAN, CORRUPTED, SCOPE, sites="mlp_out")
    measured = patching.measure(model, CLEAN, CORRUPTED, SCOPE, sites="mlp_out")
    found = patching.compare(predicted, measured, orders={"mine": predicted.values})
    assert list(found.orders) == ["gradient", "path", "spread", "mine"]
    assert {"patches_gradient", "patches_path", "patches_spread", "largest_sign"} <= found.summary().keys()
    largest = int(measured.values.abs().argmax())
    flat = predicted.values.flatten()
    assert found.largest_sign == float(flat[largest].sign() == measured.values.flatten()[largest].sign())
    assert found.largest_rank == flat.abs().argsort(descending=True).tolist().index(largest) + 1
    again = patching.Comparison.load(found.save(tmp_path / "c.safetensors"))
    assert again.summary() == found.summary()
    assert torch.equal(again.predicted.spread, predicted.spread)
    at = found.at("blocks.1.hook_mlp_out")
    assert torch.equal(at.predicted.path[0], predicted.path[1])
    assert at.summary()["places"] == 7
    plain = patching.predict(model, CLEAN, CORRUPTED, SCOPE, sites="mlp_out", method="gradient")
    assert not patching.compare(plain, measured).orders


def test_whole_heads_are_compared_as_they_are_measured():
    model, heads = tiny.host("gpt2", tiny.BACKENDS[0]), [(0, 1), (1, 2), (1, 3)]
    predicted = patching.predict(model, CLEAN, CORRUPTED, SCOPE, sites="z").sum("pos")
    found = patching.compare(predicted, patching.measure(model, CLEAN, CORRUPTED, SCOPE, where=heads))
    assert found.summary()["places"] == 3
    assert "head" in found.to_dataframe().columns
    assert "predicted" in found._repr_html_()


@pytest.mark.parametrize("kind", ["ioi", "induction", "translation"])
def test_on_the_demo_model_the_default_is_near_the_truth(kind):
    """Whole heads and MLP outputs of four cases each; seen on TransformerLens 3.9: see docs/patching.md."""
    model, seen = ls.demo.load(), []
    heads = [(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]
    for case in ls.demo.cases(kind, n=4, seed=11):
        asked = (model, case.prompt, case.corrupted, ls.Semantic(case.answer, case.versus))
        predicted = patching.predict(*asked, sites="z").sum("pos")
        found = patching.compare(predicted, patching.measure(*asked, where=heads))
        seen.append((found.pearson, found.spearman, found.largest_sign))
    pearson, spearman, sign = (sum(one) / len(one) for one in zip(*seen, strict=True))
    assert pearson >= 0.9
    assert spearman >= 0.85
    assert sign == 1
