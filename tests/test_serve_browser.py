"""The live page in a real browser, against a real server: everything can be done, the numbers are the package's."""

import csv
import http.server
import io
import json
import re
import threading
import urllib.parse
from functools import partial
from xml.etree import ElementTree

import pytest
import torch

import lens_scopes as ls
from lens_scopes.views import dispatch, markup
from shown import HOSTILE
from test_browser import browser  # noqa: F401 - a fixture
from test_serve import CASE

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
SCOPE = ls.Semantic(CASE.answer, CASE.versus)


@pytest.fixture(scope="module")
def model():
    return ls.demo.load()


@pytest.fixture(scope="module")
def served(model):
    with ls.serve(model, block=False) as running:
        yield running


@pytest.fixture
def visit(browser, served):  # noqa: F811
    """Opens the page; at the end nothing was asked of another address, and nobody complained."""
    contexts, asked, said = [], [], []

    def route(one):
        inside = urllib.parse.urlparse(one.request.url)
        if inside.hostname == "127.0.0.1" or inside.scheme in ("data", "blob"):
            one.continue_()
        else:
            asked.append(one.request.url)
            one.abort()

    def go(address="", **options):
        context = browser.new_context(
            **{"viewport": {"width": 1100, "height": 900}, "accept_downloads": True, **options}
        )
        contexts.append(context)
        context.route("**/*", route)
        page = context.new_page()
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}"))
        page.set_default_timeout(20_000)
        page.goto(served.address)
        if address:
            page.goto(address)
            page.reload()
        page.locator("#prompt").wait_for()
        return page

    yield go
    for context in contexts:
        for page in context.pages:
            assert page.evaluate("window.harmed") is None
        context.close()
    assert asked == []
    # Software rendering, and this test's reading of pixels, are slow and warned of; everything else is ours.
    assert [line for line in said if not re.search("GL Driver Message|WebGL|Canvas2D: Multiple readback", line)] == []


def idle(page):
    page.locator(".status[aria-busy=false]").wait_for()
    assert page.locator(".error").all_inner_texts() == []
    return page


def run(page, prompt=CASE.prompt):
    page.fill("#prompt", prompt)
    page.keyboard.press("Control+Enter")
    page.locator("#map canvas").wait_for()
    return idle(page)


def press(page, name, section="main"):
    page.locator(section).get_by_role("button", name=name, exact=True).first.click()
    return idle(page)


def shown(page, what):
    return float(page.locator(f"#{what}").inner_text().replace("−", "-"))


def place(page, row, column, of="#map", rows=5, columns=15):
    box = page.locator(f"{of} canvas").bounding_box()
    at = {"x": (column + 0.5) * box["width"] / columns, "y": (row + 0.5) * box["height"] / rows}
    page.locator(f"{of} canvas").click(position=at)


def pixels(page, of, rows, columns):
    """The colour near the left upper corner of every cell: beside its number and its frame."""
    found = page.locator(f"{of} canvas").evaluate(
        """(canvas, [rows, columns]) => { const pen = canvas.getContext("2d"); const all = [];
        for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++)
          all.push([...pen.getImageData((c + 0.12) * canvas.width / columns, (r + 0.25) * canvas.height / rows, 1, 1).data].slice(0, 3));
        return all; }""",
        [rows, columns],
    )
    return [f"rgb({','.join(map(str, rgb))})" for rgb in found]


def replied(answer, route):
    """In place of the server."""
    route.fulfill(body=json.dumps({"result": answer}) + "\n")


