"""Several tokens explained as one: against autograd through the model's own logits, and in everything that takes a scope."""

import warnings
from dataclasses import dataclass, replace

import pytest
import torch

import lens_scopes as ls
import tiny
from lens_scopes.calculus.trace import trace
from lens_scopes.host import Host
from lens_scopes.scopes.protocol import cotangents_at
from lens_scopes.scopes.quantity import quantities
from lens_scopes.scopes.state import Cotangents
from report import assert_close

pytestmark = pytest.mark.host

N, M = 5, 4
KINDS = ("logprob", "logit")
hosts = pytest.mark.parametrize(("architecture", "backend"), tiny.HOSTS, ids=lambda x: x)


def text(seed: int = 0, n: int = N, m: int = M) -> ls.Text:
    ids = tiny.tokens(n + m, seed)
    return ls.Text(ids, [f"#{i}" for i in ids], {"prompt": (0, n), "completion": (n, n + m)})


def watched(model, names: list[str], ids) -> tuple[list, torch.Tensor]:
    """The model's own tensors at some hooks, inside a graph, and its logits: TransformerLens alone."""
    seen = {}

    def keep(name):
        def hook(x, hook):
            seen[name] = x if x.requires_grad else x.detach().requires_grad_()
            return seen[name]

        return hook

    with torch.enable_grad(), model.hooks(fwd_hooks=[(name, keep(name)) for name in names]):
        logits = model(torch.tensor([list(ids)]))[0]
    return [seen[name] for name in names], logits


def objective(logits, t: ls.Text, kind: str):
    """Σ log p, or Σ z, of the completion's tokens."""
    start, stop = t.spans["completion"]
    rows = logits[start - 1 : stop - 1]
    rows = rows.log_softmax(-1) if kind == "logprob" else rows
    return rows[range(stop - start), list(t.ids[start:stop])].sum()


def test_an_answer_whose_first_word_lacks_its_blank_is_doubted():
    """As ``Semantic`` does it: "cat" is another token than " cat", which is made the model's first choice."""
    model, prompt = tiny.fresh_host("gpt2", tiny.BACKENDS[-1], torch.float32), "The dog"
    (twin,), (bare,) = (model.tokenizer.encode(text, add_special_tokens=False) for text in (" cat", "cat"))
    seen = []
    ls.score(model, prompt, lambda state: (seen.append(state.y), state.y)[1], sites="embed")
    model.W_U.data[:, twin] += 20 * seen[0] / (seen[0] @ seen[0])
    assert ls.generate(model, prompt, max_new_tokens=1).ids[-1] == twin
    said = rf"'cat' \(id {bare}, .* differs by a blank from ' cat' \(id {twin}, p .*likelier"
    with pytest.warns(UserWarning, match=said):
        scores = ls.score(model, prompt, ls.Continuation("cat the"), sites="embed")
    assert scores.meta["targets"][0]["id"] == bare  # what was written is what is explained
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ls.score(model, prompt, ls.Continuation(" cat the"), sites="embed")
        ls.score(model, prompt, ls.Continuation([bare]), sites="embed")


@pytest.mark.parametrize("kind", KINDS)
@hosts
def test_joint_is_autograd_of_the_sum(architecture, backend, kind):
    """Through ``model(...)``, float64: embedding and the output of every block."""
    model, t = tiny.host(architecture, backend), text()
    names = ["hook_embed", *(f"blocks.{l}.hook_resid_post" for l in range(tiny.LAYERS))]
    leaves, logits = watched(model, names, t.ids)
    gradients = torch.autograd.grad(objective(logits, t, kind), leaves)
    scores = ls.score(model, t, ls.Continuation(kind=kind))
    tolerance = 1e-10 if architecture == "gpt2" else 10 * tiny.tolerance(architecture, backend)
    assert_close(scores.values, torch.stack([g[0].norm(dim=-1) for g in gradients]), tolerance)
    assert scores.dims == ("site", "pos")
    assert bool((scores.values[:, -1] == 0).all())  # nothing reads the last token
    assert bool((scores.values[0, :-1] > 0).all())
    assert scores.units == "norm"
    along = ls.score(model, t, ls.Continuation(kind=kind), along="activation")
    expected = torch.stack([(g * x.detach())[0].sum(-1) for g, x in zip(gradients, leaves, strict=True)])
    assert_close(along.values, expected, tolerance)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_by_head_and_by_chunk(backend):
    model, t = tiny.host("gpt2", backend), text()
    names = [f"blocks.{l}.attn.hook_z" for l in range(tiny.LAYERS)]
    leaves, logits = watched(model, names, t.ids)
    gradients = torch.autograd.grad(objective(logits, t, "logprob"), leaves)
    scores = ls.score(model, t, ls.Continuation(), sites="z")
    assert_close(scores.values, torch.stack([g[0].norm(dim=-1) for g in gradients]), 1e-10)
    with ls.memory_budget(1):
        assert_close(ls.score(model, t, ls.Continuation(), sites="z").values, scores.values, 1e-12)


