"""The explorer in a real browser: clicked, moved by keys, kept in the address, saved; every number is the package's."""

import csv
import io
import itertools
import re
import struct
from dataclasses import replace
from xml.etree import ElementTree

import pandas as pd
import pytest
import torch

import lens_scopes as ls
from lens_scopes.views import markup
from lens_scopes.views.explorer import explorer_data
from lens_scopes.views.report import page as written
from shown import HOSTILE, by_head, flow, generation, scores
from test_browser import browser, visit  # noqa: F401 - fixtures

TEXT = ("<s>", " The", " cat", "ch", ".", " It", " s", "at", "\n", "Oh")
WORDS = ("<s>", " the", " cat", " sat", ".", " on", " a", " mat")
AWFUL = ("<s>", *HOSTILE, "\ud83d", "\ufffe", "a\r\nb", '=1+1,"x"', "</svg>", "]]>")

UNITS = {"norm": "(norm)", "squared": "(squared units, an estimate, ±", "signed": "(signed)"}


def chosen(page, **fields):
    """What the address has for an explorer."""
    page.evaluate("to => { location.hash = to; }", "&".join(f"explorer.{key}={value}" for key, value in fields.items()))
    page.wait_for_timeout(20)


def address(page):
    return page.evaluate("Object.fromEntries(new URLSearchParams(location.hash.slice(1)))")


def runs(page):
    """What hovers say of the coloured text, and their colours, by position of the first token."""
    found = {}
    for title, shade in page.locator(".lens-scores .lens-tokens bdi[title]").evaluate_all(
        "all => all.map(e => [e.title, getComputedStyle(e).backgroundColor])"
    ):
        place, value = title.rsplit(": ", 1)
        found[int(place.rsplit(" ", 1)[1])] = (float(value.split(" ± ")[0]), shade, value)
    return found


def saved(page, kind, index=0):
    with page.expect_download() as download:
        page.get_by_role("button", name=kind, exact=True).nth(index).click()
    return download.value.suggested_filename, download.value.path().read_bytes()


def table(content):
    return list(csv.DictReader(io.StringIO(content.decode("utf-8"), newline="")))


def equal(rows, frame):
    """Rows of a CSV have a frame's columns: texts as they are, numbers exactly."""
    assert len(rows) == len(frame)
    for name in frame.columns:
        for row, expected in zip(rows, frame[name], strict=True):
            if pd.isna(expected):
                assert row[name] == "", name
            elif isinstance(expected, str):
                assert row[name] == expected, name
            else:
                assert float(row[name]) == float(expected), name


@pytest.mark.parametrize("passes", [0, 4])
def test_every_number_is_what_aggregate_and_sel_give(visit, passes):  # noqa: F811
    one = generation(TEXT, 5, units="squared" if passes else "norm", passes=passes)
    other = generation(TEXT, 5, seed=1, units="signed")
    page = visit(ls.show([one, other], "explorer").document)
    ends = [part["levels"] for part in explorer_data([one, other], "x")["results"]]
    cases = [(1, one, by) for by in ("token", "word", "sentence", "line", "span")] + [(2, other, "token")]
    for (scope, result, by), site, at in itertools.product(cases, range(2), (4, 6, 8)):
        joined = result if by == "token" else result.aggregate(by)
        name = result.coords["site"][site]
        line = joined.sel(target_pos=at, site=name)
        chosen(page, scope=scope, level=by, site=name, target_pos=at)
        found, values = runs(page), dict(zip(line.coords["pos"], line.values.tolist(), strict=True))
        end = ends[scope - 1][by]["ends"][2 * (at - 4) + site]
        assert end <= max(values.values()) * (1 + 1e-6)
        said = page.locator(".lens-scale").inner_text()
        assert UNITS[result.units] in said
        full = float(re.search(r"(\S+) \(", said)[1])
        assert set(values) <= set(found)
        for position, value in values.items():
            told, shade, _ = found[position]
            assert told == pytest.approx(value, rel=5e-4, abs=1e-12)
            if abs(value) >= 0.05 * full:
                near = [int(c) for c in re.findall(r"\d+", markup.colour(value, full)[0])]
                assert [int(c) for c in re.findall(r"\d+", shade)] == pytest.approx(near, abs=2)
            else:
                assert shade == "rgba(0, 0, 0, 0)"
        assert full == pytest.approx(end, rel=5e-3)
        listed = page.locator(".lens-list tbody tr").all()
        strongest = sorted(values, key=lambda p: -abs(values[p]))
        places = [int(row.locator("td").nth(1).inner_text()) for row in listed]
        assert places == [position for position in strongest if values[position]][:10]
        errors = None if line.stderr is None else dict(zip(line.coords["pos"], line.stderr.tolist(), strict=True))
        for row, position in zip(listed, strongest, strict=False):
            cells = row.locator("td").all_inner_texts()
            assert float(cells[-1 if errors is None else -2]) == pytest.approx(values[position], rel=5e-4)
            if errors:
                assert float(cells[-1]) == pytest.approx(errors[position], rel=5e-2)
                assert float(found[position][2].split(" ± ")[1]) == pytest.approx(errors[position], rel=5e-2)


