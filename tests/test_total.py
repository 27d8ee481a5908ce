"""The total over several positions: exact where passes suffice, else Hadamard signs whose error is honest."""

from dataclasses import replace
from itertools import product

import pytest
import torch

import lens_scopes as ls
import tiny
from lens_scopes.calculus import signs
from lens_scopes.calculus.question import Asked
from lens_scopes.calculus.trace import trace
from lens_scopes.host import Host
from lens_scopes.scopes import fisher
from lens_scopes.scopes.factor import fisher_matrix
from lens_scopes.scopes.protocol import cotangents_at
from report import assert_close
from test_continuation import text

pytestmark = pytest.mark.host

BACKEND = tiny.BACKENDS[-1]


def model(architecture="gpt2"):
    return tiny.host(architecture, BACKEND)


def rows_of(t: ls.Text, scope=None) -> tuple:
    """The gradients g_p of every target at the embedding, [target, pos, d], one backward each."""
    run = trace(Host(model()), torch.tensor([t.ids]), ["hook_embed"], list(t.predicting("completion")))
    vectors = cotangents_at(scope or ls.Continuation(), run.ends(0))[0].vectors[0]
    found = []
    for p, v in enumerate(vectors):
        grid = torch.zeros_like(run.y)
        grid[0, p] = v
        found.append(torch.autograd.grad(run.y, run.sites["hook_embed"], grid, retain_graph=True)[0][0])
    return run, torch.stack(found)


@pytest.mark.parametrize("scope", [ls.Semantic("next"), ls.Continuation(), ls.Temperature()], ids=repr)
@pytest.mark.parametrize("sites", [None, "z"])
def test_with_passes_enough_it_is_the_matrix_squared_and_summed(scope, sites):
    t = text(m=6)
    total = ls.score(model(), t, scope, position="completion", sites=sites, reduce="sum")
    if isinstance(scope, ls.Continuation):
        parts = [
            ls.score(model(), t, ls.Continuation(), position=[p], sites=sites).values.square()
            for p in t.predicting("completion")
        ]
        assert_close(total.values, sum(parts), 1e-10)
    else:
        matrix = ls.score(model(), t, scope, position="completion", sites=sites)
        assert_close(total.values, matrix.values.square().sum(0), 1e-10)
    assert total.dims == (("site", "pos") if sites is None else ("site", "pos", "head"))
    assert (total.units, total.stderr) == ("squared", None)
    assert (total.meta["reduce"], total.meta["passes"]) == ("sum", 6)
    assert {note["method"] for note in total.meta["notes"]} == {"exact"}
    assert len(total.meta["targets"]) == 6


def test_a_default_continuation_is_summed_without_a_position():
    t = text(m=4)
    total = ls.score(model(), t, ls.Continuation(), sites="embed", reduce="sum")
    assert_close(total.values[0], rows_of(t)[1].square().sum((0, -1)), 1e-10)
    joint = ls.score(model(), t, ls.Continuation(), sites="embed")
    assert float((joint.values.square() / total.values).nan_to_num(1.0).sub(1).abs().max()) > 0.05  # two quantities


def test_along_a_direction_it_is_the_sum_of_squared_products():
    t = text(m=5)
    matrix = ls.score(model(), t, ls.Semantic("next"), position="completion", along="activation")
    total = ls.score(model(), t, ls.Semantic("next"), position="completion", along="activation", reduce="sum")
    assert total.units == "squared"
    assert_close(total.values, matrix.values.square().sum(0), 1e-10)


@pytest.mark.parametrize("k", [1, 2, 8, 16])
def test_columns_of_a_hadamard_matrix_are_orthogonal(k):
    h = signs.hadamard(k)
    assert torch.equal(h.T @ h, k * torch.eye(k, dtype=torch.long))


def test_the_mean_over_all_signs_is_exact():
    """Every sign vector of 6 targets, for one deal: the mean of the estimate is Σ_p ‖g_p‖²."""
    _, g = rows_of(text(m=6))
    exact = g.square().sum((0, -1))
    size = g.norm(dim=(1, 2))
    dealt = signs.deal(size, 4, torch.Generator().manual_seed(3))
    column = dealt * dealt[0]  # the deal without its random signs: H[k, c] up to one sign a row
    found = torch.zeros_like(exact)
    for s in product((-1.0, 1.0), repeat=6):
        x = torch.einsum("kp,ptd->ktd", column.double() * torch.tensor(s, dtype=torch.float64), g).square().sum(-1)
        found += x.mean(0) / 2**6
    assert_close(found, exact, 1e-10)


