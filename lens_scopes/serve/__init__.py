"""The live page: type a prompt, click a token, see where it comes from, cut that and see what really happens.

``ls.serve(model)`` is ``lens_scopes.serve.serve``. ``Session`` answers the page's questions without a server.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lens_scopes.results.arguments import Integer, integer
from lens_scopes.serve.asks import read
from lens_scopes.serve.session import Busy, Cancelled, Session

if TYPE_CHECKING:
    from lens_scopes.serve.server import Served

__all__ = ["Busy", "Cancelled", "Session", "read", "serve"]


def serve(model: Any, port: Integer = 0, *, block: bool = True) -> "Served":
    """Serve the live page about a model, on this machine alone, until Ctrl-C.

    Args:
        model: a HookedTransformer or TransformerBridge, in eval mode. It is left as it came after every answer.
        port: where; 0: a free one.
        block: print the address and wait for Ctrl-C; False: go on, as in a notebook, and stop by ``close()`` of what is
            returned.

    Returns:
        The server: its ``address``, with the token that opens the page, and ``close()``.

    Raises:
        ImportError: the extra is not installed: ``pip install "lens-scopes[serve]"``.
        TypeError: not a model.
        ValueError: a port that is none.
        OSError: a port that is taken.

    """
    port = integer(port, "port (0 for a free one)", 0)
    if port > 65535:
        msg = f"a port is a number from 0 to 65535, got {port}; write port=0 for a free one"
        raise ValueError(msg)
    try:
        from lens_scopes.serve.server import Served
    except ImportError as error:
        msg = f'the live page needs {error.name}: pip install "lens-scopes[serve]"'
        raise ImportError(msg) from error
    served = Served(Session(model), port)
    if block:
        sys.stdout.write(f"The page is at {served.address}\n")
        sys.stdout.flush()
        served.wait()
    return served


class _Callable(ModuleType):
    """This folder has the name of its function: ``ls.serve`` is both, whichever was imported first."""

    def __call__(self, model: Any, port: Integer = 0, *, block: bool = True) -> "Served":
        """See ``serve``."""
        return serve(model, port, block=block)


sys.modules[__name__].__class__ = _Callable
