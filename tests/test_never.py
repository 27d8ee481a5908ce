"""What must never happen: every row of the design's last table, with the text that the user gets, and what is left behind."""

import copy
import re
from contextlib import suppress

import pytest
import torch

import lens_scopes as ls
import tiny
from report import assert_close

pytestmark = pytest.mark.host

SMALL = [pair for pair in tiny.HOSTS if pair[0] in ("gpt2", "llama")]


@pytest.fixture(params=SMALL, ids=tiny.host_id)
def pair(request):
    return request.param


@pytest.fixture
def model(pair):
    return tiny.host(*pair, torch.float32)


# Targets, positions, prompts


def test_a_target_that_is_several_tokens_lists_its_pieces(model):
    ids = model.tokenizer.encode("zebra", add_special_tokens=False)
    assert len(ids) > 1
    with pytest.raises(ValueError, match="'zebra' is not one token") as refusal:
        ls.score(model, tiny.tokens(), ls.Semantic("zebra"))
    for i, piece in zip(ids, model.tokenizer.convert_ids_to_tokens(ids), strict=True):
        assert f"({piece!r}, {i})" in str(refusal.value)


@pytest.mark.parametrize("position", [7, -8, 100])
def test_positions_outside_the_prompt(model, position):
    for asked in (position, [0, position]):
        with pytest.raises(
            IndexError, match=f"position {position} is outside the prompt, which has 7 tokens: write -7 to 6"
        ):
            ls.score(model, tiny.tokens(7), ls.Semantic(), position=asked)


@pytest.mark.wrong_types
@pytest.mark.parametrize("position", ["last", True, [], [1.9], 1.9, None, [True], [2, -5]])
def test_positions_that_are_none(model, position):
    with pytest.raises((ValueError, TypeError), match="position"):
        ls.score(model, tiny.tokens(), ls.Semantic(), position=position)


@pytest.mark.parametrize("wrong", [-1, tiny.VOCAB])
def test_ids_outside_the_vocabulary(model, wrong):
    with pytest.raises(ValueError, match=f"token id {wrong} is outside the vocabulary 0 to {tiny.VOCAB - 1}"):
        ls.score(model, [3, wrong, 4], ls.Semantic())


@pytest.mark.parametrize("empty", ["", [], torch.tensor([], dtype=torch.long), torch.zeros(1, 0, dtype=torch.long)])
def test_empty_prompts(model, empty):
    with pytest.raises(ValueError, match="empty"):
        ls.score(model, empty, ls.Semantic())


def test_prompts_longer_than_the_context_are_never_cut(model):
    long = [5] * (tiny.CONTEXT + 1)
    for prompt, n in ((long, tiny.CONTEXT + 1), ("cat " * 100, None)):
        with pytest.raises(ValueError, match=rf"has {n or '[0-9]+'} tokens, .* has a context of {tiny.CONTEXT}"):
            ls.score(model, prompt, ls.Semantic())
    assert ls.score(model, long[1:], ls.Semantic()).values.shape[-1] == tiny.CONTEXT


def test_text_without_a_tokenizer(pair):
    model = tiny.fresh_host(*pair, torch.float32)
    model.tokenizer = None
    for prompt, scope in (
        ("cat", ls.Semantic()),
        (tiny.tokens(), ls.Semantic("cat")),
        ([{"role": "user", "content": "a"}], ls.Semantic()),
    ):
        with pytest.raises(ValueError, match="needs a tokenizer"):
            ls.score(model, prompt, scope)
    scores = ls.score(model, [5, 6, 7], ls.Semantic())
    assert scores.tokens == ("#5", "#6", "#7")


@pytest.mark.wrong_types
@pytest.mark.parametrize("prompt", [3, None, [1.5, 2.5], ["a", "b"], {"role": "user"}])
def test_prompts_that_are_none(model, prompt):
    with pytest.raises(TypeError, match="a prompt is a string"):
        ls.score(model, prompt, ls.Semantic())


@pytest.mark.parametrize(
    "prompt", [torch.tensor([[1, 2], [3, 4]]), torch.tensor([0.5, 1.0]), torch.zeros(1, 1, 2).long()]
)
def test_tensors_that_are_no_prompt(model, prompt):
    with pytest.raises(ValueError, match=r"ids \[pos\] or \[1, pos\]"):
        ls.score(model, prompt, ls.Semantic())


@pytest.mark.parametrize("thing", [None, torch.nn.Linear(2, 2), "gpt2"])
def test_things_that_are_no_model(thing):
    with pytest.raises(TypeError, match="expected a TransformerLens model"):
        ls.score(thing, [1, 2], ls.Semantic())


