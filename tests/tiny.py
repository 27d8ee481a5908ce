"""Tiny real models and tokenizers: random weights, every architecture's own code, saved as Hugging Face directories.

Nothing is downloaded. Norm weights are random (an untrained norm would make ‖y‖ constant), soft-caps are small enough to
bite, and grouped queries, local attention and experts are all in use.
"""

import functools
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import lens_scopes as ls
from double import Double

D_MODEL, LAYERS, HEADS, KV_HEADS, D_HEAD, VOCAB, CONTEXT = 16, 2, 4, 2, 4, 320, 32
TEXT = ("The cat sat on the mat.", "A dog and a cat; the dog, then the cat.", "It’s a naïve café 🙂, isn’t it?")

_LLAMA = {
    "hidden_size": D_MODEL,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": D_HEAD,
    "max_position_embeddings": CONTEXT,
    "vocab_size": VOCAB,
}

CONFIGS = {
    "gpt2": lambda: transformers.GPT2Config(
        n_embd=D_MODEL,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=CONTEXT,
        vocab_size=VOCAB,
        bos_token_id=0,
        eos_token_id=0,
    ),
    "llama": lambda: transformers.LlamaConfig(**_LLAMA, tie_word_embeddings=False),
    "neox": lambda: transformers.GPTNeoXConfig(
        **{k: v for k, v in _LLAMA.items() if k not in ("num_key_value_heads", "head_dim")},
        rotary_pct=0.5,
        use_parallel_residual=True,
    ),
    "gemma2": lambda: transformers.Gemma2Config(
        **_LLAMA,
        query_pre_attn_scalar=D_HEAD,
        attn_logit_softcapping=1.0,
        final_logit_softcapping=2.0,
        sliding_window=4,
        attn_implementation="eager",
    ),
    "qwen3": lambda: transformers.Qwen3Config(**_LLAMA, tie_word_embeddings=False),
    "mixtral": lambda: transformers.MixtralConfig(
        **_LLAMA, num_local_experts=4, num_experts_per_tok=2, sliding_window=None, tie_word_embeddings=False
    ),
}
ARCHITECTURES = tuple(CONFIGS)
_PLAIN = {k: v for k, v in _LLAMA.items() if k not in ("num_key_value_heads", "head_dim", "intermediate_size")}
_GPT = {"n_embd": D_MODEL, "n_layer": LAYERS, "n_head": HEADS, "n_positions": CONTEXT, "vocab_size": VOCAB}
#: More forms of a block, for what depends on its form, and three layers of the two commonest.
OTHERS = {
    "olmo2": lambda: transformers.Olmo2Config(
        **{k: v for k, v in _LLAMA.items() if k != "head_dim"}, tie_word_embeddings=False
    ),
    "bloom": lambda: transformers.BloomConfig(hidden_size=D_MODEL, n_layer=LAYERS, n_head=HEADS, vocab_size=VOCAB),
    "gptj": lambda: transformers.GPTJConfig(**_GPT, rotary_dim=2),
    "phi": lambda: transformers.PhiConfig(**_PLAIN, intermediate_size=24, partial_rotary_factor=0.5),
    "falcon": lambda: transformers.FalconConfig(
        **_PLAIN, multi_query=True, parallel_attn=True, bias=False, alibi=False, new_decoder_architecture=False
    ),
    "opt": lambda: transformers.OPTConfig(
        **_PLAIN, ffn_dim=24, word_embed_proj_dim=D_MODEL, attn_implementation="eager", dropout=0.0
    ),
    "deep-llama": lambda: transformers.LlamaConfig(**_LLAMA | {"num_hidden_layers": 3}, tie_word_embeddings=False),
    "deep-neox": lambda: transformers.GPTNeoXConfig(
        **_PLAIN | {"num_hidden_layers": 3}, intermediate_size=24, rotary_pct=0.5, use_parallel_residual=True
    ),
}
_GROUPED = {k: v for k, v in _LLAMA.items() if k != "head_dim"}
_LATENT = {
    **_PLAIN,
    "intermediate_size": 24,
    "moe_intermediate_size": 12,
    "num_key_value_heads": HEADS,
    "n_shared_experts": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
#: Blocks in which hooks do not mean what they mean elsewhere, and what is random in train mode; bridges alone.
UNUSUAL = {
    "granite": lambda: transformers.GraniteConfig(
        **_GROUPED,
        embedding_multiplier=6.0,
        logits_scaling=2.0,
        residual_multiplier=0.5,
        attention_multiplier=0.4,
        tie_word_embeddings=False,
    ),
    "deepseek2": lambda: transformers.DeepseekV2Config(**_LATENT, topk_method="greedy"),
    "deepseek3": lambda: transformers.DeepseekV3Config(**_LATENT),
    "opt-dropout": lambda: transformers.OPTConfig(**_PLAIN, ffn_dim=24, word_embed_proj_dim=D_MODEL, dropout=0.1),
    "opt-layerdrop": lambda: transformers.OPTConfig(
        **_PLAIN, ffn_dim=24, word_embed_proj_dim=D_MODEL, dropout=0.0, layerdrop=0.3
    ),
    "bloom-dropout": lambda: transformers.BloomConfig(
        hidden_size=D_MODEL, n_layer=LAYERS, n_head=HEADS, vocab_size=VOCAB, hidden_dropout=0.1
    ),
    "falcon-dropout": lambda: transformers.FalconConfig(
        **_PLAIN, multi_query=True, parallel_attn=True, bias=False, alibi=False, hidden_dropout=0.1
    ),
    "starcoder2-dropout": lambda: transformers.Starcoder2Config(**_GROUPED, residual_dropout=0.1),
    "xglm-dropout": lambda: transformers.XGLMConfig(
        vocab_size=VOCAB,
        max_position_embeddings=CONTEXT,
        d_model=D_MODEL,
        ffn_dim=24,
        num_layers=LAYERS,
        attention_heads=HEADS,
        dropout=0.1,
    ),
    "llama-dropout": lambda: transformers.LlamaConfig(**_LLAMA, attention_dropout=0.1, tie_word_embeddings=False),
    "mixtral-jitter": lambda: transformers.MixtralConfig(
        **_LLAMA,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=None,
        tie_word_embeddings=False,
        router_jitter_noise=0.1,
    ),
}
RANDOM_IN_TRAIN_MODE = tuple(name for name in UNUSUAL if name.split("-")[-1] in ("dropout", "layerdrop", "jitter"))
TRANSFORMER_LENS = version("transformer-lens")
BACKENDS = tuple(
    backend
    for backend, module in (
        ("hooked", "transformer_lens.HookedTransformer"),
        ("bridge", "transformer_lens.model_bridge"),
    )
    if find_spec(module) is not None
)
#: Every architecture on every host class that this TransformerLens has.
HOSTS = tuple((architecture, backend) for architecture in ARCHITECTURES for backend in BACKENDS)
_NOT_HOOKED = ("olmo2", "falcon") if TRANSFORMER_LENS.startswith("2.") else ("olmo2", "falcon", "phi")
OTHER_HOSTS = tuple((a, b) for a in OTHERS for b in BACKENDS if b == "bridge" or a not in _NOT_HOOKED)

_ROOT = tempfile.TemporaryDirectory(prefix="tiny-models-")


def host_id(pair: tuple[str, str]) -> str:
    return "-".join(pair)


@functools.cache
def directory(architecture: str) -> Path:
    """A Hugging Face directory of a tiny random model with a byte-level tokenizer."""
    path = Path(_ROOT.name) / f"tiny-{architecture}"
    hf = random_model((CONFIGS | OTHERS | UNUSUAL)[architecture]())
    hf.save_pretrained(path)
    byte_level_tokenizer().save_pretrained(path)
    return path


def random_model(config, seed: int = 0):
    """A Hugging Face model with weights that leave nothing untested: random norms and biases, lively matrices."""
    generator = torch.Generator().manual_seed(seed)
    hf = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(0.4 * noise)
            elif name.endswith("bias") or type(hf).__name__.startswith("Gemma"):
                parameter.copy_(0.3 * noise)  # Gemma's norms multiply by 1 + weight
            else:
                parameter.copy_(1 + 0.3 * noise)
    hf.config.architectures = [type(hf).__name__]
    hf.generation_config = transformers.GenerationConfig()
    return hf.eval()


@functools.cache
@Double.off()
def hugging_face(architecture: str, dtype: torch.dtype = torch.float64):
    """The same weights without TransformerLens, for oracles."""
    hf = transformers.AutoModelForCausalLM.from_pretrained(
        directory(architecture), torch_dtype=dtype, attn_implementation="eager"
    )
    if hasattr(hf, "set_experts_implementation"):
        hf.set_experts_implementation("eager")
    return hf.eval().requires_grad_(False)


def precise(architecture: str, backend: str) -> torch.dtype:
    """float64, but for the one that only runs in float32."""
    return torch.float32 if (architecture, backend) == ("mixtral", "hooked") else torch.float64


def tolerance(architecture: str, backend: str) -> float:
    """What the most precise form of a host may be off by: Hugging Face's RMS norms and softmaxes are float32 inside."""
    if architecture == "gpt2":
        return 1e-12
    return 2e-5 if precise(architecture, backend) == torch.float32 else 5e-6


@functools.cache
def host(architecture: str, backend: str, dtype: torch.dtype | None = None):
    """A raw TransformerLens model, shared by tests that leave it as it is; by default in ``precise`` dtype."""
    return fresh_host(architecture, backend, dtype or precise(architecture, backend))


@Double.off()
def fresh_host(architecture: str, backend: str, dtype: torch.dtype = torch.float64):
    """A raw TransformerLens model of one's own, for tests that change it."""
    if (architecture, backend) == ("gemma2", "hooked"):
        return _hooked_gemma2(dtype)
    model = ls.load(directory(architecture), backend=backend, dtype=dtype)
    inner = getattr(model, "original_model", None)
    if hasattr(inner, "set_experts_implementation"):
        inner.set_experts_implementation("eager")  # the grouped matmul of mixtures of experts is float32 only
    return model


def processed_host(architecture: str, backend: str, dtype: torch.dtype = torch.float64):
    """As TransformerLens does it by default: norms folded, weights centred."""
    model = fresh_host(architecture, backend, dtype)
    if backend == "bridge":
        model.enable_compatibility_mode()
        return model.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    processed = type(model)(model.cfg, model.tokenizer)
    # As from_pretrained does: a soft-cap is not a shift of logits, so there the unembedding is not centred.
    processed.load_and_process_state_dict(state, center_unembed=architecture != "gemma2")
    return processed.eval()


def _hooked_gemma2(dtype: torch.dtype):
    """TransformerLens gives every Gemma the sizes of a published one; this one is built by hand."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens import loading_from_pretrained as loading

    hf = hugging_face("gemma2", dtype)
    config = HookedTransformerConfig(
        d_model=D_MODEL,
        d_head=D_HEAD,
        n_heads=HEADS,
        n_key_value_heads=KV_HEADS,
        d_mlp=24,
        n_layers=LAYERS,
        n_ctx=CONTEXT,
        d_vocab=VOCAB,
        act_fn="gelu_pytorch_tanh",
        eps=hf.config.rms_norm_eps,
        initializer_range=0.02,
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_base=10000,
        rotary_dim=D_HEAD,
        attn_scale=D_HEAD**0.5,
        use_attn_scale=True,
        attn_types=["local", "global"],
        use_local_attn=True,
        window_size=4,
        attn_scores_soft_cap=1.0,
        output_logits_soft_cap=2.0,
        gated_mlp=True,
        final_rms=True,
        use_normalization_before_and_after=True,
        original_architecture="Gemma2ForCausalLM",
        model_name="tiny-gemma2",
        dtype=dtype,
        device="cpu",
    )
    model = HookedTransformer(config, transformers.AutoTokenizer.from_pretrained(directory("gemma2")))
    weights = loading.convert_gemma_weights(hf, config)
    model.load_and_process_state_dict(
        {name: w.to(dtype) for name, w in weights.items()},
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return model.eval()


def attention_only(**changes):
    """A HookedTransformer of attention alone (or what ``changes`` make of it), for Elhage et al.'s kind of toy."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = {
        "n_layers": LAYERS,
        "d_model": D_MODEL,
        "n_ctx": CONTEXT,
        "d_head": D_HEAD,
        "n_heads": HEADS,
        "d_vocab": VOCAB,
        "d_mlp": 24,
        "act_fn": "gelu",
        "attn_only": True,
        "normalization_type": "LN",
        "initializer_range": 0.4,
        "dtype": torch.float64,
        "device": "cpu",
        "seed": 0,
    }
    return HookedTransformer(HookedTransformerConfig(**config | changes)).eval()


