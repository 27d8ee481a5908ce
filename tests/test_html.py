"""What notebooks and reports show: well-formed, escaped, without script, and with the numbers of the tensor."""

import re
from html.parser import HTMLParser

import pytest
import torch

import lens_scopes as ls
from lens_scopes.views import cells, markup
from lens_scopes.views.markup import number

HOSTILE = (
    "<script>alert(1)</script>",
    "</span><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "' style='position:fixed",
    "&lt;b&gt;",
    "\u202egnp.exe",
    "\x00\x1b[31m",
    "\ufeff\u200b",
    "]]><!--",
    "</title></pre></div>",
    "\n",
    "   ",
    "",
    "a" * 500,
    "https://example.com/x.js",
)
VOID = {"img", "br", "meta", "hr", "input", "link"}


class Page(HTMLParser):
    """Everything in a page, and whether its tags close."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.text, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"closes {tag}, nothing is open"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data!r}")

    def titles(self):
        return [value for _, name, value in self.attributes if name == "title"]


def scores(values, tokens, units="norm", sites=("hook_embed", "blocks.0.hook_resid_post")):
    coords = {"site": tuple(sites[: len(values)]), "pos": tuple(range(len(tokens)))}
    meta = {
        "units": units,
        "scope": {"kind": "Semantic", "fields": {}, "text": "Semantic('<b>')"},
        "model": "<i>model</i>",
        "positions": [0],
    }
    meta["predictions"] = [[{"id": 1, "text": "<script>x</script>", "p": 0.5}]]
    return ls.Scores(values, ("site", "pos"), coords, tuple(tokens), meta)


def check_harmless(text):
    page = Page(text)
    blocks = {"div", "span", "table", "thead", "tbody", "tr", "th", "td", "pre", "details", "summary"}
    assert set(page.tags) <= blocks | {"bdi", "img"}
    known = {"style", "title", "colspan", "scope"}
    assert {name for tag, name, _ in page.attributes if tag != "img"} <= known | {"dir"}, page.attributes
    assert {name for tag, name, _ in page.attributes if tag == "img"} <= {"style", "src", "alt"}, page.attributes
    for _, name, value in page.attributes:
        if name == "src":
            assert re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/=]+", value)
        if name == "style":
            assert "url(" not in value
            assert "expression" not in value
    assert not re.search("[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]", text)
    return page


@pytest.mark.parametrize("units", ["norm", "squared", "signed"])
@pytest.mark.parametrize("rows", [1, 2])
def test_hostile_tokens_are_text(units, rows):
    values = torch.rand(rows, len(HOSTILE), generator=torch.Generator().manual_seed(0)) - (
        0.5 if units == "signed" else 0
    )
    result = scores(values, HOSTILE, units)
    for part in (result, result.sel(site="embed"), result.sel(pos=3), result.sum("pos"), result.aggregate()):
        page = check_harmless(part._repr_html_())
        shown = "".join(page.text)
        assert "Semantic('<b>') on <i>model</i>" in shown
        assert "<script>x</script>" in shown or "pos" not in part.dims
    whole = "".join(check_harmless(result._repr_html_()).text)
    assert "<script>alert(1)</sc" in whole or "<script>alert(" in whole


def test_hovers_carry_the_tensors_numbers():
    values = torch.tensor([[1.25, 0.0, -3.5e-7], [123456.0, float("nan"), 2.0]])
    result = scores(values, ("a", "b", "c"), "signed")
    titles = check_harmless(result._repr_html_()).titles()
    expected = [number(float(v)) for v in values.flatten()]
    assert [title.rsplit(": ", 1)[1] for title in titles] == expected
    assert expected == ["1.25", "0", "-3.5e-07", "1.23e+05", "NaN", "2"]
    strip = check_harmless(result.sel(site="embed")._repr_html_()).titles()
    assert [title.rsplit(": ", 1)[1] for title in strip] == expected[:3]


def test_every_axis_is_drawn():
    values = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    coords = {
        "target_pos": (2, 4),
        "site": ("blocks.0.attn.hook_z", "blocks.1.attn.hook_z", "blocks.2.attn.hook_z"),
        "pos": (0, 1, 2, 3),
        "head": tuple(range(5)),
    }
    result = ls.Scores(values, ("target_pos", "site", "pos", "head"), coords, tuple("abcd"), {"units": "norm"})
    page = check_harmless(result._repr_html_())
    assert len(page.titles()) == values.numel()
    found = [title.rsplit(": ", 1)[1] for title in page.titles()]
    assert found == [number(float(v)) for v in values.movedim(2, 3).flatten()]


def test_too_much_is_not_drawn_and_says_so():
    page = check_harmless(scores(torch.rand(2, 15_000), ["x"] * 15_000)._repr_html_())
    assert not page.titles()
    assert "15000 tokens, more than the 5000 drawn here" in "".join(page.text)
    sites = [f"blocks.{i}.hook_mid" for i in range(50)]
    shown = "".join(check_harmless(scores(torch.rand(50, 2100), ["x"] * 2100, sites=sites)._repr_html_()).text)
    assert "105000 values, more than the 100000 drawn here: select a part with sel(...)" in shown
    sites = [f"blocks.{i}.hook_mid" for i in range(500)]
    shown = "".join(check_harmless(scores(torch.rand(500, 41), ["x"] * 41, sites=sites)._repr_html_()).text)
    assert "20500 values, more than the 20000 drawn here" in shown


def test_an_attention_sink_does_not_bleach_the_rest():
    values = torch.tensor([[100.0, 1.0, 0.5]])
    page = Page(scores(values, ("<s>", "a", "b")).sel(site="embed")._repr_html_())
    assert "position 0 reaches 100" in "".join(page.text)
    background = [
        re.search(r"background:(rgb\([0-9,]+\))", v)[1]
        for t, n, v in page.attributes
        if n == "style" and "inline-block;margin" in v
    ]
    assert background[0] == background[1] != background[2]


def test_signed_colours_tell_the_sign_and_zero_is_pale():
    plus, minus, zero = (markup.colour(v, 1.0)[0] for v in (1.0, -1.0, 0.0))
    assert len({plus, minus, zero}) == 3
    assert markup.colour(float("nan"), 1.0)[0] not in (plus, minus, zero)
    for value in torch.linspace(-1, 1, 81).tolist():
        background, ink = markup.colour(value, 1.0)
        rgb = [int(x) for x in re.findall(r"\d+", background)]
        light = [((c / 255 + 0.055) / 1.055) ** 2.4 if c > 10 else c / 255 / 12.92 for c in rgb]  # WCAG 2
        luminance = 0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2]
        contrast = (luminance + 0.05) / 0.05 if ink == "#000" else 1.05 / (luminance + 0.05)
        assert contrast >= 4.5, f"{value}: contrast {contrast:.1f}"


def test_all_zero_and_empty_scales():
    for values in (torch.zeros(1, 2), torch.full((1, 2), float("nan"))):
        check_harmless(scores(values, ("a", "b"))._repr_html_())


def test_a_page_loads_nothing():
    text = markup.page("<title>", scores(torch.rand(1, 15), HOSTILE)._repr_html_())
    body = text[text.index("<body") :]
    assert "default-src 'none'" in text
    assert "<script" not in text
    assert not re.search(r"""(src|href|action|url)\s*[=(]\s*["']?\s*(https?:)?//""", body)
    assert "<title>&lt;title&gt;</title>" in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\n", "↵"),
        (" ", "·"),
        ("", "∅"),
        ("\t", "⇥"),
        (" a", " a"),
        ("<", "&lt;"),
        ("\u202e", "\\u202e"),
        ("a" * 30, "a" * 23 + "…"),
    ],
)
def test_what_tokens_look_like(text, shown):
    assert markup.token(text) == shown


