"""What the explorer is given: exact numbers, the scales of the other views, and what was joined by `aggregate`."""

import base64
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import lens_scopes as ls
from lens_scopes.views import dispatch, markup
from lens_scopes.views.explorer import explorer_data
from shown import by_head, flow, generation, scores

WORDS = ("<s>", " the", " cat", " sat", ".")
TEXT = ("<s>", " The", " cat", "ch", ".", " It", " s", "at", "!")


def unpacked(packed):
    kind = "<f8" if packed["wide"] else "<f4"
    numbers = np.frombuffer(base64.b64decode(packed["bytes"]), kind).reshape(packed["shape"])
    return torch.from_numpy(numbers.copy())


def levels(data, result=0):
    return data["results"][result]["levels"]


def test_a_flow_s_numbers_are_exact():
    travel = flow(WORDS)
    data = explorer_data(travel, "x")
    for part in ("total", "heads", "mlps", "skip", "stream", "last"):
        assert torch.equal(unpacked(data[part]), getattr(travel, part)), part
    assert explorer_data(flow(WORDS, together=True), "x") is None


def test_a_head_s_edges_are_its_strongest():
    travel = flow(["w"] * 12)
    for head in explorer_data(travel, "x")["edges"]:
        maps = travel.edges[:, head["layer"], head["head"]]
        found = unpacked(head["values"])
        assert torch.equal(found.abs(), maps.abs().flatten().topk(20).values)
        at = [(["value", "pattern"].index(kind), query, key) for kind, key, query in head["places"]]
        assert [float(maps[one]) for one in at] == found.tolist()
        assert head["count"] == 2 * 12 * 13 // 2


def test_a_long_prompt_keeps_its_strongest_sources(tmp_path):
    travel = flow(["w"] * 300, layers=4, heads=4, edges=False)
    data = explorer_data(travel, "x")
    assert len(data["sources"]) == 150_000 // (4 * 4 + 4 * 4 + 4 + 4 + 5 * 300)
    left = set(range(300)) - set(data["sources"])
    assert float(travel.total[data["sources"]].min()) >= float(travel.total[list(left)].max())
    text = ls.report(travel, tmp_path / "r.html").read_text(encoding="utf-8")
    assert f"{len(left)} tokens (grey) have no row here" in text


def test_levels_are_what_aggregate_gives():
    every = generation(TEXT, 5)
    found = levels(explorer_data(every, "x"))
    assert list(found) == ["token", "word", "sentence", "line", "span"]  # the BOS is a line; there is no chat
    for by, level in found.items():
        joined = every if by == "token" else every.aggregate(by)
        assert torch.equal(unpacked(level["values"]), joined.values.reshape(8, -1)[: len(level["ends"])])
        assert level["members"] == joined.meta.get("joined")
        assert tuple(level["texts"]) == joined.tokens
    only = every.aggregate("word")
    assert list(levels(explorer_data(only, "x"))) == ["word"]
    # Differences of norms and single patches do not add up, and nothing pretends that they do.
    difference = every - generation(TEXT, 5, seed=1)
    measured = replace(every, meta=every.meta | {"units": "signed", "patching": "measured"})
    for apart in (difference, difference - difference, measured, measured - measured):
        assert list(levels(explorer_data(apart, "x"))) == ["token"]


def test_an_estimate_has_its_standard_errors():
    estimate = generation(TEXT, 5, units="squared", passes=4)
    for by, level in levels(explorer_data(estimate, "x")).items():
        joined = estimate if by == "token" else estimate.aggregate(by)
        assert torch.equal(unpacked(level["stderr"]).flatten(), joined.stderr.flatten())
        assert all(re.fullmatch(r"± [\d.]+ %", one) for one in level["known"])


def test_rows_have_the_scales_of_the_other_views():
    result = by_head(WORDS)
    (token, *_) = levels(explorer_data(result, "x")).values()
    assert set(token["ends"]) == {grid.largest for grid in dispatch.grids(result, "heads")}
    layers = scores(WORDS, values=torch.tensor([[90.0, 1, 2, 3, 4], [1.0, 10, 20, 30, 40]]), sites=2)
    (grid,) = dispatch.grids(layers, "layers")
    assert levels(explorer_data(layers, "x"))["token"]["ends"] == list(grid.ends) == [4, 40]
    hidden = levels(explorer_data(layers, "x", "share"))["token"]
    assert hidden["left"] == [
        f"position 0 is left out: it has {share} of the row's sum of magnitudes" for share in ("90 %", "0.99 %")
    ]


def test_units_and_scopes_have_scales_of_their_own():
    small, large, squared = generation(TEXT, 5), generation(TEXT, 5, seed=1), generation(TEXT, 5, units="squared")
    large = replace(large, values=100 * large.values)
    alone, both = explorer_data(small, "x"), explorer_data([small, large, squared], "x")
    ends = [levels(both, n)["token"]["ends"] for n in range(3)]
    assert ends[0] == ends[1] != levels(alone)["token"]["ends"]
    assert ends[2] == levels(explorer_data(squared, "x"))["token"]["ends"]
    other = replace(large, meta=large.meta | {"scope": {"kind": "another", "fields": {}, "text": "another"}})
    apart = explorer_data([small, other], "x")
    assert levels(apart)["token"]["ends"] == levels(alone)["token"]["ends"]