def tokens(length: int = 7, seed: int = 0) -> list[int]:
    """Random ids, without the special ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, VOCAB, (length,), generator=generator).tolist()


def byte_level_tokenizer(vocabulary: int = VOCAB, chat_template: str | None = None):
    """GPT-2's kind: every byte is a character, blanks belong to the word after them."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        TEXT[:2] * 4,
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
        ),
    )
    # Reloaded, because TransformerLens asks a tokenizer for the directory it came from.
    return _reloaded(raw, special[0], chat_template)


def sentencepiece_tokenizer():
    """Llama's kind: blanks are ▁, one is put before the text, unknown characters fall back to bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"Thecatsonm.dg", "at", "cat", "▁cat", "▁s", "▁sat"]
    merges = [("a", "t"), ("c", "at"), ("▁", "cat"), ("▁", "s"), ("▁s", "at")]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    raw = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    raw.add_special_tokens([AddedToken(piece, special=True) for piece in pieces[:3]])
    return _reloaded(raw, "<s>", None)


def _reloaded(raw: Tokenizer, bos: str, chat_template: str | None):
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=bos, eos_token=bos, pad_token=bos)
    if chat_template is not None:
        fast.chat_template = chat_template
    path = tempfile.mkdtemp(prefix="tokenizer-", dir=_ROOT.name)  # kept: HookedTransformer loads it from there again
    fast.save_pretrained(path)
    return transformers.AutoTokenizer.from_pretrained(path)
