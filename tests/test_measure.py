"""What ``measure`` does beside one place at a time: sets of places, whole heads, a cache; and where it may not hurry."""

import functools
import itertools

import numpy as np
import pytest
import torch

import lens_scopes as ls
import tiny
from lens_scopes import patching
from lens_scopes.calculus.variants import _CALL, _END, batches
from lens_scopes.host import Host
from report import assert_close
from test_starting import bidirectional

pytestmark = pytest.mark.host

TARGET, VERSUS = 7, 11
CLEAN, CORRUPTED = tiny.tokens(7, seed=0), tiny.tokens(7, seed=1)
SCOPE = ls.Semantic(TARGET, VERSUS)
HOSTS = tuple((a, b) for a in ("gpt2", "deep-llama", "gemma2") for b in tiny.BACKENDS)


def by_hand(model, patches, position=-1, clean=CLEAN, corrupted=CORRUPTED, scope=SCOPE):
    """The logit difference of one whole run with all of these (site, index) patched at once, against none."""
    _, cache = model.run_with_cache(torch.tensor([clean]))

    def put(at, site):
        def hook(activation, hook):
            activation[(0, *at)] = cache[site][(0, *at)]
            return activation

        return hook

    def value(hooks):
        logits = model.run_with_hooks(torch.tensor([corrupted]), fwd_hooks=hooks)[0, position]
        return float(logits[scope.target] - logits[scope.versus])

    with torch.no_grad():
        return value([(site, put(at, site)) for site, at in patches]) - value([])


def runs(model):
    """How often the last block runs, by a hook of this package's kind."""
    ran = []
    host = Host(model)
    name = f"blocks.{host.n_layers - 1}.hook_attn_out"
    return ran, host.hooks([(name, lambda activation, hook: ran.append(len(activation)))])


@pytest.mark.parametrize("pair", HOSTS, ids=tiny.host_id)
@pytest.mark.parametrize("position", [-1, 4])
def test_a_set_of_places_is_patched_in_one_run(pair, position):
    model = tiny.host(*pair)
    where = torch.zeros(Host(model).n_layers, 7, dtype=torch.bool)
    where[0, 2] = where[0, 3] = where[1, 1] = where[1, 6] = True
    found = patching.measure(
        model, CLEAN, CORRUPTED, SCOPE, sites="mlp_out", where=where, together=True, position=position
    )
    places = [("blocks.0.hook_mlp_out", 2), ("blocks.0.hook_mlp_out", 3)]
    places += [("blocks.1.hook_mlp_out", 1), ("blocks.1.hook_mlp_out", 6)]
    expected = by_hand(model, [(site, (at,)) for site, at in places], position)
    assert abs(expected) > 1e-3
    assert found.values.shape == ()
    assert (found.dims, found.meta["measured"]) == ((), 1)
    assert found.meta["places"] == [list(place) for place in places]
    assert_close(found.values, torch.tensor(expected, dtype=torch.float64), 20 * tiny.tolerance(*pair))
    alone = patching.measure(model, CLEAN, CORRUPTED, SCOPE, sites="mlp_out", where=where, position=position)
    assert abs(float(alone.values.nansum()) - expected) > 1e-4 * abs(expected)  # effects do not add up


