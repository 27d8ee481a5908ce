"""The random models that the benchmarks run on, and the floor that they are measured against."""

import torch
from torch import Tensor


def llama_shaped(backend: str, *, n_layers: int = 12, d_model: int = 768, vocab: int = 32_000, seed: int = 0):
    """A Llama-shaped random model; norm weights are random too, or the final norm would look folded."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=d_model,
        intermediate_size=int(d_model * 8 / 3),
        num_hidden_layers=n_layers,
        num_attention_heads=d_model // 64,
        num_key_value_heads=d_model // 64,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
    )
    if backend == "bridge":
        from transformer_lens.model_bridge.sources import build_bridge_from_module

        hf = LlamaForCausalLM(config).eval()
        model = build_bridge_from_module(hf, "LlamaForCausalLM", hf_config=hf.config)
    else:
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        model = HookedTransformer(
            HookedTransformerConfig(
                n_layers=n_layers,
                d_model=d_model,
                d_head=64,
                n_heads=d_model // 64,
                d_mlp=config.intermediate_size,
                d_vocab=vocab,
                n_ctx=1024,
                act_fn="silu",
                gated_mlp=True,
                normalization_type="RMS",
                positional_embedding_type="rotary",
                rotary_dim=64,
                final_rms=True,
                init_weights=True,
                device="cpu",
            )
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if (
                parameter.ndim == 1
                and ("norm" in name or "ln" in name)
                and "bias" not in name
                and not name.endswith(".b")
            ):
                parameter.uniform_(0.5, 1.5)
    return model.eval().requires_grad_(False)


def floor(model, tokens: Tensor) -> Tensor:
    """A bare forward pass to one row of logits and a backward pass to the embeddings, by the host's own means."""
    with torch.enable_grad():
        embeddings = model.embed(tokens).detach().requires_grad_()
        if hasattr(model, "original_model"):
            logits = model.original_model(inputs_embeds=embeddings, logits_to_keep=1, use_cache=False).logits[0, -1]
        else:
            residual = model(embeddings, start_at_layer=0, stop_at_layer=model.cfg.n_layers)
            logits = model.unembed(model.ln_final(residual[:, -1:]))[0, -1]
        (gradient,) = torch.autograd.grad(logits[logits.argmax()], embeddings)
    return gradient.norm(dim=-1)