def test_run_click_and_patch_two_numbers_that_are_the_package_s(visit, model):
    page = run(visit())
    likely = page.locator(".likely")
    assert likely.first.inner_text().split()[0] == f"␣{CASE.answer}"
    likely.first.click()
    idle(page)
    names = page.locator(".likely bdi").all_inner_texts()
    likely.nth(names.index(f"␣{CASE.versus}") if f"␣{CASE.versus}" in names else 1).click(modifiers=["Alt"])
    idle(page)
    assert " against " in page.locator("#scope").inner_text()
    page.fill("#clean", CASE.corrupted)
    page.locator("#clean").blur()
    idle(page)
    assert "at 10" in page.locator("#pair").inner_text()
    place(page, 2, 10)
    assert "at 10 in 1 resid_post" in page.locator("#place").inner_text()
    press(page, "Patch", "#place")
    given = json.loads(urllib.parse.unquote(page.evaluate("location.hash")[1:]))
    scope = ls.Semantic(given["target"], given["versus"])
    predicted = ls.patching.predict(model, CASE.corrupted, CASE.prompt, scope).values[2, 10]
    measured = ls.patching.measure(model, CASE.corrupted, CASE.prompt, scope).values[2, 10]
    assert abs(float(measured)) > 1e-3
    assert shown(page, "predicted") == pytest.approx(float(predicted), rel=6e-3)
    assert shown(page, "measured") == pytest.approx(float(measured), rel=6e-3)
    for by in ("mean", "zero"):
        press(page, by.title(), "#place")
        where = torch.zeros(5, 15, dtype=torch.bool)
        where[2, 10] = True
        cut = ls.patching.ablate(model, CASE.prompt, scope, where=where, by=by)
        assert shown(page, "predicted") == pytest.approx(float(cut.predicted.values[2, 10]), rel=6e-3)
        assert shown(page, "measured") == pytest.approx(float(cut.measured.values[2, 10]), rel=6e-3)
    rows = page.locator("#scores table").last.locator("tbody tr")
    assert [row.split("\t")[1] for row in rows.all_inner_texts()] == ["patch", "mean", "zero"]
    press(page, "Undo", "#scores")
    assert rows.count() == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_map_has_the_colours_and_names_of_every_other_drawing(visit, model, scheme):
    page = run(visit(color_scheme=scheme))
    scores = ls.score(model, CASE.prompt, ls.Semantic())
    (grid,) = dispatch.grids(scores, "layers")
    lines = list(zip(grid.values, grid.ends, strict=True))
    place(page, 4, 14)
    found = pixels(page, "#map", 5, 15)
    assert found == [markup.colour(value, end)[0] for line, end in lines for value in line]
    names = page.locator("#map .rows > div").all_inner_texts()
    assert [name.split(" [")[0] for name in names] == list(grid.rows)
    assert [float(name.split("[")[1][:-1]) for name in names] == pytest.approx(list(grid.ends), rel=6e-3)
    # Each name stands beside its row.
    box = page.locator("#map canvas").bounding_box()
    for row, one in enumerate(page.locator("#map .rows > div").all()):
        own = one.bounding_box()
        assert own["y"] + own["height"] / 2 == pytest.approx(box["y"] + box["height"] * (row + 0.5) / 5, abs=2)
    # The list is the map's equal: the same numbers, the largest first.
    place(page, 1, 3)
    listed = [row.split("\t") for row in page.locator("#scores table").first.locator("tbody tr").all_inner_texts()]
    order = scores.values[1].argsort(descending=True).tolist()
    assert [int(row[1]) for row in listed] == order
    assert [float(row[2]) for row in listed] == pytest.approx(scores.values[1][order].tolist(), rel=6e-3)
    # The words of the page can be read on its ground.
    pairs = page.evaluate(
        """() => [...document.querySelectorAll('h1, h2, p, th, td, label, button, .quiet, .rows div, .columns span')].map(e => {
        let b = e; while (b && getComputedStyle(b).backgroundColor === 'rgba(0, 0, 0, 0)') b = b.parentElement;
        return [getComputedStyle(e).color, getComputedStyle(b).backgroundColor]; })"""
    )
    for ink, ground in set(map(tuple, pairs)):
        one, two = ([float(c) / 255 for c in re.findall(r"[\d.]+", text)[:3]] for text in (ink, ground))
        light = [sum(w * (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4)
                     for w, c in zip((0.2126, 0.7152, 0.0722), rgb, strict=True)) for rgb in (one, two)]  # fmt: skip
        assert (max(light) + 0.05) / (min(light) + 0.05) >= 4.5, (ink, ground)


def test_a_token_that_is_clicked_is_explained_where_it_was_predicted(visit, model):
    page = run(visit())
    page.locator(".token").nth(4).click()
    idle(page)
    assert "next after 3" in page.locator("#tokens").inner_text()
    ids = model.to_tokens(CASE.prompt)[0].tolist()
    scores = ls.score(model, CASE.prompt, ls.Semantic(ids[4]), position=3)
    first = page.locator("#scores table").first.locator("tbody tr").first.inner_text().split("\t")
    assert float(first[2]) == pytest.approx(float(scores.values[0].max()), rel=6e-3)
    page.locator(".token").nth(6).click(modifiers=["Shift"])
    idle(page)
    assert "3 tokens as one" in page.locator("#scope").inner_text()
    assert page.locator(".token[aria-pressed=true]").count() == 3
    joint = ls.score(model, CASE.prompt, ls.Continuation(), position=[3, 4, 5])
    first = page.locator("#scores table").first.locator("tbody tr").first.inner_text().split("\t")
    assert float(first[2]) == pytest.approx(float(joint.values[0].max()), rel=6e-3)
    page.locator(".token").first.click()
    assert "nothing predicts the first token" in page.locator(".status").inner_text()