@pytest.mark.parametrize("pair", HOSTS, ids=tiny.host_id)
def test_whole_heads_are_patched_at_all_positions(pair):
    model, heads = tiny.host(*pair), [(1, 2), (0, 3), (1, 0)]
    found = patching.measure(model, CLEAN, CORRUPTED, SCOPE, where=heads)
    assert found.dims == ("site", "head")
    assert found.meta["measured"] == 3
    tolerance = 20 * tiny.tolerance(*pair)
    for layer, head in heads:
        expected = by_hand(model, [(f"blocks.{layer}.attn.hook_z", (slice(None), head))])
        assert_close(found.values[layer, head], torch.tensor(expected, dtype=torch.float64), tolerance)
    assert int(found.values.isnan().sum()) == found.values.numel() - 3
    both = patching.measure(model, CLEAN, CORRUPTED, SCOPE, where=heads[:2], together=True)
    patches = [(f"blocks.{layer}.attn.hook_z", (slice(None), head)) for layer, head in heads[:2]]
    assert_close(both.values, torch.tensor(by_hand(model, patches), dtype=torch.float64), tolerance)
    assert both.meta["places"] == [["blocks.0.attn.hook_z", 3], ["blocks.1.attn.hook_z", 2]]
    queries = patching.measure(model, CLEAN, CORRUPTED, SCOPE, sites="q", where=[(np.int64(1), 2)])
    expected = by_hand(model, [("blocks.1.attn.hook_q", (slice(None), 2))])
    assert_close(queries.values[1, 2], torch.tensor(expected, dtype=torch.float64), tolerance)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_everything_together_is_the_whole_difference(backend):
    model = tiny.host("gpt2", backend)
    found = patching.measure(model, CLEAN, CORRUPTED, SCOPE, together=True)
    ends = found.meta["metric"]
    assert_close(found.values, torch.tensor(ends["clean"] - ends["corrupted"], dtype=torch.float64), 1e-12)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_cache_spares_the_two_runs_and_changes_nothing(backend):
    model, cache = tiny.fresh_host("gpt2", backend), {}
    where = [(1, 0), (1, 2)]
    patching.measure(model, CLEAN, CORRUPTED, SCOPE, where=where)  # what is tried once per model
    plain, (ran, counting) = patching.measure(model, CLEAN, CORRUPTED, SCOPE, where=where), runs(model)
    with counting:
        for expected in ([1, 1, 2], [2]):
            ran.clear()
            found = patching.measure(model, CLEAN, CORRUPTED, SCOPE, where=where, cache=cache)
            assert_close(found.values[1, [0, 2]], plain.values[1, [0, 2]], 1e-12)
            assert ran == expected
        ran.clear()
        at = patching.measure(model, CLEAN, CORRUPTED, ls.Entropy(), sites="mlp_out", cache=cache, position=4)
        assert ran[:2] == [1, 1]  # other sites are put there too
    fresh = patching.measure(model, CLEAN, CORRUPTED, ls.Entropy(), sites="mlp_out", position=4)
    assert_close(at.values, fresh.values, 1e-12)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
@pytest.mark.parametrize(
    ("other", "text"),
    [
        (lambda m: (m, CLEAN, tiny.tokens(7, seed=2)), "another corrupted prompt"),
        (lambda m: (m, tiny.tokens(7, seed=2), CORRUPTED), "another clean prompt"),
        (lambda m: (tiny.host("llama", tiny.BACKENDS[0]), CLEAN, CORRUPTED), "another model"),
        (lambda m: (edited(m), CLEAN, CORRUPTED), "has changed since"),
        (lambda m: (hooked(m), CLEAN, CORRUPTED), "has changed since"),
    ],
)
def test_a_cache_of_something_else_is_refused(backend, other, text):
    model, cache = tiny.fresh_host("gpt2", backend), {}
    patching.measure(model, CLEAN, CORRUPTED, SCOPE, sites="embed", cache=cache)
    with pytest.raises(ValueError, match=text):
        patching.measure(*other(model), SCOPE, sites="embed", cache=cache)


def edited(model):
    """In place and behind autograd's back."""
    next(p for name, p in model.named_parameters() if "mlp" in name).data.mul_(1.1)
    return model


def hooked(model):
    model.add_hook("blocks.0.hook_mlp_out", lambda activation, hook: activation * 2)
    return model


def test_a_dict_with_something_in_it_is_no_cache():
    with pytest.raises(ValueError, match="somebody else"):
        patching.measure(tiny.host("gpt2", tiny.BACKENDS[0]), CLEAN, CORRUPTED, SCOPE, cache={"mine": 1})


