"""a − b: the numbers, the error of the difference, the labels that have to agree; and results side by side on one scale."""

import re
from dataclasses import replace

import pytest
import torch

import lens_scopes as ls
import tiny
from lens_scopes.views.markup import colour
from report import assert_close
from shown import flow, scores

WORDS = ("<s>", " the", " cat", " sat", " down")


def estimate(seed: int, probes: int = 4, **meta) -> ls.Scores:
    drawn = torch.rand(probes, 3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    made = scores(WORDS, "squared")
    return replace(made, values=drawn.sum(0), probes=drawn, meta=made.meta | meta)


def scope(text: str, **fields) -> dict:
    return {"kind": "Fisher", "fields": fields, "text": text}


@pytest.mark.parametrize("units", ["norm", "squared", "signed"])
def test_the_difference_is_signed_and_says_of_what(units):
    a, b = scores(WORDS, units), scores(WORDS, units, seed=1)
    b = replace(b, meta=b.meta | {"model": "other"})
    found = a - b
    assert torch.equal(found.values, a.values - b.values)
    assert found.units == "signed"
    assert (found.dims, found.coords, found.tokens, found.probes) == (a.dims, a.coords, a.tokens, None)
    assert [side["model"] for side in found.meta["difference"]] == ["<i>model</i>", "other"]
    assert "model" not in found.meta, "a fact of one side stands for both"
    assert found.meta["token_ids"] == a.meta["token_ids"]
    assert torch.equal((b - a).values, -found.values)


def test_a_difference_survives_a_file(tmp_path):
    found = scores(WORDS) - scores(WORDS, seed=1)
    back = ls.Scores.load(found.save(tmp_path / "x.safetensors"))
    assert torch.equal(back.values, found.values)
    assert dict(back.meta) == dict(found.meta)
    assert ls.show(back).static == ls.show(found).static


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (scores(WORDS, "squared"), "units: 'norm' and 'squared'"),
        (scores(WORDS).sel(site="embed"), r"axes: 2 \('site', 'pos'\) and 1 \('pos'\)"),
        (scores(WORDS, sites=2), r"labels of the axis 'site': 3 \(.*\) and 2"),
        (
            scores(("<s>", " the", " dog", " sat", " up")),
            "tokens: ' cat' and ' dog' at 2, ' down' and ' up' at 4; join",
        ),
        (scores(WORDS[:4]), r"labels of the axis 'pos': 5 \(0, 1, 2, ...\) and 4"),
        (scores(WORDS).aggregate(), "joined to: None and 'word'"),
    ],
)
def test_labels_that_differ_are_named(other, text):
    with pytest.raises(ValueError, match=f"these differ in {text}"):
        scores(WORDS) - other


@pytest.mark.wrong_types
def test_only_scores_are_subtracted():
    with pytest.raises(TypeError, match="unsupported operand"):
        scores(WORDS) - 1


def test_spans_of_two_prompts_agree_by_name():
    a = scores(WORDS, "squared").aggregate({"who": (1, 3), "rest": ...})
    b = scores(("<s>", " the", " old", " cat", " sat"), "squared").aggregate({"who": (1, 4), "rest": ...})
    found = a - b
    assert torch.equal(found.values, a.values - b.values)
    assert found.to_dataframe().length.tolist()[:2] == ["2 and 3", "3 and 2"]
    assert "2 and 3× who" in ls.show(found).static
    other = scores(WORDS, "squared").aggregate({"what": (1, 3), "rest": ...})
    with pytest.raises(ValueError, match="span names: 'who' and 'what' at 0"):
        a - other


def test_a_difference_of_norms_does_not_add_up():
    with pytest.raises(ValueError, match=r"a.aggregate\(...\) - b.aggregate\(...\)"):
        (scores(WORDS) - scores(WORDS, seed=1)).aggregate()
    found = (scores(WORDS, "squared") - scores(WORDS, "squared", seed=1)).aggregate({"a": (0, 2), "b": (2, 5)})
    apart = [scores(WORDS, "squared", seed=n).aggregate({"a": (0, 2), "b": (2, 5)}) for n in (0, 1)]
    assert_close(found.values, (apart[0] - apart[1]).values, 1e-6)


# Errors


def error_of(probes: torch.Tensor) -> torch.Tensor:
    m = len(probes)
    return (m / (m - 1) * (probes - probes.mean(0)).square().sum(0)).sqrt()


