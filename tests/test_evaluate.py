"""Faithfulness: the authors' protocol to the digit, ablations against the bare model, statistics against their formulas."""

import functools
import itertools
import math

import pytest
import scipy.stats
import torch

import lens_scopes as ls
import oracles
import tiny
from lens_scopes import evaluate
from lens_scopes.evaluate import intervals
from lens_scopes.evaluate.ablation import Ablation
from lens_scopes.evaluate.protocol import ask
from report import assert_close

PROMPTS = [tiny.tokens(9, seed=n) for n in range(4)]
#: The authors' names for scores, and ours.
PAPER = {
    "semantic": "semantic",
    "temperature": "temperature",
    "fisher_low_rank_1": "fisher_low_rank_1",
    "fisher_full": "fisher_exact",
    "gradient_x_input_nll": "gradient_x_input_norm",
    "ig_nll_5": "integrated_gradients_norm",
}
SHORT = {("stories", n) for n in range(8)} | {("lambada", n) for n in (2, 8, 12, 15)}
GOLDEN = [
    pytest.param(group, n, id=f"{group}{n}", marks=[] if (group, n) in SHORT else [pytest.mark.slow])
    for group, size in (("stories", 8), ("lambada", 24))
    for n in range(size)
]


@functools.cache
def stories(path):
    return ls.load(path, backend=tiny.BACKENDS[-1])


def model(architecture="gpt2"):
    return tiny.host(architecture, tiny.BACKENDS[0])


@pytest.mark.host
@pytest.mark.parametrize(("group", "n"), GOLDEN)
def test_the_authors_numbers(group, n, golden, stories260k, record_property):
    """Every score of a baseline, every ablation drop and every leave-one-out effect of the reference file."""
    entry = golden[group][n]
    (question,) = ask(stories(stories260k), [entry["tokens"]], "paper")
    assert (question.position, question.target, question.watched) == (
        entry["position"],
        entry["target"],
        entry["argmax"],
    )
    for theirs, ours in PAPER.items():
        found = evaluate.attribute(question, ours)
        expected = torch.tensor(entry["scores"][theirs], dtype=torch.float64)
        # Their cross-entropy is float32: of its gradient, 1 - p, as much is left as p has digits.
        rounding = 2**-23 / float(-question.log_probs[question.target].double().expm1())
        assert_close(found[: len(expected)], expected, 1e-4 + rounding * theirs.count("nll"), ours)
        drops = list(entry["aopc_delta_logprob"][theirs].values())
        curve = evaluate.ablation_curve(question.model, [question.ids], [ranking(found, expected)], protocol="paper")
        error = (curve.deltas[0] - torch.tensor(drops)).abs().max()
        record_property(f"aopc error {ours}", float(error))
        assert error < 1e-3
    (effects,) = evaluate.leave_one_out(question.model, [question.ids], protocol="paper")
    assert_close(effects.values, entry["loo_kl"], 1e-3, relative_to=1.0)


def ranking(found, expected):
    """Ours, but the authors' where neighbours in the ranking tie within 1e-6 of the maximum."""
    ordered = expected.sort(descending=True).values
    tie = ((ordered[:-1] - ordered[1:]) < 1e-6 * ordered[0]) & (ordered[:-1] > 0)
    return torch.cat([expected, found.new_zeros(len(found) - len(expected))]) if tie.any() else found


