"""The Fisher Scope on a real vocabulary: likely words held, the others dealt to probes in one sweep; near certainty."""

import functools
import math

import mpmath
import pytest
import torch
from torch.overrides import TorchFunctionMode

import lens_scopes as ls
import tiny
from lens_scopes.scopes import factor
from lens_scopes.scopes.prediction import Prediction
from report import assert_close

VOCAB, WIDTH = 500, 64
LEADS = (5.0, 20.0, 40.0, 100.0, 110.0, 300.0, 700.0)


def state_of(weight, logits, slope=None) -> ls.FinalState:
    """The end of a model that does not exist."""
    y = torch.ones(*logits.shape[:-1], weight.shape[1], dtype=torch.promote_types(weight.dtype, torch.float32))
    return ls.FinalState(
        y=y, logits=logits.to(y), weight=weight, slope=slope, tokens=(1,), position=0, index=0, count=1,
        constant_norm=False, norm_has_bias=False, token_id=int,
    )  # fmt: skip


def random_state(dtype=torch.float64, *, vocab=VOCAB, width=WIDTH, lead=0.0, spread=2.0, slope=False) -> ls.FinalState:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(vocab, width, generator=generator, dtype=torch.float64) + 3
    weight *= (1 + torch.arange(width)) ** -0.7
    logits = spread * torch.randn(vocab, generator=generator, dtype=torch.float64)
    logits[17 % vocab] = logits.max() + 1 + lead
    slopes = 0.2 + torch.rand(vocab, generator=generator, dtype=torch.float64) if slope else None
    wide = torch.promote_types(dtype, torch.float32)
    return state_of(weight.to(dtype), logits, None if slopes is None else slopes.to(wide))


def dense(state: ls.FinalState) -> torch.Tensor:
    """F by its definition, in float64."""
    p, w = state.logits.double().softmax(-1), state.unembed.double()
    g = w - p @ w
    return g.T @ (p[:, None] * g)


def exactly(state: ls.FinalState) -> tuple[torch.Tensor, float]:
    """F/tr F and log tr F by their definition, in as many digits as it takes."""
    lead = float(state.logits.max() - state.logits.median())
    with mpmath.workdps(30 + int(lead)):
        z = [mpmath.mpf(float(x)) for x in state.logits]
        w = [[mpmath.mpf(float(x)) for x in row] for row in state.unembed]
        total = mpmath.fsum(map(mpmath.exp, z))
        p = [mpmath.exp(x) / total for x in z]
        d = range(len(w[0]))
        mean = [mpmath.fsum(p[n] * w[n][i] for n in range(len(p))) for i in d]
        g = [[row[i] - mean[i] for i in d] for row in w]
        f = [[mpmath.fsum(p[n] * g[n][i] * g[n][j] for n in range(len(p))) for j in d] for i in d]
        trace = mpmath.fsum(f[i][i] for i in d)
        return torch.tensor([[float(x / trace) for x in row] for row in f], dtype=torch.float64), float(
            mpmath.log(trace)
        )


def outer(made: ls.Cotangents) -> torch.Tensor:
    """VᵀV, with the weights."""
    rows = made.vectors.double() * made.root_weights()[:, None]
    return rows.T @ rows


def weight(made: ls.Cotangents) -> float:
    """The trace, which is every cotangent's weight."""
    assert made.weights is not None
    return float(made.weights[0])


@pytest.fixture
def always_split(monkeypatch):
    """Small vocabularies are split too, with as many heavy words as a test says."""

    def split(heavy: int) -> None:
        monkeypatch.setattr(factor, "_dense_is_cheaper", lambda vocab, d, heavy, probes: False)
        monkeypatch.setattr(factor, "_HEAVY", heavy)
        monkeypatch.setattr(factor, "_HEAVY_SHARE", 0.0)

    return split


@pytest.fixture
def in_blocks(monkeypatch):
    """A width of 64 is so wide that only leading directions are eigenvectors."""
    monkeypatch.setattr(factor, "_WIDE", 8)
    monkeypatch.setattr(factor, "_BLOCK", 12)


def tail_of(made: factor.Factored, heavy: torch.Tensor) -> torch.Tensor:
    outside = torch.ones(len(made.rows.root), dtype=torch.bool)
    outside[heavy] = False
    rows = made.rows.words(outside.nonzero()[:, 0]).double()
    return rows.T @ rows


