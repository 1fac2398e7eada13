"""Who may ask the service for what: tokens, roles, sessions, pages of other sites."""

from __future__ import annotations

import hmac
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from serving import good_part, serve_here, write_product
from uflow.serve import security
from uflow.serve.run import listen
from uflow.serve.security import Caller, Sessions, Tokens, check_origin, is_loopback
from uflow.serve.service import Service

PLC, ANNA, BOSS = ("p" * 20, "a" * 20, "b" * 20)
FILE = f"""
[plc]
role = "predict"
token = "{PLC}"

[anna]
role = "operate"
token = "{ANNA}"

[boss]
role = "administer"
token = "{BOSS}"
"""


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    path = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    path.write_text(FILE)
    path.chmod(0o600)
    return Tokens(path)


@pytest.fixture(scope="module")
def client(served_model: Path, tokens: Tokens, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    root = tmp_path_factory.mktemp("secured")
    file = write_product(root, "tile", served_model)
    with serve_here(Service([file], root / "data"), tokens) as found:
        yield found


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


PREDICT, RESTART = "/v1/products/tile/predict", "/v1/products/tile/monitor/restart"


def test_what_needs_no_token(client: httpx2.Client) -> None:
    for path in ("/health", "/ready", "/version", "/openapi.json"):
        assert client.get(path).status_code == 200


@pytest.mark.parametrize("token", ["x", "wrong", PLC[:-1], PLC + "x", "ä" * 20])
def test_without_a_right_token_nothing_is_told(client: httpx2.Client, token: str) -> None:
    headers = {"authorization": f"Bearer {token}".encode()}
    for answer in (
        client.post(PREDICT, content=good_part(), headers=headers),
        client.get("/v1/products", headers=headers),
        client.get("/v1/parts/1", headers=headers),
        client.get("/metrics", headers=headers),
        client.post("/v1/products/none/predict", headers=headers),
    ):
        assert answer.status_code == 401
        assert answer.json() == {"error": "a token is needed"}
        assert answer.headers["www-authenticate"] == "Bearer"


def test_each_role_may_what_those_before_it_may(client: httpx2.Client) -> None:
    for token, predicts, restarts in ((PLC, 200, 403), (ANNA, 200, 200), (BOSS, 200, 200)):
        assert client.post(PREDICT, content=good_part(), headers=bearer(token)).status_code == predicts
        assert client.post(RESTART, headers=bearer(token)).status_code == restarts


def log_in(client: httpx2.Client, token: str, **headers: str) -> httpx2.Response:
    own = {"origin": str(client.base_url).rstrip("/")}
    return client.post("/login", data={"token": token}, headers=own | headers)


def test_a_browser_logs_in_and_out(client: httpx2.Client) -> None:
    answer = log_in(client, ANNA)
    assert answer.status_code == 303
    cookie = answer.headers["set-cookie"]
    for word in ("HttpOnly", "SameSite=strict", "Path=/", "Max-Age=43200"):
        assert word in cookie
    assert ANNA not in cookie
    key = {"cookie": cookie.partition(";")[0]}
    client.cookies.clear()
    origin = {"origin": str(client.base_url).rstrip("/")}
    assert client.get("/v1/products", headers=key).status_code == 200
    assert client.post(RESTART, headers=key | origin).status_code == 200
    assert client.post("/logout", headers=key | origin).status_code == 303
    assert client.get("/v1/products", headers=key).status_code == 401


def test_another_site_can_use_no_session(client: httpx2.Client) -> None:
    key = {"cookie": log_in(client, ANNA).headers["set-cookie"].partition(";")[0]}
    client.cookies.clear()
    for headers in (
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {},
    ):
        answer = client.post(RESTART, headers=key | headers)
        assert answer.status_code == 403, headers
    assert log_in(client, ANNA, origin="http://evil.example").status_code == 403
    assert log_in(client, "wrong").status_code == 403
    assert client.post("/login", content=bytes(100_000)).status_code == 413


def test_without_tokens_pages_of_other_sites_get_nothing(served_model: Path, tmp_path: Path) -> None:
    """A page that a browser on the same machine shows may send requests to 127.0.0.1, and rebind its own name to it."""
    file = write_product(tmp_path, "tile", served_model)
    with serve_here(Service([file], tmp_path / "data")) as client:
        assert client.get("/v1/products").status_code == 200
        assert client.get("/v1/products", headers={"host": "evil.example"}).status_code == 401
        for headers in ({"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}):
            assert client.post(PREDICT, content=good_part(), headers=headers).status_code == 403
        assert client.post(PREDICT, content=good_part()).status_code == 200


def test_tokens_are_compared_in_constant_time_and_all_of_them(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    compare = hmac.compare_digest
    monkeypatch.setattr(security.hmac, "compare_digest", lambda a, b: compared.append(len(a)) or compare(a, b))
    assert tokens.find(PLC) == Caller("plc", "predict")
    assert tokens.find("x") is None
    assert compared == [32] * 6


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no token"),
        ("[plc]\nrole = 'predict'\ntoken = 'short'", "at least 20 characters"),
        ("[plc]\nrole = 'root'\ntoken = '12345678901234567890'", "'predict', 'operate', 'administer'"),
        ("[plc]\ntoken = '12345678901234567890'", "no 'role'"),
        ("[plc", "is not TOML"),
    ],
)
def test_a_file_of_tokens_that_says_something_else_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ValueError, match=words) as error:
        Tokens(path)
    assert "12345678901234567890" not in str(error.value)


@pytest.mark.skipif(sys.platform == "win32", reason="no such permissions there")
def test_a_file_of_tokens_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(FILE)
    path.chmod(0o644)
    with pytest.raises(ValueError, match="chmod 600"):
        Tokens(path)


def test_sessions_end(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions()
    key = sessions.begin(Caller("anna", "operate"))
    assert sessions.find(key) == Caller("anna", "operate", by_cookie=True)
    assert sessions.find(key[:-1]) is None
    monkeypatch.setattr(Sessions, "MOST", 3)
    keys = [sessions.begin(Caller("anna", "operate")) for _ in range(3)]
    assert [sessions.find(each) is None for each in (key, *keys)] == [True, False, False, False]
    now = security.time.monotonic()
    monkeypatch.setattr(security.time, "monotonic", lambda: now + security.SESSION_S + 1)
    assert sessions.find(keys[0]) is None


def test_where_a_request_comes_from() -> None:
    token, cookie = Caller("plc", "predict"), Caller("anna", "operate", by_cookie=True)
    host = {"host": "line:8000"}
    assert check_origin("POST", host, token) is None
    assert check_origin("GET", {"sec-fetch-site": "cross-site"}, cookie) is None
    assert check_origin("POST", host | {"origin": "http://line:8000"}, cookie) is None
    assert check_origin("POST", host | {"sec-fetch-site": "same-origin"}, cookie) is None
    assert check_origin("POST", host, cookie) is not None
    assert check_origin("POST", host | {"origin": "http://line:9000"}, token) is not None


def test_this_machine() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "localhost:8000", "[::1]:80", "LOCALHOST")))
    assert not any(map(is_loopback, ("", "evil.example", "127.0.0.1.evil.example", "10.0.0.1:80", "[", "0.0.0.0")))


