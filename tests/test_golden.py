"""The authors' own scores on a trained model: every entry of the reference file, on every host class."""

import functools

import pytest

import lens_scopes as ls
import tiny
from report import assert_close

pytestmark = pytest.mark.host

SCOPES = {
    "semantic": lambda entry: ls.Semantic(entry["target"]),
    "temperature": lambda entry: ls.Temperature(),
    "fisher_full": lambda entry: ls.Fisher(None),
    "fisher_low_rank_1": lambda entry: ls.Fisher(rank=1),
    "fisher_low_rank_4": lambda entry: ls.Fisher(rank=4),
    "fisher_low_rank_16": lambda entry: ls.Fisher(rank=16),
}
ENTRIES = [("stories", n) for n in range(8)] + [("lambada", n) for n in range(24)]
# By default the dear ones run on all stories and the shortest texts of LAMBADA; -m slow runs the rest.
DEAR, SHORT = ("fisher_full", "fisher_low_rank_16"), (2, 8, 12, 15)


def cases():
    for key in SCOPES:
        for group, n in ENTRIES:
            slow = key in DEAR and group == "lambada" and n not in SHORT
            yield pytest.param(key, group, n, id=f"{key}-{group}{n}", marks=[pytest.mark.slow] if slow else [])


@functools.cache
def load(path, backend):
    return ls.load(path, backend=backend)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
@pytest.mark.parametrize(("key", "group", "n"), cases())
def test_reference(key, group, n, backend, golden, stories260k, record_property):
    entry = golden[group][n]
    scores = ls.score(
        load(stories260k, backend), entry["tokens"], SCOPES[key](entry), position=entry["position"], sites="embed"
    )
    # The reference was computed on the prompt without its last token, which is the target.
    expected = entry["scores"][key] + [0.0] * (len(entry["tokens"]) - len(entry["scores"][key]))
    error = assert_close(scores.values[0], expected, 1e-4, f"{key} {group}[{n}] {backend}")
    record_property("error", error)
    assert scores.meta["predictions"][0][0]["id"] == entry["argmax"]


def test_the_file_has_what_the_tests_name(golden):
    assert [(group, n) for group in ("stories", "lambada") for n in range(len(golden[group]))] == ENTRIES
