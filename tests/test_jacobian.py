"""The Jacobian as an operator, dense, by singular vectors and in words, against dense Jacobians of the bare model."""

import functools
from contextlib import nullcontext

import pytest
import torch

import lens_scopes as ls
import oracles
import tiny
from double import Double
from lens_scopes.calculus.subspace import largest
from report import assert_close

pytestmark = pytest.mark.host

POSITION = 4
PAIRS = [pair for pair in tiny.HOSTS if pair[0] != "mixtral"]
SITES = [
    ("embed", "final"),
    ("blocks.0.hook_attn_out", "final"),
    ("blocks.0.hook_resid_post", "final"),
    ("embed", "blocks.0.hook_resid_post"),
    ("blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"),
    ("blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"),
]


def ids() -> list[int]:
    return tiny.tokens(6)


@functools.cache
def truth(architecture: str, source: str, target: str) -> torch.Tensor:
    """[pos, d_out, d_in], a row at a time."""
    hf, start = tiny.hugging_face(architecture), "hook_embed" if source == "embed" else source
    if target == "final":
        return oracles.dense(hf, ids(), POSITION, sites=[start]).jacobians[start].transpose(0, 1)
    where, width = oracles.places(hf), tiny.D_MODEL

    def moved(delta):
        seen = []

        def see(_module, _args, output):
            seen.append(output if isinstance(output, torch.Tensor) else output[0])

        handle = where[target].module.register_forward_hook(see)
        try:
            oracles.final_state(hf, ids(), POSITION, {start: delta})
        finally:
            handle.remove()
        return seen[0].reshape(len(ids()), -1)[POSITION]

    zero = torch.zeros(len(ids()), width, dtype=hf.dtype)
    return torch.autograd.functional.jacobian(moved, zero).transpose(0, 1)


def made(pair, source="embed", target="final", **options):
    return ls.jacobian(tiny.host(*pair), ids(), source, target, position=POSITION, **options)


def doubled(pair):
    return Double() if pair[1] == "bridge" else nullcontext()


def tolerance(pair) -> float:
    return 1e-10 if pair[1] == "bridge" or pair[0] == "gpt2" else 2e-5


@pytest.mark.parametrize("ends", SITES, ids="-".join)
@pytest.mark.parametrize("pair", PAIRS, ids=tiny.host_id)
def test_dense_vjp_and_jvp(pair, ends):
    expected = truth(pair[0], *ends)
    generator = torch.Generator().manual_seed(2)
    v = torch.randn(3, tiny.D_MODEL, generator=generator, dtype=torch.float64)
    u = torch.randn(3, len(ids()), tiny.D_MODEL, generator=generator, dtype=torch.float64)
    with doubled(pair):
        jacobian = made(pair, *ends)
        assert jacobian.shape == (tiny.D_MODEL, len(ids()), tiny.D_MODEL)
        assert_close(jacobian.dense(), expected, tolerance(pair), "dense")
        assert_close(jacobian.vjp(v), torch.einsum("toi,ko->kti", expected, v), tolerance(pair), "vjp")
        assert_close(jacobian.jvp(u), torch.einsum("toi,kti->ko", expected, u), tolerance(pair), "jvp")
        pulled, pushed = jacobian.vjp(v), jacobian.jvp(u)
    # <v, Ju> = <J'v, u>, by two ways of differentiating the same host.
    assert_close((pushed * v).sum(-1), (pulled * u).sum((1, 2)), 1e-10, "adjoint")


@pytest.mark.parametrize("pair", [p for p in PAIRS if p[0] in ("llama", "gemma2")], ids=tiny.host_id)
def test_the_middle_of_a_block_has_the_derivative_of_the_attention(pair):
    with doubled(pair):
        middle = made(pair, "blocks.0.hook_resid_mid").dense()
        onwards = made(pair, "blocks.0.hook_resid_mid", "blocks.1.hook_resid_mid").dense()
    assert_close(middle, truth(pair[0], "blocks.0.hook_attn_out", "final"), tolerance(pair))
    # One position cannot reach the past: what is after the target does not move it.
    assert float(onwards[POSITION + 1 :].abs().max()) == 0
    assert float(onwards[: POSITION + 1].abs().amax((1, 2)).min()) > 0


