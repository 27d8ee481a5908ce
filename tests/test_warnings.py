"""Every warning of the package points at the line of the user's own code that led to it."""

import re
from pathlib import Path

import pytest
import torch

import lens_scopes as ls
import tiny

BACKEND = tiny.BACKENDS[0]
CLEAN, CORRUPTED = tiny.tokens(7, seed=0), tiny.tokens(7, seed=1)
PACKAGE = Path(ls.__file__).parent

pytestmark = pytest.mark.host


def cut():
    model = tiny.fresh_host("gpt2", BACKEND)
    model.add_hook("blocks.1.hook_resid_pre", lambda x, hook: x.detach().clone())
    return model


def bare_word():
    """A model whose readout is not moved by the prompt, and the less likely twin of a word."""
    model = tiny.fresh_host("gpt2", BACKEND)
    (twin,), (bare,) = (model.tokenizer.encode(text, add_special_tokens=False) for text in (" cat", "cat"))
    with torch.no_grad():
        model.unembed.W_U[:, twin] = 100 * model.unembed.W_U[:, bare]
    return model


def doubted(call):
    """The same call on prompts until the twin is likelier: the readout was made so that this is half of them."""
    model = bare_word()
    for seed in range(20):
        call(model, tiny.tokens(7, seed=seed))


SEMANTIC = ls.Semantic(7)
WARNINGS = {
    "a hook that cuts, score": (lambda: ls.score(cut(), CLEAN, SEMANTIC), "nothing of hook_embed"),
    "a hook that cuts, score_batch": (lambda: ls.score_batch(cut(), [CLEAN, CLEAN], SEMANTIC), "nothing of hook_embed"),
    "a hook that cuts, flow": (lambda: ls.flow(cut(), CLEAN, SEMANTIC), "nothing of hook_embed"),
    "points of a line": (
        lambda: ls.flow(tiny.host("gpt2", BACKEND), CLEAN, SEMANTIC, against=CORRUPTED, steps=1),
        "1 points of the line miss",
    ),
    "points of a path": (
        lambda: ls.patching.predict(
            tiny.host("gpt2", BACKEND), CLEAN, CORRUPTED, SEMANTIC, sites="z", method="path", steps=1
        ),
        "points of the path miss|different signs",
    ),
    "a screen": (
        lambda: [
            ls.patching.screen(tiny.host("gpt2", BACKEND), tiny.tokens(7, seed=n), CORRUPTED, SEMANTIC, sites=None)
            for n in range(8)
        ],
        "points of the path miss|different signs",
    ),
    "a word without its blank": (
        lambda: doubted(lambda model, ids: ls.score(model, ids, ls.Semantic("cat"))),
        "differs by a blank",
    ),
}


@pytest.mark.parametrize("kind", WARNINGS)
def test_a_warning_points_at_the_user_s_line(kind):
    call, text = WARNINGS[kind]
    with pytest.warns(UserWarning, match=text) as found:
        call()
    own = [one for one in found if re.search(text, str(one.message))]  # TransformerLens has others
    assert {one.filename for one in own} == {__file__}


def test_all_warnings_are_given_in_one_place():
    """So that none can point elsewhere; what is above it says all of them."""
    own = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    assert [name for name, text in own.items() if "warnings.warn(" in text] == ["results/warning.py"]
    assert sum(len(re.findall(r"^ +warn\(", text, re.MULTILINE)) for text in own.values()) == 4
