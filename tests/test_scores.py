"""Scores: labels, parts, sums, words, tables, files."""

import json
import os
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lens_scopes as ls
import tiny
from lens_scopes.results.spans import words
from report import assert_close


def made(values=None, *, units="norm", tokens=("<s>", " Two", "fold", " words", ",", "  ", "x"), probes=None, **meta):
    values = torch.arange(1.0, 3 * len(tokens) + 1).reshape(3, len(tokens)) if values is None else values
    coords = {
        "site": ("hook_embed", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"),
        "pos": tuple(range(len(tokens))),
    }
    meta = {
        "units": units,
        "special": [0],
        "scope": {"kind": "Semantic", "fields": {}, "text": "Semantic()"},
        "model": "toy",
        **meta,
    }
    return ls.Scores(values, ("site", "pos"), coords, tokens, meta, probes)


def estimate():
    generator = torch.Generator().manual_seed(0)
    probes = torch.rand(4, 3, 7, generator=generator)
    return made(probes.sum(0) + 1, units="squared", probes=probes)


def test_labels_must_fit():
    with pytest.raises(ValueError, match="2 axes"):
        ls.Scores(torch.zeros(2, 3), ("pos",), {"pos": (0, 1)}, ("a", "b"))
    with pytest.raises(ValueError, match="'pos' has 3 entries"):
        ls.Scores(torch.zeros(3), ("pos",), {"pos": (0, 1)}, ("a", "b"))
    with pytest.raises(ValueError, match="2 tokens for 3 positions"):
        ls.Scores(torch.zeros(3), ("pos",), {"pos": (0, 1, 2)}, ("a", "b"))
    with pytest.raises(ValueError, match="probes have shape"):
        ls.Scores(torch.zeros(3), ("pos",), {"pos": (0, 1, 2)}, tuple("abc"), {}, torch.zeros(2, 4))


def test_they_are_frozen():
    with pytest.raises(AttributeError):
        made().values = torch.zeros(3, 7)


def test_sel_takes_labels_and_drops_the_axis():
    scores = estimate()
    part = scores.sel(site="blocks.0.hook_resid_post")
    assert part.dims == ("pos",)
    assert torch.equal(part.values, scores.values[1])
    assert torch.equal(part.probes, scores.probes[:, 1])
    assert torch.equal(part.stderr, scores.stderr[1])
    assert torch.equal(scores.sel(site="embed").values, scores.values[0])
    one = scores.sel(site="embed", pos=3)
    assert one.dims == ()
    assert float(one.values) == float(scores.values[0, 3])
    assert one.meta["selected"] == {"site": "hook_embed", "pos": 3}
    assert scores.dims == ("site", "pos"), "the original changed"


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ({"pos": 7}, "no label 7"),
        ({"pos": -1}, "no label -1"),
        ({"site": "blocks.9.hook_x"}, "no label"),
        ({"head": 0}, "no axis 'head'"),
    ],
)
def test_sel_of_what_is_not_there(labels, text):
    with pytest.raises(KeyError, match=text):
        made().sel(**labels)


def test_sum_is_plain_and_its_error_comes_from_the_summed_probes():
    scores = estimate()
    total = scores.sum("pos")
    assert total.dims == ("site",)
    assert_close(total.values, scores.values.sum(1), 1e-6)
    x, m = scores.probes.double().sum(2), 4
    assert_close(total.stderr, (m / (m - 1) * ((x - x.mean(0)) ** 2).sum(0)).sqrt(), 1e-6)
    assert not torch.allclose(total.stderr, scores.stderr.square().sum(1).sqrt(), rtol=0.05)
    assert total.meta["summed"] == ["pos"]
    everything = scores.sum("pos").sum("site")
    assert everything.dims == ()
    assert_close(everything.values, scores.values.sum(), 1e-6)
    with pytest.raises(KeyError, match="no axis 'head'"):
        scores.sum("head")


def test_exact_scores_have_no_error():
    assert made().stderr is None
    with pytest.raises(ValueError, match="no interval"):
        made().interval()


