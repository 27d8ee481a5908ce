"""The pages in a real browser: views render, numbers are the tensors', nothing is fetched, hostile tokens stay text."""

import itertools
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

import lens_scopes as ls
from lens_scopes.views import dispatch, markup
from shown import HOSTILE, by_head, by_target, flow, scores

WORDS = ("<s>", " the", " cat", " sat", ".", " on", " a", " mat")
CHROMIUM = os.environ.get("LENS_SCOPES_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not Path(CHROMIUM).is_file():
        pytest.skip(f"no Chromium at {CHROMIUM}; set LENS_SCOPES_CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture(params=["light", "dark"])
def visit(browser, tmp_path, request):
    """Opens a page and, at the end, asserts that it fetched nothing and complained of nothing."""
    context = browser.new_context(viewport={"width": 1000, "height": 900}, color_scheme=request.param)
    asked, said = [], []

    def route(one):
        if one.request.url.startswith("file://") and one.request.is_navigation_request():
            one.continue_()
        else:
            asked.append(one.request.url)
            one.abort()

    context.route("**/*", route)

    def go(text, address=""):
        path = tmp_path / "page.html"
        path.write_text(text, encoding="utf-8")
        page = context.new_page()
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}"))
        page.goto(path.as_uri() + address)
        return page

    yield go
    for page in context.pages:
        page.wait_for_timeout(50)
        for frame in page.frames:
            assert frame.evaluate("window.harmed") is None
    context.close()
    assert asked == []
    # Software rendering warns of its own slowness; everything else is ours.
    assert [line for line in said if "GL Driver Message" not in line and "WebGL" not in line] == []


def settled(page):
    # Not wait_for_function: it evaluates a string inside the page, which the page's policy forbids.
    for _ in range(100):
        page.wait_for_timeout(100)
        if page.evaluate("[...document.querySelectorAll('.circuits > div')].every(e => e.childElementCount > 0)"):
            page.wait_for_timeout(200)
            return page
    raise AssertionError("a figure was not drawn in ten seconds")


def colours(page):
    """The background of each coloured token."""
    script = "[...document.querySelectorAll('.colored-tokens span span, .circuits span[style] span')]"
    return page.evaluate(script + ".map(e => getComputedStyle(e).backgroundColor)")


def test_tokens_and_what_they_say_on_hover(visit):
    result = scores(WORDS, "signed")
    page = settled(visit(result.show("tokens").document))
    spans = page.locator(".colored-tokens > span > span")
    assert spans.all_inner_texts() == [token.replace(" ", "\xa0") for token in _joined(WORDS)]
    expected = result.sel(site="embed").values
    for i in range(len(WORDS)):
        spans.nth(i).hover()
        tip = page.locator(".colored-tokens > div").inner_text()
        assert float(tip.split("\n")[-1]) == pytest.approx(float(expected[i]), rel=1e-5)
    shades = spans.evaluate_all("all => all.map(e => getComputedStyle(e).backgroundColor)")
    for value, shade in zip(expected.tolist(), shades, strict=True):
        red, _, blue = map(float, re.findall(r"\d+", shade))
        assert (red > blue) == (value < 0), f"{value} is {shade}"


def test_layers_switch_and_carry_the_numbers(visit):
    result = scores(WORDS, sites=3)
    page = settled(visit(result.show("layers").document))
    page.get_by_text("1 resid_post [").click()
    page.mouse.move(5, 5)
    page.get_by_text("cat", exact=False).last.hover()
    rows = page.locator("table tbody tr").all_inner_texts()
    found = dict(re.match(r"(.*) \[(.*)\]\t(.*)", row).group(1, 3) for row in rows[:3])
    ends = [float(re.match(r".* \[(.*)\]", row)[1]) for row in rows[:3]]
    for (name, text), end, line in zip(found.items(), ends, result.values, strict=True):
        assert float(text) * end == pytest.approx(float(line[2]), rel=6e-3), name


@pytest.mark.parametrize("units", ["norm", "signed"])
def test_a_layer_has_its_own_colours(visit, units):
    result = scores(WORDS, units, sites=3)
    page = settled(visit(result.show("layers").document))
    page.get_by_text("0 resid_post [").click()
    strongest = int(result.values[1].abs().argmax())
    tokens = page.locator(".circuits span > span[style*='inline-block']")
    shades = tokens.evaluate_all("all => all.map(e => getComputedStyle(e).backgroundColor)")
    expected = "rgb(8, 69, 148)" if result.values[1, strongest] > 0 else "rgb(179, 88, 6)"
    assert shades[strongest] == expected


VIEWS = [
    (scores, "layers"),
    (scores, "tokens"),
    (by_head, "heads"),
    (by_target, "targets"),
    (by_target, "tokens"),
    (flow, "last"),
    (flow, "heads"),
    (flow, "stream"),
    (flow, "edges"),
    (flow, "tokens"),
]


@pytest.mark.parametrize(("make", "view"), VIEWS)
@pytest.mark.parametrize("tokens", [WORDS, HOSTILE], ids=["words", "hostile"])
def test_every_view_as_a_page(visit, tmp_path, make, view, tokens):
    """Interactive and static, one below the other: drawn, harmless, and with the numbers of the tensors."""
    result = make(tokens)
    page = settled(visit(result.show(view).save(tmp_path / "saved.html").read_text(encoding="utf-8")))
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    said = page.locator("[title]").evaluate_all("all => all.map(e => e.title)")
    found = torch.tensor([float(text.rsplit(": ", 1)[1]) for text in said])
    grids = dispatch.grids(result, view)
    expected = [torch.tensor(grid.values).flatten() for grid in grids]
    torch.testing.assert_close(found, torch.cat(expected) if grids else torch.tensor([]), rtol=6e-3, atol=1e-9)
    assert page.locator("img").count() == 0
    words = [markup.visible(token) for token in tokens]
    if view == "edges":
        strongest = page.locator("table tbody tr").first.locator("td").all_text_contents()
        sizes = result.edges.abs()
        kind, _, _, query, key = torch.unravel_index(sizes.argmax(), sizes.shape)
        value = float(result.edges.flatten()[sizes.argmax()])
        assert strongest[:3] == [["value", "pattern"][kind], f"{words[key]} ({key})", f"{words[query]} ({query})"]
        assert float(strongest[3]) == pytest.approx(value, rel=6e-3)
    elif make is not flow or view not in ("last", "heads"):  # which have their static view only
        shown = page.locator(".circuits span > span[style*='inline-block']").all_inner_texts()
        clean = [text.replace("\u2060", "").replace("\xa0", " ") for text in shown]
        assert clean == words * len(grids)


@pytest.mark.parametrize(("make", "view"), [(by_head, "heads"), (by_target, "targets"), (flow, "stream")])
def test_rows_carry_the_numbers(visit, make, view):
    """What the table beside a token says, times the number in the row's brackets, is the tensor's number."""
    result = make(WORDS)
    page = settled(visit(result.show(view).document))
    for place, grid in zip(page.locator(".circuits").all(), dispatch.grids(result, view), strict=True):
        place.locator("span > span[style*='inline-block']").nth(3).hover()
        rows = place.locator("table tbody tr").all_inner_texts()[: len(grid.rows)]
        for row, name, line in zip(rows, grid.rows, grid.values, strict=True):
            label, end, value = re.match(r"(.*) \[(.*)\]\t(.*)", row).groups()
            assert " ".join(label.split()) == " ".join(name.split())
            assert float(value) * float(end) == pytest.approx(line[3], rel=6e-3, abs=1e-6)
        page.mouse.move(5, 5)


def test_edges_draw_their_maps(visit):
    travel = flow(WORDS)
    page = settled(visit(travel.show("edges").document))
    page.wait_for_timeout(500)
    names = page.locator("h4").all_inner_texts()
    assert len(names) == 12
    assert page.locator("canvas").count() == 13
    assert page.get_by_text("Head Selector").count() == 1
    # The strongest edge of the zoomed map has the full colour of its sign.
    layer, head, kind = re.fullmatch(r"(\d+)\.(\d+) (value|pattern)", names[0]).groups()
    edges = travel.edges[["value", "pattern"].index(kind), int(layer), int(head)]
    points = page.locator("canvas").last.evaluate(
        """c => { const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; const seen = {};
        for (let i = 0; i < d.length; i += 4) { const k = [d[i], d[i+1], d[i+2]].join(); seen[k] = (seen[k] || 0) + 1; }
        return Object.entries(seen).filter(([, n]) => n > 500).map(([k]) => k.split(',').map(Number)); }"""
    )
    signs = {(red > blue) for red, _, blue in points if abs(red - blue) > 30}
    assert signs == {bool(s) for s in set((edges[edges.abs() > 0.5] < 0).tolist())}


@pytest.mark.parametrize("view", ["tokens", "layers"])
def test_hostile_tokens_are_text(visit, view):
    page = settled(visit(scores(HOSTILE).show(view).document))
    spans = page.locator(".circuits span > span[style*='inline-block']")
    shown = [text.replace("\u2060", "").replace("\xa0", " ") for text in spans.all_inner_texts()]
    assert shown == [markup.visible(token) for token in HOSTILE]
    for i in range(len(HOSTILE)):
        spans.nth(i).hover()
    assert page.locator("img").count() == 0
    boxes = spans.evaluate_all("all => all.map(e => e.getBoundingClientRect().width)")
    assert min(boxes) > 2


def test_hostile_tokens_in_edges_and_reports(visit):
    settled(visit(flow(HOSTILE, heads=1, layers=1).show("edges").document)).wait_for_timeout(300)
    from lens_scopes.views.report import page as written

    page = visit(written([scores(HOSTILE), flow(HOSTILE, heads=1, layers=1)]))
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    settled(page)
    assert page.locator("img").count() == 0
    buttons = page.locator(".lens-tokens button")
    assert buttons.all_text_contents() == [markup.visible(token) for token in HOSTILE]
    for i in range(0, len(HOSTILE), 5):
        buttons.nth(i).click()


def test_the_notebook_frame_renders_beside_its_static_view(visit):
    page = visit(f"<!doctype html><body>{scores(WORDS).show('layers')._repr_html_()}</body>")
    frame = page.frames[1]
    frame.wait_for_selector(".circuits span > span[style*='inline-block']")
    assert page.locator("details td").count() == 24
    assert page.evaluate("document.querySelector('iframe').contentDocument") is None  # sandboxed: another origin


def test_a_comparison_says_its_numbers(visit):
    predicted, measured = scores(HOSTILE, "signed"), scores(HOSTILE, "signed", seed=1)
    found = ls.patching.compare(predicted, measured)
    page = visit(markup.page("x", found._repr_html_()))
    titles = " ".join(page.locator("td[title]").evaluate_all("all => all.map(e => e.title)"))
    value = markup.number(float(measured.values.flatten()[measured.values.argmax()]))
    assert f"measured {value}" in titles
    assert page.locator("img").count() == 0
    assert f"{found.spearman:.3g}" in page.locator("body").inner_text()


def test_static_views_say_the_tensors_numbers(visit):
    result = scores(WORDS, "signed")
    page = visit(markup.page("x", result._repr_html_()))
    titles = page.locator("td[title]").evaluate_all("all => all.map(e => e.title)")
    found = torch.tensor([float(title.rsplit(": ", 1)[1]) for title in titles])
    torch.testing.assert_close(found, result.values.flatten(), rtol=6e-3, atol=0)


def test_the_explorer_answers(visit):
    from lens_scopes.views.report import page as written

    travel = flow(WORDS)
    page = visit(written(travel))
    for i in (0, 3, 7):
        page.locator(".lens-tokens button").nth(i).click()
        assert page.locator("button[aria-pressed=true]").text_content() == WORDS[i]
        for table, expected in zip(
            page.locator(".lens-map").all(),
            (torch.cat([travel.heads, travel.mlps[..., None]], -1)[i], travel.stream[i]),
            strict=True,
        ):
            titles = table.locator("td").evaluate_all("all => all.map(e => e.title)")
            pairs = [re.search(r": ([^:]*), ([^:]*) %$", title).groups() for title in titles]
            found = torch.tensor([float(value) for value, _ in pairs])
            torch.testing.assert_close(found, expected.flatten(), rtol=6e-3, atol=1e-6)
            shares = torch.tensor([float(share) for _, share in pairs])
            torch.testing.assert_close(shares / 100 * travel.total[i], expected.flatten(), rtol=6e-3, atol=1e-6)
        assert f"position {i}" in page.locator(".lens-said").inner_text()
    page.keyboard.press("ArrowLeft")
    assert page.locator("button[aria-pressed=true]").text_content() == WORDS[6]


def test_without_script_the_numbers_are_there(browser, tmp_path):
    path = ls.report([scores(WORDS), flow(WORDS)], tmp_path / "r.html")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    for text in ("the cat sat", "share of the total through each head", "strongest edges", "needs JavaScript"):
        assert text in page.locator("body").inner_text()
    assert page.locator("td[title]").count() == 24 + 2 * 3 + 2 * 4 + 3 * 8
    context.close()


def test_a_large_report_opens(visit, tmp_path):
    """How long that takes: benchmarks/report_size.py."""
    words = [f" word{i}" for i in range(64)]
    path = ls.report([scores(words, sites=13), flow(words, layers=12, heads=12)], tmp_path / "r.html")
    assert path.stat().st_size < 3_000_000
    page = visit(path.read_text(encoding="utf-8"))
    page.locator(".lens-tokens button").nth(5).click()
    assert page.locator("button[aria-pressed=true]").text_content() == words[5]
    # 64 positions are two blocks, and both are there where both say something.
    assert page.locator(".lens-map").nth(1).locator("td").count() == 64 * 13


def test_every_view_can_be_seen_on_light_and_dark(visit):
    """Text on the page's own background is readable: its colour is far from what is behind it."""
    from lens_scopes.views.report import page as written

    page = visit(written([scores(WORDS), flow(WORDS)]))
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    settled(page)
    pairs = page.evaluate(
        """() => [...document.querySelectorAll('h1, h2, p, th, summary, .note, .circuits h3, .circuits div')].map(e => {
        let b = e; while (b && getComputedStyle(b).backgroundColor === 'rgba(0, 0, 0, 0)') b = b.parentElement;
        const dark = matchMedia('(prefers-color-scheme: dark)').matches;
        return [getComputedStyle(e).color, b ? getComputedStyle(b).backgroundColor : dark ? 'rgb(18,18,18)' : 'rgb(255,255,255)'];})"""
    )
    for ink, ground in {(ink, ground) for ink, ground in pairs}:
        one, two = ([float(c) for c in re.findall(r"[\d.]+", text)[:3]] for text in (ink, ground))
        assert abs(sum(one) - sum(two)) > 250, (ink, ground)


LONG = tuple(f" w{i}" if i % 23 else "\n" for i in range(300))


def test_the_map_of_a_long_prompt_has_its_colours_and_its_ticks_their_places(visit):
    result = scores(LONG, "signed", sites=4)
    (grid,) = dispatch.grids(result, "layers")
    page = visit(markup.page("x", result._repr_html_()))
    pixels = page.locator("img").evaluate(
        """image => { const c = document.createElement('canvas'); c.width = image.naturalWidth; c.height = image.naturalHeight;
        const pen = c.getContext('2d'); pen.drawImage(image, 0, 0);
        return Array.from(pen.getImageData(0, 0, c.width, c.height).data); }"""
    )
    found = [f"rgb({pixels[i]},{pixels[i + 1]},{pixels[i + 2]})" for i in range(0, len(pixels), 4)]
    lines = zip(grid.values, grid.ends, strict=True)
    assert found == [markup.colour(value, end)[0] for line, end in lines for value in line]
    box = page.locator("img").bounding_box()
    for position in (50, 100, 250):
        tick = page.get_by_text(f"{position} {markup.named(LONG[position], 12)}", exact=True).bounding_box()
        assert tick["x"] == pytest.approx(box["x"] + box["width"] * position / 300, abs=1.5)
    # Each row's name stands beside its row.
    for row, name in enumerate(grid.labels):
        label = page.get_by_text(name, exact=True).bounding_box()
        middle = box["y"] + box["height"] * (row + 0.5) / len(grid.rows)
        assert label["y"] + label["height"] / 2 == pytest.approx(middle, abs=2)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_right_to_left_tokens_do_not_move_their_neighbours(visit):
    tokens = tuple(["<s>", " שלום", " (12)", "\n"] * 20)
    result = scores(tokens)
    result.meta["targets"][0].update(text="שלום")
    page = visit(markup.page("x", result._repr_html_()))
    word = page.locator("bdi", has_text="שלום").first
    assert word.evaluate(
        """word => { const range = document.createRange(); range.selectNodeContents(word.nextSibling);
        return word.getBoundingClientRect().right <= range.getClientRects()[0].left + 1; }"""
    )
    # Boxes and runs of the running text go from left to right, line by line.
    places = page.locator("div[dir=ltr] > *").evaluate_all("all => all.map(e => [e.offsetTop, e.offsetLeft])")
    assert len(places) > 40
    assert all(b[1] > a[1] for a, b in itertools.pairwise(places) if a[0] == b[0])


def test_the_explorer_of_a_long_prompt_has_rows_on_their_own_scales(visit):
    from lens_scopes.views.report import page as written

    travel = flow(LONG[:80], edges=False)
    page = visit(written(travel))
    page.locator(".lens-tokens button").nth(7).click()
    heads, stream = page.locator(".lens-map").all()
    whole = float(travel.total[7])
    said = [
        re.search(r"past its heads (-?[\d.e-]+) %", text)[1] for text in heads.locator("tbody th").all_text_contents()
    ]
    expected = 100 * travel.skip[7] / whole
    torch.testing.assert_close(torch.tensor([float(x) for x in said]), expected, rtol=6e-3, atol=1e-6)
    shades = stream.locator("td").evaluate_all("all => all.map(e => [e.title, getComputedStyle(e).backgroundColor])")
    for depth, name in enumerate(("embed", "after 0", "after 1")):
        line = travel.stream[7, depth]
        ends = re.findall(rf"{name} \[(.*?) %\]", " ".join(stream.locator("th").all_text_contents()))
        # Uniform random numbers: neither position 0 nor the last one exceeds the others threefold.
        assert len(ends) == 2  # blocks of 50 columns
        assert [float(end) for end in ends] == pytest.approx([100 * float(line.max()) / whole] * 2, rel=6e-3)
        row = [(title, shade) for title, shade in shades if title.startswith(f"{name}, ")]
        assert len(row) == 80
        for (title, shade), value in zip(
            sorted(row, key=lambda x: int(re.search(r" at (\d+):", x[0])[1])), line, strict=True
        ):
            near = [int(c) for c in re.findall(r"\d+", markup.colour(float(value), float(line.max()))[0])]
            assert [int(c) for c in re.findall(r"\d+", shade)] == pytest.approx(near, abs=2), title


def _joined(tokens):
    return [token.replace("<", "<\u2060") for token in tokens]


def test_the_data_blocks_are_json(visit):
    page = settled(visit(scores(HOSTILE).show("tokens").document))
    text = page.locator("#lens-figures").text_content()
    assert len(json.loads(text)) == 1
    assert list(itertools.chain(colours(page)))
