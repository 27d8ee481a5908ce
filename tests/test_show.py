"""show: the views of each result, circuitsvis without its network, caps that say so."""

import json
import math
import re
from dataclasses import replace

import pytest
import torch

import lens_scopes as ls
from lens_scopes.views import circuits, dispatch
from shown import HOSTILE, flow, meta, scores

WORDS = ("<s>", " the", " cat", " sat", ".")


def data(shown):
    """The figures in a page."""
    return json.loads(re.search(r'id="lens-figures">(.*?)</script>', shown.document, re.DOTALL)[1])


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (scores(WORDS), ("layers", "tokens")),
        (scores(WORDS).sel(site="embed"), ("tokens",)),
        (scores(WORDS).sel(pos=1), ()),
        (flow(WORDS), ("last", "heads", "stream", "edges", "tokens")),
        (flow(WORDS, together=True, edges=False), ("last", "heads", "stream")),
    ],
)
def test_views(result, expected):
    assert dispatch.views(result) == expected
    assert result.show().view == (expected[0] if expected else None)
    for view in expected:
        assert view in repr(ls.show(result, view))


def test_axes_decide_the_views():
    coords = {"target_pos": (3, 4), "site": ("a",), "pos": tuple(range(5)), "head": (0, 1)}
    values = torch.rand(2, 1, 5, 2)
    by_head = ls.Scores(values, ("target_pos", "site", "pos", "head"), coords, WORDS, {})
    assert dispatch.views(by_head) == ("heads",)
    targets = by_head.sel(site="a", head=0)
    assert dispatch.views(targets) == ("targets", "tokens")
    assert len(data(targets.show("targets"))[0]["props"]["labels"]) == 2


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: ls.show(scores(WORDS), "edges"), "'layers', 'tokens'"),
        (lambda: ls.show(flow(WORDS, edges=False), "edges"), "edges=True"),
        (lambda: ls.show(scores(WORDS).sel(pos=1), "tokens"), "leave view out"),
        (lambda: ls.show(scores(WORDS), first="drop"), "'show', 'hide' or 'share'"),
        (lambda: flow(WORDS).show("heads", first="drop"), "'show', 'hide' or 'share'"),
    ],
)
def test_what_is_not_there(call, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        call()


def test_no_result():
    with pytest.raises(TypeError, match="Tensor"):
        ls.show(torch.rand(3))


def test_figures_carry_the_numbers():
    result = scores(WORDS, "signed")
    (strip,) = data(result.show("tokens"))
    expected = result.sel(site="embed").values
    assert strip["props"]["values"] == pytest.approx(expected.tolist(), rel=1e-5)
    assert strip["props"]["maxValue"] == -strip["props"]["minValue"]
    (multi,) = data(result.show("layers"))
    ends = torch.tensor([float(label.rsplit("[", 1)[1][:-1]) for label in multi["props"]["labels"]])
    scaled = torch.tensor(multi["props"]["values"]).T
    torch.testing.assert_close(scaled * ends[:, None], result.values, rtol=6e-3, atol=0)  # names have three digits
    assert multi["props"]["positiveBounds"] == [1, 1, 1]

    travel = flow(WORDS)
    (maps,) = data(travel.show("edges"))
    for name, values in zip(maps["props"]["attentionHeadNames"], maps["props"]["attention"], strict=True):
        layer, head, kind = re.fullmatch(r"(\d+)\.(\d+) (value|pattern)", name).groups()
        edge = travel.edges[["value", "pattern"].index(kind), int(layer), int(head)]
        torch.testing.assert_close(torch.tensor(values), edge, rtol=1e-3, atol=1e-6)


def test_maps_of_some_heads_have_their_own_names():
    every, heads = flow(WORDS), [(1, 2), (0, 1)]
    some = replace(
        every,
        edges=torch.stack([every.edges[:, layer, head] for layer, head in heads], 1),
        meta=every.meta | {"edge_heads": [list(head) for head in heads]},
    )
    (maps,) = data(some.show("edges"))
    names = maps["props"]["attentionHeadNames"]
    assert {name.split()[0] for name in names} == {"1.2", "0.1"}
    for name, values in zip(names, maps["props"]["attention"], strict=True):
        layer, head, kind = re.fullmatch(r"(\d+)\.(\d+) (value|pattern)", name).groups()
        edge = every.edges[["value", "pattern"].index(kind), int(layer), int(head)]
        torch.testing.assert_close(torch.tensor(values), edge, rtol=1e-3, atol=1e-6)
    listed = some.show("edges").static
    assert ">1.2<" in listed
    assert ">1.1<" not in listed
    assert "edges from position 0 are left out: they have" in some.show("edges", first="share").note


def test_missing_numbers_are_seen():
    values = torch.tensor([[1.0, math.nan, 0.5, 0.25, 0.1]])
    result = scores(WORDS, values=values, sites=1)
    (strip,) = data(result.show("tokens"))
    assert strip["props"]["values"][1] is None
    assert strip["props"]["tokens"][1] == " the[NaN]"
    assert strip["props"]["maxValue"] == 1.0
    (multi,) = data(scores(WORDS, values=values.repeat(2, 1), sites=2).show("layers"))
    assert multi["props"]["tokens"][1] == " the[NaN]"
    assert multi["props"]["values"][0] == [1, 1]


def test_an_attention_sink_does_not_set_the_scale():
    result = scores(WORDS, values=torch.tensor([[90.0, 1, 2, 3, 4]]).repeat(2, 1), sites=2)
    assert "[4]" in data(result.show("layers"))[0]["props"]["labels"][0]
    assert data(result.show("tokens"))[0]["props"]["maxValue"] == 4
    hidden = result.show("tokens", first="hide")
    assert len(data(hidden)[0]["props"]["tokens"]) == 4
    shared = result.show("layers", first="share")
    assert "(90 %)" in data(shared)[0]["props"]["labels"][0]
    assert "(90 %)" in shared.static
    assert "position 0 is left out" in result.show("tokens", first="share").static


def test_source_0_of_a_flow_can_be_left_out():
    travel = flow(WORDS)
    kept = float(travel.total[1:].sum())
    expected = travel.heads[1:].sum(0) / kept
    (grid,) = dispatch.grids(travel, "heads", "share")
    torch.testing.assert_close(torch.tensor(grid.values)[:, :-1], expected)
    share = 100 * float(travel.total[0] / travel.total.sum())
    assert f"{share:.3g} % of the total" in grid.note
    (grid,) = dispatch.grids(flow(WORDS, together=True), "heads", "hide")
    assert "sources='each'" in grid.note
    (grid,) = dispatch.grids(travel, "stream", "hide")
    assert grid.positions[0] == 1
    shown = travel.show("edges", first="share")
    sizes = travel.edges.abs().sum((0, 1, 2, 3))
    told = f"edges from position 0 are left out: they have {100 * float(sizes[0] / sizes.sum()):.3g} %"
    assert told in shown.note
    assert told in shown.static
    assert not torch.tensor(data(shown)[0]["props"]["attention"])[..., 0].any()
    assert "(0)</td>" not in travel.show("edges", first="hide").static.replace("destination", "")


def test_one_source_of_a_flow():
    travel = flow(WORDS)
    one = travel.sel(source=2)
    assert dispatch.views(one) == ("last", "heads", "stream")
    (grid,) = dispatch.grids(one, "stream")
    torch.testing.assert_close(torch.tensor(grid.values), travel.stream[2] / travel.total[2])
    assert "of “␣cat” (position 2)" in grid.title
    assert "of “␣cat” (position 2)" in one.show("heads").static
    assert one.plot("stream").axes[0].get_title(loc="left").startswith("where the influence of “␣cat”")
    with pytest.raises(KeyError, match="9"):
        travel.sel(source=9)
    with pytest.raises(ValueError, match="sources='each'"):
        flow(WORDS, together=True).sel(source=2)


def test_tokens_become_text():
    (strip,) = data(scores(HOSTILE).show("tokens"))
    for token in strip["props"]["tokens"]:
        assert not re.search("[<&](?!\u2060)", token)
        assert len(token.replace("\u2060", "")) <= 24
    document = scores(HOSTILE).show("layers").document.replace(circuits.bundle(), "")
    assert document.count("<script") == 3  # the data, circuitsvis, ours
    assert "window.harmed=1</" not in document.split("<body>")[0]


def test_a_page_has_no_address_and_names_its_scripts():
    for result in (scores(WORDS), flow(WORDS)):
        for view in dispatch.views(result):
            shown = result.show(view)
            if shown.document is None:
                continue
            assert not re.search("https?://", shown.document)
            policy = re.search(r'Content-Security-Policy" content="([^"]*)"', shown.document)[1]
            assert policy.startswith("default-src 'none'; script-src 'sha256-")
            assert "unsafe-eval" not in policy
            assert result.show(view)._repr_html_() == shown._repr_html_()


def test_a_frame_is_sandboxed_and_the_static_view_is_beside_it():
    text = scores(WORDS).show()._repr_html_()
    assert text.startswith('<iframe sandbox="allow-scripts" srcdoc="')
    without = re.sub("<iframe.*?</iframe>", "", text, flags=re.DOTALL)
    assert "<script" not in without
    assert without.count("<td") == 15
    assert "<iframe" not in flow(WORDS).show("heads")._repr_html_()


def test_the_colours_of_the_bundle_are_ours():
    bundle = circuits.bundle()
    assert bundle.count(',red:"#b35806"') == bundle.count(',blue:"#084594"') == 1
    assert "sourceMappingURL" not in bundle
    assert "</script" not in bundle.lower()


def test_caps_say_what_is_left_out(tmp_path):
    words = ["w"] * 60
    many = flow(words, layers=4, heads=6)
    shown = many.show("edges")
    assert len(data(shown)[0]["props"]["attentionHeadNames"]) == 12
    assert "18 others are not drawn" in shown.note
    kept = data(shown)[0]["props"]["attentionHeadNames"]
    strength = many.edges.abs().sum((0, 3, 4))
    best = divmod(int(strength.argmax()), 6)
    assert kept[0] == f"{best[0]}.{best[1]} value"
    long = flow(["w"] * 200, layers=1, heads=1)
    shown = long.show("edges")
    assert shown.document is None
    assert "200 x 200" in shown._repr_html_()
    assert "strongest edges" in shown.static
    assert "200 x 200" in shown.save(tmp_path / "long.html").read_text(encoding="utf-8")
    one = flow(["w"] * 140, layers=1, heads=2).show("edges")
    assert one.note == "the head whose edges have the largest sums of magnitudes, largest first; 1 others are not drawn"
    shown = scores(["w"] * 3000, sites=40).show("layers")
    assert len(data(shown)[0]["props"]["labels"]) == 21
    assert "21 of 40 rows" in shown.note
    shown = scores(["w"] * 6000, sites=1).show("tokens")
    assert shown.document is None
    assert "6000 tokens" in shown.note


def test_save(tmp_path):
    shown = scores(WORDS).show()
    text = shown.save(tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert "<details open><summary>Static view" in text
    assert "<details><summary" in scores(WORDS).show("tokens")._repr_html_()
    flow(WORDS).show("heads").save(tmp_path / "static.html")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["page.html", "static.html"]
    with pytest.raises(FileNotFoundError, match="no directory"):
        shown.save(tmp_path / "nowhere" / "page.html")


def test_other_results_are_shown_as_they_show_themselves():
    class Other:
        def _repr_html_(self):
            return "<b>other</b>"

    assert ls.show(Other())._repr_html_() == "<b>other</b>"


def test_blanks_of_a_token_stay_in_the_titles_of_one_source_and_of_a_comparison():
    """ " king" and "king" are two tokens."""
    from lens_scopes import patching

    titles = []
    for text in (" king", "king"):
        one = flow(("<s>", text, " x")).sel(source=1)
        (grid,) = dispatch.grids(one, "heads")
        titles.append(grid.title)
        about = meta("ab", "signed") | {"targets": [{"id": 1, "text": text, "p": 0.5, "rank": 0}]}
        effects = ls.Scores(
            torch.rand(1, 2), ("site", "pos"), {"site": ("hook_embed",), "pos": (0, 1)}, ("a", "b"), about
        )
        titles.append(patching.compare(effects, effects)._title)
    assert "“␣king”" in titles[0]
    assert "“king”" in titles[2]
    assert [title.partition(" on ")[0] for title in titles[1::2]] == ["Semantic(␣king)", "Semantic(king)"]
