"""A function is told from another one wherever numbers are kept for later: by its code and by what it reads."""

import re
from dataclasses import dataclass
from functools import partial

import pytest
import torch

import lens_scopes as ls
import tiny
from lens_scopes.evaluate import compare_methods
from lens_scopes.results.sameness import UntoldError, identity, told

PROMPTS = ("The cat", "A dog and a cat", "The cat sat on the mat.")
WHICH = 1
PROBE = torch.nn.Linear(2, 2)


@pytest.fixture(scope="module")
def model():
    return ls.load(tiny.directory("gpt2"))


def logit(logits, k=5):
    return logits[..., k]


def of_global(logits):
    return logits[..., WHICH]


def through_global(logits):
    return of_global(logits)


class Reader:
    def __init__(self, k):
        self.k = k

    def rank(self, question):
        return self.k * torch.arange(len(question.tokens), dtype=torch.float64)

    def logit(self, logits):
        return logits[..., self.k]

    def scope(self, state):
        return state.rows(self.k)

    __call__ = logit


@dataclass
class Sign:
    sign: int

    def rank(self, question):
        return self.sign * torch.arange(len(question.tokens), dtype=torch.float64)


def reads_a_model(logits):
    return PROBE(logits[..., :2]).sum()


def remembering(k):
    return lambda logits: logits[..., k]


def nested(k):
    return lambda logits: sum((lambda i: logits[..., i + k])(i) for i in range(2))


