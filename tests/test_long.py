"""Long prompts: the map, the running text and the lists, read back from the page and held against the tensors."""

import base64
import math
import re
import struct
import zlib
from html import unescape

import pytest
import torch

import lens_scopes as ls
from lens_scopes.commands import tables
from lens_scopes.views import dispatch, markup, pixels
from lens_scopes.views.grids import percent
from lens_scopes.views.maps import ticks
from shown import HOSTILE, by_head, by_target, flow, meta, scores
from test_html import Page, check_harmless

IMAGE = re.compile(r'<img src="data:image/png;base64,([^"]*)" alt="([^"]*)"')
BOX = re.compile(
    r'<bdi style="background:(rgb\([^)]*\));color:#\w+;padding:1px 2px;border-radius:3px" title="([^"]*)">'
)
SMALL = r"all below 5 % of the scale|at most [^ ]+ % of the scale"
RUN = re.compile(rf'(?:<span title="|<summary[^>]*>… )(\d+) tokens?, (?:{SMALL}), ([^ ]+) % of the row\'s sum')


def words(count):
    return tuple(["<s>", *(f" w{i}" if i % 23 else "\n" for i in range(1, count))])


def heavy(count, sites=7, units="norm", seed=0):
    """As scores are: a few tokens have most of it, rows shrink with depth, position 0 and the last swallow much."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(count, generator=generator).mul(1.5).exp()
    values = tokens * torch.randn(sites, count, generator=generator).mul(0.7).exp()
    values = values * 0.5 ** torch.arange(sites)[:, None]
    largest = values.amax(1)
    values[:, 0] = 20 * largest
    values[2:, -1] = 8 * largest[2:]
    values[-1, :-1] = 0
    if units == "signed":
        values = values * torch.randn(sites, count, generator=generator).sign()
    return scores(words(count), units, sites=sites, values=values)


def strips(count, targets=3):
    """Several positions explained, at one site."""
    found = by_target(words(count), targets)
    coords = {"target_pos": found.coords["target_pos"], "site": ("hook_embed",), "pos": found.coords["pos"]}
    return ls.Scores(found.values[:, None], ("target_pos", "site", "pos"), coords, found.tokens, found.meta)


RESULTS = {
    "layers": lambda: heavy(300),
    "signed": lambda: heavy(120, units="signed"),
    "barely long": lambda: heavy(51),
    "two bands": lambda: heavy(1300),
    "words": lambda: heavy(200).aggregate("word"),
    "one site": lambda: heavy(90, sites=1),
    "a strip": lambda: heavy(90).sel(site="embed"),
    "heads": lambda: by_head(words(70)),
    "targets": lambda: by_target(words(70)),
    "strips": lambda: strips(70),
    "flow": lambda: flow(words(80)),
    "flow together": lambda: flow(words(80), together=True),
    "some sources": lambda: some_sources(flow(words(160))),
    "missing": lambda: missing(heavy(60)),
}


def some_sources(travel):
    from dataclasses import replace

    kept = [i for i in range(len(travel.tokens)) if i % 7 > 2]
    rows = {name: getattr(travel, name)[kept] for name in ("total", "heads", "last", "mlps", "skip", "stream")}
    return replace(travel, **rows, sources=tuple(kept), edges=None)


def missing(result):
    from dataclasses import replace

    values = result.values.clone()
    values[:, 5] = math.nan
    return replace(result, values=values)


def decoded(text):
    """The pixels of a PNG, by its specification: no filter, with and without a palette; checksums hold."""
    data = base64.b64decode(text)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    parts, at = {}, 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        kind, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size]) == (zlib.crc32(kind + content),)
        parts[kind], at = content, at + 12 + size
    width, height, depth, colour_type, *rest = struct.unpack(">IIBBBBB", parts[b"IHDR"])
    assert (depth, rest) == (8, [0, 0, 0])
    each = {2: 3, 3: 1}[colour_type]
    raw, found = zlib.decompress(parts[b"IDAT"]), []
    for row in range(height):
        start = row * (1 + width * each)
        assert raw[start] == 0
        line = raw[start + 1 : start + 1 + width * each]
        if colour_type == 3:
            found.append([tuple(parts[b"PLTE"][3 * i : 3 * i + 3]) for i in line])
        else:
            found.append([tuple(line[3 * i : 3 * i + 3]) for i in range(width)])
    return found


def end_of(line, positions, explained):
    """The end of a row's scale by its definition: a slow second way."""
    sizes = {at: abs(v) for at, v in zip(positions, line, strict=True) if math.isfinite(v)}
    rest = max((v for at, v in sizes.items() if at not in (0, explained)), default=0.0)
    kept = [v for at, v in sizes.items() if not (at in (0, explained) and v > 3 * rest and 1e-5 * v < rest)]
    return max(kept, default=0.0)