@pytest.mark.parametrize("units", ["norm", "squared", "signed"])
def test_words_join_norms_by_root_sum_square_and_the_rest_by_sum(units):
    scores = made(units=units)
    joined = scores.aggregate("word")
    assert joined.tokens == ("<s>", " Twofold", " words,  ", "x")
    groups = ((0,), (1, 2), (3, 4, 5), (6,))
    for row in range(3):
        for n, group in enumerate(groups):
            parts = [float(scores.values[row, i]) for i in group]
            expected = sum(p**2 for p in parts) ** 0.5 if units == "norm" else sum(parts)
            assert float(joined.values[row, n]) == pytest.approx(expected, rel=1e-6)
    assert joined.coords["pos"] == (0, 1, 3, 6)
    assert joined.meta["joined"] == [list(group) for group in groups]
    with pytest.raises(ValueError, match="knows 'word'"):
        scores.aggregate("paragraph")
    with pytest.raises(ValueError, match="joins positions"):
        scores.sum("pos").aggregate()


def test_words_keep_the_error():
    joined, scores = estimate().aggregate(), estimate()
    assert_close(joined.probes[:, :, 1], scores.probes[:, :, 1] + scores.probes[:, :, 2], 1e-6)


@pytest.mark.parametrize(
    ("tokens", "special", "expected"),
    [
        ((" a", "b", " c"), (), [[0, 1], [2]]),
        (("a", " ", "b"), (), [[0, 1], [2]]),
        (("a", "\n", "b"), (), [[0, 1], [2]]),
        (("<s>", "a", "b", "</s>"), (0, 3), [[0], [1, 2], [3]]),
        (("<s>", "<s>"), (0, 1), [[0], [1]]),
        (("a b", "c"), (), [[0, 1]]),
        ((r"\xf0", r"\x9f"), (), [[0, 1]]),
        ((" ", "a"), (), [[0], [1]]),
    ],
)
def test_where_words_begin(tokens, special, expected):
    spans = words(tokens, frozenset(special))
    assert spans == expected
    assert [i for span in spans for i in span] == list(range(len(tokens)))


def test_the_table_has_a_row_for_every_value():
    scores = estimate()
    frame = scores.to_dataframe()
    assert list(frame.columns) == ["site", "pos", "pos_token", "score", "stderr"]
    assert len(frame) == scores.values.numel()
    for row in frame.itertuples():
        where = scores.coords["site"].index(row.site), row.pos
        assert row.score == pytest.approx(float(scores.values[where]))
        assert row.stderr == pytest.approx(float(scores.stderr[where]))
        assert row.pos_token == scores.tokens[row.pos]
    assert "stderr" not in made().to_dataframe().columns
    assert list(scores.sum("pos").to_dataframe().columns) == ["site", "score", "stderr"]
    assert len(scores.sum("pos").sum("site").to_dataframe()) == 1
    assert list(scores.aggregate().to_dataframe().pos_token.unique()) == list(scores.aggregate().tokens)


def test_the_table_says_which_token_each_position_explains():
    """The target's, which is neither the token at that position nor the model's first choice."""
    scores = explained()
    assert "target" not in scores.to_dataframe()  # nothing is said of one
    told = [{"id": 8, "text": " king"}, {"id": 9, "text": " loves", "versus": {"id": 4, "text": " sees"}}]
    scores = replace(scores, meta=scores.meta | {"targets": told})
    frame = scores.to_dataframe()
    assert list(frame.columns)[:4] == ["target_pos", "target_pos_token", "target", "site"]
    expected = {2: [" king"], 3: [" loves against  sees"]}
    for one in (scores, scores.aggregate(), scores.sel(pos=1), scores.sum("site")):
        assert one.to_dataframe().groupby("target_pos").target.unique().map(list).to_dict() == expected
    assert "target" not in scores.sel(target_pos=2).to_dataframe()


def test_a_dataset_has_the_same_numbers_and_labels():
    xarray = pytest.importorskip("xarray")
    scores = estimate()
    found = scores.to_xarray()
    assert isinstance(found, xarray.Dataset)
    assert set(found.data_vars) == {"score", "stderr"}
    assert found.score.dims == found.stderr.dims == ("site", "pos")
    for at, site in enumerate(scores.coords["site"]):
        one = found.sel(site=site)
        assert one.score.values.tolist() == scores.values[at].tolist()
        assert one.stderr.values.tolist() == scores.stderr[at].tolist()
    assert found.token.dims == ("pos",)
    assert "token" not in found.indexes
    assert tuple(found.token.values) == scores.tokens
    assert json.loads(found.attrs["meta"]) == scores.meta
    assert set(made().to_xarray().data_vars) == {"score"}
    words = scores.aggregate()
    assert tuple(words.to_xarray().token.values) == words.tokens
    assert words.to_xarray().pos.values.tolist() == list(words.coords["pos"])
    summed = scores.sum("pos").to_xarray()
    assert summed.score.dims == ("site",)
    assert "token" not in summed.coords
    assert summed.sum("site").score.item() == pytest.approx(float(scores.values.sum()))
    assert scores.sum("pos").sum("site").to_xarray().score.shape == ()


