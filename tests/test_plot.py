"""plot: pictures of every view with matplotlib and plotly, with the numbers of the tensors."""

import dataclasses
import importlib.util

import pytest
import torch

import lens_scopes as ls
from lens_scopes.plot import plot, scatter, series
from lens_scopes.views import dispatch
from shown import HOSTILE, by_head, by_target, flow, scores

WORDS = ("<s>", " the", " cat", " sat", "$x_1$")
CASES = [
    (scores(WORDS), "layers"),
    (scores(WORDS, "signed"), "tokens"),
    (flow(WORDS), "last"),
    (flow(WORDS), "heads"),
    (flow(WORDS), "stream"),
    (flow(WORDS), "tokens"),
]
needs_plotly = pytest.mark.skipif(importlib.util.find_spec("plotly") is None, reason="plotly is not installed")


@pytest.fixture(autouse=True)
def matplotlib():
    return pytest.importorskip("matplotlib", reason="matplotlib is not installed")


@pytest.mark.parametrize(("result", "view"), CASES)
@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_matplotlib_writes_files(result, view, suffix, tmp_path):
    path = tmp_path / f"x.{suffix}"
    result.plot(view).savefig(path)
    assert path.stat().st_size > 1000


def test_matplotlib_draws_the_tensors_numbers():
    result = scores(WORDS)
    figure = plot(result)
    (image,) = figure.axes[0].images
    torch.testing.assert_close(torch.tensor(image.get_array().filled()).float(), result.values)
    assert image.norm.vmin == 0
    assert image.norm.vmax == pytest.approx(float(result.values.max()))
    signed = plot(scores(WORDS, "signed"), "layers").axes[0].images[0].norm
    assert signed.vmin == -signed.vmax
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_no_figure_stays_open():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    plot(scores(WORDS))
    assert plt.get_fignums() == before


@pytest.mark.filterwarnings("ignore:Glyph:UserWarning")
# Matplotlib 3.10, the last for Python 3.10, says so of Hebrew; 3.11 draws it.
@pytest.mark.filterwarnings("ignore:Matplotlib currently does not support Hebrew")
def test_awkward_tokens(tmp_path):
    result = scores(HOSTILE)
    for view in ("tokens", "layers"):
        result.plot(view).savefig(tmp_path / "x.png")


def test_numbers_that_are_missing():
    values = torch.tensor([[1.0, float("nan"), 0.5, 0.2, 0.1]])
    scores(WORDS, values=values, sites=1).plot()._repr_png_()
    scores(WORDS, values=values.repeat(2, 1), sites=2).plot("layers")._repr_png_()


@needs_plotly
@pytest.mark.parametrize(("result", "view"), CASES)
def test_plotly(result, view):
    figure = result.plot(view, backend="plotly", first="hide")
    assert figure.to_json()
    (trace,) = figure.data
    assert "share" in figure.to_json() or "score" in figure.to_json()
    assert len(trace.z[0]) in (len(WORDS), len(WORDS) - 1, 3, 4)


@needs_plotly
def test_plotly_reads_no_tags_in_tokens():
    text = scores(HOSTILE).plot("layers", backend="plotly").layout.xaxis.ticktext
    assert not [name for name in text if "<" in name]


def test_series():
    result = scores(WORDS).sel(site="embed")
    figure = series([1, 2, 3, 4, 5], result)
    above, below = figure.axes[:2]
    torch.testing.assert_close(torch.tensor([bar.get_height() for bar in below.patches]).float(), result.values)
    assert list(above.lines[0].get_ydata()) == [1, 2, 3, 4, 5]
    assert figure._repr_png_()
    with pytest.raises(ValueError, match="3 values and 5 scores"):
        series([1, 2, 3], result)
    with pytest.raises(ValueError, match="axis 'pos' alone"):
        series([1, 2, 3, 4, 5], scores(WORDS))


def test_scatter():
    nan = float("nan")
    figure = scatter(torch.tensor([1.0, 2, nan]), [1.5, nan, 3], title="$t")
    assert figure.axes[0].collections[0].get_offsets().tolist() == [[1.0, 1.5]]
    with pytest.raises(ValueError, match="2 and 1"):
        scatter([1, 2], [1])
    with pytest.raises(ValueError, match="nothing to draw"):
        scatter([nan], [1])


