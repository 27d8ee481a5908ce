"""Scores at every site of every architecture and host class against dense Jacobians of the bare Hugging Face model."""

import functools
from contextlib import nullcontext

import pytest
import torch

import lens_scopes as ls
import oracles
import tiny
from double import Double
from report import assert_close

pytestmark = pytest.mark.host

POSITION, TARGET, VERSUS = 5, 7, 11
KINDS = (None, "embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v")
FORMULAS = {
    "semantic": (ls.Semantic(TARGET), lambda truth, site: truth.semantic(site, TARGET)),
    "difference": (ls.Semantic(TARGET, VERSUS), lambda truth, site: truth.semantic(site, TARGET, VERSUS)),
    "temperature": (ls.Temperature(), lambda truth, site: truth.temperature(site)),
    "fisher": (ls.Fisher(None), lambda truth, site: truth.quadratic(site, truth.fisher)),
}


@functools.cache
def truth_of(architecture: str) -> oracles.Dense:
    return oracles.dense(tiny.hugging_face(architecture), tiny.tokens(), POSITION)


def compare(pair, model, scope, expected, kind, tolerance):
    scores = ls.score(model, tiny.tokens(), scope, position=POSITION, sites=kind)
    assert scores.dims == (("site", "pos", "head") if kind in tuple("zqkv") else ("site", "pos"))
    for n, site in enumerate(scores.coords["site"]):
        assert_close(scores.values[n], expected(truth_of(pair[0]), site), tolerance, f"{'-'.join(pair)} {site}")
    assert torch.equal(scores.values[:, POSITION + 1 :], torch.zeros_like(scores.values[:, POSITION + 1 :]))
    return scores


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pair", tiny.HOSTS, ids=tiny.host_id)
def test_every_site_against_a_dense_jacobian(pair, kind, formula):
    if kind == "resid_mid" and pair[0] == "neox":
        pytest.skip("parallel blocks have no resid_mid")
    # A Bridge runs Hugging Face's own code, in true float64 if it is made to; HookedTransformer has its own rotary tables.
    model, bridge = tiny.host(*pair), pair[1] == "bridge"
    exact = bridge or pair[0] == "gpt2"
    with Double() if bridge else nullcontext():
        scores = compare(pair, model, *FORMULAS[formula], kind, 1e-11 if exact else tiny.tolerance(*pair))
    assert scores.values.dtype == (torch.float64 if scores.units == "squared" else tiny.precise(*pair))
    if kind is None:
        posts = [f"blocks.{layer}.hook_resid_post" for layer in range(tiny.LAYERS)]
        assert scores.coords["site"] == ("hook_embed", *posts)


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("pair", tiny.HOSTS, ids=tiny.host_id)
def test_float32_is_as_close_as_float32_can_be(pair, formula):
    model = tiny.host(*pair, torch.float32)
    scores = compare(pair, model, *FORMULAS[formula], None, 1e-4)
    assert scores.values.dtype == (torch.float64 if scores.units == "squared" else torch.float32)
    assert scores.meta["dtype"] == "float32"


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("pair", tiny.HOSTS, ids=tiny.host_id)
def test_bfloat16_is_close_and_comes_in_full_precision(pair, formula):
    if pair == ("mixtral", "hooked"):
        pytest.skip("HookedTransformer's experts are float32 only")
    model = tiny.host(*pair, torch.bfloat16)
    scores = compare(pair, model, *FORMULAS[formula], None, 0.2)
    assert scores.values.dtype == (torch.float64 if scores.units == "squared" else torch.float32)
    assert scores.meta["dtype"] == "bfloat16"


@pytest.mark.parametrize("pair", tiny.HOSTS, ids=tiny.host_id)
def test_sites_come_in_the_order_asked_and_mix(pair):
    asked = ["blocks.1.hook_mlp_out", "embed", "blocks.0.hook_attn_out", "blocks.1.hook_resid_pre"]
    scores = ls.score(tiny.host(*pair), tiny.tokens(), ls.Semantic(TARGET), position=POSITION, sites=asked)
    names = [asked[0], "hook_embed", *asked[2:]]
    assert list(scores.coords["site"]) == names
    for name, row in zip(names, scores.values, strict=True):
        assert_close(row, truth_of(pair[0]).semantic(name, TARGET), tiny.tolerance(*pair), name)


