"""Slow and obvious: dense Jacobians of the Hugging Face model itself, by its own modules, without the package's code.

An activation is perturbed by adding a zero tensor to what a module takes or gives; torch differentiates y with respect
to those zeros, row by row. Scores then are what the formulas say, with explicit matrices.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from double import Double
from tiny import D_HEAD, HEADS, KV_HEADS


@dataclass(frozen=True)
class Place:
    """Where a site's activation is in a Hugging Face model: what a module takes ("in") or gives ("out")."""

    module: nn.Module
    side: str
    shape: tuple[int, ...]
    lay: Callable[[Tensor], Tensor] = lambda delta: delta.flatten(1)
    """[pos, *shape] -> [pos, width of the module's tensor]."""


def places(hf: nn.Module) -> dict[str, Place]:
    """By TransformerLens hook name."""
    d = hf.config.hidden_size
    layers = _layers(hf)
    # Gemma scales its embeddings by √d, in the embedding or after it: hook_embed is what comes out, on both host classes.
    scaled = type(hf).__name__.startswith("Gemma")
    found = {"hook_embed": Place(layers[0], "in", (d,)) if scaled else Place(hf.get_input_embeddings(), "out", (d,))}
    for l, layer in enumerate(layers):
        block = f"blocks.{l}."
        attention, attn_out, mlp_out, projections = _parts(layer)
        found[block + "hook_resid_pre"] = Place(layer, "in", (d,))
        found[block + "hook_resid_post"] = Place(layer, "out", (d,))
        found[block + "hook_attn_out"] = Place(attn_out, "out", (d,))
        found[block + "hook_mlp_out"] = Place(mlp_out, "out", (d,))
        if not getattr(hf.config, "use_parallel_residual", False):
            # The stream after the attention is (before it) + attn_out: what is added to one is added to the other.
            found[block + "hook_resid_mid"] = Place(attn_out, "out", (d,))
        for kind, (module, side, heads, lay) in projections.items():
            found[f"{block}attn.hook_{kind}"] = Place(module, side, (heads, D_HEAD), lay)
    return found


def _layers(hf: nn.Module) -> nn.ModuleList:
    inner = hf.base_model
    return inner.h if hasattr(inner, "h") else inner.layers


def _parts(layer: nn.Module):
    flat = Place.lay
    if hasattr(layer, "attn"):  # GPT-2: c_attn gives [q | k | v]
        attention, mlp = layer.attn, layer.mlp
        out, fused = attention.c_proj, attention.c_attn
        lays = {
            kind: lambda x, n=n: torch.cat(
                [x.flatten(1) if i == n else torch.zeros_like(x.flatten(1)) for i in range(3)], 1
            )
            for n, kind in enumerate("qkv")
        }
        projections = {kind: (fused, "out", HEADS, lay) for kind, lay in lays.items()}
        return attention, attention, mlp, {**projections, "z": (out, "in", HEADS, flat)}
    if hasattr(layer, "attention"):  # GPT-NeoX: query_key_value gives [q k v] head by head
        attention, mlp = layer.attention, layer.mlp
        lays = {
            kind: lambda x, n=n: torch.stack([x if i == n else torch.zeros_like(x) for i in range(3)], 2).flatten(1)
            for n, kind in enumerate("qkv")
        }
        projections = {kind: (attention.query_key_value, "out", HEADS, lay) for kind, lay in lays.items()}
        return attention, attention, mlp, {**projections, "z": (attention.dense, "in", HEADS, flat)}
    attention = layer.self_attn
    mlp = layer.mlp if hasattr(layer, "mlp") else layer.block_sparse_moe
    attn_out, mlp_out = attention, mlp
    if hasattr(layer, "post_feedforward_layernorm"):  # Gemma-2: a norm after each branch as well
        attn_out, mlp_out = layer.post_attention_layernorm, layer.post_feedforward_layernorm
    projections = {
        "q": (attention.q_proj, "out", HEADS, flat),
        "k": (attention.k_proj, "out", KV_HEADS, flat),
        "v": (attention.v_proj, "out", KV_HEADS, flat),
        "z": (attention.o_proj, "in", HEADS, flat),
    }
    return attention, attn_out, mlp_out, projections


