"""The page over HTTP: who is let in, what is refused and by which code, and what goes over the wire."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

import lens_scopes as ls
from lens_scopes.serve import Session, read
from lens_scopes.serve.guard import MOST_BYTES, POLICY, Guard
from test_serve import ABOUT, CASE, PAIR, numbers, shape_of

httpx = pytest.importorskip("httpx")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

PORT = 8123
HOST, TOKEN = f"127.0.0.1:{PORT}", "the-token"
COOKIE = f"lens-scopes-{PORT}={TOKEN}"
READ = {"host": HOST, "cookie": COOKIE}
ASK = {**READ, "origin": f"http://{HOST}", "content-type": "application/json", "content-length": "2"}


def sent(method, path, headers, query=b""):
    """What the guard answers: the code, the headers, whether what it guards was reached."""
    reached, out = [], []

    async def receive():
        return {"type": "http.disconnect"}

    async def app(scope, receive, send):
        reached.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"in"})

    async def send(message):
        out.append(message)

    raw = [(k.encode(), v.encode()) for k, v in (headers.items() if isinstance(headers, dict) else headers)]
    scope = {"type": "http", "method": method, "path": path, "query_string": query, "headers": raw}
    asyncio.run(Guard(app, TOKEN)(scope, receive, send))
    answered = {k.decode(): v.decode() for k, v in out[0]["headers"]}
    return out[0]["status"], answered, bool(reached)


def without(headers, *names):
    return {k: v for k, v in headers.items() if k not in names}


REFUSED = {
    "no cookie": (401, "GET", "/", without(READ, "cookie")),
    "another cookie": (401, "GET", "/", READ | {"cookie": f"lens-scopes-{PORT}=x"}),
    "the cookie of another port": (401, "GET", "/", READ | {"cookie": f"lens-scopes-1={TOKEN}"}),
    "a foreign host": (421, "GET", "/", READ | {"host": f"evil.example:{PORT}"}),
    "a host that begins like ours": (421, "GET", "/", READ | {"host": f"127.0.0.1.evil.example:{PORT}"}),
    "a host that ends like ours": (421, "GET", "/", READ | {"host": f"evil-localhost:{PORT}"}),
    "a user in the host": (421, "GET", "/", READ | {"host": f"localhost@evil.example:{PORT}"}),
    "another address of the loopback": (421, "GET", "/", READ | {"host": f"127.0.0.2:{PORT}"}),
    "no host": (421, "GET", "/", without(READ, "host")),
    "two hosts": (400, "GET", "/", [*READ.items(), ("host", HOST)]),
    "a foreign origin": (403, "POST", "/api/1/score", ASK | {"origin": "http://evil.example"}),
    "the origin null": (403, "POST", "/api/1/score", ASK | {"origin": "null"}),
    "the origin of another port": (403, "POST", "/api/1/score", ASK | {"origin": f"http://127.0.0.1:{PORT + 1}"}),
    "the origin of another name": (403, "POST", "/api/1/score", ASK | {"origin": f"http://localhost:{PORT}"}),
    "the origin by https": (403, "POST", "/api/1/score", ASK | {"origin": f"https://{HOST}"}),
    "two origins": (403, "POST", "/api/1/score", [*ASK.items(), ("origin", "http://evil.example")]),
    "no origin": (403, "POST", "/api/1/score", without(ASK, "origin")),
    "a foreign origin that reads": (403, "GET", "/api/1/model", READ | {"origin": "http://evil.example"}),
    "a form": (415, "POST", "/api/1/score", ASK | {"content-type": "application/x-www-form-urlencoded"}),
    "plain text": (415, "POST", "/api/1/score", ASK | {"content-type": "text/plain; application/json"}),
    "no type": (415, "POST", "/api/1/score", without(ASK, "content-type")),
    "cross-site": (403, "GET", "/api/1/model", READ | {"sec-fetch-site": "cross-site"}),
    "same-site": (403, "GET", "/static/main.js", READ | {"sec-fetch-site": "same-site"}),
    "cross-site, asking": (403, "POST", "/api/1/score", ASK | {"sec-fetch-site": "cross-site"}),
    "too large": (413, "POST", "/api/1/score", ASK | {"content-length": str(MOST_BYTES + 1)}),
    "no length": (411, "POST", "/api/1/score", without(ASK, "content-length")),
    "a length that is none": (411, "POST", "/api/1/score", ASK | {"content-length": "-1"}),
    "two lengths": (411, "POST", "/api/1/score", [*ASK.items(), ("content-length", "3")]),
    "in chunks": (411, "POST", "/api/1/score", ASK | {"transfer-encoding": "chunked"}),
    "another method": (405, "PUT", "/api/1/score", ASK),
    "options": (405, "OPTIONS", "/api/1/score", READ),
}


@pytest.mark.parametrize(("code", "method", "path", "headers"), REFUSED.values(), ids=REFUSED)
def test_the_guard_refuses(code, method, path, headers):
    status, answered, reached = sent(method, path, headers)
    assert (status, reached) == (code, False)
    assert answered["content-security-policy"] == POLICY
    assert "set-cookie" not in answered


@pytest.mark.parametrize(
    ("query", "code"),
    [(b"token=wrong", 403), (b"token=", 401), (b"token=the-token2", 403), (b"token=x&token=the-token", 403)],
)
def test_a_wrong_token(query, code):
    assert sent("GET", "/", {"host": HOST}, query)[0::2] == (code, False)
    assert sent("POST", "/", ASK, b"token=the-token")[0] == 403
    assert sent("GET", "/api/1/model", {"host": HOST}, b"token=the-token")[0] == 403


@pytest.mark.parametrize("host", [HOST, f"localhost:{PORT}", f"[::1]:{PORT}", "localhost", "LocalHost:9"])
def test_the_token_becomes_a_cookie(host):
    status, answered, reached = sent("GET", "/", {"host": host}, b"token=the-token")
    assert (status, answered["location"], reached) == (303, "/", False)
    cookie, *rules = answered["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} == set(rules)
    assert sent("GET", "/", {"host": host, "cookie": f"other=1; {cookie}"})[0::2] == (200, True)


def test_a_link_from_another_page_opens_it_but_nothing_else_of_another_page_does():
    """A notebook's page is another site: no cookie follows a redirect from there, so that a page of ours goes on."""
    elsewhere = {"host": HOST, "sec-fetch-site": "cross-site"}
    status, answered, reached = sent("GET", "/", elsewhere | {"sec-fetch-mode": "navigate"}, b"token=the-token")
    assert (status, reached) == (200, False)
    assert "set-cookie" in answered
    for mode in ("no-cors", "cors", "same-origin"):
        assert sent("GET", "/", elsewhere | {"sec-fetch-mode": mode}, b"token=the-token")[0] == 403


