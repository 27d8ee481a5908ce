"""Models and settings out of the ordinary: right, or refused by a text that says what to do."""

import ast
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import lens_scopes as ls
import tiny
from lens_scopes import evaluate, patching

pytestmark = pytest.mark.host

IDS = tiny.tokens()
OTHER = [*IDS[:2], 9, *IDS[3:]]
BRIDGE = pytest.mark.skipif("bridge" not in tiny.BACKENDS, reason="no bridge in this TransformerLens")
both = pytest.mark.parametrize("backend", tiny.BACKENDS)


def bridge(config):
    """A raw bridge of a tiny random model of one's own configuration."""
    path = tempfile.mkdtemp(prefix="apart-", dir=tiny._ROOT.name)
    tiny.random_model(config).save_pretrained(path)
    tiny.byte_level_tokenizer().save_pretrained(path)
    try:
        return ls.load(path, backend="bridge")
    except (ValueError, KeyError, RuntimeError, NotImplementedError, AttributeError) as failure:
        pytest.skip(f"this TransformerLens cannot load it: {failure}")


def lfm2():
    """Its first block mixes positions by a convolution, its second by attention."""
    kind = getattr(transformers, "Lfm2Config", None)
    if kind is None:
        pytest.skip("this transformers has no LFM2")
    sizes = {k: v for k, v in tiny._LLAMA.items() if k != "head_dim"}
    return bridge(kind(**sizes, full_attn_idxs=[1], tie_word_embeddings=False))


def olmo():
    """Its norms have no weight."""
    sizes = {k: v for k, v in tiny._LLAMA.items() if k != "head_dim"}
    return bridge(transformers.OlmoConfig(**sizes, tie_word_embeddings=False))


@BRIDGE
def test_the_middle_of_a_block_without_attention_is_refused():
    """There the hook has what the MLP reads and not what goes past it: its gradient would be half of the derivative."""
    model = lfm2()
    for sites in ("resid_mid", ["blocks.0.hook_resid_mid"]):
        with pytest.raises(ValueError, match=r"'blocks.0.hook_resid_mid' .* follows no attention.*choose resid_pre"):
            ls.score(model, IDS, ls.Semantic(7), sites=sites)
    with pytest.raises(ValueError, match="follows no attention"):
        ls.jacobian(model, IDS, "blocks.0.hook_resid_mid")
    for sites in ("resid_pre", "resid_post", "mlp_out", ["blocks.1.hook_resid_mid"]):
        assert ls.score(model, IDS, ls.Semantic(7), sites=sites).check(model)["max_error"] < 1e-2


@BRIDGE
def test_attention_that_is_not_there_is_not_frozen():
    model = lfm2()
    with pytest.raises(ValueError, match=r"no 'blocks\.0\.attn\.hook_pattern'.*freeze norm or mlp"):
        ls.score(model, IDS, ls.Semantic(7), freeze="attention")
    plain = ls.score(model, IDS, ls.Semantic(7))
    assert not torch.equal(plain.values, ls.score(model, IDS, ls.Semantic(7), freeze="mlp").values)


@BRIDGE
def test_norms_without_a_weight_are_frozen_or_refused():
    model = olmo()
    plain = ls.score(model, IDS, ls.Semantic(7))
    try:
        found = ls.score(model, IDS, ls.Semantic(7), freeze="norm").values
    except ValueError as refusal:
        assert re.search("cannot freeze 'norm'.*leave it out", str(refusal))  # noqa: PT017 - either way is right
    else:
        assert not torch.equal(found, plain.values)
    assert torch.equal(ls.score(model, IDS, ls.Semantic(7)).values, plain.values)


@pytest.mark.wrong_types  # torch.compile cannot trace functions whose types are checked
@both
def test_a_compiled_model_is_scored_or_told_why_not(backend):
    expected = ls.score(tiny.host("gpt2", backend, torch.float32), IDS, ls.Semantic(7)).values
    outside, in_place = (tiny.fresh_host("gpt2", backend, torch.float32) for _ in range(2))
    in_place.compile(backend="eager")
    for compiled in (torch.compile(outside, backend="eager"), in_place):
        try:
            found = ls.score(compiled, IDS, ls.Semantic(7)).values
        except RuntimeError as refusal:
            assert "it is compiled: pass the model that was compiled" in str(refusal)  # noqa: PT017
            assert backend == "hooked"
        else:
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@both
def test_weights_made_under_inference_mode_are_refused_and_left_as_they_are(backend):
    """One is enough, wherever it stands: nothing was switched off for the others, and nothing stays switched off."""
    model = tiny.fresh_host("gpt2", backend, torch.float32)
    owner = model.blocks[1] if backend == "hooked" else model.blocks[1].original_component
    name, weight = next(iter(owner.named_parameters()))
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    with torch.inference_mode():
        made = torch.nn.Parameter(weight.detach().clone())
    setattr(owner, last, made)
    flags = [p.requires_grad for p in model.parameters()]
    for call in (
        lambda: ls.score(model, IDS, ls.Semantic(7)),
        lambda: ls.flow(model, IDS, ls.Semantic(7)),
        lambda: patching.predict(model, IDS, OTHER, ls.Semantic(7)),
    ):
        with pytest.raises(RuntimeError, match=r"made under torch\.inference_mode\(\).*load the model outside"):
            call()
        assert [p.requires_grad for p in model.parameters()] == flags


