"""Profiles: means over prompts and their errors against loops over prompts; what may not stand in one mean; pictures."""

import math
import re
from collections import defaultdict
from dataclasses import replace

import pytest
import torch

import lens_scopes as ls
import tiny
from report import assert_close
from shown import by_head, by_target, flow, scores

LENGTHS = (5, 8, 6, 9)
WORDS = (" the", " cat", " sat", " the", " dog", " cat", " ran")


def prompts(units: str = "norm") -> list[ls.Scores]:
    made = [
        scores(("<s>", *(WORDS[(i + n) % 7] for i in range(length - 1))), units, seed=n)
        for n, length in enumerate(LENGTHS)
    ]
    return [replace(one, values=one.values.double()) for one in made]


def at_input(units: str = "norm") -> list[ls.Scores]:
    return [one.sel(site="embed") for one in prompts(units)]


def expect(found: ls.Profile, numbers: dict[str, list[float]]) -> None:
    """By label, one number per prompt that has it: mean, and standard deviation over prompts / √n."""
    assert set(found.labels) == {*numbers} | {l for l in found.labels if found.by == "relative_position"}
    frame = found.to_dataframe().set_index(found.by)
    for label, some in numbers.items():
        n, mean = len(some), sum(some) / len(some)
        error = math.sqrt(sum((x - mean) ** 2 for x in some) / (n - 1) / n) if n > 1 else math.nan
        row = frame.loc[label]
        assert row["mean"] == pytest.approx(mean, rel=1e-12)
        assert row["stderr"] == pytest.approx(error, rel=1e-9, nan_ok=True)
        assert row.prompts == n


@pytest.mark.parametrize("units", ["norm", "squared", "signed"])
def test_by_site(units):
    numbers = defaultdict(list)
    for one in prompts(units):
        for label, row in zip(("embed", "0 resid_post", "1 resid_post"), one.values.tolist(), strict=True):
            numbers[label].append(math.sqrt(sum(x * x for x in row)) if units == "norm" else sum(row))
    expect(ls.profile(prompts(units), "site"), numbers)


@pytest.mark.parametrize("bins", [9, 3])
def test_by_relative_position(bins):
    numbers = defaultdict(list)
    for one in at_input():
        gathered, end = defaultdict(list), len(one.tokens) - 1
        for at, value in enumerate(one.values.tolist()):
            for n in range(bins):
                last = n == bins - 1
                if n / bins <= at / end < (n + 1) / bins or (last and at == end):
                    gathered[n].append(value)
        for n, some in gathered.items():
            numbers[f"{n / bins:.2g}–{(n + 1) / bins:.2g}"].append(sum(some) / len(some))
    found = ls.profile(at_input(), "relative_position", bins=bins)
    assert len(found.labels) == bins
    expect(found, numbers)


@pytest.mark.parametrize("bins", range(1, 30))
def test_no_place_of_short_prompts_is_empty(bins):
    longest = max(len(one.tokens) for one in at_input())
    found = ls.profile(at_input(), "relative_position", bins=bins)
    assert len(found.labels) == min(bins, longest)
    assert found.prompts.min() >= 1
    assert found.labels[-1].endswith("–1")


def test_places_end_at_the_position_explained():
    """What follows it scores 0 and is in no mean."""
    early = [replace(one, meta=one.meta | {"positions": [3]}) for one in at_input()]
    found = ls.profile(early, "relative_position", bins=4)
    labels = ("0–0.25", "0.25–0.5", "0.5–0.75", "0.75–1")
    places = (0, 1, 2)  # of thirds into quarters: 0, 1/3, 2/3, and 1 in the last
    numbers = {label: [one.values[n].item() for one in early] for n, label in zip(places, labels, strict=False)}
    expect(found, numbers | {labels[3]: [one.values[3].item() for one in early]})
    texts = {one.tokens[i] for one in early for i in range(4)}
    assert set(ls.profile(early, "token").labels) == texts