def test_layers_of_different_size_have_scales_of_their_own():
    """The stream grows with depth and scores shrink: on one scale all layers but the first would be white."""
    values = torch.tensor([[10.0, 40.0, 0.0], [0.1, 0.0, 0.4]])
    result = scores(values, ("<s>", "a", "b"))
    page = check_harmless(result._repr_html_())
    assert [text for text in page.text if "[" in text][:2] == ["embed [40]", "0 resid_post [0.4]"]
    assert "on its own scale" in "".join(page.text)
    cells = [re.search(r"rgb\([0-9,]+\)", v)[0] for t, n, v in page.attributes if t == "td" and n == "style"]
    strongest = markup.colour(1.0, 1.0)[0]
    assert [i for i, shade in enumerate(cells) if shade == strongest] == [1, 5]
    # Rounding is not painted in full colour, and layers of similar size share one scale.
    noise = torch.tensor([[10.0, 40.0, 0.0], [1e-6, 0.0, 4e-6]])
    assert "0 resid_post [0.0004]" in scores(noise, ("<s>", "a", "b"))._repr_html_()
    assert "on its own scale" not in scores(torch.rand(2, 3) + 1, ("<s>", "a", "b"))._repr_html_()


def test_an_attention_sink_does_not_bleach_its_row():
    values = torch.tensor([[900.0, 3.0, 1.0], [9.0, 0.1, 0.3]])
    text = scores(values, ("<s>", "a", "b"))._repr_html_()
    assert "embed [3]" in text
    assert "0 resid_post [0.3]" in text
    assert "position 0 reaches 900, off its row" in text


