"""What held on a real language model: Gemma 3 270M on both host classes, against Hugging Face's model without TransformerLens.

Every tolerance is what was seen (in each docstring) with room for another processor. ``make real`` runs this.
"""

import hashlib
import json
import re
import subprocess
import sys

import pytest
import torch

import lens_scopes as ls
from report import assert_close

pytestmark = pytest.mark.real

FRENCH = "French: La fille mange une pomme. English: The girl eats an"
OPPOSITES = "hot -> cold\nbig -> small\nfast ->"
SOCIALIST = "As a lifelong socialist, he believes that"
EMBED = "hook_embed"


def close(found, expected, tolerance: float, what: str = "") -> None:
    """As assert_close; what was seen is printed, for -rP."""
    print(f"seen {what}: {assert_close(found, expected, tolerance, what):.1e}, allowed {tolerance:.0e}")


class Bare:
    """The formulas, written on the Hugging Face model alone: autograd at the scaled embeddings."""

    def __init__(self, hf, ids: list[int]):
        self.unembed = hf.lm_head.weight
        self.x = hf.get_input_embeddings()(torch.tensor([ids])).detach().requires_grad_()
        self.blocks = []  # the stream after each block
        hooks = [layer.register_forward_hook(lambda *of: self.blocks.append(of[2])) for layer in hf.model.layers]
        self.y = hf.model(inputs_embeds=self.x, use_cache=False).last_hidden_state[0, -1]
        for hook in hooks:
            hook.remove()
        self.logits = self.unembed @ self.y.detach()

    def pulled(self, vector):
        """J_tᵀ v for every t."""
        return torch.autograd.grad(self.y, self.x, vector, retain_graph=True)[0][0]

    def norms(self, vector):
        return self.pulled(vector).norm(dim=-1)

    def every_site(self, vector):
        """The norms at the embedding and after every block, as a score has its rows."""
        gradients = torch.autograd.grad(self.y, [self.x, *self.blocks], vector, retain_graph=True)
        return torch.stack([g[0].norm(dim=-1) for g in gradients])

    def jacobian(self):
        """∂y/∂x at every t: [d, pos, d]."""
        parts = torch.eye(len(self.y)).split(64)
        pulled = [
            torch.autograd.grad(self.y, self.x, part, retain_graph=True, is_grads_batched=True)[0] for part in parts
        ]
        return torch.cat(pulled)[:, 0]

    def fisher(self):
        """F = E_p[g gᵀ] in float64, row by row of the unembedding."""
        logits = torch.cat([rows.double() @ self.y.detach().double() for rows in self.unembed.split(16384)])
        p = logits.softmax(-1)
        parts = list(zip(p.split(16384), self.unembed.split(16384), strict=True))
        mean = sum(part @ rows.double() for part, rows in parts)
        d = len(self.y)
        found = torch.zeros(d, d, dtype=torch.float64)
        for part, rows in parts:
            centred = (rows.double() - mean) * part.sqrt()[:, None]
            found += centred.T @ centred
        return found


