"""For tests of pages: what stands in them, and a headless Chromium, driven by its DevTools protocol over two pipes."""

from __future__ import annotations

import itertools
import json
import os
import select
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None) if os.name == "posix" else None
FLAGS = ("--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run",
         "--disable-extensions", "--disable-background-networking", "--password-store=basic")  # no keyring is asked for
PATIENCE = 60  # seconds for an answer
CONSOLE = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")


class PageSource(HTMLParser):
    """All tags of a page with their attributes, and each text, as a browser takes them."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


class Browser:
    """One tab; `events` are all messages since its page was opened."""

    def __init__(self, read: int, write: int):
        self.read, self.write, self.rest = read, write, b""
        self.numbers, self.events, self.session = itertools.count(1), [], {}
        target = self.call("Target.createTarget", url="about:blank")
        self.session = {"sessionId": self.call("Target.attachToTarget", **target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: object) -> dict:
        """The result of a command."""
        number = next(self.numbers)
        os.write(self.write, json.dumps({"id": number, "method": method, "params": params, **self.session}).encode()
                 + b"\0")
        while (answer := self._receive()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def _receive(self) -> dict:
        while b"\0" not in self.rest:
            assert select.select([self.read], [], [], PATIENCE)[0], "the browser does not answer"
            part = os.read(self.read, 1 << 16)
            assert part, "the browser has ended"
            self.rest += part
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def open(self, page: Path, width: int = 1300, script: bool = True, dark: bool = False) -> None:
        """Load a page from the disk and wait for it; below 600 px it is a phone's."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1,
                  mobile=width < 600)
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.call("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not self._told("Page.loadEventFired"):
            self.events.append(self._receive())

    def run(self, expression: str) -> object:
        """The value of a JavaScript expression in the page, a promise's once it is kept."""
        told = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key by its name, such as Tab or ArrowDown, or a letter."""
        codes = {"Tab": 9, "Enter": 13, "ArrowDown": 40}
        text = {"text": key} if key not in codes else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, **text,
                  windowsVirtualKeyCode=codes.get(key, 0))
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=codes.get(key, 0))

    @property
    def requests(self) -> list[str]:
        """The addresses that the page has asked for, but for data that it holds itself."""
        urls = [params["request"]["url"] for params in self._told("Network.requestWillBeSent")]
        return [url for url in urls if not url.startswith("data:")]

    @property
    def complaints(self) -> list[dict]:
        """Errors, warnings and whatever a script wrote to the console."""
        return self._told(*CONSOLE)

    def _told(self, *methods: str) -> list[dict]:
        return [event["params"] for event in self.events if event.get("method") in methods]


@contextmanager
def start_browser(profile: Path) -> Iterator[Browser]:
    """A browser that keeps its profile in an empty folder; it reads commands from its file 3 and answers in file 4."""
    (its_read, write), (read, its_write) = os.pipe(), os.pipe()
    pipes = [(os.POSIX_SPAWN_DUP2, its_read, 3), (os.POSIX_SPAWN_DUP2, its_write, 4)]
    silence = [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_WRONLY, 0) for stream in (1, 2)]
    process = os.posix_spawn(BROWSER, [BROWSER, *FLAGS, f"--user-data-dir={profile}"], os.environ,
                             file_actions=[*pipes, *silence])
    os.close(its_read)
    os.close(its_write)
    try:
        yield Browser(read, write)
    finally:
        os.kill(process, signal.SIGTERM)
        os.waitpid(process, 0)
        os.close(read)
        os.close(write)
