"""Models whose blocks differ: latent attention, attention alone, no norms, and what is random in train mode."""

import pytest
import torch

import lens_scopes as ls
import tiny
from lens_scopes import patching
from report import assert_close

pytestmark = pytest.mark.host

BRIDGE = pytest.mark.skipif("bridge" not in tiny.BACKENDS, reason="TransformerLens 2 has no bridges")
HOOKED = pytest.mark.skipif("hooked" not in tiny.BACKENDS, reason="TransformerLens 4 has no HookedTransformer")
EVERY = [*tiny.HOSTS, *tiny.OTHER_HOSTS]

# Sites


@BRIDGE
@pytest.mark.parametrize("length", [tiny.HEADS, 7])
@pytest.mark.parametrize("name", ["deepseek2", "deepseek3"])
def test_latent_attention_has_no_scores_by_head(name, length):
    """With as many tokens as heads the axes were swapped in silence."""
    model = tiny.fresh_host(name, "bridge", torch.float32)
    for kind in "qkvz":
        with pytest.raises(ValueError, match=rf"blocks\.0\.attn\.hook_{kind} of .* has shape .*head=4, d_head"):
            ls.score(model, tiny.tokens(length), ls.Semantic(7), sites=kind)
    with pytest.raises(ValueError, match="latent attention"):
        ls.flow(model, tiny.tokens(length), ls.Semantic(7))
    for sites in (None, "attn_out"):
        assert ls.score(model, tiny.tokens(length), ls.Semantic(7), sites=sites).check(model)["max_error"] < 5e-3


@pytest.mark.parametrize("length", [tiny.HEADS, 7])
@pytest.mark.parametrize("pair", EVERY, ids=tiny.host_id)
def test_patterns_and_scales_are_no_sites(pair, length):
    model = tiny.host(*pair, torch.float32)
    names = [n for n in ("blocks.0.attn.hook_pattern", "blocks.0.ln1.hook_scale") if n in model.hook_dict]
    for name in names:
        with pytest.raises((ValueError, RuntimeError), match=rf"{name}.*(has shape|never fired)"):
            ls.score(model, tiny.tokens(length), ls.Semantic(7), sites=[name])


@pytest.mark.parametrize("length", [1, tiny.KV_HEADS, tiny.HEADS, tiny.CONTEXT])
@pytest.mark.parametrize("pair", EVERY, ids=tiny.host_id)
def test_heads_are_heads_however_many_tokens_there_are(pair, length):
    model = tiny.host(*pair, torch.float32)
    heads = getattr(model.cfg, "n_key_value_heads", None) or tiny.HEADS
    for kind, count in (("z", tiny.HEADS), ("q", tiny.HEADS), ("k", heads), ("v", heads)):
        values = ls.score(model, tiny.tokens(length), ls.Semantic(7), sites=kind).values
        assert values.shape == (tiny.LAYERS + pair[0].startswith("deep"), length, count)


# Attention alone

FORMS = {
    "attention alone": {},
    "without norms": {"normalization_type": None},
    "one block, rotary": {
        "n_layers": 1,
        "normalization_type": None,
        "positional_embedding_type": "rotary",
        "rotary_dim": tiny.D_HEAD,
    },
    "shortformer": {"positional_embedding_type": "shortformer"},
    "with MLPs, without norms": {"attn_only": False, "normalization_type": None},
}