@pytest.mark.parametrize("pair", [p for p in PAIRS if p[0] in ("gpt2", "neox")], ids=tiny.host_id)
@pytest.mark.parametrize("k", [1, 4, tiny.D_MODEL])
def test_svd_is_that_of_the_dense_matrix(pair, k):
    before = torch.get_rng_state()
    jacobian = made(pair)
    matrix = jacobian.dense().transpose(0, 1).flatten(1)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    found = jacobian.svd(k)
    assert_close(found.S, s[:k], 1e-10, "singular values")
    assert_close(found.U @ found.U.T, torch.eye(k), 1e-10, "U")
    low = torch.einsum("ko,k,kti->toi", found.U, found.S, found.V)
    assert_close(
        low, ((u[:, :k] * s[:k]) @ vh[:k]).unflatten(1, found.V.shape[1:]).transpose(0, 1), 1e-8, "J of rank k"
    )
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("decay", [0.5, 0.98])
def test_blocks_of_products_find_the_largest_triplets(seed, decay):
    """A wide matrix with a known spectrum, steep or flat: values to the square of the residual, vectors to itself."""
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.linalg.qr(torch.randn(n, 80, generator=generator, dtype=torch.float64))[0] for n in (80, 300))
    s = 7.0 * decay ** torch.arange(80, dtype=torch.float64)
    matrix, products = u @ torch.diag(s) @ v.T, []

    def times(by):
        return lambda rows: products.append(len(rows)) or rows @ by

    for tol in (1e-2, 1e-6):
        products.clear()
        found = largest(times(matrix), times(matrix.T), 80, 3, tol)
        assert float(found.residual.max()) <= tol
        assert_close(found.S, s[:3], 4 * tol**2 / (1 - decay) + 1e-12, f"singular values at {tol}")
        wrong = found.V @ matrix.T - found.S[:, None] * found.U
        assert_close(wrong.norm(dim=-1) / found.S[0], found.residual, 1e-9, relative_to=1.0)
        assert_close(found.U @ matrix, found.S[:, None] * found.V, 1e-10)
        assert_close(found.U @ found.U.T, torch.eye(3), 1e-10)
        if decay < 0.9:
            assert sum(products) < 80  # cheaper than all rows


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_svd_says_how_well_it_is_known(backend):
    found = made(("gpt2", backend)).svd(2, tol=0.5)
    assert found.residual.shape == (2,)
    assert float(found.residual.max()) <= 0.5
    u, s, v = found
    assert torch.equal(s, found.S)
    assert torch.equal(u, found.U)
    assert torch.equal(v, found.V)
    with pytest.raises(ValueError, match=r"tol \(a part"):
        made(("gpt2", backend)).svd(2, tol=0)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_decode_names_what_the_singular_vectors_raise(backend):
    pair = ("gpt2", backend)
    model, jacobian = tiny.host(*pair), made(pair)
    frame = jacobian.decode(3, tokens=4)
    assert frame.side.tolist() == ["output", "input"] * 3
    assert frame["rank"].tolist() == [0, 0, 1, 1, 2, 2]
    u, s, vh = torch.linalg.svd(jacobian.dense().transpose(0, 1).flatten(1), full_matrices=False)
    texts = [model.tokenizer.decode([i]) for i in range(tiny.VOCAB)]
    for rank in range(3):
        out, into = frame[frame["rank"] == rank].itertuples()
        assert out.sigma == into.sigma == pytest.approx(float(s[rank]))
        logits, v = model.W_U.detach().T @ u[:, rank], vh[rank].reshape(len(ids()), -1)
        sign = 1 if logits.max() >= -logits.min() else -1
        top = (sign * logits).topk(4).indices.tolist()
        assert [r for r, i in zip(out.raises, top, strict=True) if r == texts[i] or "�" in texts[i]] == out.raises
        share = v.square().sum(-1)
        assert into.pos == int(share.argmax())
        assert into.share == pytest.approx(float(share.max()))
        words = (sign * model.W_E.detach() @ v[into.pos]).topk(4).indices.tolist()
        assert [r for r, i in zip(into.raises, words, strict=True) if r == texts[i] or "�" in texts[i]] == into.raises
        assert not set(out.raises) & set(out.lowers)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_what_the_last_direction_says_is_what_it_does(backend):
    """The strongest input direction, moved a little on the live model, raises most the token that decode names."""
    model, jacobian = tiny.host("gpt2", backend), made(("gpt2", backend))
    u, s, v = jacobian.svd(1)
    named = jacobian.decode(1).iloc[0].raises[0]
    sign = 1 if (model.W_U.detach().T @ u[0]).abs().argmax() == (model.W_U.detach().T @ u[0]).argmax() else -1
    step = 1e-5 * sign * v

    def logits(by):
        with torch.no_grad(), model.hooks(fwd_hooks=[("hook_embed", lambda x, hook: x + by)]):
            return model(torch.tensor([ids()]))[0, POSITION]

    moved = (logits(step) - logits(-step)) / 2e-5
    assert_close(moved, sign * float(s[0]) * (model.W_U.detach().T @ u[0]), 1e-6)
    assert model.tokenizer.decode([int(moved.argmax())]) in (named, "�")


@pytest.mark.wrong_types
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_what_jacobian_refuses(backend):
    pair = ("gpt2", backend)
    with pytest.raises(ValueError, match="not after the source"):
        made(pair, "blocks.1.hook_resid_post", "blocks.0.hook_resid_post")
    with pytest.raises(ValueError, match="not after the source"):
        made(pair, "embed", "embed")
    for source in ("blocks.0.attn.hook_z", "resid_post"):
        with pytest.raises(ValueError, match="one residual-stream site"):
            made(pair, source)
    with pytest.raises(ValueError, match="has no site"):
        made(pair, "blocks.9.hook_resid_post")
    with pytest.raises(IndexError, match="position 6"):
        ls.jacobian(tiny.host(*pair), ids(), position=6)
    jacobian = made(pair)
    with pytest.raises(ValueError, match=r"vjp takes has axes \[k, d_out\], got shape \(16,\)"):
        jacobian.vjp(torch.ones(16))
    with pytest.raises(ValueError, match=r"\[k, pos, d_in\] with \(6, 16\), got \(1, 5, 16\)"):
        jacobian.jvp(torch.ones(1, 5, 16))
    for k in (0, 17):
        with pytest.raises(ValueError, match="between 1 and 16"):
            jacobian.svd(k)


@pytest.mark.parametrize("pair", [p for p in PAIRS if p[0] == "llama"], ids=tiny.host_id)
def test_chunks_and_precision(pair):
    whole = made(pair).dense()
    with ls.memory_budget(1):
        assert_close(made(pair).dense(), whole, 1e-6)
        u = torch.ones(3, *whole.shape[::2], dtype=torch.float64)
        assert_close(made(pair).jvp(u), torch.einsum("toi,kti->ko", whole, u), 1e-6)
    single = ls.jacobian(tiny.host(*pair, torch.float32), ids(), position=POSITION)
    assert_close(single.dense(), whole, 1e-4)
    assert repr(single).startswith("Jacobian(hook_embed -> final at 4; (16, 6, 16)")