def test_numbers_in_cells_are_never_minus_zero():
    assert cells.short(-0.004, 0.431) == ""
    assert cells.short(-0.02, 0.431) == "-0.02"
    assert cells.short(-0.0019, 0.0197) == "-.0019"


def test_rows_by_target_say_what_is_predicted_there():
    values = torch.rand(5, 2)
    coords = {"target_pos": tuple(range(5)), "pos": (0, 1)}
    said = [[{"id": n, "text": f" <{n}>", "p": 0.5}] for n in range(5)]
    meta = {"units": "norm", "positions": list(range(5)), "predictions": said}
    result = ls.Scores(values, ("target_pos", "pos"), coords, ("a", "b"), meta)
    shown = "".join(Page(result._repr_html_()).text)
    assert "target 3: predicts ␣<3>" in shown
    assert "(2 later positions are explained too)" in shown
    one = "".join(Page(result.sel(target_pos=1)._repr_html_()).text)
    assert re.findall(r"predicted after position (\d)", one) == ["1"]


@pytest.mark.parametrize(
    "hidden",
    ["\xad", "\u034f", "\u061c", "\u115f", "\u180e", "\u200b", "\u2060", "\u3164", "\ufe0f", "\ufeff", "\U000e0041"],
)
def test_characters_that_nobody_sees_are_written_out(hidden):
    """Two tokens that look alike are told apart: in strips, headings, running text and on a command line."""
    code = f"\\u{ord(hidden):04x}"
    assert markup.visible(f"ca{hidden}t") == f"ca{code}t"
    assert markup.named(f" ca{hidden}t") == f"␣ca{code}t"
    assert markup.escaped(f"ca{hidden}t") == f"ca{code}t"
    assert code in scores(torch.rand(1, 2), ("a", f"b{hidden}"))._repr_html_()


@pytest.mark.parametrize("blank", ["\xa0", "\u2003", "\u202f", "\u3000"])
def test_blanks_of_another_kind_are_told_from_a_blank(blank):
    assert markup.visible(f"a{blank}b") == f"a\\u{ord(blank):04x}b"
    assert markup.visible(blank) == f"\\u{ord(blank):04x}"
