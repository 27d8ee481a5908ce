"""ls.load: a raw model in eval mode, from a local directory whatever its name, on either host class."""

import json
import shutil
from importlib.util import find_spec

import pytest
import torch
import transformers

import lens_scopes as ls
import tiny
from report import assert_close

pytestmark = pytest.mark.host

needs_hooked = pytest.mark.skipif("hooked" not in tiny.BACKENDS, reason="this TransformerLens has no HookedTransformer")
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


@needs_hooked
def test_sizes_that_transformer_lens_invents_are_refused(tmp_path):
    with pytest.raises(ValueError, match="backend='bridge'"):
        ls.load(copy("gemma2", tmp_path / "model"), backend="hooked")


@needs_hooked
@pytest.mark.parametrize("architecture", ["gemma2", "olmo2"])
def test_a_refusal_comes_before_weights_are_read(tmp_path, architecture):
    with pytest.raises(ValueError, match="backend='bridge'"):
        ls.load(copy(architecture, tmp_path / "model", without=["model.safetensors"]), backend="hooked")


def gemma(**edits):
    """The configuration of google/gemma-2-2b, written by hand."""
    sizes = {"hidden_size": 2304, "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4}
    sizes |= {"head_dim": 256, "intermediate_size": 9216, "vocab_size": 256000, "query_pre_attn_scalar": 256}
    config = transformers.Gemma2Config(**sizes | edits)
    config.architectures = ["Gemma2ForCausalLM"]
    return config


@needs_hooked
def test_a_configuration_is_found_by_its_numbers():
    """TransformerLens 2 gives Gemma 2 its windows in the wrong blocks: there it is another model."""
    from lens_scopes.host.hooked import official_name

    sizes = {"hidden_size": 640, "num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 1}
    sizes |= {"head_dim": 256, "intermediate_size": 2048, "vocab_size": 262144, "query_pre_attn_scalar": 256}
    third = transformers.Gemma3TextConfig(**sizes, sliding_window=512)
    third.architectures = ["Gemma3ForCausalLM"]
    assert official_name(third) == "google/gemma-3-270m"
    swapped = tiny.TRANSFORMER_LENS.startswith("2.")
    assert official_name(gemma()) == (None if swapped else "google/gemma-2-2b")


@needs_hooked
@pytest.mark.parametrize(
    "edit",
    [{"intermediate_size": 9000}, {"rms_norm_eps": 1e-5}, {"sliding_window": 512}, {"final_logit_softcapping": None},
     {"attn_logit_softcapping": 30.0}, {"query_pre_attn_scalar": 224}, {"layer_types": ["full_attention"] * 26}],
    ids=lambda edit: next(iter(edit)),
)  # fmt: skip
def test_one_number_off_is_another_model(tmp_path, edit):
    """Everything that TransformerLens writes down for a name; there are no weights at all here."""
    gemma(**edit).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"none of those has the numbers of .*backend='bridge'"):
        ls.load(tmp_path, backend="hooked")


# Options of transformers


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_options_go_to_transformers(tmp_path, backend):
    path = copy("llama", tmp_path / "model")
    (path / "model.safetensors").rename(path / "model.fp32.safetensors")
    with pytest.raises(OSError, match="model"):
        ls.load(path, backend=backend)
    assert_close(logits(ls.load(path, backend=backend, variant="fp32")), truth("llama"), 1e-5)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_an_option_that_transformers_does_not_take_is_named(backend):
    with pytest.raises(ValueError, match="does not take nonsense"):
        ls.load(tiny.directory("llama"), backend=backend, nonsense=1)


@needs_hooked
@pytest.mark.parametrize("option", ["load_in_8bit", "load_in_4bit", "quantization_config"])
def test_a_hooked_transformer_cannot_be_quantised(option):
    with pytest.raises(ValueError, match=f"{option}.*backend='bridge'"):
        ls.load(tiny.directory("llama"), backend="hooked", **{option: True})


@pytest.mark.skipif("bridge" not in tiny.BACKENDS, reason="only a bridge takes it")
@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="here it would be loaded")
def test_eight_bits_reach_transformers_or_are_refused_by_name():
    with pytest.raises((ValueError, ImportError), match=r"load_in_8bit|bitsandbytes"):
        ls.load(tiny.directory("llama"), backend="bridge", load_in_8bit=True)


# GGUF


@pytest.mark.skipif(find_spec("gguf") is not None, reason="the package is there")
def test_a_gguf_file_without_the_package_that_reads_it(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(ImportError, match=r"pip install 'lens-scopes\[gguf\]'"):
        ls.load(path)


def test_a_gguf_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model file"):
        ls.load(tmp_path / "model.gguf")


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_gguf_file(tmp_path, backend):
    pytest.importorskip("gguf")
    path = gguf_of("llama", tmp_path / "tiny.gguf")
    model = ls.load(path, backend=backend)
    assert_close(logits(model), truth("llama"), 1e-5)
    assert ls.score(model, tiny.tokens(), ls.Temperature()).meta["model"] == "tiny"
    assert model.tokenizer.encode(" cat", add_special_tokens=False)


def gguf_of(architecture, path):
    """A tiny Llama as llama.cpp writes it: other names, and rotary halves interleaved in W_Q and W_K."""
    import gguf

    hf = tiny.hugging_face(architecture, torch.float32)
    config, tokenizer = hf.config, transformers.AutoTokenizer.from_pretrained(tiny.directory(architecture))
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    pieces = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    names = [name for name, _ in sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])]
    names += [f"<unused{i}>" for i in range(len(names), config.vocab_size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(names)
    writer.add_token_types([3 if name.startswith("<|") else 1 for name in names])
    writer.add_token_merges([" ".join(pair) for pair in pieces["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in hf.state_dict().items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads:
            value = value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


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