def test_a_bare_hugging_face_model_is_told_the_way():
    with pytest.raises(TypeError, match=r"lens_scopes\.load"):
        ls.score(tiny.hugging_face("gpt2"), [1, 2], ls.Semantic())


# Sites


def test_sites_that_the_model_lacks(model):
    with pytest.raises(ValueError, match=r"no site 'blocks\.2\.hook_resid_post'.*hook_embed"):
        ls.score(model, tiny.tokens(), ls.Semantic(), sites=["blocks.2.hook_resid_post"])
    with pytest.raises(ValueError, match="no site 'nonsense'"):
        ls.score(model, tiny.tokens(), ls.Semantic(), sites="nonsense")


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_parallel_blocks_have_no_middle(backend):
    with pytest.raises(ValueError, match="parallel") as refusal:
        ls.score(tiny.host("neox", backend), tiny.tokens(), ls.Semantic(), sites="resid_mid")
    for kind in ("resid_pre", "resid_post", "attn_out", "mlp_out", "attn.hook_z", "attn.hook_q"):
        assert f"blocks.0.{'' if '.' in kind else 'hook_'}{kind}" in str(refusal.value)


@pytest.mark.parametrize(
    ("sites", "error"),
    [
        ([], ValueError),
        (["embed", "hook_embed"], ValueError),
        (["z", "embed"], ValueError),
        (3, TypeError),
        ([1], TypeError),
    ],
)
def test_sites_that_make_no_result(model, sites, error):
    with pytest.raises(error, match="site"):
        ls.score(model, tiny.tokens(), ls.Semantic(), sites=sites)


# Modes


@pytest.mark.parametrize("pair", [p for p in tiny.HOSTS if p[0] == "gpt2" and p[1] == "bridge"], ids=tiny.host_id)
def test_dropout_in_train_mode(pair):
    model = tiny.fresh_host(*pair).train()
    with pytest.raises(RuntimeError, match=r"model\.eval\(\)"):
        ls.score(model, tiny.tokens(), ls.Semantic())
    assert model.training
    assert_close(
        ls.score(model.eval(), tiny.tokens(), ls.Semantic(7)).values,
        ls.score(tiny.host(*pair), tiny.tokens(), ls.Semantic(7)).values,
        1e-12,
    )


def test_train_mode_without_dropout_works_and_stays(pair):
    if pair == ("gpt2", "bridge"):
        pytest.skip("GPT-2's own modules have dropout")
    model = tiny.fresh_host(*pair, torch.float32).train()
    found = ls.score(model, tiny.tokens(), ls.Semantic(7)).values
    assert model.training
    assert_close(found, ls.score(tiny.host(*pair, torch.float32), tiny.tokens(), ls.Semantic(7)).values, 1e-6)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    "scope",
    [ls.Semantic(), ls.Fisher(4), ls.Fisher(rank=2), ls.Temperature(), ls.Metric(lambda z: z[0, 0, 3])],
    ids=repr,
)
def test_gradients_switched_off_around_the_call(model, scope, mode):
    expected = ls.score(model, tiny.tokens(), scope)
    with mode():
        for prompt in (tiny.tokens(), torch.tensor(tiny.tokens())):
            assert torch.equal(ls.score(model, prompt, scope).values, expected.values)
        assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    assert not expected.values.requires_grad


def test_a_model_made_under_inference_mode(pair):
    """Its weights are inference tensors: it works, or the error says how."""
    with torch.inference_mode():
        model = tiny.fresh_host(*pair, torch.float32)
    try:
        found = ls.score(model, tiny.tokens(), ls.Semantic(7)).values
    except (RuntimeError, ValueError) as refusal:
        assert "inference" in str(refusal)  # noqa: PT017 - either of two ways is right
    else:
        assert_close(found, ls.score(tiny.host(*pair, torch.float32), tiny.tokens(), ls.Semantic(7)).values, 1e-6)


# Numbers that are none


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_weight_that_is_not_finite_is_found(pair, value):
    """In the second block's MLP: everything before its output is fine, whichever sites were asked for."""
    model = tiny.fresh_host(*pair, torch.float32)
    with torch.no_grad():
        matrix = model.blocks[1].mlp.W_out if pair[1] == "hooked" else model.blocks[1].mlp.out.weight
        matrix[0, 0] = value
    for scope in (
        ls.Semantic(),
        ls.Fisher(),
        ls.Fisher(rank=2),
        ls.Temperature(),
        ls.Direction(torch.ones(tiny.D_MODEL)),
    ):
        for sites in (None, "embed", "q"):
            with pytest.raises(ValueError, match=r"NaN or infinity.*blocks\.1\.hook_mlp_out.*float32"):
                ls.score(model, tiny.tokens(), scope, sites=sites)