def test_the_sum_of_parts_that_one_backward_each_would_give():
    """Frozen, too: the joint is linear in the cotangents, whatever is held."""
    model, t = tiny.host("llama", tiny.BACKENDS[-1]), text()
    for freeze in ((), ("norm", "attention"), ("norm", "attention", "mlp")):
        start, stop = t.spans["completion"]
        parts = []
        for p in range(start - 1, stop - 1):
            # Of one token the log p's gradient is a Metric of the text's beginning.
            part = ls.jacobian(model, t, position=p, freeze=freeze)
            state = part.run.state(0, 0)
            p_ = state.probs.clone()
            p_[t.ids[p + 1]] -= 1
            parts.append(part.vjp((-p_ @ state.unembed.double())[None])[0])
        joint = ls.score(model, t, ls.Continuation(), sites="embed", freeze=freeze)
        assert_close(joint.values[0], sum(parts).norm(dim=-1), 1e-6, str(freeze))


def test_one_token_is_the_scope_of_one_position():
    model, t = tiny.host("llama", tiny.BACKENDS[-1]), text(m=1)
    joint = ls.score(model, t, ls.Continuation(kind="logit"))
    one = ls.score(model, t, ls.Semantic("next"), position=N - 1)
    assert torch.equal(joint.values, one.values)
    token = t.ids[-1]
    log_p = ls.score(model, t, ls.Metric(lambda logits: logits[0, -1].log_softmax(-1)[token]), position=N - 1)
    assert_close(ls.score(model, t, ls.Continuation()).values, log_p.values, 1e-12)
    assert joint.meta["targets"][0]["id"] == token


