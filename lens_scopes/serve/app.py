"""The routes: a page of a few files, and one address per verb that answers in lines of JSON.

A request is a question; its answer says while it waits and runs how far it is, and ends in a result or an error. Who
closes the request has left, and the question is dropped.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from concurrent.futures import CancelledError
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

import lens_scopes as ls
from lens_scopes.host.fingerprint import fingerprint
from lens_scopes.serve import asks, fields
from lens_scopes.serve.session import Busy, Cancelled, Job, Session
from lens_scopes.views import markup
from lens_scopes.views.show import show

#: The files of the page: no path of a request reaches the file system.
STATIC = {
    "page.css": "text/css",
    **dict.fromkeys(("main.js", "net.js", "views.js", "parts.js", "draw.js", "lit-html.js"), "text/javascript"),
}
#: What the package raises for a user's mistake.
_ERRORS = (ValueError, TypeError, IndexError, KeyError, RuntimeError, NotImplementedError)


def routes(session: Session) -> Starlette:
    """The application, without its guard."""
    known = facts(session)

    def read(name: str) -> bytes:
        return (files("lens_scopes.serve") / "page" / name).read_bytes()

    def index(_: Request) -> Response:
        return Response(read("index.html"), media_type="text/html")

    def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STATIC:
            raise HTTPException(404)
        return Response(read(name), media_type=STATIC[name])

    def figure(request: Request) -> Response:
        found = session.kept(request.path_params["key"])
        document = None if found is None else show(found, "edges").document
        if document is None:
            raise HTTPException(404)
        # Its own policy, inside the document, names its scripts by their hashes.
        return Response(
            document,
            media_type="text/html",
            headers={"content-security-policy": "sandbox allow-scripts; frame-ancestors 'self'"},
        )

    def model(_: Request) -> Response:
        return JSONResponse(known)

    async def ask(request: Request) -> Response:
        try:
            data = json.loads(await request.body())
        except (ValueError, RecursionError) as error:
            return _refused(400, ValueError(f"a question is JSON: {error}"))
        try:
            question = asks.read(request.path_params["verb"], data)
        except KeyError:
            return _refused(
                404, KeyError(f"there is no {request.path_params['verb']}; there is {', '.join(asks.VERBS)}")
            )
        except ValueError as error:
            return _refused(400, error)
        loop = asyncio.get_running_loop()
        lines: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

        def say(line: dict[str, Any]) -> None:
            loop.call_soon_threadsafe(lines.put_nowait, line)

        try:
            job = session.submit(question, say)
        except Busy as error:
            return _refused(429, error)
        job.future.add_done_callback(lambda _: say(_ended(job)))
        return StreamingResponse(_told(lines, job), media_type="application/x-ndjson")

    return Starlette(
        routes=[
            Route("/", index),
            Route("/static/{name}", static),
            Route("/figure/{key}", figure),
            Route("/api/1/model", model),
            Route("/api/1/{verb}", ask, methods=["POST"]),
        ]
    )


async def _told(lines: "asyncio.Queue[dict[str, Any]]", job: Job) -> AsyncIterator[str]:
    """Line by line what is said, until it has ended."""
    try:
        while True:
            line = await lines.get()
            yield json.dumps(line, allow_nan=False) + "\n"
            if "result" in line or "error" in line:
                return
    finally:
        job.cancel()


def _ended(job: Job) -> dict[str, Any]:
    """The last line."""
    try:
        return {"result": job.future.result()}
    except (Cancelled, CancelledError):
        return _error(RuntimeError("the question was dropped"))
    except _ERRORS as error:
        return _error(error)
    except Exception as error:  # what nobody foresaw is said, and the page lives on
        return _error(RuntimeError(f"{type(error).__name__}: {error}"))


def _error(error: Exception) -> dict[str, Any]:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return {"error": {"kind": type(error).__name__, "text": text}}


def _refused(status: int, error: Exception) -> Response:
    return JSONResponse(_error(error), status)


def facts(session: Session) -> dict[str, Any]:
    """What the page says about the model, and needs to know of it."""
    host = session.host
    with host.alone():
        digest = fingerprint(host)
    return {
        "name": host.name,
        "host": type(host.model).__name__,
        "dtype": str(host.dtype).removeprefix("torch."),
        "device": str(host.device),
        "digest": digest[:16],
        "layers": host.n_layers,
        "heads": int(host.cfg.n_heads),
        "context": host.n_ctx,
        "most_tokens": min(host.n_ctx, fields.MOST_TOKENS),
        "most_new": fields.MOST_NEW,
        "most_passes": fields.MOST_PASSES,
        "most_places": fields.MOST_PLACES,
        "sites": [kind for kind in asks.SITES if kind is None or _has(session, kind)],
        "scopes": list(fields.SCOPES),
        "levels": list(asks.LEVELS),
        "version": ls.__version__,
        "colours": {"low": markup.LOW, "high": markup.HIGH, "negative": markup.NEGATIVE, "missing": markup.MISSING},
    }


def _has(session: Session, kind: str) -> bool:
    try:
        session.host.sites(kind)
    except ValueError:
        return False
    return True
