"""What Fisher(passes=n) promises on a trained model: errors, and intervals that cover (docs/fisher_budget.md)."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import lens_scopes as ls
import oracles
from report import assert_close

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "fisher_budget.py"


@pytest.fixture(scope="module")
def budget():
    if not SCRIPT.is_file():
        pytest.skip("benchmarks/ is not part of this copy")
    spec = importlib.util.spec_from_file_location("fisher_budget", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["fisher_budget"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def loaded(budget, reference):
    return budget.prompts_of(reference)


def test_the_gram_matrices_are_those_of_a_dense_jacobian(loaded, stories260k):
    import transformers

    hf = transformers.AutoModelForCausalLM.from_pretrained(
        stories260k, torch_dtype=torch.float64, attn_implementation="eager"
    )
    prompt = loaded[1][1]
    truth = oracles.dense(hf.eval().requires_grad_(False), prompt.tokens, prompt.position, sites=["hook_embed"])
    jacobian = truth.jacobians["hook_embed"][:, : prompt.position + 1]
    assert_close(prompt.gram, torch.einsum("itd,jtd->tij", jacobian, jacobian), 1e-5)
    assert_close(prompt.exact, truth.quadratic("hook_embed", truth.fisher)[: prompt.position + 1], 1e-5)


@pytest.mark.host
def test_live_scores_and_intervals_are_those_of_the_matrices(budget, loaded):
    assert budget.check_live(*loaded, runs=2) < 1e-5


def check(budget, rows):
    for row in rows:
        assert row.median <= budget.ALLOWED[row.passes], row
        assert row.median < row.truncated_median, row
        if row.passes == 16:
            assert budget.POOLED[0] <= row.coverage <= budget.POOLED[1], row
            assert row.worst_prompt >= budget.EACH, row


def test_errors_and_coverage(budget, loaded):
    check(budget, budget.measure(loaded[1], seeds=20, budgets=(4, 16)))


@pytest.mark.slow
def test_errors_and_coverage_at_length(budget, loaded):
    check(budget, budget.measure(loaded[1], seeds=100))


@pytest.mark.slow
def test_the_mean_of_many_live_seeds_is_the_exact_score(loaded):
    """No shortcut: 60 calls of ``score`` on one story, every token within 4.5 standard errors of the mean."""
    model, prompts = loaded
    prompt = prompts[0]
    options = {"position": prompt.position, "sites": "embed"}
    found = torch.stack([ls.score(model, prompt.tokens, ls.Fisher(8, seed=s), **options).values[0] for s in range(60)])
    found = found[:, : prompt.position + 1].double()
    error = (found.mean(0) - prompt.exact) / (found.std(0) / 60**0.5)
    assert error.abs().max() < 4.5, error