def test_where_the_model_is_sure_the_cotangent_keeps_its_digits():
    """1 − p = 4e-8: onehot − p in float32 would have no digit left."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(50, 8, generator=generator)
    logits = torch.randn(50, generator=generator)
    logits[7] = 22.0
    run = trace(Host(tiny.host("llama", tiny.BACKENDS[-1])), torch.tensor([[1, 7]]), [], [0])
    state = replace(run.state(0, 0), y=torch.zeros(8), logits=logits, weight=weight, slope=None, tokens=(1, 7))
    made = ls.Continuation().joint([state]).vectors[0, 0]
    p = logits.double().softmax(-1)
    exact = sum(p[w] * (weight[7] - weight[w]).double() for w in range(50))
    assert float(1 - p[7]) < 1e-7
    assert_close(made, exact, 1e-5)


def test_the_next_token_at_every_position_is_a_matrix_whose_rows_are_one_by_one():
    model, t = tiny.host("llama", tiny.BACKENDS[-1]), text()
    matrix = ls.score(model, t, ls.Semantic("next"), position="completion")
    assert matrix.dims == ("target_pos", "site", "pos")
    assert matrix.coords["target_pos"] == tuple(range(N - 1, N + M - 1))
    for p in matrix.coords["target_pos"]:
        alone = ls.score(model, list(t.ids), ls.Semantic(t.ids[p + 1]), position=p)
        assert_close(matrix.sel(target_pos=p).values, alone.values, 1e-12)
        assert bool((matrix.sel(target_pos=p).values[:, p + 1 :] == 0).all())
    assert [target["id"] for target in matrix.meta["targets"]] == list(t.ids[N:])
    assert matrix.meta["spans"] == {"prompt": [0, N], "completion": [N, N + M]}
    against = ls.score(model, t, ls.Semantic("next", versus=9), position=[N])
    assert against.meta["targets"][0]["versus"]["id"] == 9
    with pytest.raises(ValueError, match=r"position 8 is the last of the text: nothing follows .* range\(8\)"):
        ls.score(model, t, ls.Semantic("next"), position="all")


def test_a_prompt_and_an_answer_are_joined_by_whoever_is_asked():
    model = tiny.host("gpt2", tiny.BACKENDS[-1])
    joined = ls.join(model, "The cat", " sat on")
    inside = ls.score(model, "The cat", ls.Continuation(" sat on"))
    outside = ls.score(model, joined, ls.Continuation())
    assert torch.equal(inside.values, outside.values)
    assert inside.meta["token_ids"] == list(joined.ids)
    assert inside.meta["scope"]["text"] == "Continuation(target=' sat on')"
    assert inside.meta["spans"] == outside.meta["spans"]
    start, stop = joined.spans["completion"]
    as_ids = ls.score(model, "The cat", ls.Continuation(joined.ids[start:stop]))
    assert torch.equal(as_ids.values, outside.values)
    named = ls.Text(joined.ids, joined.tokens, {"answer": (start, stop)})
    assert torch.equal(ls.score(model, named, ls.Continuation(), position="answer").values, outside.values)
    assert torch.equal(
        ls.score(model, list(joined.ids), ls.Continuation(), position=list(range(start - 1, stop - 1))).values,
        outside.values,
    )


def test_targets_say_what_is_explained_not_what_is_predicted():
    """id, text, p and rank, recomputed from the model's own logits; the tokens are not its first choices."""
    model = tiny.host("gpt2", tiny.BACKENDS[-1])
    t = ls.generate(model, "The cat", max_new_tokens=4, temperature=5.0, seed=1)
    scores = ls.score(model, t, ls.Continuation())
    start, stop = t.spans["completion"]
    logits = model(torch.tensor([t.ids]))[0].detach().double()
    p = logits.softmax(-1)
    assert any(target["rank"] > 0 for target in scores.meta["targets"])
    for n, (target, position) in enumerate(zip(scores.meta["targets"], range(start - 1, stop - 1), strict=True)):
        token = t.ids[position + 1]
        assert target["id"] == token
        assert target["text"] == t.tokens[start + n]
        assert abs(target["p"] - float(p[position, token])) < 1e-9
        assert target["rank"] == int((logits[position] > logits[position, token]).sum())
        assert scores.meta["predictions"][n][0]["id"] == int(logits[position].argmax())
    expected = float(sum(p[q, t.ids[q + 1]].log() for q in range(start - 1, stop - 1)))
    assert abs(scores.meta["value"] - expected) < 1e-9
    matrix = ls.score(model, t, ls.Semantic("next"), position="completion", sites="embed")
    page = matrix._repr_html_()
    from lens_scopes.views import markup

    for target, top in zip(matrix.meta["targets"], matrix.meta["predictions"], strict=True):
        assert markup.escaped(markup.named(target["text"])) in page
        if target["rank"]:
            position = matrix.coords["target_pos"][matrix.meta["targets"].index(target)]
            assert f"target {position}: {markup.escaped(markup.named(top[0]['text']))}" not in page


def test_a_batch_of_two_is_its_texts_one_by_one():
    model = tiny.host("llama", tiny.BACKENDS[-1])
    texts = [text(0), text(1), text(2, n=N + 1, m=M - 1)]
    scopes = [ls.Continuation(), ls.Continuation(kind="logit"), ls.Continuation()]
    together = ls.score_batch(model, texts, scopes)
    for t, scope, found in zip(texts, scopes, together, strict=True):
        assert_close(found.values, ls.score(model, t, scope).values, 1e-10)
        assert found.meta["positions"] == list(t.predicting("completion"))
    mixed = ls.score_batch(model, [texts[0], texts[0]], [ls.Continuation(), ls.Temperature()], position="completion")
    assert [scores.dims[0] for scores in mixed] == ["site", "target_pos"]
    assert torch.equal(mixed[0].values, ls.score(model, texts[0], ls.Continuation()).values)