@pytest.fixture(scope="module")
def ids(real_directory):
    """The French prompt as the tokenizer gives it, <bos> first."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(real_directory)(FRENCH).input_ids


@pytest.fixture(scope="module")
def bare(real_hf, ids):
    return Bare(real_hf, ids)


@pytest.fixture(scope="module")
def spectrum(bare):
    """Eigenvalues and eigenvectors of F, descending."""
    energy, vectors = torch.linalg.eigh(bare.fisher())
    return energy.flip(0), vectors.T.flip(0)


def embed(model, prompt, scope, **rest):
    return ls.score(model, prompt, scope, sites="embed", **rest)


def test_logits_are_hugging_faces(real_model, real_hf, ids):
    """At every position. Seen: equal bit for bit (bridge), 1.3e-6 of the largest (hooked)."""
    with torch.no_grad():
        found, expected = real_model(torch.tensor([ids])), real_hf(torch.tensor([ids])).logits
    close(found, expected, 2e-5)


def test_a_string_is_encoded_as_the_tokenizer_does(real_model, ids):
    scores = embed(real_model, FRENCH, ls.Temperature())
    assert list(scores.meta["token_ids"]) == ids
    assert "".join(scores.tokens[1:]) == FRENCH


def test_semantic_and_versus_and_temperature_are_their_formulas(real_model, bare, ids):
    """Seen: equal bit for bit (bridge), 2.1e-6 of the largest (hooked)."""
    first, second = bare.logits.topk(2).indices.tolist()
    w, y = bare.unembed, bare.y.detach()
    for scope, vector in (
        (ls.Semantic(first), w[first]),
        (ls.Semantic(), w[first]),
        (ls.Semantic(first, versus=second), w[first] - w[second]),
        (ls.Temperature(), y / y.norm()),
    ):
        scores = embed(real_model, ids, scope)
        close(scores.values[0], bare.norms(vector), 2e-5, str(scope))
        assert scores.meta["predictions"][0][0]["id"] == first


def test_every_layer_is_a_gradient_of_the_bare_model(real_model, bare, ids):
    """Seen: equal bit for bit (bridge), 2.0e-6 of a row's largest (hooked)."""
    scores = ls.score(real_model, ids, ls.Semantic())
    expected = bare.every_site(bare.unembed[bare.logits.argmax()])
    for site, found, row in zip(scores.coords["site"], scores.values, expected, strict=True):
        close(found, row, 2e-5, site)


def test_the_picture_of_the_readme(real_model):
    """After blocks 4 to 11 France is the largest but <bos>, then the last position."""
    prompt, scope = "The capital of France is the city of", ls.Semantic(" Paris", versus=" Rome")
    scores = ls.score(real_model, prompt, scope, sites="resid_post")
    france = scores.tokens.index(" France")
    assert [int(row[1:].argmax()) + 1 for row in scores.values[4:]] == [france] * 8 + [len(scores.tokens) - 1] * 6
    stream = ls.flow(real_model, prompt, scope).stream[0]
    assert float(stream[12, france] / stream[12].sum()) > 0.15
    assert abs(float(stream[13, france] / stream[13].sum())) < 0.05


@pytest.mark.parametrize("rank", [1, 4])
def test_truncated_fisher_is_its_formula(real_model, bare, ids, spectrum, rank):
    """Made of 8,192 words, which carry over 99 %. Seen: 2.4e-5 of the largest; coverage lower by 1.6e-5."""
    energy, vectors = (found[:rank] for found in spectrum)
    expected = sum(e * bare.norms(u.float()).double() ** 2 for e, u in zip(energy, vectors, strict=True))
    scores = embed(real_model, ids, ls.Fisher(rank=rank))
    close(scores.values[0], expected, 1e-3)
    print(f"seen coverage: {scores.meta['coverage'] / float(energy.sum() / spectrum[0].sum()) - 1:.1e}")
    assert scores.meta["coverage"] == pytest.approx(float(energy.sum() / spectrum[0].sum()), rel=1e-2)
    assert scores.meta["notes"][0]["heavy_words"] < 262_144


def test_a_flow_conserves(real_model, ids):
    """Seen: residual 1.8e-7 (bridge), 4.7e-7 (hooked)."""
    flow = ls.flow(real_model, ids, ls.Semantic())
    print(f"seen residual: {flow.residual:.1e}")
    assert 0 < flow.residual < 1e-5
    close(flow.total.sum(), embed(real_model, ids, ls.Semantic()).values.sum(), 1e-5)
    close(flow.stream.sum(-1), flow.total[:, None].expand(flow.stream.shape[:2]), 1e-5)


def test_with_all_three_frozen_the_logit_is_a_sum_over_tokens(real_model, bare, ids):
    """Gemma has no biases. Seen: 3.3e-7 (bridge), 1.7e-7 (hooked) of the logit."""
    scores = ls.score(
        real_model,
        ids,
        ls.Semantic(),
        sites=["blocks.0.hook_resid_pre"],
        along="activation",
        freeze=("norm", "attention", "mlp"),
    )
    close(scores.values.sum(), bare.logits.max(), 2e-5)


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [(FRENCH, (" pom", "me")), (OPPOSITES, ("fast",)), (SOCIALIST, (" socialist",))],
    ids=["pomme", "fast", "socialist"],
)
def test_the_decisive_word_is_the_largest_between_the_ends(real_model, prompt, pieces):
    """The first token is the model's sink and the last is where it reads; between them the word that decides leads.

    Seen: me 3.05, pom 2.41, then French 1.39; fast 1.66, then -> 0.84; socialist 0.76, then believes 0.35. It is no law:
    where a sentence has a topic of its own ("... taxes on the rich should be"), that leads.
    """
    scores = embed(real_model, prompt, ls.Semantic())
    order = scores.values[0, 1:-1].argsort(descending=True)[: len(pieces)] + 1
    assert {scores.tokens[i] for i in order.tolist()} == set(pieces)