@HOOKED
@pytest.mark.parametrize("form", FORMS)
def test_attention_only_models_in_every_verb(form):
    model, ids = tiny.attention_only(**FORMS[form]), tiny.tokens(5)
    other = [*ids[:2], ids[2] + 1, *ids[3:]]
    for sites in (None, "attn_out", "z", "q"):
        assert ls.score(model, ids, ls.Semantic(7), sites=sites).check(model)["max_error"] < 1e-6
    predicted = patching.predict(model, ids, other, ls.Semantic(7), sites="z")
    measured = patching.measure(model, ids, other, ls.Semantic(7), sites="z")
    if model.cfg.attn_only and model.cfg.normalization_type is None:  # after the last block's heads all is linear
        assert_close(predicted.values[-1], measured.values[-1], 1e-10)
    before, clean = model(torch.tensor([other]))[0, -1, 7], model.run_with_cache(torch.tensor([ids]))[1]
    for head in range(tiny.HEADS):

        def patch(z, hook, head=head):
            z[0, 2, head] = clean["blocks.0.attn.hook_z"][0, 2, head]
            return z

        after = model.run_with_hooks(torch.tensor([other]), fwd_hooks=[("blocks.0.attn.hook_z", patch)])[0, -1, 7]
        assert float(measured.values[0, 2, head]) == pytest.approx((after - before).item(), abs=1e-12)
    jacobian = ls.jacobian(model, ids)
    u = torch.randn(2, *jacobian.shape[1:], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert_close(jacobian.jvp(u), torch.einsum("poi,kpi->ko", jacobian.dense(), u), 1e-12)
    table = ls.evaluate.compare_methods(model, [ids, other], ["semantic", "attention_rollout", "integrated_gradients"])
    assert table.values.isfinite().all()


@HOOKED
@pytest.mark.parametrize("form", FORMS)
def test_the_flow_of_attention_alone(form):
    model, ids = tiny.attention_only(**FORMS[form]), tiny.tokens(5)
    whole = ls.flow(model, ids, ls.Semantic(7), edges=True)
    each = ls.flow(model, ids, ls.Fisher(None), sources="each")
    for flow in (whole, each):
        assert flow.residual < 1e-12
        assert_close(flow.skip + flow.heads.sum(-1), flow.total[:, None].expand_as(flow.skip), 1e-12)
        assert flow.check(model)["max_error"] < 1e-10
        assert bool(flow.mlps.any()) == (not model.cfg.attn_only)
    assert_close(whole.edges.sum((0, 3, 4)), whole.heads.sum(0), 1e-12)


@HOOKED
def test_all_paths_of_attention_alone_sum_to_the_total():
    model = tiny.attention_only()
    flow = ls.flow(model, tiny.tokens(5), ls.Semantic(7))
    paths = flow.paths((tiny.HEADS + 1) ** tiny.LAYERS)
    assert len(paths) == (tiny.HEADS + 1) ** tiny.LAYERS + 1
    assert float(paths.influence[:-1].sum()) == pytest.approx(float(flow.total.sum()), rel=1e-12)
    assert abs(float(paths.influence.iloc[-1])) < 1e-12 * float(flow.total.sum())
    # Through the skip connections alone, the last residual stream's own derivative is left.
    last = ls.score(model, tiny.tokens(5), ls.Semantic(7), sites="resid_post").values[-1, -1]
    assert last > 0


@HOOKED
@pytest.mark.parametrize("sites", ["mlp_out", "resid_mid", "blocks.0.mlp.hook_post"])
def test_sites_that_attention_alone_lacks(sites):
    with pytest.raises(ValueError, match=r"custom has no site 'blocks\.0.*it has hook_embed") as refusal:
        ls.score(tiny.attention_only(), tiny.tokens(5), ls.Semantic(7), sites=sites)
    assert "hook_mlp_out, " not in str(refusal.value).partition("it has")[2]


# Train mode


@pytest.mark.parametrize("backend", tiny.BACKENDS)
@pytest.mark.parametrize("name", tiny.RANDOM_IN_TRAIN_MODE)
def test_train_mode_is_refused_where_passes_differ(name, backend):
    """Dropout as a function, layers left out, noise in a router: after one score in eval mode, train mode was scored."""
    try:
        model = tiny.fresh_host(name, backend, torch.float32)
    except ValueError as refusal:
        assert "from a directory" in str(refusal) or "sizes of its own" in str(refusal)  # noqa: PT017
        pytest.skip("HookedTransformer does not know it from a directory")
    ids, tensor = tiny.tokens(), torch.tensor([tiny.tokens()])
    expected = ls.score(model, ids, ls.Semantic(7)).values
    model.train()
    torch.manual_seed(0)
    # A layer that is left out now and then is seen in some pairs of passes only.
    differ = any(not torch.equal(_logits(model, tensor), _logits(model, tensor)) for _ in range(8))
    calls = [
        lambda: ls.score(model, ids, ls.Semantic(7)),
        lambda: ls.flow(model, ids, ls.Semantic(7)),
        lambda: ls.jacobian(model, ids),
        lambda: patching.predict(model, ids, ids, ls.Semantic(7)),
        lambda: ls.evaluate.leave_one_out(model, [ids]),
    ]
    if differ:
        for call in calls:
            with pytest.raises(RuntimeError, match=r"train mode with dropout 0\.[13].*model\.eval\(\)"):
                call()
    else:
        assert backend == "hooked"
        assert torch.equal(ls.score(model, ids, ls.Semantic(7)).values, expected)
    assert model.training
    assert torch.equal(ls.score(model.eval(), ids, ls.Semantic(7)).values, expected)


@torch.no_grad()
def _logits(model, tokens):
    return model(tokens).clone()