def test_generate_explains_what_the_model_wrote(visit, model):
    page = run(visit())
    page.get_by_label("tokens", exact=True).fill("2")
    page.get_by_label("tokens", exact=True).blur()
    press(page, "Generate")
    text = ls.generate(model, CASE.prompt, max_new_tokens=2)
    assert page.locator(".token.added").count() == 2
    assert page.locator(".token[aria-pressed=true]").inner_text().strip() == text.tokens[15].strip()


@pytest.mark.parametrize("what", ["z", "fisher", "word", "hide", "activation"])
def test_other_scopes_sites_and_units(visit, what):
    page = run(visit())
    options = {"z": "at", "fisher": "scope", "word": "by", "hide": "position 0", "activation": "numbers"}
    page.locator("#scope").get_by_label(options[what], exact=True).select_option(what)
    idle(page)
    said = page.locator("#scores").inner_text()
    assert {"z": "heads of", "fisher": "squared units", "word": "by token", "hide": "position 0 is left out",
            "activation": "−["}[what] in said  # fmt: skip
    if what == "word":
        assert page.locator("#place").get_by_role("button", name="Zero").is_disabled()
    if what == "z":
        place(page, 3, 10, rows=4)
        press(page, "Zero", "#place")
        assert "head 3" in page.locator("#scores table").last.inner_text()


def test_an_address_brings_everything_back(visit):
    page = run(visit())
    page.locator(".token").nth(8).click()
    idle(page)
    place(page, 1, 4)
    press(page, "Mean", "#place")
    before = [page.locator(s).inner_text() for s in ("#place", "#tokens .next", "#scope p")]
    address = page.evaluate("location.href")
    assert CASE.prompt.split()[1] not in urllib.parse.urlparse(address).query
    other = idle(visit(address))
    other.locator("#measured").wait_for()
    idle(other)
    assert [other.locator(s).inner_text() for s in ("#place", "#tokens .next", "#scope p")] == before
    elsewhere = address.replace(re.search(r"model%22%3A%22(\w+)", address)[1], "0" * 16)
    other = idle(visit(elsewhere))
    other.get_by_text("another model").wait_for()


def test_what_is_taken_along(visit, model, tmp_path, monkeypatch):
    page = run(visit())
    place(page, 1, 4)
    press(page, "Zero", "#place")
    press(page, "Follow the influence")
    files = {}
    for name in ("SVG", "PNG", "CSV", "Python", "Report"):
        with page.expect_download() as found:
            page.locator("#export").get_by_role("button", name=name).click()
        found.value.save_as(tmp_path / name)
        idle(page)
        files[name] = (tmp_path / name).read_bytes()
    scores = ls.score(model, CASE.prompt, ls.Semantic())
    titles = [e.text for e in ElementTree.fromstring(files["SVG"]).iter("{http://www.w3.org/2000/svg}title")]
    assert [float(t.rpartition(": ")[2]) for t in titles] == pytest.approx(scores.values.flatten().tolist(), rel=6e-3)
    assert files["PNG"].startswith(b"\x89PNG")
    rows = list(csv.DictReader(io.StringIO(files["CSV"].decode())))
    frame = scores.to_dataframe()
    assert [row["pos_token"] for row in rows] == frame.pos_token.tolist()
    assert [float(row["score"]) for row in rows] == pytest.approx(frame.score.tolist(), rel=1e-6)
    monkeypatch.setattr(ls.demo, "load", lambda: model)
    space: dict = {}
    exec(files["Python"].decode(), space)
    _, score, flow, cut = space["answers"]
    assert torch.equal(score.values, scores.values)
    assert float(flow.total.sum()) > 0
    assert shown(page, "measured") == pytest.approx(float(cut.measured.values[1, 4]), rel=6e-3)
    assert b"Flow of" in files["Report"]