@pytest.mark.parametrize("replace", ["zero", "mean", "resample"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_ablations_against_the_bare_model(architecture, replace):
    """The tokens' embeddings are changed in Hugging Face's own model."""
    hf, taken = tiny.hugging_face(architecture), torch.zeros(2, 9, dtype=torch.bool)
    taken[0, [1, 4]] = taken[1, [0, 2, 8]] = True
    questions = ask(model(architecture), PROMPTS, None)
    ablation = Ablation.of(questions, replace, None, 5)
    embedding = hf.get_input_embeddings()(torch.tensor(PROMPTS))
    for n, ids in enumerate(PROMPTS):
        found = ablation.log_probs(questions[n], n, taken)
        for row, out in zip(found, taken, strict=True):
            other = {"zero": torch.zeros(()), "mean": embedding.mean((0, 1))}.get(replace)
            if replace == "resample":
                other = hf.get_input_embeddings()(ablation.substitutes[n])
            delta = torch.where(out[:, None], other - embedding[n], 0.0)
            logits = oracles.final_state(hf, ids, -1, {"hook_embed": delta.detach()})[1]
            assert_close(row, logits.log_softmax(-1), tiny.tolerance(architecture, tiny.BACKENDS[0]) * 10, replace)


def test_deleting_a_token_is_running_the_shorter_prompt():
    (question,) = ask(model(), PROMPTS[:1], None)
    taken = torch.zeros(2, 9, dtype=torch.bool)
    taken[0, [1, 4]] = taken[1] = True
    found = Ablation.of([question], "delete", None, 0).log_probs(question, 0, taken)
    kept = [t for i, t in enumerate(PROMPTS[0]) if i not in (1, 4)]
    assert_close(found[0], model()(torch.tensor([kept]))[0, -1].log_softmax(-1), 1e-12)
    assert_close(found[1], model()(torch.tensor([PROMPTS[0][-1:]]))[0, -1].log_softmax(-1), 1e-12)  # one must remain


def test_resampled_tokens_are_the_same_for_every_method_and_come_from_the_corpus():
    questions = ask(model(), PROMPTS, None)
    draws = [Ablation.of(questions, "resample", [7, 8], seed).substitutes for seed in (1, 1, 2)]
    assert all(torch.equal(a, b) for a, b in zip(draws[0], draws[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(draws[0], draws[2], strict=True))
    assert set(torch.cat(draws[0]).tolist()) == {7, 8}


def test_what_is_taken_out():
    scores = [torch.tensor([9.0, 1, 8, 2, 7, 3, 6, 4, 5])]
    (question,) = ask(model(), PROMPTS[:1], None)

    def curve(**options):
        return evaluate.ablation_curve(model(), PROMPTS[:1], scores, **options)

    def drop(*positions):
        taken = torch.zeros(1, 9, dtype=torch.bool)
        taken[0, list(positions)] = True
        after = Ablation.of([question], "zero", None, 0).log_probs(question, 0, taken)[0, question.watched]
        return float(after - question.log_probs[question.watched])

    # max(1, ⌊9 f⌋) of 9 tokens, highest first; none at 0.
    assert curve(fractions=(0, 0.05, 0.25, 0.34, 1)).deltas[0].tolist() == pytest.approx(
        [0, drop(0), drop(0, 2), drop(0, 2, 4), drop(*range(9))], abs=1e-9
    )
    assert curve(fractions=(0.25,), skip=(0,)).deltas.item() == pytest.approx(drop(2, 4), abs=1e-9)
    assert curve(fractions=(0.25,), mode="sufficiency").deltas.item() == pytest.approx(
        drop(1, 3, 4, 5, 6, 7, 8), abs=1e-9
    )
    assert curve(fractions=(0.25,), protocol="paper").meta["lengths"] == [9]


def test_leave_one_out_is_a_divergence():
    found = evaluate.leave_one_out(model(), PROMPTS[:2])
    (question,) = ask(model(), PROMPTS[:1], None)
    taken = torch.eye(9, dtype=torch.bool)
    q = Ablation.of([question], "zero", None, 0).log_probs(question, 0, taken)
    p = question.log_probs
    assert_close(found[0].values, (p.exp() * (p - q)).sum(-1), 1e-9)
    assert found[0].units == "squared"
    assert found[0].dims == ("pos",)
    assert found[0].aggregate("word").values.sum() == pytest.approx(float(found[0].values.sum()))
    best = int(found[0].values.argmax())
    hot = torch.zeros(9)
    hot[best] = 1
    assert evaluate.rank_of_top(hot, found[0]) == (0, 0.0)
    with pytest.raises(ValueError, match="pick one site"):
        evaluate.rank_of_top(torch.zeros(3), found[0])


@pytest.mark.host
@pytest.mark.parametrize("pair", [p for p in tiny.HOSTS if p[0] in ("gpt2", "llama")], ids=tiny.host_id)
def test_methods_are_what_they_say(pair):
    """Against gradients of the bare model at embeddings that are put into it."""
    hf, ids = tiny.hugging_face(pair[0]), PROMPTS[0]
    (question,) = ask(tiny.host(*pair), [ids], None)
    embedding = hf.get_input_embeddings()(torch.tensor(ids)).detach()

    def gradient(at, of):
        delta = (at - embedding).requires_grad_()
        logits = oracles.final_state(hf, ids, -1, {"hook_embed": delta})[1]
        value = (logits.log_softmax(-1) if of == "log p" else logits)[question.target]
        return torch.autograd.grad(value, delta)[0]

    plain, start = gradient(embedding, "log p"), embedding.mean(0)
    midpoints = [(n + 0.5) / 20 for n in range(20)]
    line = sum(gradient(start + a * (embedding - start), "log p") for a in midpoints) / 20
    expected = {
        "log_prob_scope": plain.norm(dim=-1),
        "gradient_x_input": (plain * embedding).sum(-1),
        "gradient_x_input_norm": (plain * embedding).norm(dim=-1),
        "integrated_gradients": (line * (embedding - start)).sum(-1),
        "integrated_gradients_norm": (
            sum(a * gradient(a * embedding, "log p") for a in (0.2, 0.4, 0.6, 0.8, 1.0)) / 5 * embedding
        ).norm(dim=-1),
        "path_semantic": (sum(gradient(a / 10 * embedding, "z") for a in range(1, 11)) / 10 * 0.9 * embedding).norm(
            dim=-1
        ),
        "last_first": torch.arange(9.0),
    }
    for name, values in expected.items():
        assert_close(evaluate.attribute(question, name), values, 20 * tiny.tolerance(*pair), name)
    rollout = evaluate.attribute(question, "attention_rollout")
    assert float(rollout.sum()) == pytest.approx(1, abs=1e-6)
    assert (rollout >= 0).all()


def test_scopes_and_functions_are_methods_too():
    (question,) = ask(model(), PROMPTS[:1], None, seed=3)
    assert torch.equal(evaluate.attribute(question, ls.Semantic()), evaluate.attribute(question, "semantic"))
    assert torch.equal(evaluate.attribute(question, ls.Temperature()), evaluate.attribute(question, "temperature"))
    assert evaluate.attribute(question, lambda question: torch.arange(9))[3] == 3
    by_rows = evaluate.attribute(question, lambda state: state.rows(question.target))
    assert_close(by_rows, evaluate.attribute(question, "semantic"), 1e-12)
    same, other = (ask(model(), PROMPTS[:1], None, seed=s)[0] for s in (3, 4))
    assert torch.equal(evaluate.attribute(question, "random"), evaluate.attribute(same, "random"))
    assert not torch.equal(evaluate.attribute(question, "random"), evaluate.attribute(other, "random"))
    with pytest.raises(ValueError, match="there is no method 'nonsense'; write one of semantic"):
        evaluate.attribute(question, "nonsense")
    with pytest.raises(TypeError, match="a method is a name"):
        evaluate.attribute(question, 3)


def test_bootstrap_and_sign_flips_and_holm():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(50, 2, generator=generator, dtype=torch.float64) + torch.tensor([0.0, 1.0])
    low, high = intervals.bootstrap_interval(values)
    student = float(scipy.stats.t.ppf(0.975, 49)) * values.std(0) / 50**0.5
    assert_close(torch.stack([low, high]), torch.stack([values.mean(0) - student, values.mean(0) + student]), 0.05)
    p = intervals.sign_flip_p(values)
    assert p[1] < 0.001
    assert float(p[0]) == pytest.approx(scipy.stats.ttest_1samp(values[:, 0], 0).pvalue, abs=0.02)
    few = torch.tensor([1.0, 2.0, 3.0, -0.5], dtype=torch.float64)  # exact: all 16 sign patterns
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)), dtype=torch.float64)
    exact = float(((signs @ few).abs() >= few.sum() - 1e-12).double().mean())
    assert float(intervals.sign_flip_p(few)) == pytest.approx(exact, abs=1e-12)
    assert intervals.holm(torch.tensor([0.01, 0.04, 0.03, 0.5])).tolist() == pytest.approx([0.04, 0.09, 0.09, 0.5])
    with pytest.raises(ValueError, match="level"):
        intervals.bootstrap_interval(values, level=2.0)


def test_the_interval_is_that_of_the_studentised_bootstrap():
    """Resample by resample: t* = (mean* - mean) / (standard error of the resample), and its order statistics."""
    values = torch.randn(12, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64).exp()
    draws = 199
    found = intervals.bootstrap_interval(values, level=0.9, seed=5, draws=draws)
    chosen = torch.randint(12, (draws, 12), generator=torch.Generator().manual_seed(5))
    for column in range(2):
        x = values[:, column]
        t = sorted(float((x[row].mean() - x.mean()) / (x[row].std() / 12**0.5)) for row in chosen)
        error = float(x.std() / 12**0.5)
        expected = [float(x.mean()) - t[-10] * error, float(x.mean()) - t[9] * error]  # 5 % of 200 at each end
        assert found[:, column].tolist() == pytest.approx(expected, rel=1e-9)
    shifted = intervals.bootstrap_interval(3 * values.reshape(12, 2, 1) + 1, level=0.9, seed=5, draws=draws)
    assert_close(shifted[..., 0], 3 * found + 1, 1e-9)


@pytest.mark.parametrize(("kind", "least"), [("normal", 0.93), ("lognormal", 0.88)])
@pytest.mark.parametrize("n", [10, 20])
def test_an_interval_covers_what_it_says(kind, least, n, record_property):
    """2,000 simulated data sets each; benchmarks/coverage.py has more sizes, and the percentile bootstrap beside it."""
    generator, held, sets = torch.Generator().manual_seed(n), 0, 2000
    for seed in range(10):
        draw = torch.randn(n, sets // 10, generator=generator, dtype=torch.float64)
        low, high = intervals.bootstrap_interval(draw if kind == "normal" else draw.exp(), seed=seed)
        mean = 0.0 if kind == "normal" else math.exp(0.5)
        held += int(((low <= mean) & (mean <= high)).sum())
    record_property("coverage", held / sets)
    assert least <= held / sets < 0.98


@pytest.mark.parametrize("n", [1, 2, 9])
def test_too_few_prompts_have_no_interval(n):
    """NaN in the data, and the table says so."""
    assert intervals.bootstrap_interval(torch.rand(n, 3)).isnan().all()
    values = torch.rand(2, n, 2, dtype=torch.float64)
    table = evaluate.Table(values, ("a", "b"), ("0.1", "aopc"), "a")
    assert table.to_markdown().count("too few") == 2
    assert "nan" not in table.to_markdown().lower()
    assert "too few" in table._repr_html_()
    assert table.to_dataframe()[["low", "high", "difference_low", "difference_high"]].isna().all(None)
    curve = evaluate.Curve(values[0], (0.1, 0.2))
    assert curve._repr_html_().count("too few") == 2
    assert len(curve.plot().collections) == 0
    ten = evaluate.Table(torch.rand(2, 10, 2, dtype=torch.float64), ("a", "b"), ("0.1", "aopc"), "a")
    assert "too few" not in ten.to_markdown() + ten._repr_html_()
    assert len(evaluate.Curve(ten.values[0], (0.1, 0.2)).plot().collections) == 1


def test_an_interval_of_what_hardly_varies():
    """Equal values have no width; one that differs leaves an end open that the data do not bound."""
    assert intervals.bootstrap_interval(torch.full((10, 1), 0.1)).tolist() == [[pytest.approx(0.1)]] * 2
    one = torch.zeros(10, 1)
    one[3] = 1.0
    low, high = intervals.bootstrap_interval(one)
    assert high == math.inf
    assert -0.5 < low < 0.1


@pytest.mark.parametrize("at_once", [2**23, 12])
def test_sign_flips_of_few_prompts_are_all_enumerated(at_once, monkeypatch):
    """With ties, by column, whatever fits into memory at one time."""
    monkeypatch.setattr(intervals, "_AT_ONCE", at_once)
    x = torch.tensor([[1, 2, 3, -1, 2, 0], [1, 1, 1, 1, 1, 1], [3, -3, 2, -2, 0, 0]], dtype=torch.float64).T
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=6)), dtype=torch.float64)
    expected = ((signs @ x).abs() >= x.sum(0).abs()).double().mean(0)
    found = intervals.sign_flip_p(x)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-12)
    assert found[2] == 1
    assert torch.equal(intervals.sign_flip_p(x.reshape(6, 3, 1), seed=5), found[:, None])