def test_a_readout_that_is_not_finite_is_found(pair):
    model = tiny.fresh_host(*pair, torch.float32)
    with torch.no_grad():
        (model.ln_final.w if pair[1] == "hooked" else model.ln_final.weight)[0] = float("inf")
    with pytest.raises(ValueError, match=r"NaN or infinity.*final norm"):
        ls.score(model, tiny.tokens(), ls.Semantic())


def test_a_gradient_that_overflows_is_found(model):
    """Activations are fine here: the cotangent is so long that the pulled-back one is not finite."""
    with pytest.raises(ValueError, match=r"NaN or infinity: the gradient at .*float32"):
        ls.score(model, tiny.tokens(), ls.Direction(torch.full((tiny.D_MODEL,), 3e38)))


def test_float16_that_overflows_names_the_place(pair):
    model = tiny.fresh_host(*pair, torch.float16)
    with torch.no_grad():
        matrix = model.blocks[0].mlp.W_out if pair[1] == "hooked" else model.blocks[0].mlp.out.weight
        matrix.fill_(6e4)
    with pytest.raises(ValueError, match=r"blocks\.0\.hook_mlp_out.*float16"):
        ls.score(model, tiny.tokens(), ls.Semantic())


# What is left behind


def hooks_of(model) -> dict[str, list]:
    """Every hook in the model, the host's own kind and torch's."""
    found = {}
    for name, point in model.hook_dict.items():
        found[name] = [*map(id, getattr(point, "fwd_hooks", ())), *map(id, getattr(point, "bwd_hooks", ()))]
    for name, module in model.named_modules():
        hooks = (
            *module._forward_hooks,
            *module._forward_pre_hooks,
            *module._backward_hooks,
            *module._backward_pre_hooks,
        )
        found["torch " + name] = list(hooks)
    return found


def flags_of(model) -> tuple:
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    return trainable, gradients, modes, torch.is_grad_enabled(), torch.is_inference_mode_enabled()


def warm_host(pair):
    """A model that has run once: a Bridge then puts permanent hooks of its own into the Hugging Face modules."""
    model = tiny.fresh_host(*pair, torch.float32)
    model(torch.tensor([tiny.tokens()]))
    return model


class Stop(Exception):
    pass


def raising(error):
    def scope(state):
        raise error

    return scope


@pytest.mark.parametrize("where", ["nowhere", "scope", "hook", "prompt", "target", "site"])
@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
def test_the_model_is_left_as_it_came(pair, where, error):
    """Hooks, requires_grad flags (mixed), gradients, train and eval modes (mixed), generator, grad mode, weights."""
    model, ids = warm_host(pair), tiny.tokens()
    calls = []
    model.add_hook("blocks.0.hook_resid_post", lambda x, hook: calls.append("mine"))
    if where == "hook":

        def fail(x, hook):
            raise error

        model.add_hook("blocks.1.hook_attn_out", fail)
    for n, (name, parameter) in enumerate(model.named_parameters()):
        parameter.requires_grad_(n % 3 > 0)
        if n % 5 == 1:
            parameter.grad = torch.full_like(parameter, n)
    for n, (name, module) in enumerate(model.named_modules()):
        if n % 4 == 1 and not list(module.children()):
            module.training = getattr(module, "p", 0.0) == 0.0
    hooks, flags, generator = hooks_of(model), flags_of(model), torch.get_rng_state()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    arguments = {
        "nowhere": (ids, ls.Fisher(4), {}),
        "scope": (ids, raising(error), {}),
        "hook": (ids, ls.Semantic(), {}),
        "prompt": ([1, 10**6], ls.Semantic(), {}),
        "target": (ids, ls.Semantic(10**6), {}),
        "site": (ids, ls.Semantic(), {"sites": "nowhere"}),
    }
    prompt, scope, options = arguments[where]
    if where == "nowhere":
        ls.score(model, prompt, scope, **options)
    else:
        expected = error if where in ("scope", "hook") else ValueError
        with pytest.raises(expected):
            ls.score(model, prompt, scope, **options)
    assert hooks_of(model) == hooks
    after = flags_of(model)
    assert after[0] == flags[0]
    assert {k: None if g is None else g.tolist() for k, g in after[1].items()} == {
        k: None if g is None else g.tolist() for k, g in flags[1].items()
    }
    assert after[2:] == flags[2:]
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    calls.clear()
    if where != "hook":
        model(torch.tensor([ids]))
        assert calls == ["mine"], "the user's own hook is gone"


