"""ls.load: a raw model in eval mode, from a local directory whatever its name, on either host class."""

import json
import shutil

import pytest
import torch

import lens_scopes as ls
import tiny
from report import assert_close

pytestmark = pytest.mark.host

ROUTED = ("llama", "gemma", "bert", "my-llama-7b-hf", "gemma-2-2b", "t5", "gpt2")


def copy(architecture, path, *, without=(), edit=None):
    shutil.copytree(tiny.directory(architecture), path)
    for name in without:
        (path / name).unlink()
    if edit is not None:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        edit(config)
        (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def logits(model):
    with torch.no_grad():
        return model(torch.tensor([tiny.tokens()]))[0]


def truth(architecture):
    with torch.no_grad():
        return tiny.hugging_face(architecture, torch.float32)(torch.tensor([tiny.tokens()])).logits[0]


@pytest.mark.parametrize("name", ROUTED)
@pytest.mark.parametrize("architecture", ["gpt2", "qwen3", "neox"])
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_what_the_path_contains_means_nothing(tmp_path, architecture, backend, name):
    if "bert" in name and architecture != "gpt2":
        pytest.skip("one architecture is enough")
    model = ls.load(copy(architecture, tmp_path / name / "weights-bert" / name), backend=backend)
    assert_close(logits(model), truth(architecture), 1e-5)


@pytest.mark.parametrize("pair", [p for p in tiny.HOSTS if p != ("gemma2", "hooked")], ids=tiny.host_id)
def test_the_model_is_the_one_in_the_directory_raw_and_in_eval_mode(pair):
    model = ls.load(str(tiny.directory(pair[0])), backend=pair[1])
    assert_close(logits(model), truth(pair[0]), 1e-5)
    assert not model.training
    assert not any(module.training for module in model.modules())
    scores = ls.score(model, tiny.tokens(), ls.Temperature())  # refuses folded weights
    assert not scores.meta["folded"]
    assert not scores.meta["centred"]
    assert scores.meta["model"] == f"tiny-{pair[0]}"
    assert type(model).__name__ == {"hooked": "HookedTransformer", "bridge": "TransformerBridge"}[pair[1]]
    assert scores.meta["host"] == type(model).__name__
    assert model.tokenizer.encode(" cat", add_special_tokens=False)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_gpt2_without_n_ctx(tmp_path, backend):
    path = copy("gpt2", tmp_path / "model", edit=lambda config: config.pop("n_ctx", None))
    model = ls.load(path, backend=backend)
    assert model.cfg.n_ctx == tiny.CONTEXT
    assert_close(logits(model), truth("gpt2"), 1e-5)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_without_tokenizer_files_there_is_no_tokenizer(tmp_path, backend):
    path = copy("gpt2", tmp_path / "model")
    for file in path.iterdir():
        if file.name not in ("config.json", "generation_config.json", "model.safetensors"):
            file.unlink()
    model = ls.load(path, backend=backend)
    assert model.tokenizer is None
    assert ls.score(model, tiny.tokens(3), ls.Semantic()).tokens == tuple(f"#{i}" for i in tiny.tokens(3))


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_tokenizer_class_of_another_release_is_no_obstacle(tmp_path, backend):
    """transformers 5 writes class names that transformers 4 has not; the tokenizer itself is in tokenizer.json."""
    path = copy("llama", tmp_path / "model")
    file = path / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {"tokenizer_class": "TokenizerOfTheFuture"}
    file.write_text(json.dumps(config), encoding="utf-8")
    found = ls.score(ls.load(path, backend=backend), "The cat sat", ls.Semantic(7))
    expected = ls.score(tiny.host("llama", backend, torch.float32), "The cat sat", ls.Semantic(7))
    assert found.meta["token_ids"] == expected.meta["token_ids"]
    assert found.tokens == expected.tokens
    assert_close(found.values, expected.values, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_the_dtype_asked_for(backend, dtype):
    model = ls.load(tiny.directory("llama"), backend=backend, dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_auto_is_the_bridge_where_there_is_one():
    expected = "TransformerBridge" if "bridge" in tiny.BACKENDS else "HookedTransformer"
    assert type(ls.load(tiny.directory("gpt2"))).__name__ == expected


@pytest.mark.skipif("hooked" not in tiny.BACKENDS, reason="this TransformerLens has no HookedTransformer")
def test_sizes_that_transformer_lens_invents_are_refused(tmp_path):
    with pytest.raises(ValueError, match="backend='bridge'"):
        ls.load(copy("gemma2", tmp_path / "model"), backend="hooked")


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nowhere", "../nowhere", "~/nowhere-at-all"])
def test_a_path_that_is_not_there(name):
    with pytest.raises(FileNotFoundError, match="no model directory"):
        ls.load(name)


def test_a_directory_that_is_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"without config\.json"):
        ls.load(tmp_path)


@pytest.mark.wrong_types
def test_backends_that_there_are_not(monkeypatch):
    with pytest.raises(ValueError, match="'auto', 'bridge' or 'hooked'"):
        ls.load(tiny.directory("gpt2"), backend="nnsight")
    for backend in {"hooked", "bridge"} - set(tiny.BACKENDS):
        with pytest.raises(ValueError, match=f"no '{backend}' backend"):
            ls.load(tiny.directory("gpt2"), backend=backend)