def test_click_a_token_and_move_by_keys(visit):  # noqa: F811
    every = generation(TEXT, 5)
    page = visit(every.show("explorer").document)
    buttons = page.locator(".lens-tokens button")
    assert buttons.all_text_contents() == [markup.visible(token) for token in TEXT[5:]]
    pressed, said = page.locator("button[aria-pressed=true]"), page.locator(".lens-said")
    assert pressed.text_content() == TEXT[5]
    buttons.nth(2).click()
    assert pressed.text_content() == TEXT[7]
    assert "after position 6: “at” (50.00%, rank 6); at embed" in said.inner_text()
    assert page.locator(".lens-rule").inner_text() == "completion"
    # The rule stands between the last token of the prompt and the first that was generated.
    tops = [
        one.bounding_box()["y"]
        for one in (page.get_by_text(TEXT[4], exact=True).first, page.locator(".lens-rule"), buttons.first)
    ]
    assert tops == sorted(tops)
    for key, expected in (
        ("ArrowLeft", 6),
        ("ArrowRight", 7),
        ("ArrowRight", 8),
        ("End", 9),
        ("ArrowRight", 9),
        ("Home", 5),
    ):
        page.keyboard.press(key)
        assert pressed.text_content() == markup.visible(TEXT[expected]), key
        assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    # Each press is a step of the way back, and a key that is held is one.
    steps = page.evaluate("history.length")
    for key in ("ArrowRight", "ArrowRight", "ArrowRight"):
        page.keyboard.down(key)
    page.keyboard.up("ArrowRight")
    assert pressed.text_content() == markup.visible(TEXT[8])
    assert page.evaluate("history.length") == steps + 1
    page.keyboard.press("Home")
    assert page.evaluate("history.length") == steps + 2
    page.keyboard.press("ArrowDown")
    assert "0 resid_post" in said.inner_text()
    assert runs(page)[1][0] == pytest.approx(float(every.values[0, 1, 1]), rel=5e-4)
    page.get_by_label("site").select_option("hook_embed")
    assert runs(page)[1][0] == pytest.approx(float(every.values[0, 0, 1]), rel=5e-4)


def test_one_position_at_many_sites(visit):  # noqa: F811
    result = scores(WORDS, "signed", sites=4)
    page = visit(result.show("explorer").document)
    assert page.locator(".lens-tokens button").count() == 0
    page.locator(".lens-tokens").focus()
    for row in range(4):
        assert [value for value, *_ in runs(page).values()] == pytest.approx(result.values[row].tolist(), rel=5e-4)
        page.keyboard.press("ArrowDown")
    assert address(page)["explorer.site"] == "blocks.2.hook_resid_post"