@pytest.mark.skipif("bridge" not in tiny.BACKENDS, reason="this TransformerLens has no Bridge")
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_half_a_patch_is_refused(architecture):
    """On a Bridge what a user's hook at resid_mid returns goes to the MLP, and a patch behind it would too."""
    model, sites = tiny.fresh_host(architecture, "bridge"), ["blocks.0.hook_resid_mid"]
    expected = patching.measure(model, CLEAN, CORRUPTED, SCOPE, sites=sites)
    model.add_hook("blocks.0.hook_resid_mid", lambda x, hook: x.clone())
    refused = pytest.raises(ValueError, match=r"at blocks\.0\.hook_resid_mid.*half a patch.*patch resid_pre")
    with refused:
        patching.measure(model, CLEAN, CORRUPTED, SCOPE, sites=sites)
    with refused:
        patching.measure(model, CLEAN, CORRUPTED, SCOPE, sites=sites, together=True)
    with refused:
        patching.ablate(model, CLEAN, SCOPE, sites=sites, where=torch.ones(1, 7, dtype=torch.bool))
    with refused:
        ls.score(model, CLEAN, SCOPE, sites=sites).check(model)
    model.reset_hooks()
    model.add_hook("blocks.1.hook_resid_mid", lambda x, hook: x.clone())  # another place's is no matter
    found = patching.measure(model, CLEAN, CORRUPTED, SCOPE, sites=sites)
    assert_close(found.values, expected.values, 1e-12)


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"where": []}, "empty list of heads"),
        ({"where": [(5, 0)]}, r"head 0 of layer 5; here are layers \[0, 1\] with heads 0 to 3"),
        ({"where": [(0, -1)]}, "head -1 of layer 0"),
        ({"where": [3]}, r"as \(layer, head\), got 3"),
        ({"where": [(0, 1.0)]}, r"as \(layer, head\), got \(0, 1\.0\)"),
        ({"where": [(1.5, 0)]}, r"as \(layer, head\), got \(1\.5, 0\)"),
        ({"where": [(0, True)]}, r"as \(layer, head\), got \(0, True\)"),
        ({"where": [(False, 0)]}, r"as \(layer, head\), got \(False, 0\)"),
        ({"where": [(0, 1)], "sites": "resid_post"}, "does not have"),
        ({"where": [(0, 1)], "sites": ["blocks.0.attn.hook_z", "blocks.0.attn.hook_q"]}, "write one kind"),
        ({"where": torch.zeros(3, 7, dtype=torch.bool), "together": True}, "asks for no place"),
    ],
)
def test_what_cannot_be_patched_is_said(given, text):
    with pytest.raises(ValueError, match=text):
        patching.measure(tiny.host("gpt2", tiny.BACKENDS[0]), CLEAN, CORRUPTED, SCOPE, **given)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_hooks_of_the_users_stay_in_force(backend):
    """Before the patched block, at it, and on both sides of it; against whole runs with the same hooks."""
    for names in (
        ["blocks.0.hook_mlp_out"],
        ["blocks.1.hook_resid_pre"],
        ["blocks.0.hook_attn_out", "blocks.2.hook_mlp_out"],
    ):
        model = tiny.fresh_host("deep-llama", backend)
        plain = patching.measure(model, CLEAN, CORRUPTED, SCOPE, sites="resid_mid").values[1, 3]
        for name in names:
            model.add_hook(name, lambda activation, hook: activation * 1.5)
        found = patching.measure(model, CLEAN, CORRUPTED, SCOPE, sites="resid_mid").values[1, 3]
        expected = by_hand(model, [("blocks.1.hook_resid_mid", (3,))])
        assert_close(found, torch.tensor(expected, dtype=torch.float64), 20 * tiny.tolerance("llama", backend))
        assert abs(float(found - plain)) > 1e-4


@pytest.mark.skipif("hooked" not in tiny.BACKENDS, reason="attention_dir is HookedTransformer's")
def test_where_attention_looks_ahead_later_positions_count():
    model, clean, corrupted = bidirectional(), [1, 2, 3, 4, 5], [1, 2, 3, 7, 8]
    found = patching.measure(model, clean, corrupted, SCOPE_SMALL, position=2, sites="resid_pre")
    for layer, at in itertools.product(range(2), range(5)):
        patches = [(f"blocks.{layer}.hook_resid_pre", (at,))]
        expected = by_hand(model, patches, 2, clean, corrupted, SCOPE_SMALL)
        assert float(found.values[layer, at]) == pytest.approx(expected, abs=1e-12)
    assert found.values[0, 3:].abs().min() > 1e-4