@pytest.mark.parametrize(("n", "k"), [(6, 4), (11, 4), (13, 8)])
def test_hadamard_signs_are_partition_probes_rotated(n, k):
    """X̄ = Σ_c ‖Σ_{p in column c} ±g_p‖², and every run of k rows by weight meets every column once."""
    generator = torch.Generator().manual_seed(n)
    g = torch.randn(n, 3, 5, generator=generator, dtype=torch.float64)
    size = torch.rand(n, generator=generator)
    dealt = signs.deal(size, k, torch.Generator().manual_seed(0))
    x = torch.einsum("kp,ptd->ktd", dealt.double(), g).square().sum(-1)
    h = signs.hadamard(k)
    agree = h.T @ dealt / k  # ±1 at the column of each row, 0 elsewhere
    assert set(agree.abs().unique().tolist()) <= {0.0, 1.0}
    probes = torch.einsum("cp,ptd->ctd", agree.double(), g).square().sum(-1)
    assert_close(x.mean(0), probes.sum(0), 1e-10)
    order = size.argsort(descending=True)
    column = agree.abs().argmax(0)[order]
    for start in range(0, n - k + 1, k):
        assert sorted(column[start : start + k].tolist()) == list(range(k))


def test_the_error_is_the_spread():
    """Random deals of 8 targets to 4 columns: E[stderr²] = Var X̄, over all 2,520 deals and all signs in expectation."""
    from itertools import permutations

    generator = torch.Generator().manual_seed(0)
    g = torch.randn(8, 6, generator=generator, dtype=torch.float64)
    gram = g @ g.T
    exact = float(gram.diagonal().sum())
    h = signs.hadamard(4).double()
    deals = sorted(set(permutations([0, 0, 1, 1, 2, 2, 3, 3])))
    variance, stated = 0.0, 0.0
    flips = torch.tensor(list(product((-1.0, 1.0), repeat=8)), dtype=torch.float64)
    factor = 1 - 4 / 8
    for deal in deals:
        s = h[:, list(deal)] * flips[:, None]  # [signs, pass, target]
        x = torch.einsum("skp,pq,skq->sk", s, gram, s)
        mean = x.mean(1)
        variance += float((mean - exact).square().mean()) / len(deals)
        probes = mean[:, None] / 4 + factor**0.5 * (x - mean[:, None]) / 4
        stated += float((4 / 3 * (probes - probes.mean(1, keepdim=True)).square().sum(1)).mean()) / len(deals)
    assert len(deals) == 2520
    assert abs(stated / variance - 1) < 1e-8, (stated, variance)


def test_what_is_stored_adds_up_and_its_error_is_that_of_the_passes():
    t = text(m=11)
    scores = ls.score(model(), t, ls.Continuation(), sites="embed", reduce=4)
    run, g = rows_of(t)
    asked = Asked(torch.tensor(t.ids), tuple(t.predicting("completion")), ls.Continuation(), several=False)
    (made,) = signs.total(run, 0, asked, 4)
    x = torch.stack([
        torch.autograd.grad(run.y, run.sites["hook_embed"], v[None], retain_graph=True)[0][0].square().sum(-1)
        for v in made.vectors
    ])  # fmt: skip
    x = x * float(made.weights[0]) * 4  # what was taken out of the rows, so that they are numbers in float32
    mean = x.mean(0)
    assert_close(scores.values[0], mean, 1e-10)
    assert_close(scores.probes.sum(0), scores.values, 1e-12)
    expected = ((1 - 4 / 11) / 12 * (x - mean).square().sum(0)).sqrt()
    assert_close(scores.stderr[0], expected, 1e-10)
    summed = x.sum(1)
    whole = ((1 - 4 / 11) / 12 * (summed - summed.mean()).square().sum()).sqrt()
    assert_close(scores.sum("pos").stderr[0], whole, 1e-10)
    words = scores.aggregate("word")
    groups = words.meta["joined"]
    joined = torch.stack([x[:, list(span)].sum(1) for span in groups], 1)
    spread = ((1 - 4 / 11) / 12 * (joined - joined.mean(0)).square().sum(0)).sqrt()
    assert_close(words.stderr[0], spread, 1e-10)
    low, high = scores.interval()
    assert bool((low >= -1e-12).all())
    assert bool((high >= scores.values).all())
    assert scores.meta["passes"] == 4
    assert_close(float(scores.values.sum()), float(g.square().sum()), 0.5)


