"""Graphs that outgrow the memory budget: blocks run again in the backward pass, and the numbers stay what they are."""

import pytest
import torch

import lens_scopes as ls
import tiny
from lens_scopes.calculus.trace import trace
from lens_scopes.host import Host

PAIRS = [
    pair for pair in tiny.HOSTS if pair[0] in ("gpt2", "llama", "neox", "gemma2", "olmo2", "mixtral", "deep-llama")
]


def close(found, expected):
    largest = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * largest)


def own_forwards(model) -> dict:
    return {name: vars(module)["forward"] for name, module in model.named_modules() if "forward" in vars(module)}


@pytest.mark.host
@pytest.mark.parametrize("pair", PAIRS, ids=tiny.host_id)
def test_scores_and_flows_are_the_same(pair):
    model, ids = tiny.host(*pair), tiny.tokens(12)
    before = own_forwards(model)
    sites = ("resid_post", "attn_out", "z")
    cases = [(scope, {"sites": site}) for scope in (ls.Semantic(), ls.Fisher(6)) for site in sites]
    cases += [(ls.Semantic(), {"position": "all"}), (ls.Semantic(), {"freeze": ["norm"]}), (ls.Temperature(), {})]
    for scope, options in cases:
        expected = ls.score(model, ids, scope, **options).values
        with ls.memory_budget(1):
            close(ls.score(model, ids, scope, **options).values, expected)
    expected = ls.flow(model, ids, ls.Semantic())
    with ls.memory_budget(1):
        found = ls.flow(model, ids, ls.Semantic())
    close(found.heads, expected.heads)
    assert found.residual <= max(1e-6, 10 * expected.residual)
    assert own_forwards(model) == before


def saved(model, ids, **options) -> int:
    """How many tensors autograd keeps of a trace, but for those that are computed again."""
    host, seen = Host(model), []

    def note(tensor):
        seen.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run = trace(host, torch.tensor([ids]), ["hook_embed"], [-1 % len(ids)], **options)
    assert run.y.requires_grad
    return len(seen)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_less_is_kept_but_for_freeze_and_hooks_of_the_users(requires_grad):
    model, ids = tiny.fresh_host("deep-llama", tiny.BACKENDS[0]).requires_grad_(requires_grad), tiny.tokens(12)
    saved(model, ids, freeze=["norm"])  # what is tried once for each model
    whole, frozen = saved(model, ids), saved(model, ids, freeze=["norm"])
    with ls.memory_budget(1):
        assert saved(model, ids) < 0.6 * whole
        assert saved(model, ids, freeze=["norm"]) == frozen
        with model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", lambda x, hook: 2 * x)]):
            assert saved(model, ids) >= whole
            doubled = ls.score(model, ids, ls.Semantic()).values
    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", lambda x, hook: 2 * x)]):
        close(doubled, ls.score(model, ids, ls.Semantic()).values)
    with ls.memory_budget(10**9):
        assert saved(model, ids) == whole


def test_two_thousand_tokens_give_the_same_numbers():
    model = ls.demo.load()
    model.cfg.n_ctx = 2000  # rotary: any length runs, whatever it was trained on
    ids = [3 + i * i % 200 for i in range(2000)]
    expected = ls.score(model, ids, ls.Semantic()).values
    with ls.memory_budget(2**26):
        close(ls.score(model, ids, ls.Semantic()).values, expected)
