"""What a call costs, said before it: the graph's size is what autograd keeps, passes are those that are made."""

import pytest
import torch

import lens_scopes as ls
import tiny
from lens_scopes.calculus import graph_size
from lens_scopes.host import Host

PAIRS = [pair for pair in tiny.HOSTS if pair[0] in ("gpt2", "llama", "gemma2", "olmo2")]


@pytest.mark.host
@pytest.mark.parametrize("pair", PAIRS, ids=tiny.host_id)
def test_what_three_lengths_say_of_others(pair):
    """A polynomial of second degree through three lengths, against what others keep."""
    host = Host(tiny.host(*pair))
    law = graph_size.held_by(host)
    for n in (5, 11, 24):
        assert law.bytes(n) == pytest.approx(graph_size._saved(host, n)[0], rel=0.05)
    assert law.linear > 0


@pytest.mark.parametrize("scope", [ls.Semantic(), ls.Fisher(8), ls.Fisher(rank=3), ls.Temperature()], ids=repr)
def test_passes_are_those_that_are_made(scope):
    model = tiny.host("llama", tiny.BACKENDS[0])
    found = ls.estimate(model, 9, scope)
    notes = ls.score(model, tiny.tokens(9), scope).meta["notes"][0]
    assert (found.forwards, found.backwards, found.tangents) == (1, notes.get("passes", 1), 0)
    flow = ls.estimate(model, 9, scope, flow=True)
    assert flow.tangents == found.backwards
    assert flow.passes == 1 + 2 * found.backwards
    assert flow.bytes > found.bytes
    assert flow.floors > found.floors


def test_more_tokens_sites_and_cotangents_take_more():
    model = tiny.host("llama", tiny.BACKENDS[0])
    sizes = [ls.estimate(model, n, ls.Semantic()).bytes for n in (2, 4, 8, 16, 32)]
    assert sizes == sorted(sizes)
    assert ls.estimate(model, 8, ls.Semantic(), sites="embed").bytes < ls.estimate(model, 8, ls.Semantic()).bytes
    assert ls.estimate(model, 8, ls.Semantic()).bytes < ls.estimate(model, 8, ls.Fisher(4)).bytes
    assert ls.estimate(model, 8, ls.Fisher(None)).backwards == tiny.D_MODEL
    assert "1 forward + 4 backward passes" in str(ls.estimate(model, 8, ls.Fisher(4)))


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("n", "options", "kind", "text"),
    [
        (0, {}, ValueError, "write 1 or more"),
        (33, {}, ValueError, "context of 32 tokens, got n_tokens=33"),
        (2.5, {}, TypeError, "n_tokens is an integer"),
        (3, {"sites": "nowhere"}, ValueError, "has no site"),
        (3, {"scope": ls.Semantic}, TypeError, r"write ls.Semantic\(\)"),
    ],
)
def test_what_cannot_be_estimated(n, options, kind, text):
    model = tiny.host("llama", tiny.BACKENDS[0])
    with pytest.raises(kind, match=text):
        ls.estimate(model, n, **{"scope": ls.Semantic(), **options})


def test_a_model_is_left_as_it_came_and_measured_once(monkeypatch):
    model = tiny.fresh_host("llama", tiny.BACKENDS[0]).requires_grad_(True)
    state = torch.get_rng_state()
    first = ls.estimate(model, 9, ls.Semantic())
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(graph_size, "_measured", None)
    assert ls.estimate(model, 9, ls.Semantic()) == first