def test_sign_flips_of_many_prompts_are_drawn_with_a_seed():
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.2
    p, same, other = (intervals.sign_flip_p(x, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(p, same)
    assert not torch.equal(p, other)
    assert_close(p, other, 0.05, relative_to=1.0)


def test_a_table_is_paired_and_reproducible(tmp_path):
    methods = {"scope": ls.Semantic(), "random": "random", "all equal": lambda question: torch.zeros(9)}
    found = evaluate.compare_methods(model(), PROMPTS, methods, leave_one_out=True, seed=1)
    assert found.methods == ("scope", "random", "all equal", "gradient_x_input", "last_first", "first_first")
    assert found.measures == ("0.05", "0.1", "0.2", "aopc", "loo_rank_%")
    assert_close(found.values[..., 3], found.values[..., :3].mean(-1), 1e-12)
    rankings = [evaluate.attribute(q, "semantic") for q in ask(model(), PROMPTS, None)]
    by_hand = evaluate.ablation_curve(model(), PROMPTS, rankings)
    assert_close(found.curve("scope").deltas, by_hand.deltas, 1e-10)
    effects = evaluate.leave_one_out(model(), PROMPTS)
    ranks = [evaluate.rank_of_top(torch.zeros(9), e)[1] for e in effects]
    assert found.values[2, :, 4].tolist() == pytest.approx(ranks)
    assert found.differences[3].abs().max() == 0
    assert found.p[3].isnan().all()
    assert found.verdict("gradient_x_input") == "no difference"
    again = evaluate.Table.load(found.save(tmp_path / "table.safetensors"))
    assert torch.equal(again.values, found.values)
    assert again.to_markdown() == found.to_markdown()
    assert_close(evaluate.compare_methods(model(), PROMPTS, methods, seed=1).values, found.values[..., :4], 1e-10)
    assert "baseline" in found.to_markdown(["aopc"]).splitlines()[5]
    frame = found.to_dataframe()
    assert len(frame) == 30
    assert frame["p_holm"].isna().tolist() == [name == "gradient_x_input" for name in frame["method"]]
    assert len(found.per_prompt()) == 6 * 4 * 5
    assert "<table" in found._repr_html_()
    with pytest.raises(ValueError, match="baseline"):
        evaluate.Table(found.values, found.methods, found.measures, "nobody")


def test_references_are_in_every_table_and_change_nothing_else():
    """The corrected p of what was asked for is what it is in a table of these alone."""
    found = evaluate.compare_methods(model(), PROMPTS, ["semantic", "random", "first_first"], seed=1)
    assert found.methods == ("semantic", "random", "first_first", "gradient_x_input", "last_first")
    assert found.meta["references"] == ["last_first"]
    asked = [0, 1, 2, 3]
    alone = evaluate.Table(found.values[asked], found.methods[:4], found.measures, found.baseline, found.seed)
    assert torch.equal(found.p[:3], alone.p[:3])
    raw = intervals.sign_flip_p(found.differences[[0, 1, 2, 4]].movedim(1, 0), 1)
    together = torch.stack([intervals.holm(column) for column in raw.T], 1)
    assert torch.equal(found.p[4], together[3])
    one = evaluate.ablation_curve(model(), PROMPTS, [torch.arange(9.0)] * 4)
    assert_close(found.curve("last_first").deltas, one.deltas, 1e-10)
    other = evaluate.ablation_curve(model(), PROMPTS, [-torch.arange(9.0)] * 4)
    assert_close(found.curve("first_first").deltas, other.deltas, 1e-10)


def test_a_table_says_where_shares_are_the_same_tokens():
    prompts = [tiny.tokens(5), tiny.tokens(9), tiny.tokens(12), tiny.tokens(25)]
    found = evaluate.compare_methods(model(), prompts, ["random"])
    assert found.meta["taken"] == [[1, 1, 1], [1, 1, 1], [1, 1, 2], [1, 2, 5]]
    said = "n 3 of 4 prompts some of the shares 5, 10, 20 % are equally many tokens (on 2 all are)"
    assert said in found.to_markdown().splitlines()[-1]
    assert said in found._repr_html_()
    assert said in found.curve("random")._repr_html_()
    assert "equally many" not in evaluate.compare_methods(model(), prompts[3:] * 2, ["random"]).to_markdown()
    kept = evaluate.ablation_curve(model(), prompts, [torch.zeros(len(p)) for p in prompts], skip=(0, 1, 2))
    assert kept.meta["taken"] == [[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 2, 4]]


@pytest.mark.parametrize("replace", ["zero", "mean", "delete", "resample"])
def test_what_several_methods_take_out_is_taken_out_once(replace):
    host = tiny.fresh_host("gpt2", tiny.BACKENDS[0])
    rows = []
    ask(host, PROMPTS[:1], None)  # a first call has checks of its own
    host.add_hook("hook_embed", lambda x, hook: rows.append(len(x)))
    methods = {f"same {n}": lambda question: torch.arange(9.0) for n in range(5)}
    found = evaluate.compare_methods(host, PROMPTS[:1], methods, baseline="same 0", leave_one_out=True, replace=replace)
    many = sum(rows)
    rows.clear()
    evaluate.leave_one_out(host, PROMPTS[:1], replace=replace)
    assert many == sum(rows)  # a share is one token here, and each token is left out once as it is
    assert found.values[:6].unique(dim=0).shape[0] == 1


def test_embeddings_are_read_without_running_a_block():
    from lens_scopes.evaluate.protocol import embed
    from lens_scopes.host import Host

    host, ran = tiny.fresh_host("gpt2", tiny.BACKENDS[0]), []
    host.add_hook("blocks.0.hook_resid_post", lambda x, hook: ran.append(x))
    found = embed(Host(host), torch.tensor(PROMPTS[0]))
    assert torch.equal(found, host.embed(torch.tensor([PROMPTS[0]]))[0])
    assert ran == []


def test_fisher_is_affordable_and_fisher_exact_is_exact():
    host, question = model(), ask(model(), PROMPTS[:1], None, seed=3)[0]
    for name, scope in (("fisher", ls.Fisher(seed=3)), ("fisher_exact", ls.Fisher(None))):
        expected = ls.score(host, PROMPTS[0], scope, sites="embed").values[0]
        assert_close(evaluate.attribute(question, name), expected, 1e-10, name)


def test_a_curve_saves_shows_and_plots(tmp_path):
    pytest.importorskip("matplotlib").use("Agg")
    scores = [ls.score(model(), p, ls.Fisher(4), sites="embed") for p in PROMPTS]
    found = evaluate.ablation_curve(model(), PROMPTS, scores, fractions=evaluate.FULL_CURVE, replace="mean")
    again = evaluate.Curve.load(found.save(tmp_path / "curve.safetensors"))
    assert torch.equal(again.deltas, found.deltas)
    assert again.meta["replace"] == "mean"
    assert found.aopc.shape == (4,)
    assert found.aupc() == pytest.approx(float(torch.trapezoid(found.mean, dx=0.05)))
    assert len(found.to_dataframe()) == 4 * 21
    assert "mean" in repr(found)
    assert "<table" in found._repr_html_()
    assert found.plot(label="Fisher").get_ylabel() == "change of log p"


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda m: evaluate.leave_one_out(m, "text"), TypeError, "a list of prompts"),
        (lambda m: evaluate.leave_one_out(m, []), ValueError, "got none"),
        (lambda m: evaluate.leave_one_out(m, PROMPTS, protocol="ours"), ValueError, "protocol is None"),
        (lambda m: evaluate.leave_one_out(m, [[7]], protocol="paper"), ValueError, "at least two tokens"),
        (lambda m: evaluate.leave_one_out(m, PROMPTS, replace="noise"), ValueError, "replace is one of zero, mean"),
        (lambda m: evaluate.ablation_curve(m, PROMPTS, []), ValueError, "4 prompts but scores for 0"),
        (lambda m: evaluate.ablation_curve(m, PROMPTS, [[1.0]] * 4), ValueError, "one number for each"),
        (lambda m: evaluate.ablation_curve(m, PROMPTS, [[1.0] * 9] * 4, fractions=(2,)), ValueError, "between 0 and 1"),
        (lambda m: evaluate.ablation_curve(m, PROMPTS[:1], [[math.nan] * 9]), ValueError, "NaN"),
    ],
)
def test_errors_say_what_to_write(call, error, text):
    with pytest.raises(error, match=text):
        call(model())