PAIRS = {
    "code": (lambda l: l[..., 5], lambda l: l[..., 66]),
    "names": (lambda l: l.exp().sum(), lambda l: l.sin().sum()),
    "defaults": (lambda l, k=5: l[..., k], lambda l, k=66: l[..., k]),
    "keywords": (lambda l, *, k=5: l[..., k], lambda l, *, k=66: l[..., k]),
    "remembered": (remembering(5), remembering(66)),
    "nested": (nested(5), nested(66)),
    "remembered tensors": (remembering(torch.tensor([5])), remembering(torch.tensor([66]))),
    "kinds of index": (remembering((0, 1)), remembering([0, 1])),
    "partials": (partial(logit, k=5), partial(logit, k=66)),
    "bound methods": (Reader(5).logit, Reader(66).logit),
    "objects": (Reader(5), Reader(66)),
    "methods of a dataclass": (Sign(1).rank, Sign(-1).rank),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_functions_that_do_other_things_are_told_apart(pair):
    assert told(pair[0]) != told(pair[1])
    assert told(pair[0]) == told(pair[0])


def test_what_is_made_twice_is_the_same():
    assert told(remembering(5)) == told(remembering(5))
    assert told(nested(5)) == told(nested(5))
    assert told(Reader(5).logit) == told(Reader(5).logit)
    assert told(partial(logit, k=5)) == told(partial(logit, k=5))


@pytest.mark.parametrize("function", [of_global, through_global])
def test_a_global_is_part_of_the_function_that_reads_it(function, monkeypatch):
    before = told(function)
    monkeypatch.setitem(globals(), "WHICH", 66)
    assert told(function) != before


def test_what_has_no_identity_in_data_is_the_same_object_or_another():
    with pytest.raises(UntoldError, match="an object of class Linear"):
        told(reads_a_model)
    assert identity(reads_a_model) == identity(reads_a_model)
    assert identity(remembering(PROBE))["object"] != identity(remembering(PROBE))["object"]


@pytest.mark.parametrize("kind", ["code", "partials", "bound methods", "objects", "remembered"])
def test_a_folder_holds_one_function(model, tmp_path, kind):
    one, other = PAIRS[kind]
    first = ls.corpus.run(model, PROMPTS, ls.Metric(one), tmp_path)
    assert ls.corpus.run(model, PROMPTS, ls.Metric(one), tmp_path).done == first.done == len(PROMPTS)
    with pytest.raises(ValueError, match=r"another question: scope .* write another folder"):
        ls.corpus.run(model, PROMPTS, ls.Metric(other), tmp_path)


def test_a_folder_holds_one_name_of_one_function(model, tmp_path):
    ls.corpus.run(model, PROMPTS, ls.Metric(lambda l: l[..., 5], name="mine"), tmp_path)
    with pytest.raises(ValueError, match="another function"):
        ls.corpus.run(model, PROMPTS, ls.Metric(lambda l: l[..., 66], name="mine"), tmp_path)


def test_a_folder_holds_the_method_of_one_object(model, tmp_path):
    ls.corpus.run(model, PROMPTS, Reader(5).scope, tmp_path)
    with pytest.raises(ValueError, match="another function"):
        ls.corpus.run(model, PROMPTS, Reader(6).scope, tmp_path)


@dataclass(frozen=True)
class Mine:
    row: int

    def __call__(self, state):
        return state.rows(self.row + WHICH)


def test_a_folder_holds_one_class(model, tmp_path, monkeypatch):
    ls.corpus.run(model, PROMPTS, Mine(3), tmp_path)
    assert ls.corpus.run(model, PROMPTS, Mine(3), tmp_path).done == len(PROMPTS)
    monkeypatch.setitem(globals(), "WHICH", 2)
    with pytest.raises(ValueError, match="another function"):
        ls.corpus.run(model, PROMPTS, Mine(3), tmp_path)


def test_a_run_whose_function_cannot_be_told_does_not_go_on(model, tmp_path):
    scope = ls.Metric(reads_a_model)
    assert ls.corpus.run(model, PROMPTS, scope, tmp_path).done == len(PROMPTS)
    with pytest.raises(ValueError, match=r"cannot be told: .*class Linear.*write another folder"):
        ls.corpus.run(model, PROMPTS, scope, tmp_path)


def doubled(value, hook, by=2):
    return by * value


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_hooks_are_part_of_the_question(backend, tmp_path):
    model = ls.load(tiny.directory("gpt2"), backend=backend)
    ls.corpus.run(model, PROMPTS, ls.Semantic(), tmp_path / "bare")
    with model.hooks([("blocks.0.hook_resid_post", doubled)]):
        with pytest.raises(ValueError, match="another question: hooks was None"):
            ls.corpus.run(model, PROMPTS, ls.Semantic(), tmp_path / "bare")
        found = ls.corpus.run(model, PROMPTS, ls.Semantic(), tmp_path / "hooked")
        assert ls.corpus.run(model, PROMPTS, ls.Semantic(), tmp_path / "hooked").done == len(PROMPTS)
    assert found.profile("site").meta["hooks"] == ls.profile(list(found.scores()), "site").meta["hooks"]
    with pytest.raises(ValueError, match="another question: hooks"):
        ls.corpus.run(model, PROMPTS, ls.Semantic(), tmp_path / "hooked")
    others = model.hooks([("blocks.0.hook_resid_post", partial(doubled, by=3))])
    with others, pytest.raises(ValueError, match="another question: hook functions"):
        ls.corpus.run(model, PROMPTS, ls.Semantic(), tmp_path / "hooked")


def test_a_hook_that_cannot_be_told_does_not_go_on(model, tmp_path):
    with model.hooks([("blocks.0.hook_resid_post", lambda value, hook: value + 0 * PROBE.weight.sum())]):
        ls.corpus.run(model, PROMPTS, ls.Semantic(), tmp_path)
        with pytest.raises(ValueError, match="class Linear"):
            ls.corpus.run(model, PROMPTS, ls.Semantic(), tmp_path)


def rank_by_global(question):
    return WHICH * torch.arange(len(question.tokens), dtype=torch.float64)


METHODS = {
    "bound methods": (Reader(1).rank, Reader(-1).rank),
    "partials": (ls.Metric(partial(logit, k=5)), ls.Metric(partial(logit, k=66))),
    "objects": (ls.Metric(Reader(5)), ls.Metric(Reader(66))),
}


@pytest.mark.parametrize("pair", METHODS.values(), ids=METHODS)
def test_a_journal_holds_the_rows_of_one_method(model, tmp_path, pair):
    one, other = ({"mine": method} for method in pair)
    path = tmp_path / "rows.jsonl"
    first = compare_methods(model, PROMPTS[1:], one, baseline="last_first", resume=path)
    again = compare_methods(model, PROMPTS[1:], one, baseline="last_first", resume=path)
    torch.testing.assert_close(again.values, first.values, rtol=0, atol=0)
    with pytest.raises(ValueError, match="rows of another comparison"):
        compare_methods(model, PROMPTS[1:], other, baseline="last_first", resume=path)


def test_a_journal_holds_the_rows_of_one_global(model, tmp_path, monkeypatch):
    methods, path = {"mine": rank_by_global}, tmp_path / "rows.jsonl"
    compare_methods(model, PROMPTS[1:], methods, baseline="last_first", resume=path)
    monkeypatch.setitem(globals(), "WHICH", -1)
    with pytest.raises(ValueError, match="rows of another comparison"):
        compare_methods(model, PROMPTS[1:], methods, baseline="last_first", resume=path)


def test_a_journal_holds_the_rows_of_one_hook(model, tmp_path):
    def compare():
        return compare_methods(model, PROMPTS[1:], ["random"], baseline="last_first", resume=tmp_path / "rows.jsonl")

    with model.hooks([("blocks.0.hook_resid_post", doubled)]):
        assert torch.equal(compare().values, compare().values)
    others = model.hooks([("blocks.0.hook_resid_post", partial(doubled, by=3))])
    with others, pytest.raises(ValueError, match="rows of another comparison"):
        compare()
    unknown = model.hooks([("blocks.0.hook_resid_post", lambda value, hook: value + 0 * PROBE.weight.sum())])
    with unknown, pytest.raises(ValueError, match=r"hooks in force.*class Linear"):
        compare()


def test_a_method_that_cannot_be_told_is_not_resumed(model, tmp_path):
    with pytest.raises(ValueError, match=r"same method in a later run: .*class Linear.*compare without resume"):
        compare_methods(model, PROMPTS[1:], {"mine": ls.Metric(reads_a_model)}, resume=tmp_path / "rows.jsonl")


def test_a_corpus_averages_what_profile_averages(model, tmp_path):
    rows = [{"prompt": PROMPTS[0], "target": 5}, {"prompt": PROMPTS[1], "target": 5, "versus": 6}]
    found = ls.corpus.run(model, rows, ls.Semantic(), tmp_path)
    for call in (lambda: ls.profile(list(found.scores()), "site"), found.profile):
        with pytest.raises(ValueError, match=r"different scopes: .*(one|another) token.* and .*(one|another) token"):
            call()


def test_a_mean_is_over_one_function(model):
    def of(*scopes):
        found = [ls.score(model, text, scope) for text, scope in zip(PROMPTS, scopes, strict=False)]
        return ls.profile(found, "site")

    one, other = (lambda l: l[..., 53]), (lambda l: l.exp().sum(-1))
    untold = [lambda l: PROBE(l[..., :2]).sum() for _ in range(2)]
    for pair in ((one, other), (logit, reads_a_model), untold):
        with pytest.raises(ValueError, match=re.escape("functions that mean the same get one name: ls.Metric(fn")):
            of(*map(ls.Metric, pair))
    assert of(ls.Metric(one, name="mine"), ls.Metric(other, name="mine")).each.shape[0] == 2
    assert of(ls.Metric(reads_a_model), ls.Metric(reads_a_model)).each.shape[0] == 2
    assert of(ls.Metric(remembering(5)), ls.Metric(remembering(5))).each.shape[0] == 2