def test_one_position_by_sites_and_heads(visit):  # noqa: F811
    result = by_head(WORDS)
    page = visit(result.show("explorer").document)
    for site, head in itertools.product(result.coords["site"], result.coords["head"]):
        page.get_by_label("site").select_option(site)
        page.get_by_label("head").select_option(str(head))
        expected = result.sel(site=site, head=head).values.tolist()
        assert [value for value, *_ in runs(page).values()] == pytest.approx(expected, rel=5e-4)
        (row, *_) = table(saved(page, "CSV")[1])
        assert (row["site"], row["head"]) == (site, str(head))


def test_scopes_about_other_positions_and_texts_change_places(visit):  # noqa: F811
    page = visit(
        ls.show([generation(TEXT, 5), scores(WORDS), generation(TEXT, 5).sum("target_pos")], "explorer").document
    )
    chosen(page, scope=1, target_pos=7, site="blocks.0.hook_resid_post", level="word")
    page.get_by_label("scope").select_option("2")
    assert page.locator(".lens-tokens").text_content() == "".join(WORDS)
    assert "0 resid_post" in page.locator(".lens-said").inner_text()
    assert page.get_by_label("explained").count() == 0
    page.get_by_label("scope").focus()
    page.get_by_label("scope").select_option("3")
    assert page.evaluate("document.activeElement.name") == "scope"
    assert "5 predictions summed over, after positions 4 to 8" in page.locator(".lens-said").inner_text()


def test_what_is_chosen_stands_in_the_address(visit):  # noqa: F811
    page = visit(written([generation(TEXT, 5), scores(WORDS), flow(WORDS)]))
    first, second, third = (page.locator(f"#result-{n}-explorer") for n in range(3))
    pressed = first.locator("button[aria-pressed=true]"), third.locator("button[aria-pressed=true]")
    begin = [one.text_content() for one in pressed]
    first.locator(".lens-tokens button").nth(3).click()
    second.get_by_label("site").select_option("blocks.1.hook_resid_post")
    third.locator(".lens-tokens button").nth(2).click()
    third.locator(".lens-map td").nth(1).click()  # a head
    expected = {
        "result-0-explorer.target_pos": "7",
        "result-0-explorer.site": "hook_embed",
        "result-0-explorer.level": "token",
        "result-1-explorer.site": "blocks.1.hook_resid_post",
        "result-1-explorer.level": "token",
        "result-2-explorer.source": "2",
        "result-2-explorer.head": "0.1",
    }
    assert address(page) == {key: value for key, value in expected.items() if key in address(page)}
    assert set(expected) - set(address(page)) <= {"result-1-explorer.level"}

    def state():
        shown = [one.text_content() for one in pressed]
        return (*shown, second.get_by_label("site").input_value(), third.locator("td.chosen").count())

    whole = state()
    assert whole == ("↵", WORDS[2], "blocks.1.hook_resid_post", 1)
    page.reload()
    assert state() == whole
    page.go_back()
    assert state() == (*whole[:3], 0)
    page.go_back()
    assert state() == (whole[0], begin[1], whole[2], 0)
    page.go_back()
    page.go_back()
    assert state() == (*begin, "hook_embed", 0)
    page.go_forward()
    assert state() == (whole[0], begin[1], "hook_embed", 0)
    # A link inside the page changes nothing.
    page.locator("nav a").nth(2).click()
    page.wait_for_timeout(50)
    assert state() == (whole[0], begin[1], "hook_embed", 0)
    first.locator(".lens-tokens button").nth(3).click()
    first.locator(".lens-tokens button").nth(1).click()
    assert pressed[0].text_content() == TEXT[6]