def upwards(question, start=0):
    return torch.arange(start, start + len(question.tokens))


def downwards(question, start=0):
    return -torch.arange(start, start + len(question.tokens))


#: By name: another comparison whose rows an old file must not be taken for.
OTHERS = {
    "method": {"methods": {"mine": downwards}},
    "values of a partial": {"methods": {"mine": functools.partial(upwards, start=1)}},
    "scope": {"methods": {"mine": ls.Semantic(7)}},
    "name": {"methods": {"yours": upwards}},
    "prompts": {"prompts": PROMPTS[1:3]},
    "seed": {"seed": 1},
    "draws": {"corpus": [5, 6, 8]},
    "replacement": {"replace": "zero", "corpus": None},
    "shares": {"fractions": (0.3,)},
    "positions left out": {"skip": [1]},
}


def table_of(resume, host=None, **other):
    asked = {"methods": {"mine": upwards}, "replace": "resample", "corpus": [3, 5, 7], "fractions": (0.4,)} | other
    prompts = asked.pop("prompts", PROMPTS[:2])
    return evaluate.compare_methods(host or model(), prompts, **asked, resume=resume)


@pytest.mark.parametrize("what", OTHERS)
def test_rows_of_another_comparison_are_not_gone_on_with(what, tmp_path):
    file = tmp_path / "rows.jsonl"
    first = table_of(file)
    written = file.read_bytes()
    assert torch.equal(table_of(file).values, first.values)
    with pytest.raises(ValueError, match=r"rows\.jsonl holds rows of another comparison .*write another path"):
        table_of(file, **OTHERS[what])
    assert file.read_bytes() == written


