"""Asking a language model for descriptions, against a local server that fails, stalls, truncates and talks rubbish."""

from __future__ import annotations

import email.utils
import json
import logging
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from scripts import generate_descriptions
from scripts.generate_descriptions import Endpoint, main, parse_sentences, retry_after
from utils.errors import InputError

KEY = "sk-very-secret-0123456789"


def reply(*sentences: str, finish: str = "stop") -> tuple[int, dict, bytes]:
    content = {"choices": [{"message": {"content": "\n".join(sentences)}, "finish_reason": finish}]}
    return 200, {}, json.dumps(content).encode()


def sentences(count: int, start: int = 0) -> list[str]:
    return [f"The thing has {number} round red dots." for number in range(start, start + count)]


@pytest.fixture
def server(monkeypatch):
    """server.plan: what to answer, in turn: (status, headers, body), or seconds to stall; then the last again."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.requests.append((self.path, self.headers.get("Authorization"), body))
            step = self.server.plan[0] if len(self.server.plan) == 1 else self.server.plan.pop(0)
            if isinstance(step, float):
                return self.server.stop.wait(step)
            status, headers, content = step
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    service = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service.plan, service.requests, service.stop = [reply(*sentences(5))], [], threading.Event()
    service.url = f"http://127.0.0.1:{service.server_port}/v1"
    thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield service
    service.stop.set()
    service.shutdown()
    thread.join()
    service.server_close()


@pytest.fixture
def start(server, tmp_path, caplog):
    (tmp_path / "names.txt").write_text("red_fox\n\nowl\n", encoding="utf-8")

    def run(*arguments: str) -> dict[str, list[str]]:
        with caplog.at_level(logging.DEBUG):
            main(["--base-url", server.url, "--model", "m", "--classnames", str(tmp_path / "names.txt"), "--out",
                  str(tmp_path / "out" / "d.json"), "--per-class", "5", "--wait", "0.01", "--timeout", "5", *arguments])
        return stored()

    def stored() -> dict[str, list[str]]:
        return json.loads((tmp_path / "out" / "d.json").read_text(encoding="utf-8"))

    run.stored, run.path = stored, tmp_path / "out" / "d.json"
    return run


def test_every_class_is_asked_for(start, server):
    assert start() == {"red_fox": sentences(5), "owl": sentences(5)}
    (path, authorization, body), *_ = server.requests
    assert (path, authorization, body["model"]) == ("/v1/chat/completions", f"Bearer {KEY}", "m")
    assert "'red fox'" in body["messages"][0]["content"] and len(server.requests) == 2


def test_a_server_without_a_key_gets_none(start, server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    start()
    assert all(authorization is None for _, authorization, _ in server.requests)


def test_failures_are_tried_again(start, server, caplog):
    cut = (200, {"Content-Length": "500"}, b'{"choices": [{"mess')  # the connection ends before the answer does
    rubbish = [(200, {}, b"<html>busy</html>"), (200, {}, b'{"choices": []}'), (200, {}, b"[1]"), cut]
    server.plan = [(500, {}, f"key {KEY} failed".encode()), (429, {}, b"slow down"), *rubbish, reply(*sentences(5))]
    assert start("--attempts", "7") == {"red_fox": sentences(5), "owl": sentences(5)}
    assert len(server.requests) == 8
    assert "HTTP 500" in caplog.text and "HTTP 429" in caplog.text and "attempt 6 of 7" in caplog.text
    assert KEY not in caplog.text


def test_a_server_that_stalls_is_asked_again(start, server, caplog):
    server.plan = [30.0, reply(*sentences(5))]
    began = time.monotonic()
    assert set(start("--timeout", "0.3")) == {"red_fox", "owl"}
    assert time.monotonic() - began < 25 and "imed out" in caplog.text


def test_retry_after_is_honoured(start, server, monkeypatch):
    pauses = []
    monkeypatch.setattr(generate_descriptions.time, "sleep", pauses.append)
    later = email.utils.formatdate(time.time() + 1000, usegmt=True)
    server.plan = [(429, {"Retry-After": "7"}, b""), (503, {"Retry-After": later}, b""), (500, {}, b""), (500, {}, b""),
                   reply(*sentences(5))]
    start("--wait", "4")
    assert pauses[0] == 7 and 900 < pauses[1] <= 1000  # it asked for more than the back-off's
    assert 8 <= pauses[2] <= 16 and 16 <= pauses[3] <= 32  # a random part of 4·2², 4·2³ seconds
    assert (retry_after(None), retry_after("-3"), retry_after("soon")) == (0, 0, 0)


def test_a_server_that_never_answers_ends_it_and_what_was_there_is_kept(start, server, caplog):
    server.plan = [reply(*sentences(5)), (500, {}, f"{KEY}".encode())]
    with pytest.raises(InputError, match="failed 3 times.*HTTP 500.*start again") as caught:
        start("--attempts", "3")
    assert KEY not in str(caught.value) + caplog.text and "\n" not in str(caught.value)
    assert start.stored() == {"red_fox": sentences(5)}
    assert [path.name for path in start.path.parent.iterdir()] == ["d.json"]
    server.plan = [reply(*sentences(5, start=9))]
    server.requests.clear()
    assert start() == {"red_fox": sentences(5), "owl": sentences(5, start=9)} and len(server.requests) == 1


@pytest.mark.parametrize("status, headers", [(401, {}), (404, {}), (400, {}), (302, {"Location": "http://127.0.0.1:1/"})])
def test_a_refusal_ends_it_at_once(start, server, status, headers):
    server.plan = [(status, headers, f'{{"error": "bad key {KEY}"}}'.encode())]
    with pytest.raises(InputError, match=f"HTTP {status}.*--base-url") as caught:
        start()
    assert len(server.requests) == 1 and KEY not in str(caught.value) and not start.path.exists()
    assert caught.value.__cause__ is None


def test_what_the_file_has_is_kept_and_filled_up(start, server):
    start.path.parent.mkdir()
    own = {"red_fox": ["My own sentence stays first."], "owl": sentences(6), "unused": ["It stays too."]}
    start.path.write_text(json.dumps(own), encoding="utf-8")
    assert start() == {**own, "red_fox": [*own["red_fox"], *sentences(4)]}
    before = start.path.stat().st_mtime_ns
    server.requests.clear()
    start()
    assert server.requests == [] and start.path.stat().st_mtime_ns == before
    start.path.write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="d.json is no valid JSON"):
        start()
    assert start.path.read_text(encoding="utf-8") == "{"


def test_a_cut_answer_loses_its_last_line_and_is_asked_for_more(start, server):
    server.plan = [reply(*sentences(3), "The thing has a long ta", finish="length"),
                   reply(*sentences(2), *sentences(2, start=3)), reply(*sentences(5))]
    assert start()["red_fox"] == sentences(5) and len(server.requests) == 3
    questions = [body["messages"][0]["content"] for *_, body in server.requests]
    assert questions[0] != questions[1] and "3 plain English" in questions[1]


def test_a_model_without_anything_to_say_is_named(start, server):
    server.plan = [reply("Sure!", "1. Fur", "")]
    with pytest.raises(InputError, match="'red_fox'.*no new usable sentence.*0 of 5"):
        start()


def test_sentences_are_cleaned_and_what_clip_cannot_read_is_left_out():
    answer = ("Here are five:\n1. A fox has a bushy tail.\n- \"Its coat is rust red.\"\n* Short.\n\n"
              "An owl  has\ttwo large eyes.\n" + "very " * 90 + "long tails hang down.\nIt ends without a stop")
    assert parse_sentences(answer, whole=True) == ["A fox has a bushy tail.", "Its coat is rust red.",
                                                   "An owl has two large eyes."]
    assert parse_sentences("One two three four.\nFive six seven eight.", whole=False) == ["One two three four."]


def test_wrong_arguments_are_named(start, server, tmp_path):
    with pytest.raises(InputError, match="'ftp://x'"):
        Endpoint("ftp://x", "m")
    (tmp_path / "names.txt").write_text("owl\nowl\n", encoding="utf-8")
    with pytest.raises(InputError, match="duplicated class name 'owl'"):
        start()
    assert server.requests == []