def test_what_is_let_in_has_the_headers():
    for method, headers in (("GET", READ), ("HEAD", READ), ("POST", ASK)):
        status, answered, reached = sent(method, "/api/1/score", headers)
        assert (status, reached) == (200, True)
        assert answered["content-security-policy"] == POLICY
        assert answered["x-content-type-options"] == "nosniff"
        assert answered["cross-origin-resource-policy"] == "same-origin"
        assert answered["cache-control"] == "no-store"
    assert "'unsafe-inline'" not in POLICY
    assert "default-src 'none'" in POLICY
    assert "trusted-types lit-html" in POLICY


def test_nothing_but_http():
    out = []

    async def send(message):
        out.append(message)

    scope = {"type": "websocket", "path": "/", "query_string": b"", "headers": []}

    async def app(scope, receive, send):
        raise AssertionError("reached")

    asyncio.run(Guard(app, TOKEN)(scope, app, send))
    assert out[0]["status"] == 403


@pytest.fixture(scope="module")
def served():
    with ls.serve(ls.demo.load(), block=False) as running:
        yield running


@pytest.fixture
def client(served):
    with httpx.Client(base_url=f"http://127.0.0.1:{served.port}", timeout=60) as client:
        assert client.get(served.address).status_code == 303
        yield client


def ask(client, verb, fields):
    origin = {"origin": str(client.base_url).rstrip("/")}
    return client.post(f"/api/1/{verb}", json=fields, headers=origin)


def lines(response):
    return [json.loads(line) for line in response.text.splitlines()]


def test_the_address_is_on_this_machine_and_has_the_token(served):
    assert served.address.startswith("http://127.0.0.1:")
    assert len(served.address.split("token=")[1]) >= 32
    with httpx.Client() as stranger:
        assert stranger.get(f"http://127.0.0.1:{served.port}/").status_code == 401
    # No other address of this machine listens.
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", served.port), timeout=2)


def test_every_file_of_the_page_comes_and_nothing_else(client):
    from lens_scopes.serve.app import STATIC

    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "/static/main.js" in page.text
    for name, kind in STATIC.items():
        found = client.get(f"/static/{name}")
        assert found.headers["content-type"].startswith(kind)
        assert len(found.content) > 100
    for path in (
        "/static/LICENSE.lit", "/static/..%2fapp.py", "/static/%2e%2e/app.py", "/static/../../app.py", "/app.py",
        "/static/index.html", "/figure/..%2f..%2fapp.py", "/figure/0", "/etc/passwd", "/api/1/score/../model/x",
    ):  # fmt: skip
        assert client.get(path).status_code == 404, path
    assert client.get("/api/1/score").status_code == 405


def test_an_answer_comes_in_lines(client):
    found = lines(ask(client, "measure", {**PAIR, "largest": 10}))
    assert [list(line) for line in found] == [["progress", "what"], ["progress", "what"], ["result"]]
    session = Session(ls.demo.load())
    assert numbers(found[-1]["result"]["grids"]) == numbers(
        session.ask(read("measure", {**PAIR, "largest": 10}))["grids"]
    )
    session.close()