def test_by_token_weighs_prompts_and_not_places():
    numbers = defaultdict(list)
    for one in at_input():
        places = defaultdict(list)
        for text, value in zip(one.tokens, one.values.tolist(), strict=True):
            places[text].append(value)
        for text, some in places.items():
            numbers[text].append(sum(some) / len(some))
    assert any(len(some) < len(LENGTHS) for some in numbers.values())
    expect(ls.profile(at_input(), "token"), numbers)


def test_by_span():
    results = [one.aggregate({"first": (0, 1), "rest": ...}) for one in at_input()]
    found = ls.profile(results, "span")
    expect(found, {name: [float(one.values[n]) for one in results] for n, name in enumerate(("first", "rest"))})
    assert found.lengths == (1.0, sum(n - 1 for n in LENGTHS) / 4)
    assert found.to_dataframe().length.tolist() == list(found.lengths)
    own = [
        replace(one, meta=one.meta | {"spans": {"first": [0, 1], "rest": [1, len(one.tokens)]}}) for one in at_input()
    ]
    assert_close(ls.profile(own, "span").each, found.each, 1e-12)
    html = found._repr_html_()
    assert re.findall(r"<th[^>]*>(first|rest)</th><td[^>]*>([\d.]+)</td>", html) == [("first", "1"), ("rest", "6")]


def test_by_head_of_scores_and_of_flows():
    results = [by_head(WORDS[:n], seed=n) for n in (4, 5, 7)]
    numbers = {
        f"{layer}.{head}": [float(one.values[layer, :, head].double().square().sum().sqrt()) for one in results]
        for layer in range(2)
        for head in range(3)
    }
    expect(ls.profile(results, "head"), numbers)
    flows = [flow(WORDS[:n], seed=n) for n in (4, 5, 7)]
    found = ls.profile(flows, "head")
    expect(
        found,
        {
            f"{layer}.{head}": [float(one.heads[:, layer, head].double().sum()) for one in flows]
            for layer in range(2)
            for head in range(3)
        },
    )
    assert found.unit == "influence (norm)"


def test_differences_are_averaged_in_pairs():
    pairs = [
        (one, replace(one, values=one.values * 0.5, meta=one.meta | {"freeze": ["mlp"]})) for one in prompts("squared")
    ]
    found = ls.profile([a - b for a, b in pairs], "site")
    expect(found, {label: [float(a.values[n].sum()) / 2 for a, _ in pairs] for n, label in enumerate(found.labels)})
    assert found.unit == "score (difference of squared units)"


def test_it_survives_a_file(tmp_path):
    for found in (ls.profile(prompts(), "site"), ls.profile(at_input(), "token")):
        back = ls.Profile.load(found.save(tmp_path / "x.safetensors"))
        assert torch.equal(back.each.nan_to_num(), found.each.nan_to_num())
        assert (back.labels, back.by, back.unit, back.lengths) == (found.labels, found.by, found.unit, found.lengths)
        assert back.title == found.title
        assert back._repr_html_() == found._repr_html_()
    with pytest.raises(ValueError, match=r"load it with Profile.load"):
        ls.Scores.load(tmp_path / "x.safetensors")


def changed(**facts) -> ls.Scores:
    one = prompts()[1]
    return replace(one, meta=one.meta | facts)


def aim(target: str, versus: str | None) -> dict:
    return {"kind": "Semantic", "fields": {"target": target, "versus": versus}, "text": f"Semantic({target!r})"}


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (changed(units="squared"), r"different units: score \(norm\) and score \(squared units\)"),
        (changed(model="other"), "different model: <i>model</i> and other"),
        (changed(freeze=["mlp"]), r"different freeze: \[\] and \['mlp'\]"),
        (changed(along="activation"), "different along"),
        (changed(folded=True), "different folded"),
        (changed(scope={"kind": "Temperature", "fields": {}, "text": "Temperature()"}), "different scopes"),
        (changed(scope=aim("a", "b")), "different scopes: .*'one token'.*'against another token'"),
        (scores(WORDS, sites=2), "different sites"),
        (prompts()[1].aggregate(), "different aggregated: None and word"),
        (changed(hooks=["blocks.0.hook_mlp_out"]), r"different hooks: None and \['blocks.0.hook_mlp_out'\]"),
        (changed(selected={"head": 3}), r"different selections: \{\} and \{'head': 3\}"),
        (changed(summed=["head"]), r"different sums: None and \['head'\]"),
        (changed(reduce="sum"), "different reduce: None and sum"),
        (changed(replace="zero"), "different replace: None and zero"),
        (flow(WORDS), "a Flow has heads"),
    ],
)
def test_what_does_not_belong_into_one_mean(other, text):
    with pytest.raises(ValueError, match=text):
        ls.profile([prompts()[0], other], "site")