def test_scatter_by_group():
    import matplotlib.pyplot as plt

    figure = scatter([1, 2, 3], [1, 2, 4], groups=["embed", "0 mid", "0 mid"])
    points, bar = figure.axes[0].collections[0], figure.axes[1]
    assert [text.get_text() for text in bar.get_yticklabels()] == ["embed", "0 mid"]
    assert len({tuple(colour) for colour in points.get_facecolor()}) == 2
    own, ax = plt.subplots()
    assert scatter([1, 2], [1, 3], ax=ax) is own
    plt.close(own)
    with pytest.raises(ValueError, match="1 groups"):
        scatter([1, 2], [1, 3], groups=["a"])
    with pytest.raises(ValueError, match="leave one of the two out"):
        scatter([1, 2], [1, 3], backend="plotly", ax=ax)


@needs_plotly
def test_series_and_scatter_with_plotly():
    assert len(series([1, 2], [0.5, -0.5], backend="plotly").data) == 2
    line, points = scatter([1, 2], [1, 3], names=["a", "<b>"], groups=["x", "y"], backend="plotly").data
    assert list(line.x) == [1, 3]
    assert list(points.text) == ["a", "&lt;b&gt;"]
    assert list(points.marker.color) == [0, 1]


def test_layers_on_scales_of_their_own():
    values = torch.tensor([[10.0, 40.0, 0.0, 1, 1], [0.1, 0.0, 0.4, 0.1, 0.1]])
    axes = plot(scores(WORDS, values=values, sites=2)).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["embed [40]", "0 resid_post [0.4]"]
    shown = torch.tensor(axes.images[0].get_array().filled()).float()
    torch.testing.assert_close(shown, values / torch.tensor([[40.0], [0.4]]))
    assert [text.get_text() for text in axes.texts][:2] == ["10", "40"]


@needs_plotly
def test_a_line_of_tokens_is_text_in_plotly():
    result = scores([f"t{i}" for i in range(20)], sites=1)
    (trace,) = result.plot("tokens", backend="plotly").data
    assert [name for line in trace.text for name in line] == [*result.tokens, *[""] * 12]
    found = torch.tensor([float(v) for line in trace.z for v in line if v is not None])
    torch.testing.assert_close(found, result.values[0])


@pytest.mark.parametrize("backend", ["matplotlib", "plotly"])
def test_the_title_says_which_token_is_explained_how_likely_and_of_what_rank(backend):
    """As pages and the command line do: of ``Semantic()`` a figure did not even name the token."""
    pytest.importorskip(backend)

    def title(result):
        figure = plot(result, backend=backend)
        if backend == "plotly":
            text = figure.layout.title.text
        else:
            text = (figure._suptitle or figure.axes[0].title).get_text() or figure.axes[0].get_title("left")
        return " ".join(text.replace("<br>", " ").split())

    about = {"id": 1, "text": " loves", "p": 0.0149, "rank": 1}
    versus = about | {"versus": {"id": 2, "text": "sees", "p": 0.98, "rank": 0}}
    for made, target, told in (
        (scores(WORDS), about, "explained: “␣loves” (1.49%, rank 1)"),
        (flow(WORDS), versus, "explained: “␣loves” (1.49%, rank 1) against “sees” (98.00%, rank 0)"),
        (scores(WORDS).sel(site="embed"), None, None),
    ):
        result = dataclasses.replace(made, meta=made.meta | {"positions": [4], "targets": [target]})
        assert (told in title(result)) if told else "explained" not in title(result)
    answer = scores(WORDS).meta | {"positions": [0, 1, 2, 3], "targets": [about] * 4}
    assert title(dataclasses.replace(scores(WORDS), meta=answer)).endswith("rank 1) and 1 more")
    several = by_target(WORDS)
    several = dataclasses.replace(several, meta=several.meta | {"targets": [about] * len(several.meta["positions"])})
    assert "explained" not in title(several), "its rows have the names"
    (first, *_) = several.coords["target_pos"]
    assert title(several.sel(target_pos=first)).count("explained: “") == 1


def test_a_long_prompt_keeps_to_the_width_of_a_page():
    figure = plot(scores(["w"] * 400))
    assert figure.get_figwidth() <= 12
    assert len(figure.axes[0].get_xticks()) <= 60


LONG = [f" word{i}" for i in range(300)]
PREDICTED = "a sentence that says at length whose score this is, of what and why"


def named(result, text=PREDICTED):
    """The same, of a scope with a name that no line has room for."""
    scope = {"kind": "function", "fields": {"name": text}, "text": text}
    return dataclasses.replace(result, meta=result.meta | {"scope": scope})