def test_independent_estimates_add_their_variances_in_sums_too():
    a = estimate(0, 4, scope=scope("Fisher(8)", seed=0))
    b = estimate(1, 6, scope=scope("Fisher(12, seed=1)", seed=1))
    found = a - b
    assert_close(found.stderr, (error_of(a.probes).square() + error_of(b.probes).square()).sqrt(), 1e-12)
    for part in (lambda s: s.sum("pos"), lambda s: s.aggregate({"x": (0, 2), "y": (2, 5)}), lambda s: s.sel(pos=3)):
        sides = part(a).stderr.square() + part(b).stderr.square()
        assert_close(part(found).stderr, sides.sqrt(), 1e-12)
    assert found.meta["degrees"] == 3
    low, high = found.interval()
    assert_close(high - found.values, 3.182446 * found.stderr, 1e-6)  # Student's t, three degrees
    assert_close(found.values - low, 3.182446 * found.stderr, 1e-6)


def test_estimates_with_the_same_signs_are_paired():
    a, b = (estimate(n, scope=scope(f"Fisher(8{n})", seed=0)) for n in (0, 1))
    found = a - b
    assert_close(found.stderr, error_of(a.probes - b.probes), 1e-12)
    assert found.meta["degrees"] == 3
    same = a - replace(a, meta=a.meta | {"freeze": ["mlp"]})
    assert float(same.stderr.max()) == 0
    elsewhere = replace(b, meta=b.meta | {"positions": [3]})
    assert len((a - elsewhere).probes) == 8, "the signs of another position are others"


def test_the_same_signs_in_other_numbers_are_refused():
    with pytest.raises(ValueError, match=r"4 and 6 probes: .* give one of them another seed"):
        estimate(0, 4, scope=scope("Fisher(8)", seed=0)) - estimate(1, 6, scope=scope("Fisher(12)", seed=0))


def test_one_side_may_be_exact():
    a, exact = estimate(0), scores(WORDS, "squared")
    assert_close((a - exact).stderr, a.stderr, 1e-12)
    assert_close((exact - a).stderr, a.stderr, 1e-12)
    low, high = (exact - a).interval()
    assert bool((low < high).all())


@pytest.mark.host
@pytest.mark.parametrize("paired", [True, False], ids=["paired", "independent"])
def test_the_error_is_that_of_many_draws(paired):
    """Fisher's estimate with and without attention frozen, over 80 seeds: the scatter of the difference."""
    model = tiny.host("llama", tiny.BACKENDS[0])
    ids = tiny.tokens(6)

    def one(seed: int) -> ls.Scores:
        free = ls.score(model, ids, ls.Fisher(6, seed=seed), sites="embed")
        frozen = ls.score(
            model, ids, ls.Fisher(6, seed=seed + 1000 * (not paired)), sites="embed", freeze=("attention",)
        )
        return (free - frozen).sel(site="embed").sum("pos")

    drawn = [one(seed) for seed in range(80)]
    values = torch.stack([d.values for d in drawn]).double()
    rms = torch.stack([d.stderr.double().square() for d in drawn]).mean().sqrt()
    ratio = float(rms / values.std())
    # The partition's own sizes are in the scatter of its probes: errors err on the wide side, never far on the other.
    assert 0.8 < ratio < 4, ratio
    exact = [ls.score(model, ids, ls.Fisher(None), sites="embed", freeze=freeze) for freeze in ((), ("attention",))]
    difference = float((exact[0] - exact[1]).values.sum())
    assert abs(float(values.mean()) - difference) < 4 * float(values.std()) / 80**0.5


@pytest.mark.host
def test_a_difference_is_not_checked():
    model = tiny.host("llama", tiny.BACKENDS[0])
    one = ls.score(model, tiny.tokens(4), ls.Semantic(7))
    with pytest.raises(ValueError, match="check both of its sides"):
        (one - one).check(model)
    with pytest.raises(ValueError, match="check both of its sides"):
        (one - one).check(model, scope=ls.Semantic(7))


# What is shown


def boxes(html: str) -> list[str]:
    return re.split('<div style="display:inline-block;vertical-align:top', html)[1:]


def cells(html: str) -> list[tuple[str, str]]:
    """(background, what the cell says on hover)."""
    return re.findall(r'<(?:td|span) style="[^"]*background:(rgb\([^)]*\))[^"]*" title="([^"]*)"', html)


def shade(value: float, largest: float) -> str:
    return colour(value, largest)[0]


