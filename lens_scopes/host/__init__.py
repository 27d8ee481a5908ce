"""The one place that knows TransformerLens: what a model is called, where its stream can be read, how it reads out.

Works by hook names, ``model.hooks``, ``model.ln_final`` and ``model.unembed`` alone, which HookedTransformer (2.x, 3.x)
and TransformerBridge (3.x, 4.x) share; nothing here imports, subclasses or asks for either class.
"""

from lens_scopes.host.capture import Seen, run_to_last_residual, watching
from lens_scopes.host.generating import generate
from lens_scopes.host.joining import join
from lens_scopes.host.loading import load
from lens_scopes.host.model import Host
from lens_scopes.host.prompts import encode, special_ids, token_id, token_texts, twin_of
from lens_scopes.host.readout import Readout, read_out
from lens_scopes.host.roles import roles_of
from lens_scopes.host.starting import is_causal, starting_at, starts_at

__all__ = [
    "Host",
    "Readout",
    "Seen",
    "encode",
    "generate",
    "is_causal",
    "join",
    "load",
    "read_out",
    "roles_of",
    "run_to_last_residual",
    "special_ids",
    "starting_at",
    "starts_at",
    "token_id",
    "token_texts",
    "twin_of",
    "watching",
]
