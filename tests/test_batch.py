"""Several positions, several prompts, several chunks: always the same numbers as one by one."""

import pytest
import torch

import lens_scopes as ls
import tiny
from report import assert_close

pytestmark = pytest.mark.host

SCOPES = (ls.Semantic(), ls.Semantic(7, 11), ls.Fisher(None), ls.Fisher(5), ls.Fisher(rank=3), ls.Temperature())
PAIRS = [pair for pair in tiny.HOSTS if pair[0] in ("gpt2", "llama", "gemma2", "mixtral")]


@pytest.mark.parametrize("scope", SCOPES, ids=repr)
@pytest.mark.parametrize("pair", PAIRS, ids=tiny.host_id)
def test_positions_together_are_positions_one_by_one(pair, scope):
    model, ids = tiny.host(*pair, torch.float32), tiny.tokens()
    asked = {"all": range(len(ids)), (1, -1, 3): (1, len(ids) - 1, 3), (4,): (4,)}
    for position, expected in asked.items():
        together = ls.score(model, ids, scope, position=list(position) if isinstance(position, tuple) else position)
        assert together.dims == ("target_pos", "site", "pos")
        assert together.coords["target_pos"] == tuple(expected)
        for p in expected:
            alone = ls.score(model, ids, scope, position=p)
            assert alone.dims == ("site", "pos")
            part = together.sel(target_pos=p)
            assert_close(part.values, alone.values, 1e-5, f"{scope} at {p}")
            if alone.stderr is not None:
                assert_close(part.stderr, alone.stderr, 1e-4, f"stderr of {scope} at {p}")
            assert not alone.values[:, p + 1 :].any(), "influence from the future"
            assert alone.values[0, p] > 0


@pytest.mark.parametrize("pair", PAIRS, ids=tiny.host_id)
def test_a_batch_is_its_prompts_one_by_one(pair):
    """Mixed lengths, mixed scopes, order kept; the same prompt twice; negative positions from each own end."""
    model = tiny.host(*pair, torch.float32)
    prompts = [tiny.tokens(n, seed) for seed, n in enumerate((7, 4, 7, 9, 4, 7))]
    prompts.append(prompts[0])
    for scopes in (
        ls.Fisher(5),
        [
            ls.Semantic(),
            ls.Semantic(3),
            ls.Temperature(),
            ls.Semantic(4, 5),
            ls.Temperature(),
            ls.Semantic(9),
            ls.Semantic(8),
        ],
    ):
        each = scopes if isinstance(scopes, list) else [scopes] * len(prompts)
        for position in (-1, -2, [0, -1]):
            batch = ls.score_batch(model, prompts, scopes, position=position)
            for prompt, scope, found in zip(prompts, each, batch, strict=True):
                alone = ls.score(model, prompt, scope, position=position)
                assert_close(found.values, alone.values, 1e-5, f"{scope} at {position}")
                assert found.meta["token_ids"] == prompt
                assert found.meta["scope"] == alone.meta["scope"]
                for one, other in zip(found.meta["targets"], alone.meta["targets"], strict=True):
                    assert (one and (one["id"], one["text"])) == (other and (other["id"], other["text"]))
                assert found.coords == alone.coords


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_scopes_with_other_numbers_of_cotangents_run_together(backend):
    model, prompts = tiny.host("llama", backend, torch.float32), [tiny.tokens(6, s) for s in range(3)]
    scopes = [ls.Fisher(rank=1), ls.Fisher(None), ls.Fisher(6)]
    for found, prompt, scope in zip(ls.score_batch(model, prompts, scopes), prompts, scopes, strict=True):
        alone = ls.score(model, prompt, scope)
        assert_close(found.values, alone.values, 1e-5, repr(scope))
        assert (found.stderr is None) == (alone.stderr is None)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_directions_at_several_sites_run_together(backend):
    model, prompts = tiny.host("llama", backend), [tiny.tokens(6, s) for s in range(3)]
    vector = torch.randn(tiny.D_MODEL, generator=torch.Generator().manual_seed(8))
    scopes = [ls.Direction(vector), ls.Direction(vector, site="blocks.0.hook_resid_post"), ls.Semantic(3)]
    for found, prompt, scope in zip(
        ls.score_batch(model, prompts, scopes, sites="embed"), prompts, scopes, strict=True
    ):
        assert_close(found.values, ls.score(model, prompt, scope, sites="embed").values, 1e-9)


