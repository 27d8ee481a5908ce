"""Two results that are held against each other are about the same thing, or the text names both sides."""

import functools
from dataclasses import replace

import pytest
import torch

import lens_scopes as ls
import tiny
from lens_scopes import evaluate, patching
from shown import flow, scores

pytestmark = [pytest.mark.host, pytest.mark.filterwarnings("ignore:.*(have different signs|points of the path miss)")]

WORDS = ("<s>", " the", " cat", " sat", " down")
CLEAN, CORRUPTED = tiny.tokens(7, seed=0), tiny.tokens(7, seed=1)
OTHER = [*CLEAN[:-1], (CLEAN[-1] + 1) % 300]
SCOPE = ls.Semantic(7, 11)
#: By name: what is asked instead, and what the refusal says of both sides.
UNLIKE = {
    "target": ({"scope": ls.Semantic(8, 11)}, r"tokens explained: \(7, 11\) and \(8, 11\)"),
    "contrast": ({"scope": ls.Semantic(7)}, r"tokens explained: \(7, 11\) and \(7,\)"),
    "scope": ({"scope": ls.Temperature()}, r"scope: 'Semantic\(\)' and 'Temperature"),
    "position": ({"position": -2}, "positions: 6 and 5"),
    "clean prompt": ({"clean": OTHER}, rf"what is put in: {CLEAN[-1]} and {OTHER[-1]} at 6"),
    "units": ({"scope": ls.Fisher(4)}, "units: 'signed' and 'squared'"),
    "model": ({"architecture": "llama"}, "model: .*-gpt2' and .*-llama'|model: "),
    "processing": ({"host": tiny.processed_host}, "processing: 'final norm not folded, .*' and 'final norm folded"),
    "weights": ({"scaled": True}, r"what the metric is on the clean prompt: [-\d.e]+ and [-\d.e]+"),
    "hook": ({"hooked": True}, r"hooks: 0 \(\) and 1 \('blocks.0.hook_mlp_out'\)"),
}


def effects(verb, *, clean=CLEAN, corrupted=CORRUPTED, scope=SCOPE, architecture="gpt2", host=tiny.host, scaled=False,
            hooked=False, **options):  # fmt: skip
    model = host(architecture, tiny.BACKENDS[0], torch.float32)
    if hooked:
        with model.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda x, hook: 1.5 * x)]):
            return verb(model, clean, corrupted, scope, **options)
    if not scaled:
        return verb(model, clean, corrupted, scope, **options)
    with torch.no_grad():
        model.unembed.W_U.mul_(1.5)
    try:
        return verb(model, clean, corrupted, scope, **options)
    finally:
        with torch.no_grad():
            model.unembed.W_U.div_(1.5)


@functools.cache
def predicted():
    return effects(patching.predict)


@pytest.mark.parametrize("what", UNLIKE)
def test_patches_are_held_against_a_prediction_of_the_same_patches(what):
    options, text = UNLIKE[what]
    with pytest.raises(ValueError, match=text):
        patching.compare(predicted(), effects(patching.measure, **options))


def test_what_agrees_or_says_nothing_is_compared():
    measured = effects(patching.measure)
    assert patching.compare(predicted(), measured).summary()["places"] == measured.values.numel()
    bare = replace(measured, meta={"units": "signed"})
    assert patching.compare(predicted(), bare).pearson == patching.compare(predicted(), measured).pearson
    # What patches measure of Fisher is the divergence, however its form is worked out.
    rank, exact = (effects(patching.predict, scope=scope) for scope in (ls.Fisher(rank=2), ls.Fisher(None)))
    divergence = effects(patching.measure, scope=ls.Fisher())
    assert patching.compare(rank, divergence).slope != patching.compare(exact, divergence).slope
    frozen = effects(patching.predict, freeze="norm")
    assert "(predicted with norm frozen)" in patching.compare(frozen, measured)._repr_html_()


def test_parts_are_compared_with_the_same_parts():
    at, measured = predicted(), effects(patching.measure)
    assert patching.compare(at.sel(pos=3), measured.sel(pos=3)).where.all()
    with pytest.raises(ValueError, match=r"selections: \{'pos': 3\} and \{'pos': 4\}"):
        patching.compare(at.sel(pos=3), measured.sel(pos=4))
    with pytest.raises(ValueError, match=r"axes: 1 \('pos'\) and 1 \('site'\)|axes: 'pos' and 'site'"):
        patching.compare(at.sum("site"), measured.sum("pos"))
    with pytest.raises(ValueError, match=r"sums: .*'site'.*|selections"):
        patching.compare(at.sum("site"), measured.sel(site="embed"))
    with pytest.raises(ValueError, match=r"site: 'hook_embed' and 'blocks.1.hook_resid_post' at 0"):
        patching.compare(effects(patching.predict, sites="embed"), at_end())
    together = effects(patching.measure, where=[(0, 1)], together=True)
    with pytest.raises(ValueError, match="places patched together"):
        patching.compare(effects(patching.predict, sites="z").sum("pos").sum("head").sum("site"), together)


def at_end():
    return effects(patching.measure, sites=["blocks.1.hook_resid_post"])


@pytest.mark.parametrize("axes", [("pos",), ("pos", "site")])
def test_a_comparison_of_sums_shows_itself(axes, tmp_path):
    pytest.importorskip("matplotlib").use("Agg")
    both = [effects(verb) for verb in (patching.predict, patching.measure)]
    for axis in axes:
        both = [one.sum(axis) for one in both]
    found = patching.compare(*both)
    assert repr(found).startswith("Comparison(")
    assert "predicted" in found._repr_html_()
    assert len(found.to_dataframe()) == both[0].values.numel()
    assert found.plot().axes
    assert len(patching.Comparison.load(found.save(tmp_path / "x.safetensors")).where.shape) == 2 - len(axes)
    if "site" in axes:
        with pytest.raises(KeyError, match="there is no axis 'site'; there are no axes left"):
            found.at("embed")


