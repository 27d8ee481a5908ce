"""The README is true: its code runs, the commands and files it names exist."""

import re
from pathlib import Path

import pytest
import torch

from lens_scopes import demo
from tiny import BACKENDS

ROOT = Path(__file__).resolve().parents[1]
OURS = r"https://(?:github|raw\.githubusercontent)\.com/lens-scopes/lens_scopes"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language, or of none."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(not (demo.MODEL_DIR / "config.json").is_file(), reason="the demo model is not trained yet")
@pytest.mark.skipif(set(BACKENDS) < {"hooked", "bridge"}, reason="the README shows both hosts; this version has one")
def test_the_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = blocks(README, "python")
    assert len(found) >= 2
    names: dict = {}
    for i, code in enumerate(found):
        exec(compile(code, f"README.md, python block {i}", "exec"), names)
    assert (tmp_path / "fisher.safetensors").is_file()
    assert names["scores"].dims == ("site", "pos")
    assert names["fisher"].stderr is not None
    assert names["flow"].residual < 1e-4
    assert (tmp_path / "report.html").is_file()


def test_the_commands_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = re.findall(r"^make (\w+)", "\n".join(blocks(README, "")), flags=re.MULTILINE)
    assert {"demo", "test"} <= set(commands)
    assert [name for name in commands if not re.search(rf"^{name}:", makefile, flags=re.MULTILINE)] == []


def test_the_files_it_points_to_exist():
    """By their whole address, so that the links also work where the README stands alone: on PyPI, on the site."""
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert [link for link in links if "://" not in link] == []
    files = [match[1] for link in links if (match := re.match(rf"{OURS}(?:/main|/blob/main|/tree/main)/(.+)", link))]
    assert len(files) > 8
    assert [name for name in files if not (ROOT / name).exists()] == []


def test_every_public_name_it_writes_exists():
    import lens_scopes as ls

    names = set(re.findall(r"\bls\.(\w+)", README))
    assert {"score", "Semantic", "Fisher", "load"} <= names
    assert [name for name in names if not hasattr(ls, name)] == []


# Sentences that carry numbers: each is here, with what shows it


def sentences(text: str) -> list[str]:
    """The README's sentences, without code, links' addresses and marks."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"<!--.*?-->", "", text))
    parts = [" ".join(part.split()) for part in re.split(r"\n\s*\n|\n(?=[-|#])", text)]
    return [one for part in parts for one in re.split(r"(?<=[.;:]) (?=[A-Z`*(])", part)]


NUMBER = re.compile(r"\d|\b(one|two|three|four|five|six|seven|eight|nine|ten)\b", re.IGNORECASE)
#: What no run can show: names of things, mathematics that has oracles of its own, the year of a paper.
NO_CLAIM = (
    "words that carry at least 99 % of the trace",  # tests/test_fisher_split.py
    "On a `HookedTransformer` (TransformerLens 2 and 3):",
    "On a `TransformerBridge` (TransformerLens 3 and 4) nothing else changes:",  # the code below it asserts it
    "`lens-scopes score",
    "as one site: the API",
    "with one variable changed",
    "y is the input of the unembedding",
    "| one logit |",
    "They are compared within one result.",
    "one residual stream, one unembedding",
    "arXiv:2601.16407 (2026)",
    "after blocks 4 to 11",  # tests/test_real.py: the picture
    "Position 0 can have",  # tests/test_show.py: an attention sink does not set the scale
)


def question(backend="bridge"):
    """The README's own model and question."""
    import lens_scopes as ls

    model = demo.load(backend if backend in BACKENDS else BACKENDS[0])
    return model, "German : heute sieht der Hund die Maus . English : today the dog", ls


def one_forward_pass():
    """From one forward pass, at every layer, on both hosts."""
    for backend in BACKENDS:
        model, prompt, ls = question(backend)
        ls.score(model, prompt, ls.Semantic("sees"))  # looks at the readout once per model
        runs = []
        model.add_hook("blocks.0.hook_resid_pre", lambda x, hook, runs=runs: runs.append(1))
        scores = ls.score(model, prompt, ls.Semantic("sees"))
        model.reset_hooks()
        assert len(runs) == 1
        assert len(scores.coords["site"]) == model.cfg.n_layers + 1


def versions_of_python():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'requires-python = ">=3.10,<3.14"' in project


def versions_of_transformer_lens():
    assert '"transformer-lens>=2.16,<5"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    names = {path.stem for path in (ROOT / "constraints").glob("tl-*.txt")}
    assert {"tl-2.18", "tl-3.9", "tl-4.3"} <= names


def nine_notebooks():
    assert len(list((ROOT / "tutorials").glob("*.ipynb"))) == 9