@pytest.mark.parametrize(
    "scope", [*SCOPES, ls.Direction(torch.arange(1.0, tiny.D_MODEL + 1), site="blocks.1.hook_resid_pre")], ids=repr
)
@pytest.mark.parametrize("pair", PAIRS, ids=tiny.host_id)
def test_any_memory_budget_gives_the_same(pair, scope):
    model, ids = tiny.host(*pair), tiny.tokens()
    whole = ls.score(model, ids, scope, position=[2, 5], sites="embed")
    for budget in (1, 20_000, 100_000):
        with ls.memory_budget(budget):
            pieces = ls.score(model, ids, scope, position=[2, 5], sites="embed")
        assert_close(pieces.values, whole.values, 1e-6, f"{scope} in {budget} bytes")
        assert torch.equal(pieces.values[0, :, 3:], torch.zeros_like(pieces.values[0, :, 3:]))


def test_a_tiny_budget_really_makes_chunks(monkeypatch):
    from lens_scopes.calculus import pullback

    seen, vjp = [], pullback._vjp
    monkeypatch.setattr(pullback, "_vjp", lambda o, i, c: (seen.append(len(c)), vjp(o, i, c))[1])
    model = tiny.host("llama", tiny.BACKENDS[0])
    with ls.memory_budget(1):
        ls.score(model, tiny.tokens(), ls.Fisher(None))
    assert seen == [1] * tiny.D_MODEL
    seen.clear()
    ls.score(model, tiny.tokens(), ls.Fisher(None))
    assert seen == [tiny.D_MODEL]


@pytest.mark.wrong_types
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_what_a_batch_refuses(backend):
    model, ids = tiny.host("llama", backend), tiny.tokens()
    with pytest.raises(TypeError, match="list of prompts"):
        ls.score_batch(model, "one string", ls.Semantic())
    with pytest.raises(ValueError, match="2 prompts but 3 scopes"):
        ls.score_batch(model, [ids, ids], [ls.Semantic()] * 3)
    with pytest.raises(ValueError, match="squared"):
        ls.score(model, ids, lambda s: ls.Cotangents(s.y[None], squared=s.index == 0), position=[1, 2])
    with pytest.raises(ValueError, match=r"along is .* got shape \(1, 2, 3\)"):
        ls.score(model, ids, ls.Semantic(), along=torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="along is None"):
        ls.score(model, ids, ls.Semantic(), along="gradient")
    with pytest.raises(ValueError, match="one cotangent"):
        ls.score(model, ids, lambda s: s.unembed[:2], along="activation")
    assert ls.score_batch(model, [], ls.Semantic()) == []


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_users_hooks_stay_in_force(backend):
    """An ablation by a permanent hook shows in the scores, and the hook is still there afterwards."""
    model, ids = tiny.fresh_host("llama", backend), tiny.tokens()
    before = ls.score(model, ids, ls.Semantic(7)).values
    model.add_hook("blocks.1.hook_attn_out", lambda x, hook: x * 0)
    without = ls.score(model, ids, ls.Semantic(7))
    # Only the last block could still mix positions, and its attention is gone.
    assert not without.sel(site="blocks.0.hook_resid_post").values[:-1].any()
    assert without.sel(site="embed").values[:-1].all()
    model.reset_hooks()
    assert torch.equal(ls.score(model, ids, ls.Semantic(7)).values, before)