def test_beyond_this_machine_only_with_tokens(served_model: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from uflow.cli import app

    write_product(tmp_path, "tile", served_model)
    options = ("serve", str(tmp_path), "--data", str(tmp_path / "data"), "--port", "0")
    found = CliRunner().invoke(app, [*options, "--host", "0.0.0.0"])
    assert "--tokens" in str(found.exception)
    assert not (tmp_path / "data").exists()


def test_an_address_that_is_taken() -> None:
    with listen("127.0.0.1", 0) as bound:
        bound.listen()
        with pytest.raises(OSError, match="cannot listen on 127"):
            listen("127.0.0.1", bound.getsockname()[1])


def test_no_name_of_a_request_becomes_a_path(client: httpx2.Client, tmp_path: Path) -> None:
    before = sorted(os.walk(tmp_path.parent))
    for name in ("../../x.png", "/etc/passwd", "..\\x", "a\u202eb" * 3, "<script>"):
        answer = client.post(PREDICT, content=good_part(), params={"name": name}, headers=bearer(PLC))
        assert answer.status_code in (200, 400)
        if answer.status_code == 200:
            assert answer.json()["image"] == name
            part = client.get(answer.headers["location"], headers=bearer(PLC)).json()
            assert part["name"] == name
    assert sorted(os.walk(tmp_path.parent)) == before