SCOPE_SMALL = ls.Semantic(4, 6)


@pytest.mark.skipif("hooked" not in tiny.BACKENDS, reason="attention_dir is HookedTransformer's")
def test_a_compiled_program_is_patched_as_it_runs(reference):
    """Tracr's frac_prevs: each x among n tokens adds 1/n to the output at the end, and no other token does anything."""
    model, data = compiled(reference / "tracr" / "frac_prevs.npz")
    (output,) = (i for i, label in enumerate(data["labels"]) if label == "frac_prevs_1")
    bos, x, y = 0, 2, 3
    found = patching.measure(model, [bos, x, y, x, x, y], [bos, y, y, y, x, y], ls.Semantic(output), sites="embed")
    assert found.values[0].tolist() == pytest.approx([0, 0.2, 0, 0.2, 0, 0], abs=1e-5)


@pytest.mark.skipif("hooked" not in tiny.BACKENDS, reason="attention_dir is HookedTransformer's")
def test_a_program_that_looks_ahead_is_patched_ahead(reference):
    """Tracr's reverse: what stands at position t hangs on the token at n - t alone, which is behind it."""
    model, data = compiled(reference / "tracr" / "reverse.npz")
    clean = data["ids"].ravel().tolist()
    n, others = len(clean), [i for i in dict.fromkeys(clean) if i != clean[0]]
    corrupted = [clean[0], *(others[(others.index(i) + 1) % len(others)] for i in clean[1:])]
    with torch.no_grad():
        before, after = (model(torch.tensor([ids]))[0, 1] for ids in (corrupted, clean))
    answer, own = (after - before > 0.5).nonzero().ravel().tolist()
    for output, at in ((answer, n - 1), (own, 1)):
        scope = ls.Metric(lambda z, output=output: z[0, -1, output])
        found = patching.measure(model, clean, corrupted, scope, position=1, sites="embed").values[0]
        expected = torch.zeros(n)
        expected[at] = (after - before)[output]
        assert_close(found, expected, 1e-5)