@pytest.mark.parametrize("pair", tiny.HOSTS, ids=tiny.host_id)
def test_along_the_activation_is_the_signed_product(pair):
    model, ids = tiny.host(*pair), tiny.tokens()
    _, cache = model.run_with_cache(torch.tensor([ids]))
    truth = truth_of(pair[0])
    signed = ls.score(model, ids, ls.Semantic(TARGET), position=POSITION, along="activation")
    assert signed.units == "signed"
    squared = ls.score(model, ids, ls.Fisher(None), position=POSITION, along="activation")
    assert squared.units == "squared"
    given = torch.stack([cache[name][0] for name in signed.coords["site"]])
    by_hand = ls.score(model, ids, ls.Semantic(TARGET), position=POSITION, along=given)
    assert torch.equal(by_hand.values, signed.values)
    for n, name in enumerate(signed.coords["site"]):
        x = given[n].double()
        # The last stream cannot change along itself (the norm undoes it): measured in what could have been, ‖g‖·‖x‖.
        size = float((truth.semantic(name, TARGET) * x.norm(dim=-1)).max())
        product = (truth.pulled(name, truth.unembed[TARGET]) * x).sum(-1)
        assert_close(signed.values[n], product, tiny.tolerance(*pair), name, size)
        size = float((truth.quadratic(name, truth.fisher) * x.square().sum(-1)).max())
        moved = torch.einsum("dtx,tx->td", truth.jacobians[name], x)
        assert_close(squared.values[n], ((moved @ truth.fisher) * moved).sum(-1), tiny.tolerance(*pair), name, size)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_along_by_head(backend):
    model, ids = tiny.host("llama", backend), tiny.tokens()
    _, cache = model.run_with_cache(torch.tensor([ids]))
    scores = ls.score(model, ids, ls.Semantic(TARGET), position=POSITION, sites="z", along="activation")
    for n, name in enumerate(scores.coords["site"]):
        product = truth_of("llama").pulled(name, truth_of("llama").unembed[TARGET]) * cache[name][0]
        assert_close(scores.values[n], product.sum(-1), tiny.tolerance("llama", backend), name)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_the_embedding_of_gemma_is_what_enters_the_blocks(backend):
    """Scaled by √d already: without learned positions it is the first residual stream, on both host classes."""
    scores = ls.score(
        tiny.host("gemma2", backend), tiny.tokens(), ls.Semantic(TARGET), sites=["embed", "blocks.0.hook_resid_pre"]
    )
    assert_close(scores.values[0], scores.values[1], 1e-9)


@pytest.mark.skipif(len(tiny.BACKENDS) < 2, reason="this TransformerLens has one host class")
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_both_host_classes_agree(architecture):
    for scope in (ls.Semantic(), ls.Temperature(), ls.Fisher(8), ls.Fisher(rank=2)):
        found = [ls.score(tiny.host(architecture, b), tiny.tokens(), scope).values for b in tiny.BACKENDS]
        assert_close(*found, 2e-5, f"{architecture} {scope}")


def test_the_default_sites_of_a_direction_are_those_that_reach_it():
    model, scope = tiny.host("gpt2", tiny.BACKENDS[0]), ls.Direction([1.0] * tiny.D_MODEL, "blocks.1.hook_resid_mid")
    reached = ("hook_embed", "blocks.0.hook_resid_post")
    assert ls.score(model, tiny.tokens(5), scope).coords["site"] == reached
    assert (
        ls.patching.predict(model, tiny.tokens(5), tiny.tokens(5, seed=1), scope, method="gradient").coords["site"]
        == reached
    )
    assert ls.patching.measure(model, tiny.tokens(5), tiny.tokens(5, seed=1), scope).coords["site"] == reached
    with pytest.raises(ValueError, match="do not reach it"):
        ls.score(model, tiny.tokens(5), ls.Direction([1.0] * tiny.D_MODEL, "embed"))