def test_heads_their_edges_and_cutting_them(visit, model):
    page = run(visit())
    press(page, "Follow the influence")
    flow = ls.flow(model, CASE.prompt, ls.Semantic())
    grid = dispatch.grids(flow, "heads")[0]
    expected = [markup.colour(value, grid.largest)[0] for line in grid.values for value in line]
    place(page, 1, 2, "#flow", rows=4, columns=5)
    assert pixels(page, "#flow", 4, 5)[:6] == expected[:6]
    press(page, "What it reads", "#heads")
    edges = ls.flow(model, CASE.prompt, ls.Semantic(), edges=[(1, 2)]).edges
    first = page.locator("#heads tbody tr").first.inner_text().split("\t")
    assert abs(float(first[3].replace("−", "-"))) == pytest.approx(float(edges.abs().max()), rel=6e-3)
    frame = page.frame_locator("#heads iframe")
    frame.locator(".circuits > div > *").first.wait_for()
    assert page.frames[-1].evaluate("origin") == "null"
    press(page, "Zero", "#heads")
    cut = ls.patching.ablate(model, CASE.prompt, ls.Semantic(), where=[(1, 2)], by="zero")
    assert shown(page, "measured") == pytest.approx(float(cut.measured.values[1, 2]), rel=6e-3)
    place(page, 1, 4, "#flow", rows=4, columns=5)
    assert page.locator("#heads").get_by_role("button", name="Zero").is_disabled()


def test_two_prompts_on_one_scale(visit, model):
    page = run(visit())
    page.fill("#clean", "when Paul")
    page.locator("#clean").blur()
    page.locator(".error", has_text="the second prompt has 3 tokens, the first 15").wait_for()
    page.fill("#clean", CASE.corrupted)
    page.locator("#clean").blur()
    idle(page)
    page.get_by_label("how many").fill("9")
    page.get_by_label("how many").blur()
    press(page, "Measure the largest")
    predicted = ls.patching.predict(model, CASE.corrupted, CASE.prompt, ls.Semantic())
    measured = ls.patching.measure(model, CASE.corrupted, CASE.prompt, ls.Semantic())
    assert page.locator("#pair .map").count() == 2
    assert page.locator("#pair .dot").count() == 9
    order = predicted.values.abs().flatten().argsort(descending=True, stable=True)[:9]
    expected = [predicted.values.flatten()[order], measured.values.flatten()[order]]
    end = max(float(x.abs().max()) for x in expected)
    label = page.locator("#pair .scatter").get_attribute("aria-label")
    assert float(label.rpartition(" to ")[2]) == pytest.approx(end, rel=6e-3)


def test_without_a_mouse(visit):
    page = visit()
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.keyboard.type(CASE.prompt)
    page.keyboard.press("Control+Enter")
    page.locator("#map canvas").wait_for()
    idle(page)

    def tab_to(what):
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate(f"document.activeElement.matches({what!r})"):
                return
        raise AssertionError(f"no way to {what}")

    tab_to(".token")
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    idle(page)
    assert "next after 10" in page.locator("#tokens").inner_text()
    page.locator(".token[tabindex='0']").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Shift+Enter")
    idle(page)
    assert "2 tokens as one" in page.locator("#scope").inner_text()
    page.locator(".token[tabindex='0']").focus()
    page.keyboard.press("Enter")
    idle(page)
    tab_to("#map canvas")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("PageDown")
    page.keyboard.press("ArrowLeft")
    said = page.locator("#said").inner_text()
    assert re.match(r"␣, at 9 in  ?0 resid_post: [\d.e-]+$", said), said
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.textContent") == "Mean"
    page.keyboard.press("Enter")
    page.locator("#measured").wait_for()
    idle(page)
    assert page.locator("#said").inner_text().startswith("predicted ")
    tab_to(".plain")
    page.keyboard.press("Enter")
    assert page.locator(".plain[aria-pressed=true]").count() == 1
    # Everything that can be pressed has a name and room, and can be seen when it has the focus.
    small = page.evaluate(
        """() => [...document.querySelectorAll('button, select, input, textarea, canvas')].filter(e => {
        const box = e.getBoundingClientRect(); const name = e.ariaLabel || e.textContent.trim() || e.labels?.length;
        return !name || (e.type !== 'checkbox' && (box.height < 24 || box.width < 24)); }).map(e => e.outerHTML)"""
    )
    assert small == []


