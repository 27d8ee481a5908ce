"""The recipes run as they are written, are short, and do what their headings say."""

import re
from pathlib import Path

import pandas as pd
import pytest
import torch

import lens_scopes as ls
from report import assert_close
from test_readme import blocks

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")
MOST_LINES = 5

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(not (ls.demo.MODEL_DIR / "config.json").is_file(), reason="the demo model is not trained yet"),
]


def recipes() -> dict[str, str]:
    """By heading, the code; "Recipes" is what stands before all of them."""
    parts = re.split(r"^#+ (.+)$", PAGE, flags=re.MULTILINE)[1:]
    return {heading: "\n".join(blocks(text, "python")) for heading, text in zip(parts[::2], parts[1::2], strict=True)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("recipes")


@pytest.fixture(scope="module")
def run(folder):
    """A recipe's names after it ran, with what stands before all of them."""
    pytest.importorskip("matplotlib")
    begin: dict = {}
    exec(compile(recipes()["Recipes"], "recipes.md", "exec"), begin)
    done: dict[str, dict] = {}

    def named(start: str) -> dict:
        (heading,) = [one for one in recipes() if one.startswith(start)]
        if "JacobianLens" in heading:
            pytest.importorskip("transformer_lens.tools.analysis", exc_type=ImportError)
        if heading not in done:
            names = dict(begin) | ({"scores": named("Why X")["scores"]} if "axes" in heading else {})
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                exec(compile(recipes()[heading], f"recipes.md, {heading}", "exec"), names)
            done[heading] = names
        return done[heading]

    return named


@pytest.mark.parametrize("heading", [one for one in recipes() if one != "Recipes"])
def test_every_recipe_is_short_and_runs(heading, run):
    lines = [
        line for line in recipes()[heading].splitlines() if line.strip() and not line.startswith(("import ", "from "))
    ]
    assert 0 < len(lines) <= MOST_LINES
    run(heading)


def test_files_are_written(run, folder):
    for heading in [one for one in recipes() if one != "Recipes" and "JacobianLens" not in one]:
        run(heading)
    written = re.findall(r'"([\w.]+\.(?:html|pdf|parquet))"', PAGE)
    assert len(written) > 8
    assert [name for name in written if not (folder / name).stat().st_size > 1000] == []


def test_why_is_a_logit_difference(run):
    names = run("Why X")
    target = names["scores"].meta["targets"][0]
    assert (target["text"].strip(), target["versus"]["text"].strip()) == ("Tom", "Nina")


def test_every_generated_token_has_its_row(run):
    names = run("Every token")
    start, stop = names["text"].spans["completion"]
    assert names["every"].coords["target_pos"] == tuple(range(start - 1, stop - 1))
    assert [one["id"] for one in names["every"].meta["targets"]] == list(names["text"].ids[start:stop])


def test_an_answer_is_one(run):
    names = run("An answer")
    start, stop = names["text"].spans["completion"]
    logits = names["model"](torch.tensor([list(names["text"].ids)]))[0].detach().double().log_softmax(-1)
    value = sum(float(logits[i - 1, names["text"].ids[i]]) for i in range(start, stop))
    assert stop - start == 2
    assert names["answer"].meta["value"] == pytest.approx(value, rel=1e-4)
    assert names["answer"].aggregate("span").tokens == ("prompt", "completion")


def test_the_heads_that_were_followed_are_those_patched(run):
    names = run("The heads")
    top = names["flow"].top(50)
    expected = top[top.kind == "head"].head(3)
    asked = {(int(row.layer), int(row.head)) for row in expected.itertuples()}
    patched = {(layer, head) for layer, _, head in names["measured"].values.isfinite().nonzero().tolist()}
    assert patched == asked
    assert names["flow"].sources == (names["case"].causes[0],)


def test_the_change_of_a_name_is_measured(run):
    names = run("What another")
    change, metric = names["change"], names["change"].meta["metric"]
    assert float(change.total) == pytest.approx(metric["clean"] - metric["corrupted"], rel=0.02)
    assert (0, 3) in names["circuit"].heads


def test_the_lens_vector_is_what_the_flow_ends_at(run):
    names = run("Who wrote")
    flow = names["written"]
    assert flow.meta["end"] == "blocks.2.hook_resid_post"
    assert flow.heads.shape[1] == 3
    assert flow.tokens[int(flow.total.argmax())].strip() == "Tom"
    scores = ls.score(
        names["bridge"], names["case"].prompt, ls.Direction(names["vector"], "blocks.2.hook_resid_post"), sites="embed"
    )
    assert_close(flow.total, scores.values[0], 1e-5)


def test_the_profile_has_fifty_prompts(run):
    profile = run("A profile")["profile"]
    assert profile.prompts.tolist() == [50] * 5
    whole = torch.stack([one.values.double().square().sum(1).sqrt() for one in run("A profile")["results"]])
    assert_close(profile.stderr, whole.std(0) / 50**0.5, 1e-9)


def test_the_span_is_those_words(run):
    names = run("Named spans")
    scores, spans = names["scores"], names["spans"]
    at = [i for i, text in enumerate(scores.tokens) if text.strip() in ("Tom", "and", "Nina")][:3]
    assert "".join(scores.tokens[i] for i in at) == " Tom and Nina"
    expected = scores.values[0, at].double().square().sum().sqrt()
    assert float(spans.sel(pos="names", site="embed").values) == pytest.approx(float(expected), rel=1e-5)


def test_the_steering_vector_is_felt_and_gone_again(run):
    names = run("Beside hooks")
    assert (
        float(
            (names["steered"].values - ls.score(names["model"], names["case"].prompt, names["scope"]).values)
            .abs()
            .max()
        )
        > 1e-3
    )
    again = ls.score(names["model"], names["case"].prompt, names["scope"])
    assert torch.equal(again.values, run("Why X")["scores"].values)


def test_parquet_gives_back_the_scores(run, folder):
    names = run("200 prompts")
    back = pd.read_parquet(folder / "scores.parquet")
    assert back.index.get_level_values("prompt").nunique() == 200
    one = ls.score(names["model"], names["prompts"][7], ls.Semantic())
    assert_close(torch.tensor(back.loc[7].score.tolist()), one.values.flatten(), 1e-5)


def test_answers_are_ranked(run):
    values = [value for _, value in run("Many answers")["ranked"]]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == 4


def test_whole_heads(run):
    names = run("Whole heads")
    compared, model = names["compared"], names["model"]
    assert compared.measured.dims == ("site", "head")
    assert compared.summary()["places"] == model.cfg.n_layers * model.cfg.n_heads
    assert compared.spearman > 0.5
