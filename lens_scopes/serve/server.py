"""A server on the loopback interface, in a thread of its own."""

import socket
import threading
import time
from typing import Any

import uvicorn

from lens_scopes.serve.app import routes
from lens_scopes.serve.guard import Guard
from lens_scopes.serve.session import Session


class Served:
    """A page that is being served.

    Args:
        session: what answers.
        port: where; 0: a free one.

    Raises:
        OSError: a port that is taken.

    """

    def __init__(self, session: Session, port: int) -> None:
        """See the class."""
        self.session = session
        guard = Guard(routes(session))
        self._socket = socket.create_server(("127.0.0.1", port))
        self.port: int = self._socket.getsockname()[1]
        #: The page with its token: whoever has it may ask.
        self.address = f"http://127.0.0.1:{self.port}/?token={guard.token}"
        self._server = uvicorn.Server(
            uvicorn.Config(
                guard,  # type: ignore[arg-type] - an ASGI application in shape, if not in name
                log_level="warning",
                access_log=False,  # prompts are nobody's business
                ws="none",
                lifespan="off",
                proxy_headers=False,
                server_header=False,
                limit_concurrency=32,
                timeout_graceful_shutdown=1,
            )
        )
        self._thread = threading.Thread(target=self._run, name="lens-scopes server", daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.01)

    def _run(self) -> None:
        self._server.run([self._socket])

    def wait(self) -> None:
        """Go on until Ctrl-C, and close."""
        try:
            while self._thread.is_alive():
                self._thread.join(0.2)
        except KeyboardInterrupt:
            pass
        finally:
            self.close()

    def close(self) -> None:
        """Stop: running questions end at the next block."""
        self._server.should_exit = True
        self.session.close()
        self._thread.join(5)
        self._socket.close()

    def __enter__(self) -> "Served":
        """Itself."""
        return self

    def __exit__(self, *_: Any) -> None:
        """Stop."""
        self.close()

    def __repr__(self) -> str:
        """The address: in a notebook, a link."""
        return f"Served({self.address})"