@pytest.mark.parametrize(
    ("verb", "fields", "code"),
    [("score", {"prompt": "a"}, 400), ("score", {**ABOUT, "x": 1}, 400), ("shell", {}, 404), ("score", [1], 400)],
)
def test_bad_questions_are_refused_before_they_wait(client, verb, fields, code):
    response = ask(client, verb, fields)
    assert response.status_code == code
    assert response.json()["error"]["text"]


def test_bad_json(client):
    headers = {"origin": str(client.base_url).rstrip("/"), "content-type": "application/json"}
    for body in (b"{", b"", b"\xff\xfe", b"[" * 100_000):
        assert client.post("/api/1/score", content=body, headers=headers).status_code == 400


@pytest.mark.parametrize("scope", [{"kind": "semantic", "target": "two words"}, {"kind": "semantic", "target": 10**6}])
def test_what_the_package_refuses_is_one_sentence(client, scope):
    (line,) = lines(ask(client, "score", {**ABOUT, "scope": scope}))
    assert line["error"]["kind"] == "ValueError"
    assert "Traceback" not in line["error"]["text"]


def test_a_figure_is_sandboxed(client):
    answer = lines(ask(client, "edges", {**ABOUT, "layer": 1, "head": 1}))[-1]["result"]
    figure = client.get(f"/figure/{answer['figure']}")
    assert figure.headers["content-security-policy"] == "sandbox allow-scripts; frame-ancestors 'self'"
    assert "AttentionHeads" in figure.text


def test_malformed_heads_are_not_answered_with_the_page(served):
    token = served.address.split("token=")[1]
    for head in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: 127.0.0.1\r\n\r\n",
        f"GET http://evil.example/?token={token} HTTP/1.1\r\nHost: evil.example\r\n\r\n".encode(),
        b"GET / HTTP/1.0\r\n\r\n",
        b"\x16\x03\x01\x00\x00\r\n\r\n",
        b"POST /api/1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", served.port), timeout=5) as raw:
            raw.sendall(head)
            answered = raw.recv(4096)
        assert b" 200 " not in answered.split(b"\r\n")[0], head
        assert b"main.js" not in answered, head


def test_twenty_requests_at_a_time(client, served):
    asked = [{**ABOUT, "position": n % 15} for n in range(20)]
    expected = [numbers(served.session.ask(read("score", one))["grids"]) for one in asked]
    served.session._results.clear()
    found = {}

    def one(n):
        found[n] = numbers(lines(ask(client, "score", asked[n]))[-1]["result"]["grids"])

    threads = [threading.Thread(target=one, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n] for n in range(20)] == expected


def test_who_goes_is_not_answered(client, served, monkeypatch):
    """In the middle, and while waiting: over a real connection that is closed."""
    from lens_scopes.serve import answers, asks

    model = served.session.host.model
    before, ran, answered = shape_of(model), [], answers.answer

    def answer(ask, engine):
        ran.append(type(ask).__name__)
        while isinstance(ask, asks.Generate) and not time.sleep(0.01):  # until nobody waits for it
            engine.job.check()
        return answered(ask, engine)

    monkeypatch.setattr(answers, "answer", answer)
    url = "/api/1/{}"
    headers = {"origin": str(client.base_url).rstrip("/")}
    long = {"prompt": CASE.prompt, "n": 64, "seed": 1, "temperature": 9}
    with client.stream("POST", url.format("generate"), json=long, headers=headers):
        while not ran:
            time.sleep(0.01)
        with client.stream("POST", url.format("flow"), json=ABOUT, headers=headers) as second:
            assert json.loads(next(second.iter_lines())) == {"queued": 1}
    for _ in range(100):
        if not served.session._jobs:
            break
        time.sleep(0.05)
    assert not served.session._jobs
    assert ran == ["Generate"]
    assert shape_of(model) == before
    assert lines(ask(client, "tokens", {"prompt": "the"}))[-1]["result"]["tokens"]


def test_prompts_are_not_logged(client, capfd):
    ask(client, "tokens", {"prompt": "nobody's business"})
    assert "nobody" not in "".join(capfd.readouterr())


def test_a_taken_port(served):
    with pytest.raises(OSError, match="in use"):
        ls.serve(ls.demo.load(), served.port, block=False)


def hear_ctrl_c():
    """Whoever runs the tests in the background of a script ignores it, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_from_a_shell():
    """The command prints the address, serves, and ends at Ctrl-C; without the extra, one line."""
    code = "from lens_scopes.commands.main import main; main()"
    command = [sys.executable, "-u", "-c", code, "serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c) as running:
        try:
            address = running.stdout.readline().split()[-1]
            with httpx.Client(follow_redirects=True) as client:
                assert "lens_scopes" in client.get(address).text
            running.send_signal(signal.SIGINT)
            assert running.wait(20) == 0
        finally:
            running.kill()
    without = f"import sys; sys.modules['uvicorn'] = None; {code}"
    done = subprocess.run([sys.executable, "-c", without, "serve"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert 'pip install "lens-scopes[serve]"' in done.stderr.strip().splitlines()[-1]