@pytest.mark.parametrize("options", [{}, {"slope": True}, {"lead": 12.0}], ids=["flat", "soft-cap", "confident"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heavy", [2, 64, VOCAB])
def test_heavy_words_and_tail_are_all_of_it(heavy, dtype, options, always_split):
    always_split(heavy)
    state = random_state(dtype, **options)
    made = factor.split(state, 4, 4, torch.Generator().manual_seed(0))
    assert made.heavy == heavy
    words = torch.cat([torch.tensor([17]), Prediction.of(state.logits).log_others.topk(heavy - 1).indices])
    tail, expected = tail_of(made, words), dense(state)
    rest = made.rows.prediction.log_rest.exp()
    found = (made.directions.double().T @ made.directions.double() + tail) * rest
    tolerance = 1e-10 if dtype == torch.float64 else 1e-6
    assert_close(found, expected, tolerance, relative_to=float(expected.trace()))
    assert made.tail == pytest.approx(float(tail.trace()), rel=1e-5, abs=1e-7 * made.trace())
    assert_close(made.rows.energy().sum(), expected.trace() / rest, 1e-6)
    assert made.rows.energy()[17] > 0
    cotangents = ls.Fisher(8)(state)
    assert cotangents.notes["coverage"] == pytest.approx(
        float(made.directions[:4].double().square().sum() * rest / expected.trace()), rel=1e-5
    )
    assert cotangents.notes["heavy_words"] == heavy
    assert weight(cotangents) == pytest.approx(float(expected.trace()), rel=1e-5)


def unbiased(state: ls.FinalState, seeds: int) -> None:
    """The mean over seeds of every entry of VᵀV: one in a thousand beyond 4 standard errors, none beyond 6."""
    found = torch.stack([outer(ls.Fisher(8, seed=seed)(state)) for seed in range(seeds)])
    spread, upper = found.std(0), torch.ones(found.shape[1:]).triu().bool()
    assert (spread > 0).all(), "no scatter: this test would pass for any estimate"
    error = ((found.mean(0) - dense(state)) / (spread / seeds**0.5)).abs()[upper]
    assert (error > 4).double().mean() < 1e-3, error.max()
    assert error.max() < 6


@pytest.mark.parametrize("heavy", [2, 64, VOCAB])
def test_a_split_is_unbiased(heavy, always_split):
    always_split(heavy)
    unbiased(random_state(), 400)


def test_blocks_are_unbiased(always_split, in_blocks):
    always_split(64)
    unbiased(random_state(), 400)


@pytest.mark.slow
@pytest.mark.parametrize("heavy", [2, 64, VOCAB])
def test_a_split_is_unbiased_at_length(heavy, always_split):
    always_split(heavy)
    unbiased(random_state(), 4000)


def test_blocks_have_the_same_matrix_and_the_leading_eigenvectors(in_blocks):
    state = random_state()
    rows = factor.Rows.of(state).words(slice(None))
    made = factor._directions(rows, 3)
    assert len(made) == VOCAB + 12, "these are no blocks"
    assert_close(made.T @ made, rows.T @ rows, 1e-10)
    energy, vectors = torch.linalg.eigh(rows.T @ rows)
    expected = vectors[:, -3:] * energy[-3:].sqrt()
    assert_close(made[:3].T @ made[:3], expected @ expected.T, 1e-3)
    few = random_state(vocab=7)
    words = factor.Rows.of(few).words(slice(None))
    found = factor._directions(words, 2)
    assert len(found) == 7
    assert_close(found.T @ found, words.T @ words, 1e-10)
    assert (found[:-1].square().sum(1) >= found[1:].square().sum(1)).all()


class Products(TorchFunctionMode):
    """Counts matrix products with something as long as the vocabulary, on either side."""

    def __init__(self, vocab: int):
        super().__init__()
        self.vocab, self.sweeps, self.others = vocab, 0, 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in ("matmul", "__matmul__", "mm", "einsum", "linear"):
            left, right = (x.shape for x in args[:2])
            self.sweeps += len(right) == 2 and right[0] == self.vocab
            self.others += len(left) == 2 and left[0] == self.vocab
        return function(*args, **(kwargs or {}))


def test_an_estimate_meets_most_words_once(always_split):
    """The layout is what costs: sums over the vocabulary, and no product that gives a number for every word."""
    always_split(64)
    state = random_state(torch.float32)
    with Products(VOCAB) as products:
        ls.Fisher(16)(state)
    assert (products.sweeps, products.others) == (1, 0)
    with Products(VOCAB) as products:
        ls.Fisher(rank=2)(state)
    assert products.others == 1


def test_the_cheaper_way_is_taken():
    """By multiplications: small vocabularies keep the whole matrix; likely words are more where the tail is fat."""
    small, peaked, fat, flat = (
        random_state(torch.float32, vocab=vocab, width=32, spread=spread)
        for vocab, spread in ((2000, 1.0), (30_000, 4.0), (30_000, 3.4), (30_000, 0.5))
    )
    assert ls.Fisher(8)(small).notes["heavy_words"] == 2000
    assert ls.Fisher(8)(peaked).notes["heavy_words"] == 2048
    assert ls.Fisher(8)(fat).notes["heavy_words"] == 4096
    assert ls.Fisher(8)(flat).notes["heavy_words"] == 30_000
    assert ls.Fisher(rank=2)(small).notes["heavy_words"] == 2000
    assert ls.Fisher(rank=2)(peaked).notes["heavy_words"] == 8192
    assert ls.Fisher(rank=2)(flat).notes["heavy_words"] == 30_000
    assert ls.Fisher(None)(peaked).notes["heavy_words"] == 30_000
    for state in (peaked, flat):
        energy = torch.linalg.eigvalsh(dense(state)).flip(0)
        made = ls.Fisher(rank=2)(state)
        expected = float(energy[:2].sum() / energy.sum())
        assert made.notes["coverage"] == pytest.approx(expected, rel=1e-2)
        assert made.notes["coverage"] <= expected * (1 + 1e-5)
    assert made.notes["coverage"] == pytest.approx(expected, rel=1e-5), "all words are heavy"


def test_few_likely_words_are_exact(always_split):
    """Nine words have all the mass: eight directions, whatever else is in the vocabulary."""
    always_split(64)
    state = random_state()
    logits = state.logits - 60
    logits[:9] = state.logits[:9]
    logits[17] = -60
    made = ls.Fisher(8)(state_of(state.weight, logits))
    assert made.notes["method"] == "exact"
    assert not made.probes
    assert_close(outer(made), dense(state_of(state.weight, logits)), 1e-8)


@pytest.mark.parametrize("lead", LEADS)
def test_a_prediction_that_is_nearly_certain_keeps_its_digits(lead):
    state = random_state(torch.float32, vocab=40, width=6, lead=lead)
    shape, log_trace = exactly(state)
    made = ls.Fisher(None)(state)
    assert made.notes["method"] == "exact"
    assert made.notes["log_trace"] == pytest.approx(log_trace, abs=1e-6)
    assert made.notes["coverage"] == pytest.approx(1)
    assert_close(made.vectors.double().T @ made.vectors.double(), shape, 1e-6)
    assert math.log(weight(made)) == pytest.approx(log_trace, abs=1e-6)
    assert_close(factor.fisher_matrix(state), shape * math.exp(log_trace), 2e-6)
    # The estimate's mean, and the truncation's share, are of the same matrix.
    energy = torch.linalg.eigvalsh(shape).flip(0)
    assert ls.Fisher(rank=2)(state).notes["coverage"] == pytest.approx(float(energy[:2].sum()), rel=1e-5)
    found = torch.stack([outer(ls.Fisher(4, seed=s)(state)) for s in range(200)]) / weight(made)
    error = (found.mean(0) - shape).abs() / (found.std(0) / 200**0.5).clamp(min=1e-7)
    assert error.max() < 4.5


@pytest.mark.parametrize("heavy", [2, 64])
@pytest.mark.parametrize("lead", [40.0, 300.0, 700.0])
def test_so_does_a_split_one(lead, heavy, always_split):
    always_split(heavy)
    state = random_state(torch.float32, lead=lead)
    near, far = ls.Fisher(8)(random_state(torch.float32, lead=30.0)), ls.Fisher(8)(state)
    assert_close(far.vectors, near.vectors, 1e-5)  # the limit: F/(1 − p) depends on the lead no more
    assert far.notes["log_trace"] - near.notes["log_trace"] == pytest.approx(30 - lead, abs=1e-4)


@pytest.mark.parametrize("lead", [760.0, 2000.0])
@pytest.mark.parametrize("scope", [ls.Fisher(), ls.Fisher(None), ls.Fisher(rank=1), ls.Fisher(2)], ids=str)
def test_a_certain_prediction_is_refused(scope, lead):
    with pytest.raises(ValueError, match=r"certain \(1 − p = 1e-\d+\).*use Semantic or Temperature"):
        scope(random_state(torch.float32, lead=lead))


def test_an_unembedding_of_equal_rows_scores_exactly_zero():
    """Then no logit moves against another; dividing by the trace would be 0/0."""
    for scope in (ls.Fisher(), ls.Fisher(None), ls.Fisher(rank=3)):
        made = scope(state_of(torch.ones(30, 8), torch.randn(30, generator=torch.Generator().manual_seed(0))))
        assert made.notes["method"] == ("truncated" if scope.rank else "exact")
        assert made.notes["coverage"] == 1
        assert not made.vectors.any()


@pytest.mark.parametrize("lead", [0.0, 40.0, 200.0, 700.0])
def test_divergence_keeps_its_digits(lead):
    before = random_state(torch.float32, vocab=40, width=6, lead=lead)
    moved = before.logits + torch.randn(3, 40, generator=torch.Generator().manual_seed(2))
    moved[2, 5] = moved[2].max() + 3  # another word has become the likeliest
    found = ls.Fisher().divergence(state_of(before.weight, moved), before)
    for row, value in zip(moved, found, strict=True):
        with mpmath.workdps(800):
            p, q = ([mpmath.exp(mpmath.mpf(float(x))) for x in z] for z in (before.logits, row))
            a, b = mpmath.fsum(p), mpmath.fsum(q)
            expected = mpmath.fsum(x / a * mpmath.log(x / a * b / y) for x, y in zip(p, q, strict=True))
            assert float(value) == pytest.approx(float(expected), rel=1e-9)


@functools.cache
def certain(backend: str, lead: float):
    """A tiny Llama that is as sure of its prediction as is asked for, and its final state."""
    model = tiny.fresh_host("llama", backend)
    seen = []

    def look(state):
        seen.append(state)
        return state.y

    ls.score(model, tiny.tokens(), look, sites="embed")
    first, second = seen[0].logits.topk(2).values
    with torch.no_grad():
        model.W_U.data.mul_(lead / float(first - second))
    ls.score(model, tiny.tokens(), look, sites="embed")
    return model, seen[-1]


@pytest.mark.host
@pytest.mark.parametrize("lead", [60.0, 150.0, 600.0])
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_what_is_made_of_it_keeps_its_digits_too(backend, lead):
    """Scores, flows, paths and predicted patches, where a float32 weight would be 0; files hold it."""
    model, state = certain(backend, lead)
    ids = tiny.tokens()
    shape, log_trace = exactly(state)
    directions = torch.linalg.eigh(shape)
    scores = ls.score(model, ids, ls.Fisher(None))
    scale = math.exp(log_trace)
    expected = torch.zeros_like(scores.values)
    for energy, vector in zip(*(directions[0], directions[1].T), strict=True):
        norm = ls.score(model, ids, ls.Direction(vector.to(state.y)))
        expected += float(energy) * norm.values.double() ** 2
    assert_close(scores.values / float(scale), expected, 1e-5)
    flow = ls.flow(model, ids, ls.Fisher(None))
    assert_close(flow.total / float(scale), expected[0].sum()[None], 1e-5)
    assert_close(flow.stream.sum(-1), flow.total[:, None].expand(flow.stream.shape[:2]), 1e-5)
    assert_close(flow.skip + flow.heads.sum(-1), flow.total[:, None].expand(flow.skip.shape), 1e-5)
    for routes in (flow.paths(3), flow.orders(), flow.last_heads()):
        assert routes.influence.sum() == pytest.approx(float(flow.total.sum()), rel=1e-5)
    other = [*ids[:2], (ids[2] + 1) % tiny.VOCAB, *ids[3:]]
    predicted = ls.patching.predict(model, other, ids, ls.Fisher(None))
    assert 0 < float(predicted.values.max()) < 1e4 * float(scale)