def long_grids():
    """Every view of every result that is long, with its page."""
    for name, make in RESULTS.items():
        result = make()
        for view in dispatch.views(result):
            if view == "edges":
                continue
            grids = dispatch.grids(result, view)
            if grids[0].is_long:
                yield pytest.param(result, view, grids, dispatch.body(result, view), id=f"{name}-{view}")


LONG = list(long_grids())
every_long_view = pytest.mark.parametrize(("result", "view", "grids", "page"), LONG)


def test_there_are_views_of_every_kind():
    seen = {param.values[1] for param in LONG}
    assert seen == {"layers", "tokens", "heads", "targets", "stream"}


@pytest.mark.parametrize("count", [2, 256, 257, 700])
def test_a_picture_is_its_pixels(count):
    colours = [[(i % 256, i // 256, 7) for i in range(count)]] * 2
    assert decoded(base64.b64encode(pixels.png(colours)).decode()) == colours
    with pytest.raises(ValueError, match="rows of one length"):
        pixels.png([[(0, 0, 0)], []])


@every_long_view
def test_every_pixel_is_the_colour_of_its_number(result, view, grids, page):
    """On its own row's scale, whose end stands in the row's name; all bands side by side are all columns."""
    images = [decoded(found) for found, _ in IMAGE.findall(page)]
    if grids[0].is_strip:
        assert not images
        return
    for grid in grids:
        bands = -(-len(grid.columns) // 800)
        mine, images = images[:bands], images[bands:]
        rows = [[pixel for band in mine for pixel in band[r]] for r in range(len(grid.rows))]
        for r, (line, end) in enumerate(zip(grid.values, grid.ends, strict=True)):
            assert [f"rgb({red},{green},{blue})" for red, green, blue in rows[r]] == [
                markup.colour(value, end)[0] for value in line
            ]
            assert f"{unescape(grid.rows[r])} [{markup.number(end)}]" in unescape(page)
            # No row is pale, but one that is rounding beside the others.
            assert max(abs(v) / end for v in line if math.isfinite(v)) >= 1 or end == 1e-5 * max(grid.ends)
    assert not images


@every_long_view
def test_each_row_has_the_scale_that_is_defined(result, view, grids, page):
    for grid in grids:
        ends = grid.ends or (grid.largest,)
        own = [end_of(v, grid.positions, e) for v, e in zip(grid.values, grid.explained, strict=True)]
        floor = 1e-5 * max(own)
        assert ends == pytest.approx([max(end, floor) for end in own])
        for line, end, about in zip(grid.values, ends, grid.explained, strict=True):
            off = [at for at, v in zip(grid.positions, line, strict=True) if abs(v) > end]
            assert set(off) <= {0, about}
            if not grid.is_strip:
                assert all(f" · {at}: {markup.number(line[grid.positions.index(at)])}" in page for at in off[:1])


def test_position_0_and_the_one_explained_are_off_their_rows_scales():
    result = heavy(300)
    (grid,) = dispatch.grids(result, "layers")
    shown = "".join(Page(dispatch.body(result, "layers")).text)
    last = len(result.tokens) - 1
    at_3 = [markup.number(float(result.values[3, i])) for i in (0, last)]
    assert f"2 resid_post [{markup.number(grid.ends[3])}] · 0: {at_3[0]} · {last}: {at_3[1]}" in shown
    assert "position 0 reaches" in grid.note
    assert "and the position explained reaches" in grid.note
    # The last row has nothing but the position explained: then that sets the scale.
    assert grid.ends[-1] == pytest.approx(float(result.values[-1, -1]))


@every_long_view
def test_the_running_text_is_the_prompt_with_its_numbers(result, view, grids, page):
    """Boxes on the colours of what they say; runs say how many tokens they are and what they have of the sum."""
    every = [(grid, r) for grid in grids for r in range(len(grid.rows))]
    told = max(range(len(every)), key=lambda i: (every[i][0].explained[every[i][1]], -i))
    grid, row = every[told]
    line, end = grid.values[row], (grid.ends or (grid.largest,))[row]
    whole = math.fsum(abs(v) for v in line if math.isfinite(v))
    text = page[page.index('<div dir="ltr"') :]
    text = text[: text.index("</div>")]
    boxes, at, counted = BOX.finditer(text), 0, 0
    pieces = sorted([*boxes, *RUN.finditer(text)], key=lambda m: m.start())
    shares = []
    for piece in pieces:
        if piece.re is BOX:
            shade, hover = piece.groups()
            said = unescape(hover)
            assert said.endswith(f"{grid.columns[at]!r} at {grid.positions[at]}: {markup.number(line[at])}")
            assert shade == markup.colour(line[at], end)[0]
            assert not abs(line[at]) < 0.05 * end
            at += 1
            continue
        count = int(piece[1])
        values = [abs(v) for v in line[at : at + count]]
        assert max(values) < 0.05 * end
        said = re.compile(r"(?:[^<]*</summary>|[^>]*>)(.*?)</(?:span|details)>", re.DOTALL).match(text, piece.end(2))
        assert unescape(said[1]) == "".join(grid.columns[at : at + count])
        assert f"{piece[2]} %" == percent(math.fsum(values), whole)
        shares.append(math.fsum(values))
        at, counted = at + count, counted + count
    assert at == len(line)
    if counted:
        everything = percent(math.fsum(shares), whole)
        assert f"plain: {counted} of {len(line)} tokens, all below 5 % of the scale, {everything} of" in page


def test_text_that_is_left_out_is_not_joined():
    travel = RESULTS["some sources"]()
    page = dispatch.body(travel, "tokens")
    assert len(re.findall("… <(?:bdi|span)", page)) == sum(i % 7 == 3 for i in travel.sources)
    assert "w5 w6 w10" not in "".join(Page(page).text)


def test_quiet_runs_of_a_very_long_prompt_are_folded():
    values = torch.full((1, 700), 0.01)
    values[0, [60, 300]] = 1.0
    page = dispatch.body(scores(words(700), sites=1, values=values), "tokens")
    folds = re.findall(r"<details[^>]*><summary[^>]*>… (\d+) tokens, .*? % of the row's sum …</summary>", page)
    assert folds == ["44", "223", "383"]  # but for eight tokens at each end
    # The whole text is there.
    assert all(f"w{i}" in page for i in range(1, 700) if i % 23)
    assert "<details" not in dispatch.body(heavy(300), "layers")


def test_a_prompt_without_quiet_tokens_has_boxes_for_the_largest_only():
    result = scores(words(900), sites=1, values=torch.rand(1, 900, generator=torch.Generator().manual_seed(0)) + 1)
    page = dispatch.body(result, "tokens")
    assert len(BOX.findall(page)) == 400
    plain = 1.0 * result.values[0].sort().values[:500]
    assert f"500 of 900 tokens, at most {percent(float(plain.max() / result.values.max()), 1.0)} of the scale" in page


@every_long_view
def test_ticks_name_the_tokens_at_their_columns(result, view, grids, page):
    maps = [] if grids[0].is_strip else grids
    cells = re.compile(r'<td style="([^"]*)">(.*?)</td>')
    tables_ = [cells.findall(found) for found in re.findall(r"table-layout:fixed.*?</table>", page)]
    below = [t for t in tables_ if not any("↵ " in text or "▲" in text for _, text in t)]
    bands = [
        (g, start) for g in maps for start in range(0, len(g.columns), -(-len(g.columns) // -(-len(g.columns) // 800)))
    ]
    assert len(below) == len(bands)
    for (grid, start), marks in zip(bands, below, strict=True):
        size = min(-(-len(grid.columns) // -(-len(grid.columns) // 800)), len(grid.columns) - start)
        left, seen = 0.0, 0
        for style, text in marks:
            column = start + round(left * size / 100)
            assert left * size / 100 == pytest.approx(column - start, abs=0.05)
            if text:
                assert unescape(text) == f"{grid.positions[column]} {markup.named(grid.columns[column], 12)}"
                whole = grid.positions == tuple(range(len(grid.positions)))
                assert grid.positions[column] % 10 == 0 or column == start or not whole
                seen += 1
            left += float(re.search(r"width:([\d.e-]+)%", style)[1])
        assert left == pytest.approx(100, abs=0.1)
        assert 2 <= seen <= 12


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        (range(300), [0, 50, 100, 150, 200, 250]),
        (range(1, 301), [0, 49, 99, 149, 199, 249, 299]),
        (range(667, 1334), [33, 133, 233, 333, 433, 533, 633]),
        ([0, 3, 8, 11, 19, 31, 33], [0, 2, 3, 4, 5]),
    ],
)
def test_ticks_are_at_round_positions(positions, expected):
    assert ticks(list(positions)) == expected


def test_the_map_marks_the_position_explained_and_the_beginnings_of_lines():
    page = dispatch.body(heavy(300), "layers")
    assert "position 299, which is explained ▲" in page
    assert re.search(r">↵ ([^<]*)<", page)[1].split()[0] == "w24"
    early = scores(words(90), values=heavy(90).values[:3])
    early = ls.Scores(early.values, early.dims, early.coords, early.tokens, {**early.meta, "positions": [20]})
    page = dispatch.body(early, "layers")
    mark = re.search(r'<td style="padding:0;width:([\d.]+)%"></td><td[^>]*>▲ position 20, which is explained', page)
    assert float(mark[1]) == pytest.approx(100 * 20 / 90, abs=0.05)


@every_long_view
def test_the_list_is_the_largest_tokens(result, view, grids, page):
    every = [(grid, r) for grid in grids for r in range(len(grid.rows))]
    told = max(range(len(every)), key=lambda i: (every[i][0].explained[every[i][1]], -i))
    grid, row = every[told]
    values = torch.tensor(grid.values[row], dtype=torch.float64).nan_to_num()
    order = values.abs().argsort(descending=True, stable=True)[:20].tolist()
    listed = page[page.index(" largest of ") :]
    body = listed[listed.index("<tbody>") : listed.index("</tbody>")]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line) for line in re.findall(r"<tr.*?</tr>", body)]
    assert [int(cells[0]) for cells in rows] == [grid.positions[i] for i in order]
    assert [cells[1] for cells in rows] == [markup.number(float(values[i])) for i in order]
    sums = [math.fsum(abs(v) for v in g.values[r] if math.isfinite(v)) for g, r in every]
    held = percent(float(values[order].abs().sum()), float(values.abs().sum()))
    assert f"{held} of the row&#x27;s sum of magnitudes" in listed
    for cells, i in zip(rows, order, strict=True):
        assert markup.token(grid.columns[i]) in cells[-1]
        if len(every) > 1:
            shares = [abs(g.values[r][i]) / s if s else 0 for (g, r), s in zip(every, sums, strict=True)]
            peak = shares.index(max(shares))
            name = every[peak][0].rows[every[peak][1]]
            assert unescape(re.sub("<[^>]*>", "", cells[3])).endswith(name)
            assert cells[3].startswith((percent(max(shares), 1.0), "&lt; 0.1 %"))


@every_long_view
def test_the_list_of_rows_says_ends_and_largest(result, view, grids, page):
    if grids[0].is_strip:
        assert "row by row" not in page
        return
    listed = page[page.index("row by row") :]
    body = listed[listed.index("<tbody>") : listed.index("</tbody>")]
    rows = [[unescape(re.sub("<[^>]*>", "", c)) for c in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line)]
            for line in re.findall(r"<tr.*?</tr>", body)]  # fmt: skip
    every = [(grid, r) for grid in grids for r in range(len(grid.rows))]
    assert len(rows) == len(every)
    for cells, (grid, r) in zip(rows, every, strict=True):
        line, about = grid.values[r], grid.explained[r]
        assert cells[0].endswith(grid.rows[r])
        assert cells[1] == markup.number(grid.ends[r])
        first, explained = (line[grid.positions.index(at)] for at in (0, about))
        assert cells[2].startswith(f"{markup.number(first)} (")
        assert cells[3].startswith(f"{markup.number(explained)} (")
        others = [
            i for i, at in enumerate(grid.positions) if at not in (0, about) and math.isfinite(line[i]) and line[i]
        ]
        best = sorted(others, key=lambda i: -abs(line[i]))[:3]
        found = re.findall(r"(\d+) \((?:[\d.e+-]+|< 0.1) %\)", cells[4])
        assert [int(at) for at in found] == [grid.positions[i] for i in best]


@every_long_view
def test_a_screen_reader_hears_of_the_map(result, view, grids, page):
    for _, alt in IMAGE.findall(page):
        assert re.search(r"map of \d+ rows by \d+ tokens; darkest: .+ at \d+ in .+; the lists below", unescape(alt))


@pytest.mark.parametrize(("count", "most"), [(300, 60_000), (2000, 150_000)])
def test_how_much_a_notebook_has_to_carry(count, most):
    """19 rows, as Gemma 3 270M has; before, 300 tokens took 730 kB."""
    generator = torch.Generator().manual_seed(0)
    values = (
        torch.randn(count, generator=generator).mul(1.2).exp()
        * torch.randn(19, count, generator=generator).mul(0.6).exp()
    )
    values[:, 0] *= 30
    assert len(scores(words(count), sites=19, values=values)._repr_html_().encode()) <= most


@pytest.mark.parametrize("units", ["norm", "signed"])
def test_hostile_tokens_of_long_prompts_are_text(units, tmp_path):
    tokens = HOSTILE * 4
    for result in (scores(tokens, units), scores(tokens, units).sel(site="embed"), flow(tokens), by_target(tokens)):
        page = check_harmless(result._repr_html_())
        assert "<script>window.harmed=1" in "".join(page.text)
    text = ls.report(scores(tokens, units), tmp_path / "r.html").read_text(encoding="utf-8")
    static = re.sub(r"<script\b.*?</script>", "", text, flags=re.DOTALL)
    assert "<img src=x" not in static
    assert "<script" not in static


def test_right_to_left_words_are_isolated(tmp_path):
    shown = markup.prose("“שלום” (12.3 %, rank 0) against “سلام عليكم” <b>")
    assert shown == "“<bdi>שלום</bdi>” (12.3 %, rank 0) against “<bdi>سلام عليكم</bdi>” &lt;b&gt;"
    about = meta(["a"] * 60, "norm")
    about["targets"] = [{"id": 1, "text": "שלום", "p": 0.5, "rank": 0}]
    about["scope"] = {"kind": "Semantic", "fields": {}, "text": "Semantic('שלום', 'سلام')"}
    tokens = tuple(["<s>", " שלום", " (12)", " peace"] * 15)
    made = scores(tokens)
    result = ls.Scores(made.values, made.dims, made.coords, tokens, about)
    page = result._repr_html_()
    assert "explained: “<bdi>שלום</bdi>” (50.00%, rank 0)" in page
    assert "Semantic(&#x27;<bdi>שלום</bdi>&#x27;, &#x27;<bdi>سلام</bdi>&#x27;)" in page
    report = ls.report([result, "On שלום (1):", scores(["x", *tokens[1:]])], tmp_path / "r.html").read_text("utf-8")
    assert "On <bdi>שלום</bdi> (1):" in report
    for heading in re.findall(r"<h2 [^>]*>(.*?)</h2>", report):
        assert all(f"<bdi>{word}</bdi>" in heading for word in re.findall("[\u0590-\u06ff]+", heading))


def test_a_single_site_is_drawn_once(tmp_path):
    for result in (heavy(12, sites=1), heavy(300, sites=1)):
        assert dispatch.views(result) == ("tokens",)
        text = ls.report(result, tmp_path / "r.html").read_text(encoding="utf-8")
        assert len(re.findall(r"interactive \(circuitsvis\)", text)) == 1
    assert dispatch.views(strips(12, targets=1)) == ("tokens",)
    assert dispatch.views(strips(12)) == ("layers", "tokens")
    # It says which site and position it is about.
    hover = re.search(r'title="([^"]*)"', dispatch.body(heavy(12, sites=1), "tokens"))[1]
    assert hover.startswith("embed ")


def test_an_interactive_view_has_the_maps_scales():
    result = heavy(300)
    (grid,) = dispatch.grids(result, "layers")
    (figure,), _ = dispatch.figures(result, "layers")
    assert figure.props["labels"] == [
        f"{row} [{markup.number(end)}]" for row, end in zip(grid.rows, grid.ends, strict=True)
    ]


def test_a_picture_of_a_long_prompt_has_them_too():
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    result = heavy(300)
    (grid,) = dispatch.grids(result, "layers")
    axes = result.plot("layers").axes[0]
    shown = torch.tensor(axes.images[0].get_array().filled()).float()
    torch.testing.assert_close(
        shown, torch.tensor(grid.values) / torch.tensor(grid.ends)[:, None], rtol=1e-5, atol=1e-6
    )
    assert [text.get_text() for text in axes.get_yticklabels()] == list(grid.labels)


def test_a_terminal_lists_the_largest():
    from io import StringIO

    from rich.console import Console

    def printed(result):
        console = Console(file=StringIO(), width=160)
        for part in tables.of_scores(result):
            console.print(part, markup=False)
        return console.file.getvalue().splitlines()

    result = heavy(300)
    lines = printed(result)
    at_input = result.values[0]
    order = at_input.argsort(descending=True)[:20].tolist()
    rows = [re.match(r" *(\d+) +(\S+) +([\d.e+-]+) ", line) for line in lines[3:]]
    found = [(int(m[1]), m[3]) for m in rows if m]
    assert found == [(i, markup.number(float(at_input[i]))) for i in order]
    rest = 1 - float(at_input[order].double().sum() / at_input.double().sum())
    assert f"(280 of 300 tokens are not shown, they hold {percent(rest, 1.0)} of the sum of magnitudes" in "\n".join(
        lines
    )
    at = order[0]
    assert f"[{markup.visible(result.tokens[at])}]" in lines[3]
    several = ls.Scores(result.values[1:4], result.dims, {**result.coords, "site": result.coords["site"][1:4]}, result.tokens,
                        result.meta)  # fmt: skip
    lines = printed(several)
    shares = (several.values / several.values.sum(1, keepdim=True)).amax(0)
    shown = [int(line.split()[0]) for line in lines if re.match(r" *\d+ ", line)]
    assert shown == shares.argsort(descending=True)[:20].tolist()
    assert any("they hold at most" in line for line in lines)
    assert len([line for line in printed(heavy(50)) if re.match(r" *\d+ ", line)]) == 50
