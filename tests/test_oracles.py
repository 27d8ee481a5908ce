"""The oracles themselves, held against finite differences: what everything else is measured with must be right."""

import pytest
import torch

import oracles
import tiny
from report import assert_close


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_dense_jacobians_are_finite_differences(architecture):
    hf, ids, position = tiny.hugging_face(architecture), tiny.tokens(), 5
    truth = oracles.dense(hf, ids, position)
    generator = torch.Generator().manual_seed(1)
    step = 1e-3
    for site, jacobian in truth.jacobians.items():
        direction = torch.randn(jacobian.shape[1:], generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        ends = [
            oracles.final_state(hf, ids, position, {site: factor * step * direction})[0] for factor in (-2, -1, 1, 2)
        ]
        difference = (ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / (12 * step)
        assert_close(jacobian.flatten(1) @ direction.flatten(), difference, 1e-7, f"{architecture} {site}")


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_the_unembedding_at_y_gives_the_logits(architecture):
    hf = tiny.hugging_face(architecture)
    truth = oracles.dense(hf, tiny.tokens(), 5, sites=["hook_embed"])
    assert_close(oracles.logits_of(hf, truth.y), truth.logits, 1e-6)
    if architecture == "gemma2":
        assert truth.logits.abs().max() > 0.9 * hf.config.final_logit_softcapping, "the soft-cap does not bite"


def test_fisher_of_the_oracle_is_the_curvature_of_the_divergence():
    """½ εᵀFε is KL(p ‖ p') to second order: the meaning of the scope."""
    hf = tiny.hugging_face("gpt2")
    truth = oracles.dense(hf, tiny.tokens(), 5, sites=["hook_embed"])
    step = 1e-3 * torch.randn(len(truth.y), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    log_p, log_q = truth.logits.log_softmax(-1), oracles.logits_of(hf, truth.y + step).log_softmax(-1)
    divergence = (log_p.exp() * (log_p - log_q)).sum()
    assert_close(0.5 * step @ truth.fisher @ step, divergence, 1e-3)