def state_of(model) -> tuple:
    hooks = {name: [*m._forward_hooks, *m._forward_pre_hooks, *m._backward_hooks] for name, m in model.named_modules()}
    flags = {name: (p.requires_grad, p.grad is None) for name, p in model.named_parameters()}
    weights = hashlib.sha256()
    for value in model.parameters():
        weights.update(value.detach().contiguous().view(torch.uint8).numpy())
    modes = [module.training for module in model.modules()]
    return hooks, flags, weights.hexdigest(), modes, torch.get_rng_state().tolist(), torch.is_grad_enabled()


def test_the_model_is_left_as_it_came(real_model, ids):
    """Hooks, gradient flags, weights, mode, random state."""
    with torch.no_grad():
        real_model(torch.tensor([ids]))  # a bridge's first run leaves hooks of its own
    before = state_of(real_model)
    embed(real_model, ids, ls.Temperature())
    ls.flow(real_model, ids, ls.Semantic(), freeze=("norm", "attention", "mlp"))
    with pytest.raises(ValueError, match="outside"):
        embed(real_model, ids, ls.Semantic(10**6))
    assert state_of(real_model) == before


def test_results_are_saved_and_loaded(real_model, ids, tmp_path):
    scores, flow = ls.score(real_model, ids, ls.Semantic()), ls.flow(real_model, ids, ls.Semantic())
    again = ls.Scores.load(scores.save(tmp_path / "scores.safetensors"))
    assert torch.equal(again.values, scores.values)
    assert (again.dims, again.coords, again.tokens, again.meta) == (
        scores.dims,
        scores.coords,
        scores.tokens,
        scores.meta,
    )
    back = ls.Flow.load(flow.save(tmp_path / "flow.safetensors"))
    assert torch.equal(back.heads, flow.heads)
    assert (back.tokens, back.meta) == (flow.tokens, flow.meta)


def test_thirty_tokens_are_shown(real_model, tmp_path):
    """Layers and strip of a score, heads and stream of a flow: every token stands there, nothing comes from outside."""
    prompt = "In 1815, after the battle of Waterloo, the <b>emperor</b> of France was sent to the island of Saint Helena in the"
    scores, flow = (verb(real_model, prompt, ls.Semantic()) for verb in (ls.score, ls.flow))
    assert len(scores.tokens) >= 30
    for result, views in ((scores, ("layers", "tokens")), (flow, ("heads", "stream"))):
        for view in views:
            text = ls.show(result, view).save(tmp_path / f"{view}.html").read_text(encoding="utf-8")
            assert "<b>emperor" not in text
            assert not re.search(r"""(src|href)=["']?https?:""", text)
            if view != "heads":
                assert all(token.strip(" <>/") in text for token in scores.tokens), view


def test_the_command_line_scores_it(real_directory, bare, tmp_path):
    """A process of its own, with more threads: what it prints, and the file with the same numbers. Seen: 2.2e-6."""
    command = [sys.executable, "-c", "from lens_scopes.commands.main import main; main()", "score", FRENCH]
    options = [
        "--model",
        str(real_directory),
        "--sites",
        "embed",
        "--json",
        "-",
        "--save",
        str(tmp_path / "s.safetensors"),
    ]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "".join(json.loads(done.stdout)["tokens"][1:]) == FRENCH
    found = ls.Scores.load(tmp_path / "s.safetensors")
    close(found.values[0], bare.norms(bare.unembed[bare.logits.argmax()]), 2e-5)


