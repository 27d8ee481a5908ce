"""TransformerLens's Jacobian lens is the mean of our Jacobians, and an autoencoder's features share an influence out."""

import pytest
import torch

import lens_scopes as ls

pytest.importorskip(
    "transformer_lens.tools.analysis", reason="this TransformerLens has no JacobianLens", exc_type=ImportError
)

LAYER = 1
SITE = f"blocks.{LAYER}.hook_resid_post"


@pytest.fixture(scope="module")
def bridge():
    return ls.demo.load("bridge")


@pytest.fixture(scope="module")
def cases():
    return ls.demo.cases("ioi", n=2)


def test_the_mean_of_our_jacobians_is_the_lens(bridge, cases):
    from transformer_lens.tools.analysis import JacobianLens

    prompts, width = [case.prompt for case in cases], bridge.cfg.d_model
    lens = JacobianLens.fit(
        bridge, prompts, corpus="test", source_layers=[LAYER], skip_first_positions=1, dim_batch=64,
        show_progress=False,
    )  # fmt: skip
    means = []
    for prompt in prompts:
        counted = list(range(1, bridge.to_tokens(prompt).shape[1] - 1))
        last = f"blocks.{bridge.cfg.n_layers - 1}.hook_resid_post"
        jacobian = ls.jacobian(bridge, prompt, source=SITE, target=last, position=counted)
        every_target_at_once = torch.eye(width)[:, None].expand(-1, len(counted), -1)
        means.append(jacobian.vjp(every_target_at_once)[:, counted].mean(1))
    mean = torch.stack(means).mean(0)
    assert mean.abs().max() > 0.1
    torch.testing.assert_close(mean, lens.jacobians[LAYER], rtol=0, atol=1e-6 * float(mean.abs().max()))


def test_features_and_error_add_up_to_the_influence(bridge, cases):
    """Of any autoencoder, a random one included: what it misses is booked beside what its features carry."""
    case, generator = cases[0], torch.Generator().manual_seed(0)
    encoder, decoder = torch.randn(2, 300, bridge.cfg.d_model, generator=generator) / bridge.cfg.d_model**0.5
    scope = ls.Semantic(case.answer, versus=case.versus)
    predicted = ls.patching.predict(bridge, case.prompt, case.corrupted, scope, sites=SITE, method="gradient")
    with torch.no_grad():
        clean, corrupted = (
            bridge.run_with_cache(bridge.to_tokens(prompt), names_filter=SITE)[1][SITE][0]
            for prompt in (case.prompt, case.corrupted)
        )
        weights = (bridge.W_U[:, bridge.to_single_token(" " + case.answer.strip())] -
                   bridge.W_U[:, bridge.to_single_token(" " + case.versus.strip())])  # fmt: skip
    g = ls.jacobian(bridge, case.corrupted, source=SITE).vjp(weights[None])[0]
    change = (clean @ encoder.T).relu() - (corrupted @ encoder.T).relu()
    features = change * (g @ decoder.T)
    error = (g * (clean - corrupted - change @ decoder)).sum(-1)
    assert features.abs().max() > 0.1 < error.abs().max()
    largest = float(features.sum(-1).abs().max())
    torch.testing.assert_close(features.sum(-1) + error, predicted.values[0], rtol=0, atol=1e-5 * largest)