def test_predictions_by_two_methods_do_not_belong_into_one_mean():
    some = [replace(one, meta=one.meta | {"patching": "predicted", "method": "path"}) for one in prompts("signed")]
    assert ls.profile(some, "site").meta["method"] == "path"
    some[2] = replace(some[2], meta=some[2].meta | {"method": "gradient"})
    with pytest.raises(ValueError, match="different methods: path and gradient"):
        ls.profile(some, "site")
    flows = [flow(WORDS), replace(flow(WORDS), meta=flow(WORDS).meta | {"corrupted_token_ids": [1]})]
    with pytest.raises(ValueError, match="different kinds of flows: of one and against another prompt"):
        ls.profile(flows, "head")


def test_a_profile_says_of_which_part_it_is():
    taken = [replace(one, meta=one.meta | {"freeze": ["norm"], "hooks": ["h"]}).sel(site="embed") for one in prompts()]
    for text in ("site embed", "frozen: norm", "with hooks at h"):
        assert text in ls.profile(taken, "token").title
        assert text in ls.show(ls.profile(taken, "token")).title


def test_each_prompt_may_have_its_own_target_and_seed():
    results = [replace(one, meta=one.meta | {"scope": aim(f"t{n}", "x")}) for n, one in enumerate(prompts())]
    assert ls.profile(results, "site").title.startswith(
        "Semantic of each prompt's own target on <i>model</i>: mean over 4"
    )
    kinds = [
        {"kind": "Fisher", "fields": {"passes": p, "seed": s}, "text": f"Fisher({p})"}
        for p, s in ((8, 0), (8, 1), (4, 1))
    ]
    seeds = [replace(one, meta=one.meta | {"scope": kind}) for one, kind in zip(prompts(), kinds, strict=False)]
    ls.profile(seeds[:2], "site")
    with pytest.raises(ValueError, match="different scopes"):
        ls.profile(seeds, "site")


def test_axes_that_are_left_are_refused():
    with pytest.raises(ValueError, match=r"axis 'site' is left: sel\(site='hook_embed'\)"):
        ls.profile(prompts(), "token")
    with pytest.raises(ValueError, match=r"axis 'target_pos' is left: sel\(target_pos=4\)"):
        ls.profile([by_target(WORDS), by_target(WORDS, seed=1)], "token")
    with pytest.raises(ValueError, match=r"needs the axis 'head'.*score with sites='z'"):
        ls.profile(prompts(), "head")
    with pytest.raises(ValueError, match="needs the axis 'site'"):
        ls.profile(at_input(), "site")
    with pytest.raises(ValueError, match="needs spans with names"):
        ls.profile(at_input(), "span")
    with pytest.raises(ValueError, match="is about single tokens"):
        ls.profile([one.aggregate() for one in at_input()], "relative_position")
    assert ls.profile([one.aggregate() for one in at_input()], "token").labels


@pytest.mark.wrong_types
def test_what_is_no_list_of_results():
    with pytest.raises(ValueError, match="at least two, got 1"):
        ls.profile(prompts()[:1], "site")
    with pytest.raises(TypeError, match="got a int in it"):
        ls.profile([1, 2], "site")
    with pytest.raises(ValueError, match="'relative_position', 'token', 'span', 'head', got 'layer'"):
        ls.profile(prompts(), "layer")