@pytest.fixture(scope="module")
def long(real_hf):
    """600 tokens and what the bare model says of them; the sliding window is 512."""
    assert real_hf.config.sliding_window == 512
    ids = [2, *torch.randint(1000, 200_000, (599,), generator=torch.Generator().manual_seed(0)).tolist()]
    bare = Bare(real_hf, ids)
    target = int(bare.logits.argmax())
    return ids, target, bare.every_site(bare.unembed[target])


@pytest.mark.slow
def test_a_directory_becomes_a_hooked_transformer_by_its_official_name(real_directory, real_hf, ids):
    """Its numbers are those of google/gemma-3-270m. Seen: 1.3e-6 of the largest."""
    model = ls.load(real_directory, backend="hooked", device="cpu")
    assert model.cfg.model_name == real_directory.name
    with torch.no_grad():
        close(model(torch.tensor([ids])), real_hf(torch.tensor([ids])).logits, 2e-5)


@pytest.mark.slow
def test_beyond_the_window_every_layer_is_right(real_model, long):
    """Seen: equal bit for bit (bridge), 3.3e-6 of a row's largest (hooked)."""
    ids, target, expected = long
    scores = ls.score(real_model, ids, ls.Semantic(target))
    for site, found, row in zip(scores.coords["site"], scores.values, expected, strict=True):
        close(found, row, 2e-5, site)


@pytest.fixture(scope="module")
def exact(real_hf, real_directory):
    """A flat prediction of six tokens: its ids, and tr(J_tᵀ F J_t) from all of J and all of F in float64."""
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(real_directory)("The capital of France is").input_ids
    bare = Bare(real_hf, ids)
    jacobian = bare.jacobian().double()
    return ids, torch.einsum("ita,ij,jta->t", jacobian, bare.fisher(), jacobian)


@pytest.mark.slow
def test_exact_fisher_is_a_trace(real_model, exact):
    """Seen: 5.6e-7 (bridge), 3.7e-6 (hooked) of the largest."""
    ids, expected = exact
    close(embed(real_model, ids, ls.Fisher(None)).values[0], expected, 2e-5)


@pytest.mark.slow
def test_an_estimated_fisher_is_as_good_as_it_says(real_model, exact):
    """16 passes on a flat prediction, five seeds. Seen: off by up to 6.4 to 19.6 %, up to 4.8 standard errors, on both hosts."""
    ids, expected = exact
    for seed in range(5):
        scores = embed(real_model, ids, ls.Fisher(seed=seed))
        errors = (scores.values[0] - expected).abs() / scores.stderr[0]
        print(f"seen: {errors.max():.1f} standard errors, {((scores.values[0] / expected - 1).abs().max()):.1%}")
        assert errors.max() < 6


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["bridge", "hooked"])
def test_bfloat16_is_as_good_as_its_digits(real_host, bare, ids, backend):
    """Held against float32 on the same weights. Seen: residual 4.1e-3 (bridge), 3.6e-3 (hooked); scores 2.9e-2, 2.2e-2."""
    model = real_host(backend, torch.bfloat16)
    target = int(bare.logits.argmax())
    flow = ls.flow(model, ids, ls.Semantic(target))
    print(f"seen residual: {flow.residual:.1e}")
    assert 0 < flow.residual < 5e-2
    assert flow.meta["dtype"] == "bfloat16"
    close(embed(model, ids, ls.Semantic(target)).values[0], bare.norms(bare.unembed[target]), 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("pair", [("Tom", "Anna"), ("Anna", "Tom")])
def test_the_default_prediction_has_the_sign_of_the_largest_mlp_output(real_model, pair):
    """Indirect objects, both ways round; the plain gradient has it wrong on some pairs (docs/patching.md)."""
    text = "Then Tom and Anna had lunch, and {} gave a book to"
    clean, corrupted = (text.format(name) for name in pair)
    asked = (real_model, clean, corrupted, ls.Semantic(f" {pair[1]}", f" {pair[0]}"))
    predicted = ls.patching.predict(*asked, sites="mlp_out")
    found = ls.patching.compare(predicted, ls.patching.measure(*asked, sites="mlp_out"))
    print(found.summary())
    assert found.largest_sign == 1
    assert found.largest_rank == 1
    assert found.pearson >= 0.95