def test_an_address_that_asks_for_what_is_not_there_is_answered(visit):  # noqa: F811
    bad = "#explorer.target_pos=99&explorer.site=%3C%2Fscript%3E%ED%A0%BD&explorer.level=%"
    page = visit(generation(TEXT, 5).show("explorer").document, bad)
    told = page.locator(".lens-explorer > .note").first.inner_text()
    assert "the address asks for target_pos 99, which is not here" in told
    assert "the address asks for site </script>" in told
    assert page.locator("button[aria-pressed=true]").text_content() == TEXT[5]
    page = visit(flow(WORDS).show("explorer").document, "#explorer.source=77&explorer.head=x")
    assert "a token that has no row here" in page.locator(".lens-said").inner_text()
    assert "a head that is not here" in page.locator(".lens-said").inner_text()


@pytest.mark.parametrize("tokens", [TEXT, AWFUL], ids=["words", "hostile"])
@pytest.mark.parametrize("passes", [0, 4])
def test_what_is_shown_is_saved(visit, tokens, passes):  # noqa: F811
    every = generation(tokens, 4, passes=passes, units="squared" if passes else "norm")
    page = visit(every.show("explorer").document)
    site = "blocks.0.hook_resid_post"
    for by, at in (("token", 5), ("word", 7), ("span", 8)):
        chosen(page, level=by, target_pos=at, site=site)
        joined = every if by == "token" else every.aggregate(by)
        name, content = saved(page, "CSV")
        assert name == f"lens-scopes_{every.units}-script_after-{at}_blocks-0-hook-resid-post_{by}.csv"
        rows = table(content)
        equal(rows, joined.sel(target_pos=at, site=site).to_dataframe())
        known = every.to_dataframe().query("target_pos == @at and site == @site").iloc[0]
        for column in ("target_pos", "target_pos_token", "target", "site"):
            assert {row[column] for row in rows} == {str(known[column])}
        asked = {
            "question": f"{every.units}('</script>')",
            "model": "<i>model</i>",
            "level": by,
            "target_p": "0.5",
            "position": str(at),
            "part": "",
        }
        assert all(row[key] == value for row in rows for key, value in asked.items())
        name, content = saved(page, "SVG")
        assert name.endswith(f"_{by}.svg")
        root = ElementTree.fromstring(content.decode("utf-8"))
        words = [one.text or "" for one in root.iter("{http://www.w3.org/2000/svg}text")]
        assert f"{every.units}('</script>') on <i>model</i>" in " ".join(words)
        assert any(f"after position {at}: “" in one for one in words)
        assert any(("squared units, an estimate, ±" if passes else "(norm)") in one for one in words)
        drawn = iter(words)
        assert all(markup.visible(token) in drawn for token in tokens)
        assert {one.tag.rpartition("}")[2] for one in root.iter()} <= {"svg", "rect", "text", "title", "path"}
    name, content = saved(page, "PNG")
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24]) == (2000, 2 * int(root.get("height")))


@pytest.mark.parametrize("tokens", [WORDS, AWFUL], ids=["words", "hostile"])
def test_a_flow_is_saved(visit, tokens):  # noqa: F811
    travel = flow(tokens)
    page = visit(travel.show("explorer").document)
    page.locator(".lens-tokens button").nth(3).click()
    page.locator(".lens-map td").first.click()
    name, content = saved(page, "CSV")
    assert name == "lens-scopes_flow_Semantic-b_from-3.csv"
    equal(table(content), travel.sel(source=3).to_dataframe())
    root = ElementTree.fromstring(saved(page, "SVG")[1].decode("utf-8"))
    words = " ".join(one.text or "" for one in root.iter("{http://www.w3.org/2000/svg}text"))
    assert "Flow of Semantic('<b>') on <i>model</i>" in words
    assert "head 0.0: " in words
    assert saved(page, "PNG")[1][:4] == b"\x89PNG"