@dataclass(frozen=True)
class Dense:
    """Everything that a score is made of, as explicit matrices, at one position."""

    y: Tensor
    logits: Tensor
    unembed: Tensor
    """W̃ = ∂z/∂y [vocab, d_model]."""
    jacobians: dict[str, Tensor]
    """By site, ∂y/∂a [d_model of y, pos, *site]."""

    @property
    def probs(self) -> Tensor:
        return self.logits.softmax(-1)

    @property
    def fisher(self) -> Tensor:
        """F = E_p[g gᵀ], g_w = w̃_w − E_p[w̃]."""
        centred = self.unembed - self.probs @ self.unembed
        return centred.T @ (self.probs[:, None] * centred)

    def pulled(self, site: str, vector: Tensor) -> Tensor:
        """J_tᵀ v for every t: [pos, *site]."""
        return torch.tensordot(vector, self.jacobians[site], dims=1)

    def norms(self, site: str, vector: Tensor) -> Tensor:
        """‖J_tᵀ v‖."""
        return self.pulled(site, vector).norm(dim=-1)

    def quadratic(self, site: str, matrix: Tensor) -> Tensor:
        """tr(J_tᵀ M J_t)."""
        jacobian = self.jacobians[site]
        return (torch.tensordot(matrix, jacobian, dims=1) * jacobian).sum((0, -1))

    def semantic(self, site: str, target: int, versus: int | None = None) -> Tensor:
        vector = self.unembed[target] - (0 if versus is None else self.unembed[versus])
        return self.norms(site, vector)

    def temperature(self, site: str) -> Tensor:
        return self.norms(site, self.y / self.y.norm())


def final_state(hf: nn.Module, ids: list[int], position: int, deltas: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """y and logits at the position when the deltas are added to the activations at their sites."""
    where, seen = places(hf), []
    with Double(), ExitStack() as hooks:
        for site, delta in deltas.items():
            hooks.callback(_add(where[site], delta).remove)
        head = hf.get_output_embeddings()
        hooks.callback(head.register_forward_pre_hook(lambda _, args: seen.append(args[0])).remove)
        logits = hf(torch.tensor([ids]), use_cache=False).logits[0, position]
    return seen[0][0, position], logits


def _add(place: Place, delta: Tensor):
    """A hook that adds the delta to the module's first tensor."""
    amount = place.lay(delta)[None]

    def added(tensor: Tensor) -> Tensor:
        return tensor + amount.reshape(tensor.shape)

    if place.side == "out":

        def out(_module, _args, output):
            return added(output) if isinstance(output, Tensor) else (added(output[0]), *output[1:])

        return place.module.register_forward_hook(out)

    def into(_module, args, kwargs):
        if args:
            return (added(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": added(kwargs["hidden_states"])}

    return place.module.register_forward_pre_hook(into, with_kwargs=True)


def dense(hf: nn.Module, ids: list[int], position: int = -1, sites=None) -> Dense:
    """Differentiate y at the position with respect to the activations at every site."""
    where = places(hf)
    names = list(where) if sites is None else list(sites)
    zeros = tuple(torch.zeros(len(ids), *where[name].shape, dtype=hf.dtype) for name in names)

    def y_of(*deltas: Tensor) -> Tensor:
        return final_state(hf, ids, position, dict(zip(names, deltas, strict=True)))[0]

    found = torch.autograd.functional.jacobian(y_of, zeros)
    y, logits = final_state(hf, ids, position, {})
    unembed = torch.autograd.functional.jacobian(lambda y: logits_of(hf, y), y, vectorize=True)
    return Dense(y.detach(), logits.detach(), unembed, dict(zip(names, found, strict=True)))


def logits_of(hf: nn.Module, y: Tensor) -> Tensor:
    """z = U(y)."""
    logits = hf.get_output_embeddings()(y)
    cap = getattr(hf.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)
