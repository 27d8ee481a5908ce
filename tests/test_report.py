"""report: one page with everything, the same bytes each time, nothing from outside."""

import json
import re
from dataclasses import replace

import pytest
import torch

import lens_scopes as ls
from lens_scopes.views.report import facts as facts_of
from shown import HOSTILE, by_target, flow, scores

WORDS = ("<s>", " the", " cat", " sat", ".")


def read(path):
    return path.read_text(encoding="utf-8")


def test_everything_is_in_it(tmp_path):
    text = read(ls.report(["A <paragraph>.", scores(WORDS), flow(WORDS)], tmp_path / "r.html", title="A & B"))
    assert "<title>A &amp; B</title>" in text
    assert "<p>A &lt;paragraph&gt;.</p>" in text
    assert '<p class="prompt">&lt;s&gt; the cat sat.</p>' in text
    assert text.count('<p class="prompt">') == 1
    for fact in (
        "HookedTransformer, float32",
        "final norm not folded, logits centred",
        "1.00e-07 of the largest total",
    ):
        assert fact in text
    for view in ("layers", "tokens", "stream", "edges"):
        assert f"{view}, interactive (circuitsvis)" in text
    assert text.count("explorer: click a token") == 1


def test_the_bundle_comes_once_and_nothing_from_outside(tmp_path):
    text = read(ls.report([scores(WORDS), flow(WORDS), flow(WORDS, seed=1)], tmp_path / "r.html"))
    assert text.count("var CircuitsVis=") == 1
    assert not re.search("https?://", text)
    assert len(re.findall("sha256-", text)) == 3
    assert len({figure["id"] for figure in json.loads(re.search(r'lens-figures">(.*?)</script>', text)[1])}) == 8


def test_the_same_bytes(tmp_path):
    one, two = (ls.report([scores(WORDS), flow(WORDS)], tmp_path / name) for name in ("1.html", "2.html"))
    assert one.read_bytes() == two.read_bytes()


def test_provenance_reads_well():
    facts = dict(facts_of(scores(WORDS)))
    assert facts["targets"] == "' <b>' (1) against 'y' (2)"
    several = by_target(WORDS)
    several = replace(several, meta={**several.meta, "targets": [None] * 3, "coverage": [1.0] * 3, "notes": [{}] * 3})
    facts = dict(facts_of(several))
    assert "targets" not in facts
    assert "notes" not in facts
    assert facts["coverage"] == "1.0"
    facts = dict(facts_of(ls.patching.compare(scores(WORDS, "signed"), scores(WORDS, "signed", seed=1))))
    assert facts["model"] == "<i>model</i> as HookedTransformer, float32"


def test_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "r.html"
    path.write_text("before")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        ls.report(scores(WORDS), path)
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]
    assert path.read_text() == "before"


@pytest.mark.wrong_types
def test_what_is_no_result(tmp_path):
    with pytest.raises(TypeError, match="Tensor"):
        ls.report([torch.rand(3)], tmp_path / "r.html")
    with pytest.raises(ValueError, match="at least one result"):
        ls.report(["only words"], tmp_path / "r.html")
    with pytest.raises(ValueError, match="first says"):
        ls.report(scores(WORDS), tmp_path / "r.html", first="no")
    assert not list(tmp_path.iterdir())


def test_hostile_tokens_open_no_tag(tmp_path):
    text = read(ls.report([scores(HOSTILE), flow(HOSTILE)], tmp_path / "r.html"))
    static = re.sub(r"<script\b.*?</script>", "", text, flags=re.DOTALL)
    assert "<img" not in static
    assert "<script" not in static
    assert "<s>" not in static


def test_a_large_report_stays_under_3_mb(tmp_path):
    words = [f" word{i}" for i in range(64)]
    path = ls.report([scores(words, sites=13), flow(words, layers=12, heads=12)], tmp_path / "r.html")
    assert path.stat().st_size < 3_000_000


def test_results_about_two_prompts_have_headings_of_their_own(tmp_path):
    other = scores(["other", *WORDS[1:]])
    text = read(ls.report([scores(WORDS), other], tmp_path / "r.html"))
    heads = re.findall(r"<h2 id=[^>]*>(.*?)</h2>", text)
    links = re.findall(r'<a href="#[^"]*">(.*?)</a>', text)
    assert heads == links
    assert len(set(heads)) == 2
    assert [head[:3] for head in heads] == ["1. ", "2. "]


def test_both_of_two_prompts_are_quoted(tmp_path):
    """Side by side, and where one result is about two: also where one of them was quoted before."""
    other = scores(["other", *WORDS[1:]])
    text = read(ls.report([scores(WORDS), [scores(WORDS), other]], tmp_path / "r.html"))
    quoted = re.findall(r'<p class="prompt">(.*?)</p>', text)
    assert quoted == ["&lt;s&gt; the cat sat.", "&lt;s&gt; the cat sat.", "other the cat sat."]
    change = replace(flow(WORDS), meta=flow(WORDS).meta | {"corrupted_tokens": ["<s>", " a dog"]})
    text = read(ls.report(change, tmp_path / "r.html"))
    quoted = re.findall(r'<p class="prompt">(.*?)</p>', text)
    assert quoted == ["clean: &lt;s&gt; the cat sat.", "corrupted: &lt;s&gt; a dog"]


def test_a_profile_has_its_heading_once(tmp_path):
    profile = ls.profile([scores(WORDS, seed=n).sel(site="embed") for n in range(3)], "token")
    text = read(ls.report([scores(WORDS), profile], tmp_path / "r.html"))
    body = text[text.index("</nav>") :]
    assert body.count("mean over 3 prompts by token") == 1
    assert profile._repr_html_().count("mean over 3 prompts by token") == 1
