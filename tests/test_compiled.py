"""Programs compiled to weights: what a token contributes is known exactly, and flow and scores say just that."""

import pytest
import torch

import lens_scopes as ls
import tiny
from compiled import FOLDER, compiled
from report import assert_close

pytestmark = [
    pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no reference data at {FOLDER.parent}; set LENS_SCOPES_REFERENCE"),
    pytest.mark.skipif("hooked" not in tiny.BACKENDS, reason="compiled programs are HookedTransformers"),
    pytest.mark.filterwarnings("ignore:.*points of the line miss:UserWarning"),
]
BOS, X, Y, Z = 0, 2, 3, 4
SHARE_OF_X = 0  # the dimension of the stream that holds the answer
PROMPTS = ([BOS, X, Y, Z, X, Y, X, Z], [BOS, X, X, X, X, X, X, X], [BOS, Y, Z, X])


def share_of_x(model) -> ls.Direction:
    return ls.Direction(torch.eye(model.cfg.d_model)[SHARE_OF_X], name="frac_prevs")


@pytest.mark.parametrize("name", ["frac_prevs", "hist", "reverse", "sort_unique"])
def test_the_compiled_model_is_tracrs_own(name):
    model, found = compiled(name)
    with torch.no_grad():
        final = model(torch.from_numpy(found["ids"]).long()[None])
    assert_close(final[0], torch.from_numpy(found["final"])[0].float(), 1e-5)


@pytest.mark.parametrize("ids", PROMPTS, ids=str)
def test_gradient_times_input_is_one_nth_for_each_x(ids):
    """On the token's own dimension: what the embedding of an x adds to the stream, times its slope."""
    model, _ = compiled("frac_prevs")
    found = ls.score(model, ids, share_of_x(model), sites="embed", along="activation")
    expected = torch.tensor([float(token == X) for token in ids]) / (len(ids) - 1)
    assert float((found.values[0] - expected).abs().max()) < 1e-5


@pytest.mark.parametrize("ids", PROMPTS, ids=str)
def test_integrated_flow_is_one_nth_for_each_x(ids):
    """Every x becomes a y: the share falls from k/n to 0, a nth for each, all of it through the one counting head."""
    model, _ = compiled("frac_prevs")
    corrupted = [Y if token == X else token for token in ids]
    flow = ls.flow(model, ids, share_of_x(model), against=corrupted, sources="each", steps=64)
    assert flow.sources == tuple(i for i, token in enumerate(ids) if token == X)
    assert float((flow.total - 1 / (len(ids) - 1)).abs().max()) < 1e-5
    assert abs(flow.meta["gap"]) < 1e-5
    assert_close(flow.heads[:, 1, 0], flow.total, 1e-5)
    assert_close(flow.composition[:, 1, 0, 2], flow.total, 1e-5)  # by what it reads, not by where it looks


@pytest.mark.parametrize("name", ["hist", "reverse", "sort_unique"])
def test_the_whole_change_of_a_step_function_is_conserved(name):
    """Few of the points see a step; what they miss is said."""
    model, found = compiled(name)
    clean = found["ids"].tolist()
    corrupted = [*clean[:-1], clean[-2]]
    with torch.no_grad():
        ends = model(torch.tensor([clean, corrupted]))[:, -1]
    dimension = int((ends[0] - ends[1]).argmax())
    scope = ls.Direction(torch.eye(model.cfg.d_model)[dimension])
    flow = ls.flow(model, clean, scope, against=corrupted, sources="each", steps=64)
    assert flow.residual < 1e-4
    difference = float(ends[0, dimension] - ends[1, dimension])
    assert difference > 0.5
    assert float(flow.total.sum()) + flow.meta["gap"] == pytest.approx(difference, abs=1e-4)
