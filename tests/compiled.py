"""Transformers compiled from programs by Tracr (Lindner et al. 2023): nothing is learnt, causes and effects are exact."""

import os
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(os.environ.get("LENS_SCOPES_REFERENCE", Path(__file__).parents[2] / "shared")) / "tracr"


def compiled(name: str):
    """The program as a HookedTransformer whose logits are the dimensions of its last residual stream; and the file."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    found = np.load(FOLDER / f"{name}.npz", allow_pickle=False)
    layers, heads, d_head, d_mlp = found["cfg"].tolist()
    words, d_model = found["token_embed|embeddings"].shape
    config = HookedTransformerConfig(
        n_layers=layers, d_model=d_model, n_ctx=len(found["pos_embed|embeddings"]), d_head=d_head, n_heads=heads,
        d_mlp=d_mlp, d_vocab=words, d_vocab_out=d_model, act_fn="relu", normalization_type=None,
        attention_dir="bidirectional", device="cpu", model_name=f"tracr-{name}",
    )  # fmt: skip
    model = HookedTransformer(config)
    state = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}

    def weights(key: str) -> torch.Tensor:
        return torch.from_numpy(found[key].copy()).float()

    state["embed.W_E"], state["pos_embed.W_pos"] = weights("token_embed|embeddings"), weights("pos_embed|embeddings")
    state["unembed.W_U"] = torch.eye(d_model)
    for layer in range(layers):
        ours, theirs = f"blocks.{layer}.", f"transformer/layer_{layer}/"
        for letter, kind in (("Q", "query"), ("K", "key"), ("V", "value")):
            w, b = (weights(f"{theirs}attn/{kind}|{part}") for part in "wb")
            state[f"{ours}attn.W_{letter}"] = w.reshape(d_model, heads, d_head).permute(1, 0, 2)
            state[f"{ours}attn.b_{letter}"] = b.reshape(heads, d_head)
        state[ours + "attn.W_O"] = weights(theirs + "attn/linear|w").reshape(heads, d_head, d_model)
        state[ours + "attn.b_O"] = weights(theirs + "attn/linear|b")
        for letter, kind in (("in", "linear_1"), ("out", "linear_2")):
            state[f"{ours}mlp.W_{letter}"] = weights(f"{theirs}mlp/{kind}|w")
            state[f"{ours}mlp.b_{letter}"] = weights(f"{theirs}mlp/{kind}|b")
    for name, buffer in model.state_dict().items():
        if name.endswith(("mask", "IGNORE")):
            state[name] = buffer
    model.load_state_dict(state)
    return model.eval().requires_grad_(False), found
