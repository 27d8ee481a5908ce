"""The finite differences that results are checked with, against derivatives that are known."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import lens_scopes as ls
import tiny
from lens_scopes.calculus import variants
from lens_scopes.check import slope_at_zero
from report import assert_close


def curve(x: float) -> torch.Tensor:
    x = torch.tensor(x, dtype=torch.float64)
    return torch.stack([x.exp(), (1 + x).log(), (2 * x + 0.3).sin()])


def slope(function, steps):
    return slope_at_zero(torch.stack([torch.stack([function(step), function(-step)]) for step in steps]), steps)


SLOPE = torch.tensor([1, 1, 2 * torch.cos(torch.tensor(0.3, dtype=torch.float64))], dtype=torch.float64)


def test_a_cubic_is_differentiated_exactly():
    """Its central differences are off by exactly the square of the step, which the extrapolation removes."""
    found, doubt = slope(lambda x: torch.tensor([2 + 3 * x - x**2 + 5 * x**3], dtype=torch.float64), [1.0, 0.25])
    assert doubt == pytest.approx((8 - 3.3125) / 8)
    assert float(found) == pytest.approx(3, abs=1e-14)


def test_the_error_falls_with_the_fourth_power_of_the_step():
    errors = [(slope(curve, [step, step / 4])[0] - SLOPE).abs() for step in (0.08, 0.04, 0.02)]
    for coarse, fine in pairwise(errors):
        assert torch.log2(coarse / fine).tolist() == pytest.approx([4, 4, 4], abs=0.05)


def test_neighbours_that_agree_best_are_taken():
    """Rounding spoils the smallest steps and curvature the largest; the best pair is between."""

    def rounded(x: float) -> torch.Tensor:
        return curve(x).float().double()

    steps = [0.32 / 4**i for i in range(8)]
    best = (slope(rounded, steps)[0] - SLOPE).norm()
    assert best < 1e-4
    for pair in (steps[:2], steps[-2:]):
        assert best < (slope(rounded, pair)[0] - SLOPE).norm()


def test_steps_that_nothing_follows_any_more_do_not_agree():
    """Far out a saturated curve is flat: its slopes differ by little, and are all wrong."""
    steps = [4.0**-i for i in range(7)]
    found, doubt = slope(lambda x: torch.tensor([50 * x]).tanh().double(), steps)
    assert float(found) == pytest.approx(50, rel=1e-3)
    assert doubt < 0.02
    rounded, doubt = slope(lambda x: torch.tensor([1 + 3 * x]).bfloat16().double(), [4.0**-i for i in range(9)])
    assert float(rounded) == pytest.approx(3, rel=0.02)  # the last ones move nothing, and agree that it is 0
    assert doubt < 0.02
    assert slope(lambda x: torch.zeros(1), [1.0, 0.25])[1] == float("inf")


# On results


@pytest.mark.host
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_each_position_is_checked_with_its_own_target(backend):
    """Positions after the first were asked of the scope as the only one: a target for each was refused."""
    model, ids = tiny.host("gpt2", backend), tiny.tokens()
    scores = ls.score(model, ids, ls.Semantic([7, 9, 11]), position=[2, 4, 6])
    for position in (2, 4, 6):
        report = scores.sel(target_pos=position).check(model)
        assert report["max_error"] < 1e-6
        assert report["stored_error"] < 1e-12
    assert scores.check(model)["stored_error"] < 1e-12

    seen = []

    def by_index(state):
        seen.append((state.position, state.index, state.count))
        return state.rows((7, 9, 11)[state.index])

    found = ls.score(model, ids, by_index, position=[2, 4, 6])
    assert torch.equal(found.values, scores.values)
    seen.clear()
    assert found.sel(target_pos=4).check(model, scope=by_index)["stored_error"] < 1e-12
    assert seen == [(4, 1, 3)]


@pytest.mark.host
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_what_finite_differences_cannot_confirm(backend):
    model, ids = tiny.host("gpt2", backend), tiny.tokens()
    other = [*ids[:2], ids[2] + 1, *ids[3:]]
    scores = ls.score(model, ids, ls.Semantic(7))
    for axis in ("pos", "site"):
        with pytest.raises(ValueError, match=f"sums over {axis}"):
            scores.sum(axis).check(model)
    for call in (ls.patching.predict, ls.patching.measure):
        with pytest.raises(ValueError, match="effects"):
            call(model, ids, other, ls.Semantic(7)).check(model)
    with pytest.raises(ValueError, match="other effects"):
        ls.evaluate.leave_one_out(model, [ids])[0].check(model, scope=ls.Semantic(7))
    with pytest.raises(ValueError, match="without freeze"):
        ls.score(model, ids, ls.Semantic(7), freeze="norm").check(model)
    frozen = ls.flow(model, ids, ls.Semantic(7), freeze="norm").check(model)
    assert frozen["scores"] is None
    assert frozen["max_error"] < 1e-6
    assert frozen["total_error"] < 1e-9


@pytest.mark.host
@pytest.mark.parametrize("sites", [None, "z"])
@pytest.mark.parametrize("pair", [(a, b) for a in ("deep-llama", "gemma2", "deep-neox") for b in tiny.BACKENDS])
def test_moves_together_are_moves_alone(pair, sites, monkeypatch):
    """Rows of one batch that begin late, against one run for each from the tokens."""
    model, ids = tiny.host(*pair), tiny.tokens(7)
    scores = ls.score(model, ids, ls.Semantic(7), sites=sites, position=4)
    together = scores.check(model)
    monkeypatch.setattr(variants, "prompts_at_once", lambda host, length: 1)
    monkeypatch.setattr(variants, "starts_at", lambda host, layer: False)
    monkeypatch.setattr(variants, "is_causal", lambda host: False)
    alone = scores.check(model)
    assert together["max_error"] < 1e-3
    assert len(together["places"]) == 8
    for one, other in zip(together["places"], alone["places"], strict=True):
        assert_close(torch.tensor(one["measured"]), torch.tensor(other["measured"]), 1e-6, relative_to=one["measured"])


@pytest.mark.host
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_errors_are_relative_to_the_score_and_not_to_a_direction(backend):
    """A random direction may hardly be felt; of one cotangent the strongest is the gradient, and the score its length."""
    report = ls.score(tiny.host("gpt2", backend, torch.float32), tiny.tokens(), ls.Semantic(7)).check(
        tiny.host("gpt2", backend, torch.float32)
    )
    strongest = {(p["site"], p["pos"]): p["predicted"] for p in report["places"] if p["direction"] == "strongest"}
    others = [p for p in report["places"] if p["direction"] == "random"]
    assert len(others) == len(strongest) == 4
    for place in others:
        score, difference = strongest[place["site"], place["pos"]], abs(place["predicted"] - place["measured"])
        assert max(place["predicted"], place["measured"]) < 0.9 * score
        assert place["error"] == pytest.approx(difference / score, rel=1e-5)


@pytest.mark.host
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_value_that_was_doubled_is_found(backend):
    model = tiny.host("deep-llama", backend)
    scores = ls.score(model, tiny.tokens(7), ls.Semantic(7))
    assert scores.check(model)["stored_error"] < 1e-6
    values = scores.values.clone()
    values.view(-1)[values.argmax()] *= 2
    wrong = ls.Scores(values, scores.dims, scores.coords, scores.tokens, scores.meta)
    assert wrong.check(model)["stored_error"] == pytest.approx(0.5, abs=1e-6)


@pytest.mark.host
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_gradient_that_a_branch_is_missing_from_is_found(backend):
    """A hook that detaches: the model computes what it did, and its gradient is another."""
    model = tiny.fresh_host("deep-llama", backend)
    assert ls.score(model, tiny.tokens(7), ls.Semantic(7)).check(model)["max_error"] < 1e-3
    model.add_hook("blocks.1.hook_mlp_out", lambda activation, hook: activation.detach())
    assert ls.score(model, tiny.tokens(7), ls.Semantic(7)).check(model)["max_error"] > 0.1


@pytest.mark.host
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_sharp_bend_is_not_taken_for_a_wrong_gradient(backend):
    """As Gemma 3 270M has one after its second block: steps of a thousandth of its activation are past the bend."""
    model, ids = tiny.fresh_host("gpt2", backend), tiny.tokens(7)
    at = "blocks.1.hook_mlp_out"
    middle = model.run_with_cache(torch.tensor([ids]))[1][at].detach()
    model.add_hook(at, lambda x, hook: x + 0.01 * (500 * (x - middle)).tanh())
    scores = ls.score(model, ids, ls.Semantic(7), sites="attn_out")
    assert scores.check(model)["max_error"] < 1e-3


@pytest.mark.host
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_other_steps_follow_where_the_first_do_not_agree(backend, monkeypatch):
    """Half precision rounds small steps away; in double they agree, and no other one is run."""
    runs = []
    whole = variants.Kept.run
    monkeypatch.setattr(
        variants.Kept, "run", lambda kept, some, *rest: runs.append(len(some)) or whole(kept, some, *rest)
    )
    model = tiny.fresh_host("deep-llama", backend)
    report = ls.score(model, tiny.tokens(7), ls.Semantic(7)).check(model)
    assert runs == [8 * 3 * 2]
    assert report["max_error"] < 1e-3
    runs.clear()
    model = tiny.fresh_host("deep-llama", backend, torch.bfloat16)
    report = ls.score(model, tiny.tokens(7), ls.Semantic(7)).check(model)
    assert runs[0] == 48
    assert len(runs) == 3
    assert report["max_error"] < 0.3


def test_a_check_is_of_the_model_and_the_scope_that_the_result_is_of():
    model, other = (tiny.host(name, tiny.BACKENDS[0]) for name in ("gpt2", "llama"))
    ids = tiny.tokens()
    for result in (ls.score(model, ids, ls.Semantic(7)), ls.flow(model, ids, ls.Semantic(7))):
        assert result.check(model, scope=ls.Semantic(7))["max_error"] < 1e-4
        with pytest.raises(ValueError, match=r"is of a model '.*' that predicts .* and '.*' gives it .*; write check"):
            result.check(other)
        for scope in (ls.Semantic(8), ls.Semantic(7, 8), ls.Temperature()):
            with pytest.raises(ValueError, match=r"is of Semantic\(target=7\), got scope="):
                result.check(model, scope=scope)


def test_a_result_of_a_larger_vocabulary_is_refused():
    """Its ids are none of this model's."""
    model = tiny.host("llama", tiny.BACKENDS[0])
    scores = ls.score(model, tiny.tokens(5), ls.Semantic(7), sites="embed")
    other = replace(scores, meta=scores.meta | {"token_ids": [tiny.VOCAB + 5] * 5})
    with pytest.raises(ValueError, match="outside the vocabulary"):
        other.check(model)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_what_a_hook_sets_to_zero_can_be_checked(backend):
    model = tiny.fresh_host("llama", backend)
    with model.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda x, hook: x * 0)]):
        scores = ls.score(model, tiny.tokens(5), ls.Semantic(7), sites=["blocks.0.hook_mlp_out"])
        assert scores.check(model)["max_error"] < 1e-3