def test_signs_depend_on_the_seed_the_text_and_the_positions_alone():
    one, other = text(0, m=11), text(1, m=11)
    options = {"sites": "embed", "reduce": 4}
    state = torch.get_rng_state()
    alone = ls.score(model(), one, ls.Continuation(), **options)
    batch = ls.score_batch(model(), [other, one], ls.Continuation(), **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert_close(batch[1].values, alone.values, 1e-10)
    assert_close(batch[1].probes, alone.probes, 1e-8)
    with ls.memory_budget(1):
        assert_close(ls.score(model(), one, ls.Continuation(), **options).values, alone.values, 1e-10)
    fewer = ls.score(model(), one, ls.Semantic("next"), position=list(one.predicting("completion"))[:-1], **options)
    assert fewer.meta["passes"] == 4
    rounded = ls.score(model(), one, ls.Continuation(), sites="embed", reduce=7)
    assert rounded.meta["passes"] == 4
    assert torch.equal(rounded.values, alone.values)


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("reduce", "told"),
    [
        ("mean", "reduce is None, 'sum' or a number of passes, got 'mean'"),
        (1, "no standard error.* got 1; write 2 or more"),
        (True, "is an integer, got True"),
        (2.5, "is an integer, got 2.5"),
    ],
)
def test_what_is_no_reduction_is_refused(reduce, told):
    with pytest.raises((ValueError, TypeError), match=told):
        ls.score(model(), text(), ls.Continuation(), reduce=reduce)