def test_a_difference_has_diverging_colours_and_a_legend_that_says_so():
    a, b = scores(WORDS, sites=2), scores(WORDS, sites=2, seed=1)
    b = replace(b, meta=b.meta | {"freeze": ["mlp"]})
    found = a - b
    html = ls.show(found, "tokens").static
    assert "score (difference of norms)" in html
    assert "frozen: nothing − frozen: mlp" in html
    row = found.values[0].tolist()
    largest = max(map(abs, row))
    assert [background for background, _ in cells(html)] == [shade(value, largest) for value in row]
    assert len({background for background, _ in cells(html)} & {shade(-largest, largest), shade(largest, largest)}) == 1


@pytest.mark.parametrize("view", ["layers", "tokens"])
def test_two_results_share_one_scale(view):
    a, b = scores(WORDS), scores(WORDS, seed=1)
    b = replace(b, values=3 * b.values, meta=b.meta | {"model": "other"})
    html = ls.show([a, b], view).static
    left, right = boxes(html)
    ends = [max(float(s.values[row].max()) for s in (a, b)) for row in range(3)]
    whole = max(ends)
    assert whole < 3 * min(ends), "this case is about one scale for all rows"
    for box, result in ((left, a), (right, b)):
        rows = result.values.tolist() if view == "layers" else [result.values[0].tolist()]
        largest = whole if view == "layers" else ends[0]
        found = [background for background, _ in cells(box)]
        assert found == [shade(value, largest) for row in rows for value in row]
    assert "other" in right
    assert "other" not in left.replace("others", "")
    assert len(set(re.findall(r"<div[^>]*>0 <span.*?score \(norm\)</span></div>", html))) == 1, "one legend"


def test_rows_on_their_own_scales_share_them():
    values = torch.tensor([[8.0, 4.0, 2.0], [0.1, 0.4, 0.2]])
    a, b = (scores(WORDS[:3], values=v, sites=2) for v in (values, values * torch.tensor([[0.5], [2.0]])))
    b = replace(b, meta=b.meta | {"dtype": "float16"})
    html = ls.show([a, b], "layers").static
    left, right = boxes(html)
    assert "embed [8]" in left
    assert "embed [8]" in right
    assert "0 resid_post [0.8]" in left
    assert [c for c, _ in cells(right)] == [
        shade(v, end)
        for end, row in ((8.0, b.values[0]), (float(b.values[1].max()), b.values[1]))
        for v in row.tolist()
    ]


def test_two_units_have_two_scales_and_say_so():
    a, b = scores(WORDS), scores(WORDS, "squared")
    b = replace(b, values=100 * b.values, meta=b.meta | {"scope": scope("Fisher()")})
    html = ls.show([a, b], "tokens").static
    left, right = boxes(html)
    for box, result in ((left, a), (right, b)):
        row = result.values[0].tolist()
        assert [c for c, _ in cells(box)] == [shade(v, max(row)) for v in row]
    assert "score (norm)" in html
    assert "score (squared units)" in html
    assert "numbers of different units are on scales of their own" in html
    assert "Fisher(), squared units" in right
    with pytest.raises(ValueError, match=r"2 units: score \(norm\), Semantic, score \(squared units\), Fisher"):
        ls.Scores.plot([a, b])  # type: ignore[arg-type]


def test_two_kinds_of_scope_have_two_scales_also_in_one_unit():
    """A norm of logits' gradients and one of an entropy's have the same unit and nothing to compare."""
    a, b = scores(WORDS), scores(WORDS)
    b = replace(b, values=100 * b.values, meta=b.meta | {"scope": scope("Entropy()") | {"kind": "Entropy"}})
    html = ls.show([a, b], "tokens").static
    for box, result in zip(boxes(html), (a, b), strict=True):
        row = result.values[0].tolist()
        assert [c for c, _ in cells(box)] == [shade(v, max(row)) for v in row]
    assert "score (norm), Semantic" in html
    assert "score (norm), Entropy" in html
    with pytest.raises(ValueError, match=r"2 units: score \(norm\), Semantic, score \(norm\), Entropy"):
        ls.Scores.plot([a, b])  # type: ignore[arg-type]


def test_headings_name_the_words_that_differ():
    a = scores(("<s>", " the", " black", " cat", " sat"))
    b = scores(("<s>", " the", " big", " grey", " cat", " sat"))
    left, right = boxes(ls.show([a, b], "tokens").static)
    assert "“… black …”" in left
    assert "“… big grey …”" in right
    left, right = boxes(ls.show([a, a], "tokens").static)
    assert (left.count(">1</div>"), right.count(">2</div>")) == (1, 1)


def test_flows_stand_side_by_side():
    a, b = flow(WORDS), flow(WORDS, seed=1)
    b = replace(b, meta=b.meta | {"freeze": ["norm"]})
    html = ls.show([a, b], "heads").static
    assert len(boxes(html)) == 2
    assert "Flow of" in html
    assert "frozen: norm" in html
    with pytest.raises(ValueError, match=r"no view 'edges'; the views that all 2 have: .*'heads', 'stream', 'tokens'"):
        ls.show([a, b], "edges")