def test_predicted_and_measured_are_not_swapped():
    with pytest.raises(ValueError, match="predicted got measured effects; write compare"):
        patching.compare(effects(patching.measure), predicted())
    with pytest.raises(ValueError, match="measured got predicted effects; write compare"):
        patching.compare(predicted(), predicted())


def test_cuts_are_no_patches_from_a_clean_prompt():
    model = tiny.host("gpt2", tiny.BACKENDS[0], torch.float32)
    cut = patching.ablate(model, CORRUPTED, SCOPE, where=None, by="zero")
    with pytest.raises(ValueError, match=r"what is put in: .* and 'zero'"):
        patching.compare(predicted(), cut.measured)
    other = patching.ablate(model, CORRUPTED, SCOPE, where=None, by="mean")
    with pytest.raises(ValueError, match="what is put in: 'mean' and 'zero'"):
        patching.compare(other.predicted, cut.measured)
    assert patching.compare(cut.predicted, cut.measured).pearson == cut.pearson


def test_norms_are_an_order_and_no_prediction():
    model, measured = tiny.host("gpt2", tiny.BACKENDS[0], torch.float32), effects(patching.measure)
    norms = ls.score(model, CORRUPTED, SCOPE)
    with pytest.raises(ValueError, match="units: 'norm' and 'signed'"):
        patching.compare(norms, measured)
    with pytest.raises(ValueError, match="direction: 'activation' and 'tensor'"):
        patching.compare(ls.score(model, CORRUPTED, SCOPE, along="activation"), measured)
    assert "patches_norms" in patching.compare(predicted(), measured, orders={"norms": norms}).summary()
    with pytest.raises(ValueError, match="the order 'norms' and measured differ in site"):
        patching.compare(predicted(), measured, orders={"norms": ls.score(model, CORRUPTED, SCOPE, sites="resid_pre")})


def test_rankings_are_of_the_prompts_that_are_cut():
    model = tiny.host("gpt2", tiny.BACKENDS[0], torch.float32)
    ranked = [ls.score(model, ids, SCOPE, sites="embed") for ids in (CLEAN, CORRUPTED)]
    assert len(evaluate.ablation_curve(model, [CLEAN, CORRUPTED], ranked).deltas) == 2
    with pytest.raises(ValueError, match=r"these scores and the prompt differ in token ids: .* in their order"):
        evaluate.ablation_curve(model, [CORRUPTED, CLEAN], ranked)
    early = ls.score(model, CLEAN, SCOPE, sites="embed", position=[2, 6])
    with pytest.raises(ValueError, match=r"positions explained: \[2\] and 6"):
        evaluate.ablation_curve(model, [CLEAN], [early.sel(target_pos=2)])
    assert evaluate.ablation_curve(model, [CLEAN], [early.sel(target_pos=6)]).deltas.isfinite().all()
    left = evaluate.leave_one_out(model, [CLEAN])[0]
    assert evaluate.rank_of_top(ranked[0], left)[0] >= 0
    with pytest.raises(ValueError, match=r"rank_of_top .* differ in token_ids"):
        evaluate.rank_of_top(ranked[1], left)


def changed(one, **facts):
    return replace(one, meta=one.meta | facts)


#: What two results of the same scope, prompt and model may still differ in, and what their headings then say.
TOLD = {
    "target": ({"targets": [{"id": 9, "text": " dog", "p": 0.1, "rank": 2}]}, "about ␣dog"),
    "clean prompt": ({"clean_token_ids": [9, 8, 7]}, "from the clean ids 9 8 7"),
    "other prompt": ({"corrupted_token_ids": [9, 8, 7]}, "against the ids 9 8 7"),
    "cut": ({"replace": "zero"}, "replaced by zero"),
    "freeze": ({"freeze": ["norm"]}, "frozen: norm"),
    "hooks": ({"hooks": ["blocks.0.hook_mlp_out"]}, "with hooks at blocks.0.hook_mlp_out"),
    "selection": ({"selected": {"head": 3}}, "head 3"),
    "sums": ({"summed": ["head"]}, "summed over head"),
    "total": ({"reduce": "sum"}, "total over the positions explained"),
}


@pytest.mark.parametrize("what", TOLD)
def test_side_by_side_and_in_a_difference_each_is_told_from_the_other(what):
    facts, text = TOLD[what]
    a = scores(WORDS)
    b = changed(scores(WORDS, seed=1), **facts)
    assert text in ls.show([a, b], "tokens").static
    assert text in ls.show(a - b).title
    other = changed(flow(WORDS), **facts)
    assert text in ls.show([flow(WORDS), other], "heads").static


def test_a_product_with_the_activation_is_told_from_a_norm():
    """They had one title and one line."""
    norms = scores(WORDS)
    products = changed(norms, along="activation", units="signed")
    for text in (ls.show(products).title, repr(products)):
        assert " × activation" in text
    for text in (ls.show(norms).title, repr(norms)):
        assert "×" not in text
    assert " × activation" in ls.show([norms, products], "tokens").static


@pytest.mark.parametrize("what", ["freeze", "hooks", "selection", "sums", "total"])
def test_titles_and_lines_say_what_was_taken_and_done(what):
    facts, text = TOLD[what]
    one, through = changed(scores(WORDS), **facts), changed(flow(WORDS), **facts)
    assert text in ls.show(one).title
    assert text in repr(one)
    assert text in ls.show(through).title
    assert text in repr(through)
