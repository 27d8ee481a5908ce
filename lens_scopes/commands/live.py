"""The command ``serve``: the live page."""

from typing import Annotated

import typer

import lens_scopes as ls
from lens_scopes.commands.terminal import Backend, Model, WhichBackend, model_of, one_line_errors, quiet, say

SERVE_EXAMPLE = "Example: lens-scopes serve --model ~/models/gemma-3-270m"


def serve(
    model: Model = None,
    backend: WhichBackend = Backend.auto,
    port: Annotated[int, typer.Option(help="Where; 0 for a free port. On this machine only.")] = 0,
) -> None:
    """Serve the live page: type a prompt, click a token, see where it comes from, cut that and see what happens."""
    with one_line_errors("serve"):
        with quiet():
            loaded = model_of(model, backend)
        served = ls.serve(loaded, port, block=False)
        say(f"The page is at {served.address}", "On this machine only, for whoever has this address; Ctrl-C to stop.")
        served.wait()