@pytest.mark.wrong_types
def test_what_cannot_stand_side_by_side():
    with pytest.raises(TypeError, match="and not Scores, Flow"):
        ls.show([scores(WORDS), flow(WORDS)])
    with pytest.raises(TypeError, match="and not int"):
        ls.show([1])
    with pytest.raises(ValueError, match="the list is empty"):
        ls.show([])
    with pytest.raises(ValueError, match="have: none"):
        ls.show([scores(WORDS), scores(WORDS).sum("pos")])


def test_a_report_has_both_side_by_side(tmp_path):
    a, b = scores(WORDS), scores(("<s>", " a", " dog", " sat", " up"), seed=1)
    page = ls.report([a, "text", [a, b], a - a], tmp_path / "x.html").read_text(encoding="utf-8")
    sections = page.split("<section>")[1:]
    assert len(sections) == 3
    assert len(boxes(sections[1])) == 4, "two views of two results"
    assert re.findall('<p class="prompt">([^<]*)</p>', sections[1]) == [
        "&lt;s&gt; the cat sat down",
        "&lt;s&gt; a dog sat up",
    ]
    assert sections[1].count("<summary>provenance</summary>") == 2


def test_a_plot_has_both_on_one_scale():
    pytest.importorskip("matplotlib")
    from lens_scopes.plot import plot

    a, b = scores(WORDS), scores(WORDS, seed=1)
    b = replace(b, meta=b.meta | {"model": "other"})
    figure = plot([a, b], "layers")
    first, second = figure.axes[:2]
    assert [ax.get_title(loc="left") for ax in (first, second)] == ["<i>model</i>", "other"]
    norms = {(ax.images[0].norm.vmin, ax.images[0].norm.vmax) for ax in (first, second)}
    assert norms == {(0, max(float(a.values.max()), float(b.values.max())))}
    drawn = torch.tensor(second.images[0].get_array().filled()).float()
    assert_close(drawn, b.values, 1e-6)


def test_plots_go_into_axes_of_one_s_own(tmp_path):
    pytest.importorskip("matplotlib")
    import matplotlib.pyplot as plt

    own, axes = plt.subplots(3, 1, figsize=(6, 9), layout="constrained")
    a, b = scores(WORDS), scores(WORDS, seed=1)
    assert a.plot("layers", ax=axes[0]) is own
    assert_close(torch.tensor(axes[0].images[0].get_array().filled()).float(), a.values, 1e-6)
    assert a.plot("tokens", ax=axes[1]) is own
    assert {text.get_text() for text in axes[1].texts} == {"<s>", " the", " cat", " sat", " down"}
    assert flow(WORDS).plot("heads", ax=axes[2]) is own
    own.savefig(tmp_path / "x.pdf")
    assert (tmp_path / "x.pdf").read_bytes().startswith(b"%PDF")
    plt.close(own)
    pair, two = plt.subplots(1, 2)
    from lens_scopes.plot import plot

    assert plot([a, b], "layers", ax=two) is pair
    with pytest.raises(ValueError, match="there are 2 tables to draw and 1 axes"):
        plot([a, b], "layers", ax=two[0])
    with pytest.raises(ValueError, match="leave one of the two out"):
        a.plot(ax=two[0], backend="plotly")
    plt.close(pair)


def test_long_prompts_stand_side_by_side_on_one_scale():
    tokens = [f" t{i}" for i in range(80)]
    a, b = scores(tokens), scores(tokens, seed=1)
    b = replace(b, values=2 * b.values, meta=b.meta | {"model": "other"})
    left, right = boxes(ls.show([a, b], "tokens").static)
    ends = [re.findall(r"</span> ([\d.]+) <span[^>]*>score \(norm\)", box) for box in (left, right)]
    assert ends[0] == ends[1]
    assert [len(found) for found in ends] == [1, 1]
    assert "t3" in left
    layers = boxes(ls.show([a, b], "layers").static)
    names = [set(re.findall(r"(?:embed|\d resid_post)[^<]*", box)) for box in layers]
    assert names[0]


@pytest.mark.parametrize("view", ["layers", "tokens"])
def test_too_much_side_by_side_is_said(view):
    a = scores([f" t{i}" for i in range(3000)], sites=40)
    html = ls.show([a, a, a], view).static
    assert ("select with sel(...)" in html) == (view == "layers")