def test_a_dataset_without_xarray_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ImportError, match=r"pip install 'lens-scopes\[xarray\]'"):
        made().to_xarray()


def test_a_file_gives_back_what_went_in(tmp_path):
    for n, scores in enumerate(
        (
            made(),
            estimate(),
            estimate().sel(pos=2),
            made(made().values.double()),
            made(tokens=tuple("🙂'\"\\<\n\x00é")[:7]),
        )
    ):
        path = scores.save(tmp_path / f"{n}.safetensors")
        back = ls.Scores.load(str(path))
        assert torch.equal(back.values, scores.values)
        assert back.values.dtype == scores.values.dtype
        assert (back.dims, back.coords, back.tokens) == (scores.dims, scores.coords, scores.tokens)
        assert dict(back.meta) == dict(scores.meta)
        assert (back.probes is None) == (scores.probes is None)
        if scores.probes is not None:
            assert torch.equal(back.stderr, scores.stderr)
        assert repr(back) == repr(scores)


def test_saving_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "scores.safetensors"
    made().save(path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        estimate().save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["scores.safetensors"], "a temporary file was left"


def test_a_reader_never_sees_half_a_file(tmp_path):
    path, stop, failures = tmp_path / "scores.safetensors", threading.Event(), []
    made().save(path)

    def read():
        while not stop.is_set():
            try:
                ls.Scores.load(path)
            except Exception as failure:
                failures.append(failure)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(60):
        estimate().save(path)
    stop.set()
    reader.join()
    assert not failures


def test_a_link_stays_a_link_and_a_pipe_is_written_to(tmp_path):
    real, link, pipe = (tmp_path / name for name in ("real", "link", "pipe"))
    made().save(real)
    link.symlink_to(real)
    estimate().save(link)
    assert link.is_symlink()
    assert torch.equal(ls.Scores.load(real).values, estimate().values)
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        made().save(pipe)
        assert os.read(reader, 1_000_000) == made().save(real).read_bytes()
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert {p.name for p in tmp_path.iterdir()} == {"real", "link", "pipe"}


def test_a_line_says_what_they_are():
    assert repr(made()) == "Scores(site=3, pos=7; Semantic(), norm, toy)"


@pytest.mark.host
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_live_scores_survive_a_file(backend, tmp_path):
    model = tiny.host("llama", backend, torch.float32)
    for options in ({}, {"position": "all"}, {"sites": "z"}, {"along": "activation", "position": [1, 2]}):
        scores = ls.score(model, "The cat sat", ls.Semantic(), **options)
        back = ls.Scores.load(scores.save(tmp_path / "scores.safetensors"))
        assert torch.equal(back.values, scores.values)
        assert (back.dims, dict(back.coords), back.tokens) == (scores.dims, dict(scores.coords), scores.tokens)
        assert dict(back.meta) == dict(scores.meta), "meta is not plain JSON"
        assert back.meta["versions"]["transformer-lens"] == tiny.TRANSFORMER_LENS
        frame = scores.to_dataframe()
        assert len(frame) == scores.values.numel()
        assert not scores.values.requires_grad
        assert scores.values.device.type == "cpu"


OLD = Path(__file__).parent / "data" / "0.1.0"


def test_files_of_version_0_1_0_still_load():
    """Written by the release itself: the scope was text then, and targets had no p and rank."""
    scores = ls.Scores.load(OLD / "scores.safetensors")
    assert scores.meta["scope"]["kind"] == "Semantic"
    assert scores.meta["scope"]["fields"] == {"target": "Tom", "versus": "Nina"}
    assert scores.meta["scope"]["text"] == "Semantic(target='Tom', versus='Nina')"
    (target,) = scores.meta["targets"]
    assert (target["text"], target["versus"]["text"]) == (" Tom", " Nina")
    fisher = ls.Scores.load(OLD / "fisher.safetensors")
    assert fisher.meta["scope"]["fields"] == {"passes": 4}
    assert fisher.meta["targets"] == [None, None]
    assert fisher.probes is not None
    assert ls.Scores.load(OLD / "metric.safetensors").meta["scope"]["kind"] == "function"
    flow = ls.Flow.load(OLD / "flow.safetensors")
    assert flow.position == len(flow.tokens) - 1
    for found in (scores, fisher, flow, ls.patching.Comparison.load(OLD / "comparison.safetensors")):
        assert found._repr_html_()
        assert ls.show(found).static
    assert ls.evaluate.Table.load(OLD / "table.safetensors").methods[:2] == ("semantic", "own")
    assert ls.evaluate.Curve.load(OLD / "curve.safetensors").fractions == (0.05, 0.1, 0.2)


@pytest.mark.host
def test_an_old_file_can_still_be_checked():
    model = ls.demo.load()
    for name in ("scores", "fisher"):
        report = ls.Scores.load(OLD / f"{name}.safetensors").check(model)
        # The random directions of an old estimate cannot be drawn again.
        assert report["stored_error"] is None if name == "fisher" else report["stored_error"] < 1e-4
        assert report["max_error"] < 1e-2
    with pytest.raises(ValueError, match="pass it: scope="):
        ls.Scores.load(OLD / "metric.safetensors").check(model)


@pytest.mark.host
def test_a_check_is_of_the_position_that_was_selected():
    model = tiny.host("llama", tiny.BACKENDS[0])
    scores = ls.score(model, [7, 9, 11, 13, 8, 12, 9], ls.Semantic(9), position=[2, 6])
    for position in (2, 6):
        report = scores.sel(target_pos=position).check(model)
        assert report["stored_error"] < 1e-6
        assert report["max_error"] < 1e-3
        assert max(place["pos"] for place in report["places"]) <= position


@pytest.mark.host
def test_a_check_of_nothing_says_so():
    model = tiny.host("llama", tiny.BACKENDS[0])
    scores = ls.score(model, [7, 9, 11, 13], ls.Semantic(9), position=0, sites="blocks.1.hook_resid_post")
    nothing = ls.Scores(scores.values * 0, scores.dims, scores.coords, scores.tokens, scores.meta)
    assert nothing.check(model)["max_error"] != nothing.check(model)["max_error"]  # NaN


# Labels after a part was taken, joined or summed


def explained():
    """Two positions explained, at two sites of a prompt whose second word is two tokens."""
    values = torch.rand(2, 2, 4, generator=torch.Generator().manual_seed(0))
    coords = {
        "target_pos": (2, 3),
        "site": ("hook_embed", "blocks.0.hook_resid_post"),
        "pos": (0, 1, 2, 3),
    }
    meta = {"units": "norm", "special": [0], "positions": [2, 3]}
    return ls.Scores(values, ("target_pos", "site", "pos"), coords, ("<s>", " Two", "fold", " words"), meta)


def test_a_position_explained_keeps_its_own_token_when_tokens_are_joined():
    frame = explained().aggregate().to_dataframe()
    assert frame.groupby("target_pos").target_pos_token.unique().map(list).to_dict() == {2: ["fold"], 3: [" words"]}
    assert frame.groupby("pos").pos_token.unique().map(list).to_dict() == {0: ["<s>"], 1: [" Twofold"], 3: [" words"]}


@pytest.mark.parametrize("part", [lambda s: s.sel(pos=1), lambda s: s.sum("pos")], ids=["sel", "sum"])
def test_a_position_explained_keeps_its_token_without_the_axis_of_positions(part, tmp_path):
    for scores in (part(explained()), part(explained().aggregate())):
        loaded = ls.Scores.load(scores.save(tmp_path / "scores.safetensors"))
        for one in (scores, loaded):
            frame = one.to_dataframe()
            assert "pos" not in frame
            assert frame.groupby("target_pos").target_pos_token.unique().map(list).to_dict() == {
                2: ["fold"],
                3: [" words"],
            }


def test_sites_are_found_by_what_pictures_call_them():
    scores = made()
    expected = scores.sel(site="blocks.1.hook_resid_post")
    found = scores.sel(site="1 resid_post")
    assert torch.equal(found.values, expected.values)
    assert found.meta == expected.meta
    assert torch.equal(scores.sel(site="embed").values, scores.values[0])
    assert torch.equal(scores.sel(site="hook_embed").values, scores.values[0])
    with pytest.raises(KeyError, match=r"one of each of 2 layers; write e\.g\. '0 resid_post'"):
        scores.sel(site="resid_post")
    only = ls.Scores(
        scores.values[:2], scores.dims, {**scores.coords, "site": scores.coords["site"][:2]}, scores.tokens
    )
    assert torch.equal(only.sel(site="resid_post").values, scores.values[1])
    from lens_scopes.views.dispatch import grids

    for label in grids(scores, "layers")[0].rows:
        assert scores.sel(site=label).dims == ("pos",)


# Files


def headers_of(result, path):
    """Its file again and again, each time with one key of the header taken out or made null, anywhere in it."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    result.save(path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["lens_scopes"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    for key in [key for key in header if key not in ("meta", "tensors")]:  # older files have no "tensors"
        for gone in (True, False):
            changed = {k: v for k, v in header.items() if k != key} if gone else {**header, key: None}
            save_file(tensors, path, metadata={"lens_scopes": json.dumps(changed)})
            yield f"{key} {'missing' if gone else 'null'}"
    for name in [name for name in tensors if name not in ("probes", "skip", "last", "composition", "edges")]:
        kept = {k: v for k, v in tensors.items() if k != name}
        save_file(kept, path, metadata={"lens_scopes": json.dumps(header)})
        yield f"tensor {name}"


@pytest.mark.parametrize("kind", ["Scores", "Flow", "Curve", "Table", "Comparison"])
def test_a_header_that_is_not_whole_is_an_error_with_a_text(kind, tmp_path):
    import shown
    from lens_scopes import evaluate, patching

    values = torch.rand(2, 3, 2, dtype=torch.float64)
    result = {
        "Scores": estimate,
        "Flow": lambda: shown.flow(("a", "b")),
        "Curve": lambda: evaluate.Curve(values[0], (0.1, 0.2)),
        "Table": lambda: evaluate.Table(values, ("a", "b"), ("0.1", "aopc"), "a"),
        "Comparison": lambda: patching.Comparison(made(), made()),
    }[kind]()
    tried = 0
    for what in headers_of(result, tmp_path / "file.safetensors"):
        with pytest.raises(ValueError, match=r"file\.safetensors") as refusal:
            type(result).load(tmp_path / "file.safetensors")
        assert type(refusal.value) is ValueError, what
        tried += 1
    assert tried > 5


@pytest.mark.parametrize("header", ["null", "3", "[]", '"text"', "{}", '{"schema": null}', '{"schema": 2}', "{"])
def test_a_header_that_is_none_is_an_error_with_a_text(header, tmp_path):
    from safetensors.torch import save_file

    save_file({"values": torch.zeros(2)}, tmp_path / "x", metadata={"lens_scopes": header})
    with pytest.raises(ValueError, match=r"x (is|has|holds)"):
        ls.Scores.load(tmp_path / "x")


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX's")
def test_a_file_keeps_its_mode_when_it_is_overwritten(tmp_path):
    path = tmp_path / "scores.safetensors"
    path.write_bytes(b"")
    for mode in (0o600, 0o664):
        path.chmod(mode)
        made().save(path)
        assert path.stat().st_mode & 0o777 == mode
        made().show("tokens").save(path)
        assert path.stat().st_mode & 0o777 == mode
    umask = os.umask(0o027)
    try:
        assert made().save(tmp_path / "new").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(umask)


@pytest.mark.parametrize("name", ["x.parquet", "x.CSV", "x.json", "x.html", "x.png", "x.nc", "x.pt", "x.npz"])
def test_files_that_others_read_are_not_written_under_their_names(name, tmp_path):
    with pytest.raises(ValueError, match=rf"save writes a \.safetensors file, got '{name}'.*: write "):
        made().save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    assert made().save(tmp_path / "fisher.v2").is_file()


def test_half_of_a_surrogate_pair_is_a_token_like_any_other(tmp_path):
    """Some tokenizers have such tokens; UTF-8 has no way to write them."""
    scores = made(tokens=("<s>", "\ud83d", "\ude42", " x", "a", "b", "c"))
    assert ls.Scores.load(scores.save(tmp_path / "scores.safetensors")).tokens == scores.tokens
    page = ls.report(scores, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "\\ud83d" in page
    for text in (scores._repr_html_(), scores.show()._repr_html_(), scores.show("tokens")._repr_html_()):
        assert "\\ud83d" in text
        text.encode()
    scores.plot("tokens")
    assert scores.to_dataframe().pos_token.tolist()[1] == "\\ud83d"
    about = scores.meta | {"positions": [5], "targets": [{"id": 1, "text": "\ud83d"}]}
    several = ls.Scores(
        scores.values[None], ("target_pos", *scores.dims), {"target_pos": (5,), **scores.coords}, scores.tokens, about
    )
    assert set(several.to_dataframe().target) == {"\\ud83d"}
    assert scores.aggregate("sentence").meta["joined"] == scores.aggregate("line").meta["joined"]