def test_rows_of_another_model_are_not_gone_on_with(tmp_path):
    """One tensor is another, behind autograd's back: its name, its sizes and its prompts are the same."""
    host = tiny.fresh_host("gpt2", tiny.BACKENDS[0])
    table_of(tmp_path / "rows", host)
    table_of(tmp_path / "rows", host)
    next(p for name, p in host.named_parameters() if "mlp" in name).data.mul_(1.1)
    with pytest.raises(ValueError, match="another comparison"):
        table_of(tmp_path / "rows", host)


def test_a_method_that_cannot_be_told_apart_is_not_gone_on_with(tmp_path):
    layer = torch.nn.Linear(1, 1)  # has no identity in data
    methods = {"mine": lambda question: torch.arange(len(question.tokens)) + 0 * layer.weight.detach()[0]}
    with pytest.raises(ValueError, match=r"resume cannot tell whether 'mine' .*class Linear"):
        table_of(tmp_path / "rows", methods=methods)
    assert table_of(None, methods=methods).values.isfinite().all()


def test_what_a_method_remembers_is_part_of_it(tmp_path):
    def begins(start):
        return {"mine": lambda question: start * torch.arange(len(question.tokens))}

    first = table_of(tmp_path / "rows", methods=begins(1))
    assert torch.equal(table_of(tmp_path / "rows", methods=begins(1)).values, first.values)
    with pytest.raises(ValueError, match="rows of another comparison"):
        table_of(tmp_path / "rows", methods=begins(-1))