def test_an_infinite_number_and_none_are_saved(visit):  # noqa: F811
    values = torch.tensor([[1.0, torch.nan, torch.inf, -2.0, 0.5, 0.1, 1e-30, 1e20]])
    result = scores(WORDS, "signed", sites=1, values=values)
    page = visit(result.sel(site="embed").show("explorer").document)
    assert table(saved(page, "CSV")[1])[0]["part"] == "site embed"
    page = visit(result.show("explorer").document)
    equal(table(saved(page, "CSV")[1]), result.sel(site="embed").to_dataframe())
    titles = page.locator(".lens-tokens bdi[title]").evaluate_all("all => all.map(e => e.title.split(': ').at(-1))")
    assert titles[1] == "NaN"


def test_a_head_shows_between_which_tokens_it_carries(visit):  # noqa: F811
    travel = flow(WORDS)
    travel = replace(travel, composition=torch.rand(8, 2, 3, 3))
    page = visit(travel.show("explorer").document)
    page.locator(".lens-tokens button").nth(3).click()
    cell = page.locator(".lens-map").first.locator("td").nth(4 + 2)
    cell.focus()
    page.keyboard.press("Enter")
    assert page.locator("td.chosen").count() == 1
    maps = travel.edges[:, 1, 2]
    order = maps.flatten().abs().topk(20).indices
    rows = [row.locator("td").all_inner_texts() for row in page.locator(".lens-list tbody tr").all()]
    for row, at in zip(rows, order, strict=True):
        kind, query, key = (int(i) for i in torch.unravel_index(at, maps.shape))
        names = [f"{WORDS[key]} ({key})", f"{WORDS[query]} ({query})", ("value", "pattern")[kind]]
        assert [text.strip() for text in row[:3]] == [name.strip() for name in names]
        assert float(row[3]) == pytest.approx(float(maps[kind, query, key]), rel=6e-3)
    text = page.locator(".lens-explorer").inner_text()
    found = re.search(
        r"head 1\.2: (\S+) % of this token's score, (\S+) % by its queries, (\S+) % by its keys, (\S+) %", text
    )
    expected = torch.cat([travel.heads[3, 1, 2, None], travel.composition[3, 1, 2]]) / travel.total[3] * 100
    torch.testing.assert_close(torch.tensor([float(x) for x in found.groups()]), expected, rtol=6e-3, atol=1e-6)
    assert "summed over all sources" in text
    page.keyboard.press("Enter")
    assert page.locator("td.chosen").count() == 0
    page = visit(replace(travel, edges=None).show("explorer").document, "#explorer.head=0.0")
    assert "run flow(..., edges=True)" in page.locator(".lens-explorer").inner_text()


def test_hostile_tokens_are_text_in_the_explorer(visit):  # noqa: F811
    every = generation(AWFUL, 4)
    page = visit(ls.show([every, scores(AWFUL)], "explorer").document)
    buttons = page.locator(".lens-tokens button")
    assert buttons.all_text_contents() == [markup.visible(token) for token in AWFUL[4:]]
    for i in range(0, len(AWFUL) - 4, 4):
        buttons.nth(i).click()
    assert page.locator("img").count() == 0
    page = visit(flow(AWFUL, heads=1, layers=1).show("explorer").document)
    assert page.locator(".lens-tokens button").all_text_contents() == [markup.visible(token) for token in AWFUL]


def test_position_0_can_be_left_out(visit):  # noqa: F811
    result = scores(WORDS, values=torch.tensor([[90.0, 1, 2, 3, 4, 5, 6, 7]] * 2), sites=2)
    page = visit(result.show("explorer").document)
    assert "off this scale: <s> at 0: 90" in page.locator(".lens-explorer").inner_text()
    page = visit(result.show("explorer", first="share").document)
    first = page.locator(".lens-tokens bdi[title]").first
    assert first.get_attribute("title") == "position 0 is left out: it has 76.3 % of the row's sum of magnitudes"
    assert first.evaluate("e => getComputedStyle(e).backgroundColor") == "rgba(0, 0, 0, 0)"