def test_matplotlib_draws_the_band():
    pytest.importorskip("matplotlib")
    found = ls.profile(prompts(), "site")
    (axes,) = found.plot().axes
    (line,) = axes.lines
    assert line.get_ydata().tolist() == pytest.approx(found.mean.tolist())
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    for x, (mean, error) in enumerate(zip(found.mean.tolist(), found.stderr.tolist(), strict=True)):
        heights = corners[corners[:, 0] == x][:, 1]
        assert (heights.min(), heights.max()) == (pytest.approx(mean - error), pytest.approx(mean + error))
    assert [text.get_text() for text in axes.get_xticklabels()] == list(found.labels)
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {"mean", "± 1 standard error"}
    assert axes.get_ylabel() == found.unit


def test_matplotlib_draws_bars_where_there_is_no_order():
    plt = pytest.importorskip("matplotlib.pyplot")
    found = ls.profile([one.aggregate({"first": (0, 1), "rest": ...}) for one in at_input()], "span")
    own, axes = plt.subplots()
    assert found.plot(ax=axes) is own
    (points, _, (bars,)) = axes.containers[0]
    assert points.get_ydata().tolist() == pytest.approx(found.mean.tolist())
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    assert ends == [
        pytest.approx([m - e, m + e]) for m, e in zip(found.mean.tolist(), found.stderr.tolist(), strict=True)
    ]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1× first", "6× rest"]
    plt.close(own)
    with pytest.raises(ValueError, match="one view only"):
        ls.Scores.plot(found, "layers")  # type: ignore[arg-type]


def test_many_labels_are_cut_and_said():
    pytest.importorskip("matplotlib")
    results = [replace(scores([f"t{i}" for i in range(60)], seed=n).sel(site="embed")) for n in range(3)]
    found = ls.profile(results, "token")
    (axes,) = found.plot().axes
    names = [text.get_text() for text in axes.get_xticklabels()]
    best = found.to_dataframe().sort_values("mean", ascending=False).token.tolist()[:40]
    assert names == best
    assert "20 with smaller means are left out" in axes.get_xlabel()
    assert "20 labels with smaller means are left out" in found._repr_html_()


def test_plotly_draws_the_same():
    pytest.importorskip("plotly")
    found = ls.profile(prompts(), "site")
    band, line = found.plot(backend="plotly").data
    assert list(line.y) == pytest.approx(found.mean.tolist())
    assert list(band.y)[:3] == pytest.approx((found.mean + found.stderr).tolist())
    assert list(band.y)[3:] == pytest.approx((found.mean - found.stderr).tolist()[::-1])
    (points,) = ls.profile(at_input(), "token").plot(backend="plotly").data
    assert len(points.error_y.array) == len(points.y)


def test_it_is_shown_and_reported(tmp_path):
    found = ls.profile(prompts(), "site")
    html = ls.show(found).static
    rows = re.findall(
        r'<th style="[^"]*">(\w[^<]*)</th><td[^>]*>([^<]*)</td><td[^>]*>([^<]*)</td><td[^>]*>(\d)</td>', html
    )
    assert [row[0] for row in rows] == list(found.labels)
    assert [float(row[1]) for row in rows] == pytest.approx(found.mean.tolist(), rel=0.01)
    assert [float(row[2]) for row in rows] == pytest.approx(found.stderr.tolist(), rel=0.01)
    assert "&lt;i&gt;model&lt;/i&gt;: mean over 4 prompts by site" in html
    page = ls.report([found, prompts()[0]], tmp_path / "x.html").read_text(encoding="utf-8")
    assert "mean over 4 prompts by site" in page


@pytest.mark.host
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_prompts_of_a_model(backend):
    model = tiny.host("llama", backend, torch.float32)
    ids = [tiny.tokens(n, seed=n) for n in (4, 6, 7)]
    results = ls.score_batch(model, ids, ls.Semantic())
    found = ls.profile(results, "site")
    whole = torch.stack([one.values.double().square().sum(1).sqrt() for one in results])
    assert_close(found.mean, whole.mean(0), 1e-6)
    assert_close(found.stderr, whole.std(0) / 3**0.5, 1e-6)
    assert found.meta["model"] == results[0].meta["model"]
    assert "token_ids" not in found.meta