@pytest.mark.host
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_the_model_is_left_as_it_came(backend):
    host = tiny.host("llama", backend)
    flags, tokens, state = (
        [p.requires_grad for p in host.parameters()],
        torch.tensor(PROMPTS[:1]),
        torch.get_rng_state(),
    )
    before = host(tokens)
    with torch.no_grad():
        evaluate.compare_methods(host, PROMPTS[:2], list(evaluate.METHODS), leave_one_out=True, replace="resample")
    with torch.inference_mode():
        evaluate.compare_methods(host, PROMPTS[:2], list(evaluate.METHODS), replace="mean")

    def interrupted(question):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate.compare_methods(host, PROMPTS, {"interrupted": interrupted})
    assert torch.equal(host(tokens), before)
    assert [p.requires_grad for p in host.parameters()] == flags
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(hook.fwd_hooks or hook.bwd_hooks for hook in host.hook_dict.values())


def test_the_methods_themselves_are_methods():
    """As functions, not by name: the one with a second parameter as well."""
    model = tiny.host("llama", tiny.BACKENDS[0])
    prompts = [tiny.tokens(6), tiny.tokens(5, seed=1)]
    by_name = evaluate.compare_methods(model, prompts, tuple(evaluate.METHODS))
    as_functions = evaluate.compare_methods(model, prompts, evaluate.METHODS)
    assert torch.equal(by_name.values, as_functions.values)


def test_a_partial_or_a_bound_method_is_a_method_by_its_first_parameter():
    class Mine:
        def tokens(self, question, start=0):
            return torch.arange(start, start + len(question.ids))

    (question,) = ask(model(), PROMPTS[:1], None)
    ours = evaluate.METHODS["integrated_gradients"]
    more = evaluate.attribute(question, functools.partial(ours, steps=21))
    assert_close(more, ours(question, steps=21), 1e-12)
    assert not torch.equal(more, evaluate.attribute(question, ours))
    assert evaluate.attribute(question, Mine().tokens).tolist() == list(range(9))
    by_partial = evaluate.attribute(question, functools.partial(lambda scale, state: scale * state.y, 2))
    assert_close(by_partial, evaluate.attribute(question, lambda state: 2 * state.y), 1e-12)