def compiled(path):
    """A Tracr program as a HookedTransformer whose tokens at the output are the dimensions of its stream."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    data = np.load(path)
    n_layers, n_heads, d_head, d_mlp = (int(n) for n in data["cfg"])
    embed, places = (torch.tensor(data[f"{kind}_embed|embeddings"]).float() for kind in ("token", "pos"))
    d_model = embed.shape[1]
    config = HookedTransformerConfig(
        n_layers=n_layers, d_model=d_model, n_ctx=len(places), d_head=d_head, n_heads=n_heads, d_mlp=d_mlp,
        d_vocab=len(embed), d_vocab_out=d_model, act_fn="relu", normalization_type=None,
        attention_dir="bidirectional", device="cpu",
    )  # fmt: skip
    model = HookedTransformer(config).eval()

    def get(layer, name):
        return tuple(torch.tensor(data[f"transformer/layer_{layer}/{name}|{kind}"]).float() for kind in ("w", "b"))

    state = {"embed.W_E": embed, "pos_embed.W_pos": places, "unembed.W_U": torch.eye(d_model)}
    state["unembed.b_U"] = torch.zeros(d_model)
    for layer in range(n_layers):
        block = f"blocks.{layer}."
        for kind, name in (("Q", "query"), ("K", "key"), ("V", "value")):
            w, b = get(layer, f"attn/{name}")
            state[f"{block}attn.W_{kind}"] = w.reshape(d_model, n_heads, d_head).transpose(0, 1)
            state[f"{block}attn.b_{kind}"] = b.reshape(n_heads, d_head)
        w, b = get(layer, "attn/linear")
        state[f"{block}attn.W_O"], state[f"{block}attn.b_O"] = w.reshape(n_heads, d_head, d_model), b
        state[f"{block}mlp.W_in"], state[f"{block}mlp.b_in"] = get(layer, "mlp/linear_1")
        state[f"{block}mlp.W_out"], state[f"{block}mlp.b_out"] = get(layer, "mlp/linear_2")
    model.load_state_dict(state, strict=False)
    stream = model(torch.tensor(data["ids"].reshape(1, -1).tolist())).detach()
    torch.testing.assert_close(stream, torch.tensor(data["final"]).reshape(stream.shape), atol=1e-5, rtol=0)
    return model, data


@pytest.mark.parametrize("seed", range(20))
def test_batches_are_the_cheapest(seed):
    """Against every way to cut a row of runs."""
    generator = np.random.default_rng(seed)
    n_layers, most = int(generator.integers(1, 12)), int(generator.integers(1, 6))
    begins = sorted(generator.integers(0, n_layers, size=int(generator.integers(0, 9))).tolist())

    def cost(groups):
        return sum((n_layers - begins[g.start] + _END) * (_CALL + g.stop - g.start) for g in groups)

    found = batches(begins, n_layers, most)
    assert [i for group in found for i in range(group.start, group.stop)] == list(range(len(begins)))
    assert all(group.stop - group.start <= most for group in found)
    ways = []
    for cuts in itertools.product([False, True], repeat=max(len(begins) - 1, 0)):
        ends = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(begins)]
        groups = [slice(a, b) for a, b in itertools.pairwise(ends) if b > a]
        if all(group.stop - group.start <= most for group in groups):
            ways.append(cost(groups))
    assert cost(found) == pytest.approx(min(ways))


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_one_logit_is_read_without_the_vocabulary(backend, monkeypatch):
    """Two rows of the unembedding, soft-cap and bias included, are what all of them say; of Entropy all are needed."""
    import lens_scopes.calculus.trace as module

    model, rows = tiny.fresh_host("gemma2", backend), []
    whole = module.raw_logits
    monkeypatch.setattr(module, "raw_logits", lambda host, y: rows.append(y.shape[0]) or whole(host, y))
    few = patching.measure(model, CLEAN, CORRUPTED, SCOPE, sites="resid_mid")
    assert rows == [1, 1]  # the two prompts' own ends
    patching.measure(model, CLEAN, CORRUPTED, ls.Entropy(), sites="resid_mid")
    assert sum(rows) > 10
    metric = ls.Metric(lambda z: z[0, -1, TARGET] - z[0, -1, VERSUS])
    assert_close(few.values, patching.measure(model, CLEAN, CORRUPTED, metric, sites="resid_mid").values, 1e-6)


def test_many_logits_go_in_parts(monkeypatch):
    model = tiny.host("gpt2", tiny.BACKENDS[0])
    scope = ls.Direction(torch.ones(tiny.D_MODEL), "blocks.1.hook_resid_mid")
    whole = patching.measure(model, CLEAN, CORRUPTED, scope, sites="embed")
    monkeypatch.setattr("lens_scopes.patching.value._LOGITS", 3 * tiny.VOCAB)
    parts = patching.measure(model, CLEAN, CORRUPTED, scope, sites="embed")
    assert_close(parts.values, whole.values, 1e-12)
    assert whole.values.abs().max() > 1e-3


@pytest.mark.parametrize("verb", ["predict", "measure", "screen", "ablate", "score"])
@pytest.mark.parametrize("sites", ["resid_post", ["blocks.1.hook_resid_pre"], ["blocks.1.hook_mlp_out"]])
def test_places_at_or_after_what_a_direction_reads_are_refused(verb, sites):
    """Nothing that is done there can change it: what would be measured is rounding."""
    model, scope = tiny.host("gpt2", tiny.BACKENDS[0]), ls.Direction([1.0] * tiny.D_MODEL, "blocks.1.hook_resid_pre")
    a, b = tiny.tokens(5), tiny.tokens(5, seed=1)
    calls = {
        "score": lambda: ls.score(model, a, scope, sites=sites),
        "ablate": lambda: patching.ablate(model, a, scope, where=None, by="zero", sites=sites),
        **{
            name: functools.partial(getattr(patching, name), model, a, b, scope, sites=sites)
            for name in ("predict", "measure", "screen")
        },
    }
    with pytest.raises(
        ValueError, match=r"the direction reads blocks.1.hook_resid_pre; .* at or after it .* write sites="
    ):
        calls[verb]()