def test_another_answer_that_differs_in_its_last_token():
    model = tiny.host("gpt2", tiny.BACKENDS[-1])
    prompt, x, w = [7, 9, 11], [13, 15, 17], [13, 15, 19]
    for kind in KINDS:
        scores = ls.score(model, prompt, ls.Continuation(x, versus=w, kind=kind), sites="embed")
        (leaf,), logits = watched(model, ["hook_embed"], prompt + x)
        (other,), logits_w = watched(model, ["hook_embed"], prompt + w)
        spans = {"completion": (3, 6)}
        a = objective(logits, ls.Text(prompt + x, [""] * 6, spans), kind)
        b = objective(logits_w, ls.Text(prompt + w, [""] * 6, spans), kind)
        difference = torch.autograd.grad(a, leaf)[0] - torch.autograd.grad(b, other)[0]
        assert_close(scores.values[0, :-1], difference[0, :-1].norm(dim=-1), 1e-10)
        assert abs(scores.meta["value"] - float((a - b).detach())) < 1e-9
        assert scores.meta["targets"][-1]["versus"]["id"] == 19
        assert scores.check(model)["max_error"] < 1e-4
    with pytest.raises(ValueError, match="two texts, which no single forward pass reads"):
        ls.score(model, prompt, ls.Continuation(x, versus=[13, 14, 17]))
    with pytest.raises(ValueError, match="two texts"):
        ls.score(model, prompt, ls.Continuation(x, versus=[13, 15]))
    with pytest.raises(ValueError, match="versus is text until"):
        ls.Continuation(x, versus=" x").joint(trace(Host(model), torch.tensor([prompt]), [], [0]).ends(0))


@pytest.mark.parametrize(
    ("prompt", "scope", "options", "told"),
    [
        ([7, 9], ls.Continuation(), {}, r"'completion' of a Text, and this prompt has none \(it has no named spans\)"),
        (ls.Text([7, 9], ["#7", "#9"], {"x": (1, 2)}), ls.Continuation(), {}, "it has the spans 'x'"),
        ([7, 9], ls.Continuation([11]), {"position": 0}, "adds its tokens to the end of the prompt"),
        ([7, 9], ls.Continuation(), {"position": [0, 1]}, "position 1 is the last of the text"),
        ([7, 9], ls.Continuation([]), {}, "the continuation is empty"),
        (text(), ls.Semantic("next"), {"position": "answer"}, "a span of the text"),
    ],
)
def test_what_cannot_be_explained_is_refused(prompt, scope, options, told):
    with pytest.raises(ValueError, match=told):
        ls.score(tiny.host("llama", tiny.BACKENDS[-1]), prompt, scope, **options)


@pytest.mark.wrong_types
def test_what_is_no_continuation_is_refused():
    with pytest.raises(ValueError, match="kind is 'logprob' or 'logit', got 'probability'"):
        ls.Continuation(kind="probability")
    with pytest.raises(TypeError, match=r"text or token ids; an id is an integer, got 1\.5"):
        ls.Continuation([1.5])


@dataclass(frozen=True)
class Halves:
    """A user's own scope that spans positions: some rows, with weights, and no number of its own."""

    def joint(self, states):
        y = torch.stack([state.y for state in states])
        return Cotangents(torch.stack([y, y.flip(0)]), torch.tensor([1.0, 0.25]))

    def __call__(self, state):
        return state.y


