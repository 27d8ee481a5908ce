"""What passes through a part of a model, by one backward pass each, masked to that part: slow, obvious, Hugging Face only.

No forward-mode derivative and none of the package's code: for L = vᵀy, a part a with gradient g_a and sources t with
unit directions d_t, I_t(a) = ⟨(∂a/∂embed_t)ᵀ g_a, d_t⟩.
"""

from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from double import Double
from oracles import Place, dense, places


@dataclass(frozen=True)
class Run:
    """One forward pass with the module tensors at every site, [pos, width], still in the graph."""

    where: dict[str, Place]
    at: dict[str, Tensor]
    y: Tensor

    def to(self, site: str, position: int) -> "Run":
        """The same pass, ended at a site of the stream: L = vᵀ of what stands there."""
        if site.endswith("hook_resid_mid"):
            block = site.removesuffix("hook_resid_mid")
            y = self.at[block + "hook_resid_pre"] + self.at[block + "hook_attn_out"]
        else:
            y = self.at[site]
        return replace(self, y=y[0, position])

    @property
    def embed(self) -> Tensor:
        return self.at["hook_embed"]

    def gradient(self, v: Tensor, site: str) -> Tensor:
        return torch.autograd.grad(self.y @ v, self.at[site], retain_graph=True)[0]

    def mask(self, site: str, *index) -> Tensor:
        """Ones at [pos, head, ...] ``index`` of a site, in the layout of its module."""
        ones = torch.zeros(len(self.embed[0]), *self.where[site].shape, dtype=self.y.dtype)
        ones[index] = 1
        return self.where[site].lay(ones)[None]

    def through(self, v: Tensor, *chain: tuple[str, tuple]) -> Tensor:
        """L's gradient at the embedding [pos, d] by the routes through all parts of a chain, last part first."""
        back = None
        previous = None
        for site, index in chain:
            cotangent = self.gradient(v, site) if back is None else self._pull(previous, site, back)
            back, previous = cotangent * self.mask(site, *index).reshape(cotangent.shape), site
        return self._pull(previous, "hook_embed", back)[0]

    def _pull(self, site: str, to: str, cotangent: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(self.at[site], self.at[to], cotangent, retain_graph=True, allow_unused=True)
        return torch.zeros_like(self.at[to]) if found is None else found

    def directions(self, v: Tensor) -> Tensor:
        """d_t, the unit gradients; zero where the gradient is."""
        g = self.gradient(v, "hook_embed")[0]
        return g / g.norm(dim=-1, keepdim=True).clamp(min=1e-300)

    def influence(self, v: Tensor, *chain: tuple[str, tuple]) -> Tensor:
        """By source."""
        return (self.through(v, *chain) * self.directions(v)).sum(-1)


def run(hf: torch.nn.Module, ids: list[int], position: int, embedding: Tensor | None = None) -> Run:
    """A forward pass of the bare model, everything kept; from an embedding [1, pos, d] other than the ids' own."""
    where, at, y = places(hf), {}, []
    names = [name for name in where if not name.endswith("hook_resid_mid")]
    with Double(), torch.enable_grad(), ExitStack() as hooks:
        place = where["hook_embed"]
        start = _keep(place, at, "hook_embed", leaf=True, value=embedding)
        hooks.callback(start.remove)
        for name in names:
            if name != "hook_embed":
                hooks.callback(_keep(where[name], at, name).remove)
        head = hf.get_output_embeddings()
        hooks.callback(head.register_forward_pre_hook(lambda _, args: y.append(args[0])).remove)
        hf(torch.tensor([ids]), use_cache=False)
    return Run(where, at, y[0][0, position])


def unembed(hf: torch.nn.Module, ids: list[int], position: int) -> Tensor:
    """W̃, soft-cap and all."""
    return dense(hf, ids, position, sites=["hook_embed"]).unembed


def _keep(place: Place, at: dict[str, Tensor], name: str, *, leaf: bool = False, value: Tensor | None = None):
    def kept(tensor: Tensor) -> Tensor:
        tensor = tensor if value is None else value
        at[name] = tensor.detach().requires_grad_() if leaf else tensor
        return at[name]

    if place.side == "out":

        def out(_module, _args, output):
            return kept(output) if isinstance(output, Tensor) else (kept(output[0]), *output[1:])

        return place.module.register_forward_hook(out)

    def into(_module, args, kwargs):
        if args:
            return (kept(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kept(kwargs["hidden_states"])}

    return place.module.register_forward_pre_hook(into, with_kwargs=True)