def test_hostile_tokens_stay_text(visit, model):
    page = run(visit(), "when <script>window.harmed=1</script> <img src=x onerror=window.harmed=2>")
    assert page.locator("#page script, #page img").count() == 0
    # Whatever a server says is drawn as text.
    tokens = [*HOSTILE] * 2
    values = [[float(i) for i in range(len(tokens))]] * 2
    grid = {
        "values": values, "rows": [HOSTILE[0], HOSTILE[2]], "columns": tokens, "positions": list(range(len(tokens))), "unit": HOSTILE[3],
        "signed": False, "title": HOSTILE[1], "largest": 39, "ends": [], "explained": [], "note": HOSTILE[3],
    }  # fmt: skip
    target = {"id": 1, "text": HOSTILE[0], "p": 0.5, "rank": 0}
    answers = {
        "tokens": {"tokens": tokens, "ids": list(range(len(tokens))), "position": 3,
                   "next": [{"id": i, "text": t, "p": 0.1} for i, t in enumerate(HOSTILE)]},
        "score": {"grids": [grid], "sites": HOSTILE[:2], "heads": False, "title": HOSTILE[0], "tokens": tokens, "positions": [3],
                  "targets": [target], "units": "norm"},
    }  # fmt: skip
    for verb, answer in answers.items():
        page.route(f"**/api/1/{verb}", partial(replied, answer))
    run(page, "anything")
    page.locator(".likely").nth(3).wait_for()
    assert page.locator("#page script, #page img, #page iframe").count() == 0
    assert page.locator(".token bdi").all_inner_texts()[0] == "<script>window.harmed=1</script>"
    assert page.locator("#map .rows div").first.inner_text() == HOSTILE[0]
    assert "\u202e" not in page.locator("#page").inner_text()
    with page.expect_download() as found:
        page.locator("#export").get_by_role("button", name="SVG").click()
    names = {e.tag.rpartition("}")[2] for e in ElementTree.parse(found.value.path()).iter()}
    assert names <= {"svg", "rect", "text", "title"}


@pytest.mark.parametrize("width", [360, 768])
def test_on_a_narrow_screen_nothing_runs_off(visit, width):
    page = run(visit(viewport={"width": width, "height": 740}))
    press(page, "Follow the influence")
    press(page, "What it reads", "#heads")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_stop_and_an_error(visit):
    page = run(visit())
    page.locator("#ask").get_by_label("temperature").fill("9")
    page.locator("#ask").get_by_label("temperature").blur()
    page.get_by_label("tokens", exact=True).fill("64")
    page.get_by_label("tokens", exact=True).blur()
    page.get_by_role("button", name="Generate").click()
    page.get_by_role("button", name="Stop").click()
    assert "stopped" in idle(page).locator(".status").inner_text()
    page.fill("#prompt", "a " * 200)
    page.get_by_role("button", name="Run").click()
    page.locator(".error").wait_for()
    assert "context of 128" in page.locator(".error").inner_text()
    assert run(page).locator("#map").is_visible()


def test_a_page_of_another_origin_gets_nothing(visit, browser, served):  # noqa: F811
    """In the same browser, which has the cookie: not by fetch, form, frame, image, script or a new window."""

    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>elsewhere</title>")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    context = browser.new_context()
    page = context.new_page()
    page.goto(served.address)
    page.locator("#prompt").wait_for()
    seen = []
    context.on("response", lambda one: seen.append((one.url, one.status)) if str(served.port) in one.url else None)
    for name in ("127.0.0.1", "localhost"):
        other = context.new_page()
        other.goto(f"http://{name}:{server.server_address[1]}/")
        got = other.evaluate(
            """async (at) => {
            const tried = async (f) => { try { return await f(); } catch { return null; } };
            const body = JSON.stringify({prompt: "a"});
            const json = {method: "POST", credentials: "include", headers: {"content-type": "application/json"}, body};
            const loads = (kind, src) => new Promise((done) => { const e = document.createElement(kind);
              e.onload = () => done(kind === "iframe" ? null : "loaded"); e.onerror = () => done(null); e.src = src; document.body.append(e); });
            return [
              await tried(async () => (await fetch(at + "/api/1/model", {credentials: "include"})).text()),
              await tried(async () => (await fetch(at + "/api/1/tokens", json)).text()),
              await tried(async () => (await fetch(at + "/api/1/tokens", {method: "POST", mode: "no-cors", credentials: "include", body})).text() || null),
              await tried(() => loads("script", at + "/static/main.js")),
              await tried(() => loads("img", at + "/")),
              await tried(() => loads("iframe", at + "/")),
            ]; }""",
            f"http://127.0.0.1:{served.port}",
        )
        assert got == [None] * 6
        other.close()
    server.shutdown()
    server.server_close()
    context.close()
    assert seen
    assert {status for _, status in seen} <= {401, 403, 405, 415}, seen
