"""clip.download against a server on this machine: whole, cut, stalled, wrong, and with no server at all."""

import hashlib
import logging
import random
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

import clip
from clip.clip import MODELS
from clip.model import CLIP

PAYLOAD = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(PAYLOAD).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """/good, /redirect, /wrong, /cut (half, then hangs up), /plain (no Range), /shifted (all, but called a part),
    /stall, /error, /missing."""

    def do_GET(self):
        self.server.requests.append((self.path, self.headers["Range"]))
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/good")
            return self.end_headers()
        if self.path in ("/missing", "/error"):
            return self.send_error(404 if self.path == "/missing" else 503)
        start = int((self.headers["Range"] or "bytes=0-")[6:-1]) if self.path != "/plain" else 0
        if start >= len(PAYLOAD):
            return self.send_error(416)
        body = (bytes(len(PAYLOAD)) if self.path == "/wrong" else PAYLOAD)[start:]
        if self.path == "/shifted":
            body = PAYLOAD
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if start:
            first = 0 if self.path == "/shifted" else start
            self.send_header("Content-Range", f"bytes {first}-{len(PAYLOAD) - 1}/{len(PAYLOAD)}")
        self.end_headers()
        if self.path in ("/cut", "/stall"):
            self.wfile.write(body[:len(body) // 2])
            self.wfile.flush()
            if self.path == "/stall":
                self.server.released.wait(10)
        else:
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@contextmanager
def serving(handler=Handler):
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.requests, server.released = [], threading.Event()
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", server.requests
        server.released.set()
        server.shutdown()


@pytest.fixture(scope="module")
def server():
    with serving() as address_and_requests:
        yield address_and_requests


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.mark.parametrize("path", ["/good", "/redirect", "/plain"])
def test_download(path, server, tmp_path):
    target = tmp_path / "new" / "folder" / "model.pt"
    assert clip.download(server[0] + path, SHA256, target) == target
    assert target.read_bytes() == PAYLOAD
    assert list(target.parent.iterdir()) == [target]


def test_download_goes_on_where_it_was_cut(server, tmp_path):
    server[1].clear()
    with pytest.raises(clip.ClipError, match="the connection ended after"):
        clip.download(server[0] + "/cut", SHA256, tmp_path / "model.pt", attempts=2)
    assert [header for _, header in server[1]] == [None, "bytes=150000-"]
    assert (tmp_path / "model.pt.part").read_bytes() == PAYLOAD[:225_000] and not (tmp_path / "model.pt").exists()
    clip.download(server[0] + "/good", SHA256, tmp_path / "model.pt")
    assert server[1][-1] == ("/good", "bytes=225000-")
    assert (tmp_path / "model.pt").read_bytes() == PAYLOAD


@pytest.mark.parametrize("path", ["/good", "/plain"])
@pytest.mark.parametrize("part", [PAYLOAD[:100_000], bytes(100_000), PAYLOAD, bytes(len(PAYLOAD))])
def test_download_mends_what_an_earlier_attempt_left(path, part, server, tmp_path):
    (tmp_path / "model.pt.part").write_bytes(part)
    clip.download(server[0] + path, SHA256, tmp_path / "model.pt")
    assert (tmp_path / "model.pt").read_bytes() == PAYLOAD
    assert not (tmp_path / "model.pt.part").exists()


@pytest.mark.parametrize("path, words, requests", [
    ("/wrong", f"SHA-256.*{SHA256} was expected", 1),
    ("/missing", "404", 1),
    ("/error", "503", 3),
])
def test_download_that_fails_names_url_file_and_mend(path, words, requests, server, tmp_path):
    server[1].clear()
    with pytest.raises(clip.ClipError, match=rf"could not download {server[0]}{path} .*{words}.*fetch this file "
                                             r"elsewhere and put it at .*model\.pt"):
        clip.download(server[0] + path, SHA256, tmp_path / "model.pt")
    assert len(server[1]) == requests
    assert list(tmp_path.iterdir()) == []


def test_download_that_stalls_ends(server, tmp_path):
    begin = time.monotonic()
    with pytest.raises(clip.ClipError, match="timed out"):
        clip.download(server[0] + "/stall", SHA256, tmp_path / "model.pt", timeout=0.3, attempts=2)
    assert time.monotonic() - begin < 5
    assert not (tmp_path / "model.pt").exists()
    assert (tmp_path / "model.pt.part").stat().st_size == 225_000


class Proxy(BaseHTTPRequestHandler):
    """Answers every request itself, and remembers which address was asked of it."""

    def do_GET(self):
        self.server.requests.append((self.path, self.headers["Range"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(PAYLOAD)))
        self.end_headers()
        self.wfile.write(PAYLOAD)

    def log_message(self, *args):
        pass


def test_a_proxy_in_the_environment_is_used(tmp_path, monkeypatch):
    with serving(Proxy) as (address, requests):
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, address)
        clip.download("http://weights.invalid/model.pt", SHA256, tmp_path / "model.pt")
        assert requests == [("http://weights.invalid/model.pt", None)]
    assert (tmp_path / "model.pt").read_bytes() == PAYLOAD


def test_a_proxy_that_does_not_answer_is_named_in_the_reason(tmp_path, monkeypatch):
    with serving() as (address, _):
        pass
    monkeypatch.setenv("http_proxy", address)
    with pytest.raises(clip.ClipError, match="could not download http://weights.invalid/.*refused.*fetch this"):
        clip.download("http://weights.invalid/model.pt", SHA256, tmp_path / "model.pt", timeout=2)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("kind", ["socks5", "socks5h", "socks4", "socks"])
def test_a_socks_proxy_is_named_and_not_taken_for_an_http_proxy(scheme, kind, tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        port = listener.getsockname()[1]
        for name in (f"{scheme}_proxy", f"{scheme.upper()}_PROXY"):
            monkeypatch.setenv(name, f"{kind}://user:secret@127.0.0.1:{port}")
        with pytest.raises(clip.ClipError) as error:
            clip.download(f"{scheme}://weights.invalid/model.pt", SHA256, tmp_path / "model.pt", timeout=2)
        with pytest.raises(BlockingIOError):
            listener.accept()  # nobody came
    message = str(error.value)
    assert f"{scheme}_proxy is the SOCKS proxy {kind}://127.0.0.1:{port}" in message and "secret" not in message
    assert "HTTP proxy" in message and str(tmp_path / "model.pt") in message and "\n" not in message
    assert f"could not download {scheme}://weights.invalid/model.pt" in message


def test_a_socks_proxy_that_is_not_for_this_address_does_no_harm(server, tmp_path, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "socks5://127.0.0.1:9")
    clip.download(server[0] + "/good", SHA256, tmp_path / "model.pt")  # no_proxy names it
    assert (tmp_path / "model.pt").read_bytes() == PAYLOAD


def test_what_came_before_a_redirection_is_not_fetched_again(server, tmp_path):
    server[1].clear()
    (tmp_path / "model.pt.part").write_bytes(PAYLOAD[:100_000])
    clip.download(server[0] + "/redirect", SHA256, tmp_path / "model.pt")
    assert server[1] == [("/redirect", "bytes=100000-"), ("/good", "bytes=100000-")]
    assert (tmp_path / "model.pt").read_bytes() == PAYLOAD


def test_another_range_than_was_asked_for_is_not_appended(server, tmp_path):
    """A server that answers 206 with the wrong bytes: what came is thrown away and fetched whole."""
    (tmp_path / "model.pt.part").write_bytes(PAYLOAD[:100_000])
    with pytest.raises(clip.ClipError, match="asked for bytes from 100,000 on, but the server sent bytes 0-"):
        clip.download(server[0] + "/shifted", SHA256, tmp_path / "model.pt", attempts=1)
    assert not (tmp_path / "model.pt").exists()
    clip.download(server[0] + "/shifted", SHA256, tmp_path / "model.pt")
    assert (tmp_path / "model.pt").read_bytes() == PAYLOAD


def test_no_server_is_one_clear_error(tmp_path):
    with serving() as (address, _):
        pass
    with pytest.raises(clip.ClipError, match="could not download .*Without a network"):
        clip.download(address, SHA256, tmp_path / "model.pt", timeout=1)


def test_named_model_is_downloaded_once_and_mended(tmp_path, monkeypatch, caplog):
    """The whole way from a name to a model, with a small file in the place of OpenAI's."""
    torch.save(CLIP(32, 16, 1, 64, 8, 10, 50, 64, 1, 1).state_dict(), tmp_path / "model.pt")
    data = (tmp_path / "model.pt").read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    served = tmp_path / "served" / sha256 / "ViT-B-32.pt"
    served.parent.mkdir(parents=True)
    served.write_bytes(data)
    monkeypatch.setitem(MODELS, "ViT-B/32", (sha256, "ViT-B-32.pt"))
    monkeypatch.setattr("clip.clip.SOURCE", (tmp_path / "served").as_uri())
    cached = tmp_path / "cache" / "ViT-B-32.pt"
    clip.load("ViT-B/32", download_root=tmp_path / "cache")
    assert cached.read_bytes() == data
    served.unlink()
    clip.load("ViT-B/32", download_root=tmp_path / "cache")  # from the cache
    served.write_bytes(data)
    cached.write_bytes(data[:-1])
    with caplog.at_level(logging.WARNING, logger="clip"):
        clip.load("ViT-B/32", download_root=tmp_path / "cache")
    assert "ViT-B-32.pt is damaged" in caplog.text and cached.read_bytes() == data