def every_picture(tokens):
    """Every view that every kind of result has."""
    estimate = dataclasses.replace(scores(tokens), probes=torch.stack([scores(tokens, seed=n).values for n in (1, 2)]))
    of_one = dataclasses.replace(
        flow(tokens, together=True), sources=(1,), meta=flow(tokens).meta | {"together": False}
    )
    results = [estimate, scores(tokens, "signed"), by_head(tokens), by_target(tokens), flow(tokens), of_one]
    for result in map(named, results):
        yield from ((result, view) for view in dispatch.views(result) if view != "edges")
    side_by_side = [named(scores(tokens)), named(scores(tokens, seed=1), "x" * 150)]
    yield from ((side_by_side, view) for view in ("layers", "tokens"))
    one_site = [named(scores(tokens, seed=n)).sel(site="embed") for n in range(3)]
    for by in ("relative_position", "token"):
        yield ls.profile(one_site, by), None
    yield ls.profile([named(scores(tokens, seed=n)) for n in range(3)], "site"), None


def outside(figure):
    """Titles, labels and notes that do not lie inside the figure when it is drawn, but for a point (1/72 inch)."""
    figure.draw_without_rendering()
    texts = [*figure.texts, getattr(figure, "_suptitle", None), getattr(figure, "_supxlabel", None)]
    for axes in figure.axes:
        texts += [*axes.texts, axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]
        texts += [*axes.get_xticklabels(), *axes.get_yticklabels()] if axes.images else []
    there = [text for text in texts if text is not None and text.get_text() and text.get_visible()]
    assert len(there) > 2
    for text in there:
        inner, whole = text.get_window_extent(), figure.bbox.padded(figure.dpi / 72)
        if not (whole.contains(*inner.min) and whole.contains(*inner.max)):
            yield text.get_text()


@pytest.mark.parametrize("dpi", [72, 300])
@pytest.mark.parametrize("tokens", [("<s>", " a", " b"), WORDS, LONG], ids=["three", "five", "long"])
def test_nothing_is_cut_off_at_the_edge_of_a_figure(tokens, dpi):
    for result, view in every_picture(tokens):
        figure = plot(result, view)
        figure.set_dpi(dpi)
        assert list(outside(figure)) == [], (type(result), view)
    figure = scatter([1, 2], [1, 3], title=PREDICTED, groups=["embed", "0 mid"])
    assert list(outside(figure)) == []


@pytest.mark.parametrize("layout", [None, "constrained", "tight"])
@pytest.mark.parametrize("size", [(6, 4), (5, 3.5)])
def test_nor_in_axes_of_the_user_s_own(size, layout):
    import matplotlib.pyplot as plt

    for result, view in every_picture(WORDS):
        try:
            own, axes = plt.subplots(figsize=size, layout=layout)
            plot(result, view, ax=axes)
        except ValueError:  # a table for each head or result
            continue
        finally:
            plt.close(own)
        assert list(outside(own)) == [], (type(result), view)
    own, axes = plt.subplots(figsize=size, layout=layout)
    scatter([1, 2], [1, 3], title=PREDICTED, groups=["embed", "0 mid"], ax=axes)
    plt.close(own)
    assert list(outside(own)) == []


def test_axes_that_have_room_stay_where_they_are():
    import matplotlib.pyplot as plt

    own, axes = plt.subplots(figsize=(9, 6))
    before = axes.get_position().get_points().tolist()
    scatter([1, 2], [1, 3], title="short", ax=axes)
    plt.close(own)
    assert axes.get_position().get_points().tolist() == before
    assert axes.get_in_layout()


@pytest.mark.wrong_types
def test_what_cannot_be_drawn():
    with pytest.raises(ValueError, match=r"plot draws 'last', 'heads', 'stream'"):
        plot(flow(WORDS), "edges")
    with pytest.raises(ValueError, match="'layers', 'tokens'"):
        plot(scores(WORDS), "edges")
    with pytest.raises(ValueError, match="backend is"):
        plot(scores(WORDS), backend="bokeh")
    with pytest.raises(TypeError, match="Scores"):
        plot(scores(WORDS).sel(pos=0))


def test_a_backend_that_is_not_there(monkeypatch):
    monkeypatch.setattr("lens_scopes.plot.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'lens-scopes\[plotly\]'"):
        ls.Scores.plot(scores(WORDS), backend="plotly")


def test_scores_without_positions_say_so():
    with pytest.raises(TypeError, match="no positions left: plot them before sel"):
        scores(("a", "b")).sel(pos=1).plot()