def everything(model) -> dict[str, torch.Tensor]:
    """Numbers from every corner of the package."""
    semantic, half = ls.Semantic(7), len(tiny.TEXT[0]) // 2
    scores, flow = ls.score(model, IDS, semantic), ls.flow(model, IDS, semantic, edges=True, sources="each")
    fisher, jacobian = ls.score(model, tiny.TEXT[0][:half], ls.Fisher(4)), ls.jacobian(model, IDS)
    predicted = patching.predict(model, IDS, OTHER, semantic)
    measured = patching.measure(model, IDS, OTHER, semantic)
    found = {
        "scores": scores.values,
        "fisher": torch.stack([fisher.values, fisher.stderr, *fisher.interval()]),
        "words": fisher.aggregate().values,
        "rank": ls.score(model, IDS, ls.Fisher(rank=2)).values,
        "temperature": ls.score(model, IDS, ls.Temperature()).values,
        "direction": ls.score(model, IDS, ls.Direction([1.0] * tiny.D_MODEL)).values,
        "targets": ls.score(model, IDS, semantic, position="all", sites="z").values,
        "along": ls.score(model, IDS, semantic, along=np.ones((3, 7, tiny.D_MODEL))).values,
        "frozen": ls.score(model, IDS, semantic, freeze="norm").values,
        "check": torch.tensor(scores.check(model)["stored_error"], device="cpu"),
        "flow": flow.heads,
        "edges": flow.edges,
        "paths": torch.tensor(flow.paths(3).influence, device="cpu"),
        "dense": jacobian.dense(),
        "svd": jacobian.svd(2).S,
        "sigma": torch.tensor(jacobian.decode(2).sigma, device="cpu"),
        "path": patching.predict(model, IDS, OTHER, semantic, steps=3).values,
        "measured": measured.values,
        "patches": torch.tensor(list(patching.compare(predicted, measured).patches_to().values()), device="cpu"),
    }
    for replace in ("zero", "mean", "delete", "resample"):
        methods = list(evaluate.METHODS)
        table = evaluate.compare_methods(model, [IDS, OTHER] * 5, methods, replace=replace, leave_one_out=True)
        found[replace] = table.values
        found[f"{replace} intervals"] = torch.cat([*table.difference_intervals, table.p])
    return found | {"alone": evaluate.leave_one_out(model, [IDS], protocol="paper")[0].values}


@pytest.mark.filterwarnings("ignore:.*(have different signs|points of the path miss)")
@both
def test_torch_s_default_device_does_not_matter(backend):
    """On "meta" whatever is made there has no numbers at all."""
    model = tiny.host("llama", backend, torch.float32)
    expected = everything(model)
    torch.set_default_device("meta")
    try:
        found = everything(model)
    finally:
        torch.set_default_device(None)
    for name, numbers in expected.items():
        assert found[name].device.type == "cpu", name
        torch.testing.assert_close(found[name], numbers, rtol=1e-6, atol=1e-7, equal_nan=True, msg=name)


#: What makes a tensor on torch's default device unless it is told where.
MAKERS = {
    "tensor", "as_tensor", "zeros", "ones", "full", "empty", "eye", "arange", "linspace", "logspace", "rand", "randn",
    "randint", "randperm", "normal", "tril_indices", "triu_indices",
}  # fmt: skip


def test_every_tensor_that_is_made_says_where():
    """But in the demo, which trains its own model; what has a tensor to follow asks it: ``new_zeros``."""
    found = []
    for path in (Path(ls.__file__).parent).rglob("*.py"):
        if "demo" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            made = isinstance(node, ast.Call) and ast.unparse(node.func).removeprefix("torch.") in MAKERS
            if made and ast.unparse(node.func).startswith("torch.") and "device" not in {k.arg for k in node.keywords}:
                found.append(f"{path.name}:{node.lineno}: {ast.unparse(node)[:60]}")
    assert found == []