def test_scores_inside_a_users_context_of_hooks(pair):
    """They are part of the model that is scored, and still there when the score is done."""
    model, ids, calls = warm_host(pair), tiny.tokens(), []
    before, plain = hooks_of(model), ls.score(model, ids, ls.Semantic(7), sites="embed").values

    def halved(activation, hook):
        calls.append(hook.name)
        return activation / 2

    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", halved)]):
        entered = hooks_of(model)
        changed = ls.score(model, ids, ls.Semantic(7), sites="embed").values
        assert calls
        assert hooks_of(model) == entered
    assert not torch.allclose(changed, plain, rtol=1e-2)
    assert hooks_of(model) == before


def test_interrupted_in_the_backward_pass(pair, monkeypatch):
    model, ids = warm_host(pair), tiny.tokens()
    hooks, flags = hooks_of(model), flags_of(model)

    class Interrupting(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise KeyboardInterrupt

    model.add_hook("blocks.1.hook_resid_pre", lambda x, hook: Interrupting.apply(x))
    with pytest.raises(KeyboardInterrupt):
        ls.score(model, ids, ls.Semantic())
    model.reset_hooks()
    assert hooks_of(model) == hooks
    assert flags_of(model)[0] == flags[0]


# Files


@pytest.fixture
def scores(model):
    return ls.score(model, tiny.tokens(), ls.Fisher(4))


def test_a_file_cut_short_anywhere_is_an_error(scores, tmp_path):
    path = scores.save(tmp_path / "scores.safetensors")
    payload = path.read_bytes()
    for kept in (0, 4, 8, 60, len(payload) // 2, len(payload) - 1):
        path.write_bytes(payload[:kept])
        with pytest.raises(ValueError, match="not a complete lens_scopes result"):
            ls.Scores.load(path)


def test_files_of_another_kind_or_schema(scores, tmp_path):
    from safetensors.torch import save_file

    path = scores.save(tmp_path / "scores.safetensors")
    payload = path.read_bytes()
    for old, new, text in (
        (rb"\"schema\": 2", rb"\"schema\": 9", "schema 9"),
        (rb"\"kind\": \"Scores\"", rb"\"kind\": \"Sc0res\"", "not a Scores"),
    ):
        assert old in payload
        path.write_bytes(payload.replace(old, new))
        with pytest.raises(ValueError, match=text):
            ls.Scores.load(path)
    save_file({"values": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="schema None"):
        ls.Scores.load(path)
    torch.save({"values": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="not a complete"):
        ls.Scores.load(path)
    with pytest.raises(FileNotFoundError, match="no file"):
        ls.Scores.load(tmp_path / "nothing")


def test_nothing_here_is_ever_unpickled():
    """A results file is data. No pickle in the package's source, by any of its names."""
    from pathlib import Path

    import lens_scopes

    names = re.compile(
        r"\b(pickle|cPickle|dill|cloudpickle|joblib|marshal|shelve|torch\.load|read_pickle|allow_pickle)\b"
    )
    sources = list(Path(lens_scopes.__file__).parent.rglob("*.py"))
    assert len(sources) > 10
    for source in sources:
        code = "\n".join(line for line in source.read_text(encoding="utf-8").splitlines() if "never" not in line)
        found = [match for match in names.findall(code) if "weights_only=True" not in code]
        assert not found, f"{source.name}: {found}"


@pytest.mark.parametrize("pair", [*tiny.HOSTS, *tiny.OTHER_HOSTS], ids=tiny.host_id)
def test_no_graph_stays_in_the_model(pair):
    """A Bridge notes patterns on its modules: a model that holds a graph cannot be copied, and holds its memory."""
    model = tiny.fresh_host(*pair, torch.float32)
    ls.score(model, tiny.tokens(), ls.Semantic(7))
    with suppress(RuntimeError):  # Granite on TransformerLens 3.9
        ls.flow(model, tiny.tokens(), ls.Semantic(7))
    assert isinstance(copy.deepcopy(model), type(model))
    kept = [(name, key) for name, module in model.named_modules() for key, x in vars(module).items() if in_graph(x)]
    assert not kept


def in_graph(value):
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
    return any(isinstance(one, torch.Tensor) and one.grad_fn is not None for one in values)