def test_what_is_too_much_for_a_page_is_left_out_and_said(monkeypatch):
    every = generation(TEXT, 5)
    monkeypatch.setattr("lens_scopes.views.explorer_scores.MOST_NUMBERS", every.values.numel() + 60)
    data = explorer_data(every, "x")
    assert list(levels(data)) == ["token", "word"]
    assert data["note"] == "too many numbers for a page, and left out: sentence, line, span"
    assert "left out: sentence, line, span" in every.show("explorer").document
    monkeypatch.setattr("lens_scopes.views.explorer_scores.MOST_NUMBERS", 10)
    with pytest.raises(ValueError, match=re.escape("select a part with sel(...)")):
        every.show("explorer")


def test_300_tokens_and_40_explained_stay_below_400_kb(tmp_path):
    tokens = ["<s>", *(f" word{i}"[: 3 + i % 5] if i % 12 else "." for i in range(1, 340))]
    every = generation(tokens, 300, sites=1)
    assert every.values.numel() == 40 * 340
    assert every.show("explorer").save(tmp_path / "x.html").stat().st_size < 400_000


def test_show_has_it_beside_the_views():
    shown = generation(TEXT, 5).show("explorer")
    assert shown.view == "explorer"
    assert 'sandbox="allow-scripts allow-downloads"' in shown._repr_html_()
    assert "allow-downloads" not in generation(TEXT, 5).show()._repr_html_()
    with pytest.raises(ValueError, match="'layers', 'tokens', 'explorer'"):
        ls.show(scores(WORDS), "heads")
    with pytest.raises(ValueError, match="'layers', 'tokens', 'explorer'"):
        ls.show([scores(WORDS), scores(WORDS)], "heads")
    with pytest.raises(ValueError, match="no view 'explorer'"):
        dispatch.choose(scores(WORDS), "explorer")  # a figure has none
    with pytest.raises(ValueError, match=re.escape('sources="each"')):
        flow(WORDS, together=True).show("explorer")
    with pytest.raises(ValueError, match="of Scores, of a list of Scores, or of one Flow"):
        ls.show([flow(WORDS), flow(WORDS)], "explorer")
    assert ls.show([by_head(WORDS), scores(WORDS).sel(site="embed")], "explorer").document  # no view in common
    assert flow(WORDS).show("explorer").document


@pytest.mark.wrong_types
def test_position_0_is_shown_left_out_or_a_share():
    with pytest.raises(ValueError, match="first says"):
        generation(TEXT, 5).show("explorer", first="no")


def test_a_report_has_one_explorer_for_the_scores_of_a_prompt(tmp_path):
    one, two, other = generation(TEXT, 5), generation(TEXT, 5, seed=1), scores(WORDS)
    text = ls.report([one, other, two, scores(WORDS).sel(site="embed")], tmp_path / "r.html").read_text("utf-8")
    assert re.findall(r'<div id="(.*?)" class="lens-explorer', text) == ["result-0-explorer", "result-1-explorer"]
    assert text.count("its explorer stands above") == 1
    text = ls.report([one, [one, two]], tmp_path / "r.html").read_text("utf-8")
    assert re.findall(r'<div id="(.*?)" class="lens-explorer', text) == ["result-0-explorer", "result-1-explorer"]
    assert not re.search("https?://", text)


def test_scores_for_which_there_is_no_room_begin_another_explorer(tmp_path, monkeypatch):
    every = [generation(TEXT, 5, seed=seed) for seed in range(3)]
    monkeypatch.setattr("lens_scopes.views.explorer_scores.MOST_NUMBERS", 2 * every[0].values.numel())
    text = ls.report(every, tmp_path / "r.html").read_text("utf-8")
    assert re.findall(r'<div id="(.*?)" class="lens-explorer', text) == ["result-0-explorer", "result-2-explorer"]
    data = json.loads(re.search(r'id="lens-explorers">(.*?)</script>', text)[1])
    assert [len(one["results"]) for one in data] == [2, 1]


def test_plain_text_can_stand_in_xml():
    assert markup.plain("a\ufffe\ud800\u202e\0\nb") == "a\\ufffe\\ud800\\u202e\\u0000\nb"


def test_many_positions_have_a_short_name():
    every = generation([f" {i}" for i in range(40)], 20)
    total = replace(every.sum("target_pos"), meta=every.meta | {"reduce": "sum"})
    names = [one["name"] for one in explorer_data([every.sel(target_pos=25), total], "x")["results"]]
    assert "after 20 positions, 19 to 38" in names[1]
    assert "after position 25" in names[0]


def test_it_says_what_was_asked():
    about = scores(WORDS, "signed")
    times = replace(about, meta=about.meta | {"along": "activation"}).aggregate("word")
    effects = replace(about, meta=about.meta | {"patching": "predicted", "method": "path"})
    told = [
        (one["title"], one["question"])
        for result in (times, effects, about - scores(WORDS, "signed", seed=1))
        for one in explorer_data(result, "x")["results"]
    ]
    assert told == [
        ("Semantic('<b>') × activation on <i>model</i>", "Semantic('<b>') × activation"),
        (
            "predicted effects of patches (path): Semantic('<b>') on <i>model</i>",
            "predicted effects of patches (path): Semantic('<b>')",
        ),
        ("Semantic('<b>') on <i>model</i>: 1 − 2",) * 2,
    ]