def sixteen_passes_without_bias():
    """Sixteen cotangents; the mean over seeds is the exact score, within its standard error."""
    model, prompt, ls = question()
    one = ls.score(model, prompt, ls.Fisher(passes=16), sites="embed")
    assert one.meta["notes"][0]["passes"] == 16
    assert one.stderr is not None
    exact = ls.score(model, prompt, ls.Fisher(None), sites="embed")
    assert exact.stderr is None
    found = torch.stack([ls.score(model, prompt, ls.Fisher(16, seed=s), sites="embed").values for s in range(40)])
    error = (found.mean(0) - exact.values).abs() / (found.std(0) / 40**0.5 + 1e-6 * exact.values)
    assert float(error.max()) < 4.5


def truncated_and_low():
    model, prompt, ls = question()
    low = ls.score(model, prompt, ls.Fisher(rank=8), sites="embed")
    exact = ls.score(model, prompt, ls.Fisher(None), sites="embed")
    assert bool((low.values <= exact.values * (1 + 1e-5)).all())
    assert float(low.values.sum()) < float(exact.values.sum())
    assert 0 < low.meta["coverage"] < 1
    assert ls.score(model, prompt, ls.Fisher(rank=2), sites="embed").meta["coverage"] < low.meta["coverage"]


def one_site_by_both_names():
    """In tables by its hook name, in pictures by its short one."""
    model, prompt, ls = question()
    scores = ls.score(model, prompt, ls.Semantic("sees"))
    name, short = "blocks.1.hook_resid_post", "1 resid_post"
    assert torch.equal(scores.sel(site=short).values, scores.sel(site=name).values)
    assert name in scores.to_dataframe().site.tolist()
    assert short in scores._repr_html_()
    assert name not in scores._repr_html_()


def exact_in_d_model_passes():
    model, prompt, ls = question()
    (note,) = ls.score(model, prompt, ls.Fisher(None), sites="embed").meta["notes"]
    assert (note["method"], note["coverage"]) == ("exact", pytest.approx(1))
    assert 16 < note["passes"] <= model.cfg.d_model


SHOWN = {
    "from one forward pass, on `HookedTransformer` and `TransformerBridge` alike": one_forward_pass,
    "Python 3.10 to 3.13": versions_of_python,
    "TransformerLens 2.16 to 4.x; the tests run on 2.18, 3.9 and 4.3": versions_of_transformer_lens,
    "nine notebooks": nine_notebooks,
    "`Fisher(passes=16)` costs 16 backward passes and is unbiased, with a standard error": sixteen_passes_without_bias,
    "`Fisher(rank=8)` is the paper's truncation, biased low": truncated_and_low,
    "`Fisher(None)` is exact and costs as many passes as F has directions, up to d_model": exact_in_d_model_passes,
    "call that one `1 resid_post`, which `sel(site=...)` takes too": one_site_by_both_names,
}


@pytest.mark.skipif(not (demo.MODEL_DIR / "config.json").is_file(), reason="the demo model is not trained yet")
@pytest.mark.parametrize("sentence", SHOWN)
def test_a_sentence_with_numbers_is_true(sentence):
    assert any(sentence in one for one in sentences(README)), "the README no longer says so"
    SHOWN[sentence]()


def test_no_sentence_with_numbers_is_left_out():
    said = [one for one in sentences(README) if NUMBER.search(re.sub(r"\*|J_t|arXiv[: ]\d+\.\d+", "", one))]
    assert len(said) > 10
    assert [one for one in said if not any(known in one for known in (*SHOWN, *NO_CLAIM))] == []
    assert [known for known in NO_CLAIM if not any(known in one for one in said)] == []


@pytest.mark.skipif(not (demo.MODEL_DIR / "config.json").is_file(), reason="the demo model is not trained yet")
@pytest.mark.skipif("hooked" not in BACKENDS, reason="the demo model is processed as a HookedTransformer")
def test_what_is_said_about_folded_and_centred_weights():
    import lens_scopes as ls

    raw, prompt, _ = question("hooked")
    state = {name: value.clone() for name, value in raw.state_dict().items()}
    folded = type(raw)(raw.cfg, raw.tokenizer)
    folded.load_and_process_state_dict(state)
    folded.eval()
    with pytest.raises(ValueError, match="folded into the unembedding"):
        ls.score(folded, prompt, ls.Temperature())
    fisher, single, difference = ls.Fisher(None), ls.Semantic("sees"), ls.Semantic("sees", "loves")
    change = {}
    for name, scope in (("fisher", fisher), ("single", single), ("difference", difference)):
        before, after = (ls.score(model, prompt, scope, sites="embed") for model in (raw, folded))
        change[name] = float((before.values - after.values).abs().max() / before.values.max())
        assert after.meta["centred"]
        assert not before.meta["centred"]
    assert change["fisher"] < 1e-4
    assert change["difference"] < 1e-4
    assert change["single"] > 1e-2
