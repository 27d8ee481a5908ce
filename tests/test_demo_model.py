"""Tests that the model of the demo does what its documentation says, on every installed host."""

from importlib.util import find_spec
from itertools import pairwise
from random import Random

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

import lens_scopes as ls
from lens_scopes import demo
from lens_scopes.demo.answers import accuracy, mean_error, next_words
from lens_scopes.demo.evaluate import wilson, write_into
from lens_scopes.demo.generators import GENERATORS
from lens_scopes.demo.train import CONFIGS, slopes, train
from lens_scopes.demo.truth import replacements
from lens_scopes.demo.vocabulary import vocabulary

BACKENDS = [
    backend
    for backend, module in (
        ("hooked", "transformer_lens.HookedTransformer"),
        ("bridge", "transformer_lens.model_bridge"),
    )
    if find_spec(module)
]


@pytest.fixture(scope="module")
def hf_model():
    return LlamaForCausalLM.from_pretrained(demo.MODEL_DIR, torch_dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(demo.MODEL_DIR)


@pytest.mark.parametrize(
    ("kind", "floor"), [("induction", 0.98), ("ioi", 0.98), ("translation", 0.98), ("persona", 0.95)]
)
def test_accuracy_on_what_was_held_out(hf_model, kind, floor):
    assert accuracy(hf_model, demo.cases(kind, n=200, seed=11)) >= floor


def test_series_beat_the_last_value(hf_model):
    cases = demo.cases("series", n=300, seed=11)
    last = sum(abs(int(case.tokens[-2]) - int(case.answer)) for case in cases) / len(cases)
    assert mean_error(hf_model, cases) <= last / 2


@pytest.mark.parametrize("kind", ["induction", "ioi", "translation", "persona"])
def test_labels_are_true(hf_model, kind):
    tried = replacements(hf_model, demo.cases(kind, n=60, seed=12))
    at_cause = [one.changed for one in tried if one.at_cause]
    elsewhere = [one.changed for one in tried if not one.at_cause]
    assert sum(at_cause) >= 0.95 * len(at_cause)
    assert sum(elsewhere) <= 0.05 * len(elsewhere)


@pytest.mark.parametrize("kind", demo.KINDS[:4])
def test_the_twin_moves_the_answer_to_versus(hf_model, kind):
    cases = demo.cases(kind, n=100, seed=13)
    answers = next_words(hf_model, [case.corrupted_tokens for case in cases])
    assert sum(word == case.versus for word, case in zip(answers, cases, strict=True)) >= 95


@pytest.mark.host
@pytest.mark.parametrize("kind", demo.KINDS[:4])
def test_the_answer_becomes_the_twins_gradually(kind):
    """The integral along the line between the embeddings, by 50 midpoints, is the difference of the metric."""
    model = demo.load()
    for case in demo.cases(kind, n=5, seed=17):
        scope = ls.Semantic(case.answer, versus=case.versus)
        found = ls.patching.predict(model, case.prompt, case.corrupted, scope, sites="embed", method="fixed", steps=50)
        whole = found.meta["metric"]["clean"] - found.meta["metric"]["corrupted"]
        assert abs(float(found.values.sum()) - whole) < 0.01 * whole


@torch.no_grad()
def test_slopes_are_those_of_the_logit_difference(hf_model):
    """Against one prompt and one point of the line at a time."""
    drafts = [GENERATORS[kind](Random(3), False) for kind in ("ioi", "translation", "persona")]
    ids, points, expected = {word: n for n, word in enumerate(vocabulary())}, [0.1, 0.3, 0.35, 0.9], []
    for draft in drafts:
        clean, twin = (
            hf_model.get_input_embeddings()(torch.tensor([[ids["<bos>"], *map(ids.get, words)]]))
            for words in (draft.words, draft.twin)
        )
        logits = [hf_model(inputs_embeds=twin + p * (clean - twin)).logits[0, -1] for p in (0, 1, *points)]
        f = [float(row[ids[draft.answer]] - row[ids[draft.versus]]) for row in logits]
        expected += [
            (after - before) / (q - p) / (f[1] - f[0])
            for (before, after), (p, q) in zip(pairwise(f[2:]), pairwise(points), strict=True)
        ]
    found = slopes(hf_model, drafts, torch.tensor(points))
    assert found.shape == (3, 3)
    assert found.flatten().tolist() == pytest.approx(expected, rel=1e-3, abs=1e-3)


@pytest.mark.host
@pytest.mark.parametrize("backend", BACKENDS)
def test_hosts_agree_with_hugging_face(hf_model, backend):
    model = demo.load(backend)
    assert not model.training
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    for case in demo.cases(n=10, seed=14):
        tokens = model.to_tokens(case.prompt)
        assert tuple(model.to_str_tokens(case.prompt)) == case.tokens
        assert tokens.shape == (1, len(case.tokens))
        with torch.no_grad():
            torch.testing.assert_close(model(tokens), hf_model(tokens).logits, rtol=0, atol=1e-4)


@pytest.mark.host
@pytest.mark.parametrize("backend", BACKENDS)
def test_its_results_name_it_and_not_a_folder(backend):
    """The folder is called "model", which says nothing in a paper, nor on a page beside another model's."""
    case = demo.cases("ioi", n=1)[0]
    scores = ls.score(demo.load(backend), case.prompt, ls.Semantic(case.answer), sites="embed")
    assert scores.meta["model"] == "demo"
    assert repr(scores).endswith(", demo)")
    assert "on demo" in ls.show(scores).title


def test_tokenizer_is_one_token_per_word(tokenizer):
    assert [tokenizer.convert_tokens_to_ids(word) for word in vocabulary()] == list(range(len(vocabulary())))
    for case in demo.cases(n=20, seed=15):
        ids = tokenizer(case.prompt).input_ids
        assert tuple(tokenizer.convert_ids_to_tokens(ids)) == case.tokens
        assert tokenizer.decode(ids[1:]) == case.prompt
        for word in (case.answer, case.versus):
            assert word is None or len(tokenizer.encode(word, add_special_tokens=False)) == 1


@pytest.mark.host
def test_scores_read_as_the_prompt():
    case = demo.cases("ioi", n=1)[0]
    scores = ls.score(demo.load(), case.prompt, ls.Semantic(case.answer, versus=case.versus))
    assert "".join(scores.tokens).replace("<bos>", "").strip() == case.prompt
    assert scores.values.shape[-1] == len(case.tokens)


def test_files_are_small():
    assert sum(path.stat().st_size for path in demo.MODEL_DIR.iterdir()) < 5e6
    assert (demo.MODEL_DIR / "train.log").is_file()


@pytest.mark.slow
def test_tiny_model_learns_from_nothing(tmp_path):
    state = torch.random.get_rng_state()
    directory = train("tiny", tmp_path / "tiny")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (directory / "model.safetensors").stat().st_size < 200_000
    model = LlamaForCausalLM.from_pretrained(directory, torch_dtype=torch.float32).eval()
    kinds = CONFIGS["tiny"].batch
    assert all(accuracy(model, demo.cases(kind, n=100, seed=16)) >= 0.95 for kind in kinds)
    model = ls.load(directory)
    assert model.to_string(model(model.to_tokens(demo.cases("persona", n=1)[0].prompt))[0, -1].argmax())


def test_training_is_deterministic(tmp_path):
    from dataclasses import replace

    short = replace(CONFIGS["tiny"], steps=3)
    weights = [(train(short, tmp_path / name) / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    other = train(replace(short, seed=1), tmp_path / "c") / "model.safetensors"
    assert other.read_bytes() != weights[0]


def test_unknown_configuration_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"'huge'.*demo, tiny"):
        train("huge", tmp_path)


def test_intervals_and_tables():
    low, high = wilson(95, 100)
    assert (round(low, 4), round(high, 4)) == (0.8882, 0.9785)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == 1.0
    text = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb"
    assert write_into(text, "x", "new") == "a\n<!-- begin x -->\nnew\n<!-- end x -->\nb"
    with pytest.raises(ValueError, match="begin y"):
        write_into(text, "y", "new")