def test_it_fits_a_narrow_page(visit):  # noqa: F811
    page = visit(ls.show([generation(TEXT, 5), generation(AWFUL, 5)], "explorer").document)
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_label("scope").select_option("2")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page = visit(written([[scores(WORDS), scores(WORDS, seed=1)], flow(WORDS)]))
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_in_a_notebook_it_works_and_saves(visit):  # noqa: F811
    page = visit(f"<!doctype html><body>{generation(TEXT, 5).show('explorer')._repr_html_()}</body>")
    frame = page.frames[1]
    frame.wait_for_selector(".lens-tokens button")
    frame.locator(".lens-tokens button").nth(2).click()
    assert frame.locator("button[aria-pressed=true]").text_content() == TEXT[7]
    with page.expect_download() as download:
        frame.get_by_role("button", name="CSV").click()
    assert len(table(download.value.path().read_bytes())) == len(TEXT)
    assert page.evaluate("history.length") == 2  # the notebook's way back is its own


def test_the_map_has_the_colours_of_all_rows_and_chooses_one(visit):  # noqa: F811
    site = "blocks.0.hook_resid_post"
    every, layers = generation(TEXT, 5), scores(WORDS, "signed", sites=4)
    for whole, result, start, step in ((every, every.sel(site=site), 1, 2), (layers, layers, 0, 1)):
        page = visit(whole.show("explorer").document, f"#explorer.site={site}" if whole is every else "")
        ends = explorer_data(whole, "x")["results"][0]["levels"]["token"]["ends"][start::step]
        rows = len(result.values)
        box = page.locator(".lens-overview canvas")
        pixels = box.evaluate("c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]")
        found = [f"rgb({pixels[i]},{pixels[i + 1]},{pixels[i + 2]})" for i in range(0, len(pixels), 4)]
        lines = zip(result.values.tolist(), ends, strict=True)
        assert found == [markup.colour(value, end)[0] for line, end in lines for value in line]
        height, width = (box.bounding_box()[key] for key in ("height", "width"))
        box.hover(position={"x": width * 1.5 / len(result.tokens), "y": height * 2.5 / rows})
        said = page.locator(".lens-overview > div").last.get_attribute("title")
        assert float(re.search(r" at 1: (\S+), full", said)[1]) == pytest.approx(float(result.values[2, 1]), rel=5e-4)
        box.click(position={"x": 5, "y": height * 2.5 / rows})
        assert runs(page)[1][0] == pytest.approx(float(result.values[2, 1]), rel=5e-4)


def test_named_spans_colour_all_their_parts_and_no_others(visit):  # noqa: F811
    result = scores(WORDS, "signed").aggregate({"outer": (0, 2), "inner": (2, 5)})
    apart = scores(WORDS, "signed").aggregate({"inner": (2, 5), "rest": ...})
    page = visit(ls.show([result, apart], "explorer").document)
    inside = page.locator(".lens-tokens > bdi[title='in no span']")
    assert inside.all_text_contents() == list(WORDS[5:])
    page.get_by_label("scope").select_option("2")
    assert inside.count() == 0
    parts = page.locator(".lens-tokens > bdi")
    assert parts.all_text_contents() == ["".join(WORDS[:2]), "".join(WORDS[2:5]), "".join(WORDS[5:])]
    titles = [one.get_attribute("title") for one in parts.all()]
    value = float(apart.sel(site="embed", pos="rest").values)
    assert titles[0] == titles[2]
    assert titles[0].startswith("5× rest, 5 tokens from 0: ")
    assert float(titles[0].rsplit(": ", 1)[1]) == pytest.approx(value, rel=5e-4)
    (_, rest) = table(saved(page, "CSV")[1])
    assert (rest["level"], rest["position"]) == ("span", "7")
    assert (rest["pos_token"], rest["length"], float(rest["score"])) == ("rest", "5", value)
