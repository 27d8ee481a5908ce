"""What is asked of a whole run: the same means as ``ls.profile``, by SQL; standard errors that mean what they say."""

import numpy as np
import pytest
import torch

import lens_scopes as ls
import tiny

CASES = ls.demo.cases(n=60, seed=11)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The demo model's held-out prompts: scores and flows; and by head."""
    folder, model = tmp_path_factory.mktemp("runs"), ls.demo.load()
    rows = [{"prompt": case.prompt, "target": case.answer} for case in CASES]
    return {
        "stream": ls.corpus.run(model, rows[:20], ls.Semantic(), folder / "stream", flow=True, unit_tokens=100),
        "heads": ls.corpus.run(model, rows[:20], ls.Semantic(), folder / "heads", sites="z"),
        "squared": ls.corpus.run(model, [*rows[:20], ""], ls.Fisher(4), folder / "squared"),
        "many": ls.corpus.run(model, rows, ls.Semantic(), folder / "many", sites="embed"),
    }


def same(found: ls.Profile, expected: ls.Profile) -> None:
    one, other = (p.to_dataframe().set_index(p.by).sort_index() for p in (found, expected))
    assert list(one.index) == list(other.index)
    assert one.prompts.tolist() == other.prompts.tolist()
    for column in ("mean", "stderr"):
        np.testing.assert_allclose(one[column], other[column], rtol=1e-6)
    assert (found.by, found.unit) == (expected.by, expected.unit)
    assert found.meta["scope"]["text"] == expected.meta["scope"]["text"]


@pytest.mark.parametrize("name", ["stream", "squared"])
@pytest.mark.parametrize("by", ["site", "relative_position", "token"])
def test_means_are_those_of_profile(runs, name, by):
    run = runs[name]
    scores = list(run.scores())
    if by == "site":
        same(run.profile(by), ls.profile(scores, by))
        assert run.profile(by).labels == ls.profile(scores, by).labels
        return
    found = run.profile(by, site="embed", top=10**6)
    same(found, ls.profile([one.sel(site="embed") for one in scores], by))
    if by == "token":
        few = run.profile(by, site="embed", top=3)
        assert few.labels == found.labels[:3]
        assert few.prompts.tolist() == sorted(found.prompts.tolist(), reverse=True)[:3]


def test_bins(runs):
    found = runs["many"].profile("relative_position", bins=4)
    same(found, ls.profile([one.sel(site="embed") for one in runs["many"].scores()], "relative_position", bins=4))


def test_no_place_of_short_prompts_is_empty(runs):
    found = runs["many"].profile("relative_position", site="embed", bins=1000)
    same(found, ls.profile([one.sel(site="embed") for one in runs["many"].scores()], "relative_position", bins=1000))
    assert found.prompts.min() >= 1


def test_heads_of_scores_and_of_flows(runs):
    same(runs["heads"].profile("head"), ls.profile(list(runs["heads"].scores()), "head"))
    model = ls.demo.load()
    flows = [ls.flow(model, case.prompt, ls.Semantic(case.answer)) for case in CASES[:20]]
    found, expected = runs["stream"].profile("head"), ls.profile(flows, "head")
    assert (found.labels, found.unit) == (expected.labels, expected.unit)
    np.testing.assert_allclose(found.mean, expected.mean, atol=1e-5 * float(expected.mean.abs().max()))


def test_spans_that_prompts_came_with(tmp_path):
    model = ls.load(tiny.directory("gpt2"))
    texts = [ls.join(model, "The cat", f" {word}") for word in ("dog", "cat")]
    found = ls.corpus.run(model, texts, ls.Semantic(), tmp_path)
    picked = [one.sel(site="embed") for one in found.scores()]
    same(found.profile("span", site="embed"), ls.profile(picked, "span"))


def test_a_long_table_in_sql(runs):
    found = runs["stream"].sql("select id, site, sum(score) as s, count(*) as n from tokens group by all").df()
    for one in runs["stream"].scores():
        text = one.meta["token_ids"]
        row = next(n for n, case in enumerate(CASES) if case.prompt == "".join(one.tokens[1:]).strip())
        mine = found[found.id == str(row)].set_index("site")
        for s, site in enumerate(one.coords["site"]):
            assert mine.s[site] == pytest.approx(float(one.values[s].double().sum()), rel=1e-6)
            assert mine.n[site] == len(text)


@pytest.mark.parametrize(
    ("name", "by", "options", "text"),
    [
        ("stream", "token", {}, r"write profile\('token', site='hook_embed'\)"),
        ("stream", "token", {"site": "z"}, "got 'z'; the run has hook_embed"),
        ("many", "head", {}, "needs a run with flow=True, or with sites='z'"),
        ("many", "layer", {}, "by 'site', 'relative_position', .* got 'layer'"),
    ],
)
@pytest.mark.wrong_types
def test_profiles_that_a_run_does_not_have(runs, name, by, options, text):
    with pytest.raises(ValueError, match=text):
        runs[name].profile(by, **options)


def test_what_a_run_does_not_have(runs, tmp_path):
    with pytest.raises(ValueError, match="has no flows; run it with flow=True"):
        runs["many"].heads()
    model = ls.load(tiny.directory("gpt2"))
    one = ls.corpus.run(model, ["The cat"], ls.Semantic(), tmp_path / "one")
    with pytest.raises(ValueError, match="at least two"):
        one.profile("site")
    several = ls.corpus.run(model, ["The cat", "it"], ls.Semantic(), tmp_path / "several", position=[0, -1])
    with pytest.raises(ValueError, match="several for a prompt"):
        several.profile("site")
    assert "2 of 2 prompts done" in repr(several)


def test_intervals_hold_the_mean_as_often_as_they_say(runs):
    """500 samples of 200 prompts out of a run; the mean over the run is the truth."""
    each = runs["many"].profile("site").each[:, 0].numpy()
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(500):
        sample = torch.tensor(rng.choice(each, 200))[:, None]
        one = ls.Profile(sample, ("embed",), "site", "score")
        held += abs(float(one.mean[0]) - each.mean()) <= 1.972 * float(one.stderr[0])
    assert 0.93 <= held / 500 <= 0.97