def test_a_scope_of_one_s_own_may_span_positions():
    model, t = tiny.host("llama", tiny.BACKENDS[-1]), text()
    found = ls.score(model, t, Halves(), position=[2, 4], sites="embed")
    run = ls.jacobian(model, t, position=[2, 4])
    y = run.run.y[0].detach()
    g = run.vjp(torch.stack([y, y.flip(0)]))
    expected = (g[0].square().sum(-1) + 0.25 * g[1].square().sum(-1)).sqrt()
    assert_close(found.values[0], expected, 1e-10)
    assert found.check(model, scope=Halves())["max_error"] < 1e-3
    with pytest.raises(ValueError, match="has no value"):
        quantities(Halves(), run.run.ends(0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_check_moves_all_positions(backend, kind):
    model, t = tiny.host("gpt2", backend), text()
    scores = ls.score(model, t, ls.Continuation(kind=kind))
    report = scores.check(model)
    assert report["max_error"] < 1e-6
    assert report["stored_error"] < 1e-9
    wrong = replace(scores, values=scores.values * 2)
    assert wrong.check(model)["stored_error"] > 0.1
    off = replace(scores, meta=scores.meta | {"positions": [p - 1 for p in scores.meta["positions"]]})
    with pytest.raises(ValueError, match="that predicts"):  # what it says of its positions is true of others
        off.check(model)
    asked = ls.score(model, [7, 9], ls.Continuation([11, 13], kind=kind))
    assert asked.check(model)["stored_error"] < 1e-9  # nothing is joined a second time


@pytest.mark.parametrize("sources", [None, "each"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "neox", "gemma2"])
def test_flow_of_an_answer_balances(architecture, sources):
    model, t = tiny.host(architecture, tiny.BACKENDS[-1]), text()
    flow = ls.flow(model, t, ls.Continuation(), sources=sources, edges=True)
    scores = ls.score(model, t, ls.Continuation(), sites="embed").values[0]
    assert flow.residual < (1e-10 if architecture == "gpt2" else 1e-5)
    assert_close(flow.total, scores if sources else scores.sum()[None], 1e-6)
    assert_close(flow.stream.sum(-1), flow.total[:, None].expand(flow.stream.shape[:2]), 1e-6)
    assert flow.meta["positions"] == list(t.predicting("completion"))
    # At the last depth the influence sits at the positions explained, and nowhere else.
    last = flow.stream[:, -1].abs().sum(0)
    assert set(last.nonzero().flatten().tolist()) == set(t.predicting("completion"))
    assert flow.check(model)["max_error"] < 1e-5
    for view in ("heads", "stream", "edges"):
        assert flow.show(view)._repr_html_()
    assert f"({t.predicting('completion')[-1]})" in flow.show("edges")._repr_html_()


def test_all_paths_of_an_answer_make_its_total():
    model, t = tiny.host("gpt2", tiny.BACKENDS[-1]), text()
    flow = ls.flow(model, t, ls.Continuation())
    every = (tiny.HEADS + 1) ** tiny.LAYERS
    paths = flow.paths(every, budget=every)
    assert len(paths) == every + 1
    assert_close(float(paths.influence[:-1].sum()), float(flow.total.sum()), 1e-9)
    assert_close(float(flow.orders().influence.sum()), float(flow.total.sum()), 1e-9)


def test_flow_explains_one_position_or_all_as_one():
    model, t = tiny.host("gpt2", tiny.BACKENDS[-1]), text()
    with pytest.raises(ValueError, match=r"flow explains one position, got \[4, 5, 6, 7\]; .* ls.Continuation\(\)"):
        ls.flow(model, t, ls.Semantic("next"), position="completion")
    one = ls.Text(t.ids, t.tokens, {"word": (5, 6)})
    flow = ls.flow(model, one, ls.Semantic("next"), position="word")
    assert_close(flow.total, ls.flow(model, one, ls.Semantic("next"), position=4).total, 1e-12)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_jacobian_to_several_positions(backend):
    model, t = tiny.host("gpt2", backend), text()
    several = ls.jacobian(model, t, position="completion")
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(3, M, tiny.D_MODEL, generator=generator, dtype=torch.float64)
    u = torch.randn(2, N + M, tiny.D_MODEL, generator=generator, dtype=torch.float64)
    alone = [ls.jacobian(model, t, position=p) for p in t.predicting("completion")]
    assert_close(several.vjp(v), sum(j.vjp(v[:, n]) for n, j in enumerate(alone)), 1e-10)
    assert_close(several.jvp(u), torch.stack([j.jvp(u) for j in alone], 1), 1e-10)
    inner = ls.jacobian(model, t, target="blocks.0.hook_resid_post", position=[3, 5])
    assert inner.jvp(u).shape == (2, 2, tiny.D_MODEL)
    with pytest.raises(ValueError, match=r"vjp takes cotangents \[k, position=4, d_out=16\], got \(3, 3, 16\)"):
        several.vjp(v[:, :3])
    with pytest.raises(ValueError, match=r"what vjp takes has axes \[k, position, d_out\], got shape \(3, 16\)"):
        several.vjp(v[:, 0])
    for refused in (several.dense, several.svd):
        with pytest.raises(ValueError, match="reads the target at one position, this Jacobian at 4"):
            refused()


def pair() -> tuple[ls.Text, ls.Text]:
    clean = text()
    ids = [*clean.ids[:2], clean.ids[2] + 1, *clean.ids[3:]]
    return clean, ls.Text(ids, clean.tokens, clean.spans)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_patching_an_answer(backend, kind):
    model, (clean, corrupted) = tiny.host("gpt2", backend), pair()
    scope = ls.Continuation(kind=kind)
    measured = ls.patching.measure(model, clean, corrupted, scope, sites="resid_pre")
    with torch.no_grad():
        ends = [float(objective(model(torch.tensor([t.ids]))[0], t, kind)) for t in (corrupted, clean)]
    assert_close(measured.meta["metric"]["corrupted"], ends[0], 1e-9)
    assert_close(measured.meta["metric"]["clean"], ends[1], 1e-9)
    # Patching the changed token's input is the clean run.
    assert_close(float(measured.values[0, 2]), ends[1] - ends[0], 1e-9)
    names = ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre"]
    leaves, logits = watched(model, names, corrupted.ids)
    gradients = torch.autograd.grad(objective(logits, corrupted, kind), leaves)
    clean_leaves, _ = watched(model, names, clean.ids)
    expected = torch.stack(
        [(g * (c - x).detach())[0].sum(-1) for g, c, x in zip(gradients, clean_leaves, leaves, strict=True)]
    )
    predicted = ls.patching.predict(model, clean, corrupted, scope, sites="resid_pre", method="gradient")
    assert_close(predicted.values, expected, 1e-9)
    path = ls.patching.predict(model, clean, corrupted, scope, sites="embed", steps=32)
    assert abs(path.meta["gap"]) < 0.02 * abs(ends[1] - ends[0])
    with ls.patching.metric(model, corrupted, scope) as value, torch.no_grad():
        assert_close(float(value(model(torch.tensor([clean.ids])))), ends[1], 1e-9)


def test_patching_wants_the_same_answer_on_both_sides():
    model, (clean, corrupted) = tiny.host("gpt2", tiny.BACKENDS[-1]), pair()
    other = ls.Text([*corrupted.ids[:-1], 9], corrupted.tokens, corrupted.spans)
    shifted = replace(corrupted, spans={"completion": (4, 8)})
    for wrong in (other, shifted):
        with pytest.raises(ValueError, match="clean and corrupted have to go on with the same tokens"):
            ls.patching.predict(model, clean, wrong, ls.Continuation())
    answer = clean.ids[N:]
    both = [list(t.ids[:N]) for t in (clean, corrupted)]
    joined = ls.patching.predict(model, *both, ls.Continuation(answer), sites="embed")
    assert torch.equal(
        joined.values, ls.patching.predict(model, clean, corrupted, ls.Continuation(), sites="embed").values
    )


def test_what_it_measures_is_what_it_is_the_gradient_of():
    model, t = tiny.host("gemma2", tiny.BACKENDS[-1]), text()
    run = trace(Host(model), torch.tensor([t.ids]), [], list(t.predicting("completion")))
    from lens_scopes.host.readout import raw_logits

    states = run.ends(0)
    for kind in KINDS:
        scope = ls.Continuation(kind=kind)
        (made,) = cotangents_at(scope, states)

        def of_y(y, scope=scope):
            moved = [
                replace(s, y=row, logits=run.readout.transform(raw_logits(Host(model), row)))
                for s, row in zip(states, y, strict=True)
            ]
            return quantities(scope, states)(moved)

        y = torch.stack([s.y for s in states]).requires_grad_()
        (gradient,) = torch.autograd.grad(of_y(y), y)
        assert_close(made.vectors[0], gradient, 1e-6)