def test_fisher_over_a_span_is_the_sum_over_its_positions():
    """Its own passes are for the whole span; exact where the pairs of position and direction are no more."""
    t = text(m=3)
    each = ls.score(model(), t, ls.Fisher(None), position="completion")
    for scope, reduce in ((ls.Fisher(None), "sum"), (ls.Fisher(4), 64)):
        total = ls.score(model(), t, scope, position="completion", reduce=reduce)
        assert_close(total.values, each.values.sum(0), 1e-9)
        assert total.stderr is None
        assert len({note["passes"] for note in total.meta["notes"]}) == 1
        assert 32 <= total.meta["passes"] <= 48
    truncated = ls.score(model(), t, ls.Fisher(rank=2), position="completion", reduce="sum")
    by_position = ls.score(model(), t, ls.Fisher(rank=2), position="completion")
    assert_close(truncated.values, by_position.values.sum(0), 1e-9)
    estimate = ls.score(model(), t, ls.Fisher(8), position="completion", reduce="sum", sites="embed")
    assert estimate.meta["passes"] == len(estimate.probes) == 8
    error = (estimate.values - each.values.sum(0)[:1]).abs()
    assert bool((error <= 6 * estimate.stderr + 1e-12).all())


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2"])
def test_rows_by_token_are_the_form(architecture):
    """Σ_w p_w g_w g_wᵀ of the tokens kept is F but for the share that is left out."""
    t = text(m=3)
    run = trace(Host(model(architecture)), torch.tensor([t.ids]), [], list(t.predicting("completion")))
    for state, part in zip(run.ends(0), fisher.by_token(run.ends(0)), strict=True):
        rows, exact = part.rows(), fisher_matrix(state)
        assert_close(rows.T @ rows, exact, 1e-3)
        share = float(rows.square().sum() / exact.trace())
        assert abs(share - part.notes["coverage"]) < 1e-6
        assert 1 - 1.1e-4 < share <= 1 + 1e-9
        assert_close(part.size, rows.norm(dim=-1), 1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_rows_by_token_keep_their_digits_where_the_model_is_sure(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(50, generator=generator)
    logits[7] = 22.0
    run = trace(Host(model()), torch.tensor([[1, 7]]), [], [0])
    weight = 3 + torch.randn(50, 8, generator=generator)
    state = replace(run.state(0, 0), y=torch.zeros(8), logits=logits, weight=weight, slope=None)
    (part,) = fisher.by_token([state])
    p = logits.double().softmax(-1)
    top, others = weight[7].double(), p.clone()
    others[7] = 0
    g_top = others @ (top - weight.double())  # 1 − p = 4e-8, without a difference of numbers near 1
    centred = weight.double() - top + g_top
    assert_close(part.rows().T @ part.rows(), centred.T @ (p[:, None] * centred), 1e-3)
    carried = (p * centred.square().sum(-1)).sort(descending=True).values
    assert abs(part.notes["coverage"] - float(carried[: len(part)].sum() / carried.sum())) < 1e-5
    assert part.notes["coverage"] > 1 - 1e-4


def test_many_draws_by_token_have_the_right_mean(monkeypatch):
    """2,000 seeds, 4 passes, within 4 standard errors at every token."""
    monkeypatch.setattr(fisher, "_DENSE_UP_TO", 8)
    t = text(m=3)
    each = ls.score(model(), t, ls.Fisher(None), position="completion", sites="embed")
    exact = each.values.sum(0)[0, :-1]
    run = trace(Host(model()), torch.tensor([t.ids]), ["hook_embed"], list(t.predicting("completion")))
    eye = torch.eye(3 * tiny.D_MODEL, dtype=torch.float64).reshape(-1, 3, tiny.D_MODEL)
    jacobian = torch.stack([
        torch.autograd.grad(run.y, run.sites["hook_embed"], e[None], retain_graph=True)[0][0] for e in eye
    ])  # fmt: skip
    parts = fisher.by_token(run.ends(0))
    size = torch.cat([part.size for part in parts])
    rows = torch.cat([
        torch.nn.functional.pad(f.rows(), (p * tiny.D_MODEL, (2 - p) * tiny.D_MODEL)) for p, f in enumerate(parts)
    ])  # fmt: skip
    drawn = []
    for seed in range(2000):
        dealt = signs.deal(size, 4, torch.Generator().manual_seed(seed)).double()
        x = torch.einsum("kr,rtd->ktd", dealt @ rows, jacobian).square().sum(-1)
        drawn.append(x.mean(0)[:-1])
    drawn = torch.stack(drawn)
    error = drawn.std(0) / len(drawn) ** 0.5
    assert bool(((drawn.mean(0) - exact).abs() < 4 * error + 2e-4 * exact).all())
    # And the verb takes this way: the same signs give its own number.
    scores = ls.score(model(), t, ls.Fisher(4), position="completion", sites="embed", reduce="sum")
    asked = Asked(torch.tensor(t.ids), tuple(t.predicting("completion")), ls.Fisher(4), several=False)
    dealt = signs.deal(size, 4, signs._generator(asked)).double()
    x = torch.einsum("kr,rtd->ktd", dealt @ rows, jacobian).square().sum(-1)
    assert_close(scores.values[0], x.mean(0), 1e-8)
    assert scores.meta["coverage"] > 1 - 1e-4
    assert all(note["method"] == "estimate" for note in scores.meta["notes"])


@pytest.mark.parametrize("scope", [ls.Continuation(), ls.Fisher(8)], ids=repr)
@pytest.mark.parametrize("reduce", ["sum", 4])
def test_check_moves_what_was_planted(scope, reduce):
    t = text(m=11)
    scores = ls.score(model(), t, scope, position="completion", reduce=reduce)
    report = scores.check(model())
    assert report["max_error"] < 1e-5
    assert report["stored_error"] < 1e-8
    wrong = replace(scores, values=scores.values.sqrt())
    assert wrong.check(model())["stored_error"] > 0.01


@pytest.mark.slow
def test_intervals_cover_what_they_say(stories260k):
    """stories260K, 100 generated tokens, 16 passes, 200 seeds: the pooled coverage of the 95 % interval."""
    from scipy.stats import t as student

    m = ls.load(stories260k, backend=BACKEND)
    story = ls.generate(m, "Once upon a time, there was a little girl named Lily", max_new_tokens=100)
    run = trace(Host(m), torch.tensor([story.ids]), ["hook_embed"], list(story.predicting("completion")))
    (made,) = cotangents_at(ls.Continuation(), run.ends(0))
    g = []
    for p, v in enumerate(made.vectors[0]):
        grid = torch.zeros_like(run.y)
        grid[0, p] = v
        (back,) = torch.autograd.grad(run.y, run.sites["hook_embed"], grid, retain_graph=True)
        g.append(back[0, 1 : story.spans["prompt"][1]].double())
    g = torch.stack(g)
    gram = torch.einsum("ptd,qtd->tpq", g, g)
    exact = gram.diagonal(dim1=1, dim2=2).sum(-1)
    size = signs._lengths(run, 0, list(made.vectors[0][:, None]))
    n, k = len(g), 16
    inside, errors = [], []
    for seed in range(200):
        s = signs.deal(torch.cat(size), k, torch.Generator().manual_seed(seed)).double()
        x = torch.einsum("kp,tpq,kq->kt", s, gram, s)
        stderr = ((1 - k / n) / (k * (k - 1)) * (x - x.mean(0)).square().sum(0)).sqrt()
        half = float(student.ppf(0.975, k - 1)) * stderr
        inside.append((x.mean(0) - exact).abs() <= half)
        errors.append(((x.mean(0) - exact) / exact).abs())
    coverage, error = float(torch.stack(inside).double().mean()), float(torch.stack(errors).median())
    print(f"coverage {coverage:.3f}, median error {error:.3f}")
    assert 0.92 <= coverage <= 0.98
    assert error < 0.08
