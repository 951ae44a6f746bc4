"""A headless Chromium for tests of pages, driven by its DevTools protocol over a pipe."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
# "basic" keeps the session from asking for a keyring; the rest is what has no place in a test
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions", "--mute-audio",
         "--password-store=basic", "--disable-background-networking", "--remote-debugging-pipe")


class Browser:
    """One tab. `events` are all messages since the page was opened, `requests` and `complaints` what they tell."""

    def __init__(self, read: int, write: int):
        self.source, self.sink = os.fdopen(read, "rb"), os.fdopen(write, "wb")
        self.numbers, self.events, self.session, self.rest = itertools.count(1), [], None, b""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: object) -> dict:
        """The result of a command; events that arrive before it are kept."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.sink.write(json.dumps(message).encode() + b"\0")
        self.sink.flush()
        while (answer := self._receive()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def _receive(self) -> dict:
        while b"\0" not in self.rest:
            part = self.source.read1(1 << 16)
            assert part, "the browser has ended"
            self.rest += part
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def open(self, page: Path, width: int = 1300, height: int = 900, script: bool = True, dark: bool = False) -> None:
        """Load a page from the disk and wait for it."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 600)
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.call("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def run(self, expression: str) -> object:
        """The value of a JavaScript expression in the page, promises awaited."""
        told = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    @property
    def requests(self) -> list[str]:
        """The addresses that the page asked for, but for data that it holds itself."""
        urls = [event["params"]["request"]["url"] for event in self.events
                if event.get("method") == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith("data:")]

    @property
    def complaints(self) -> list[dict]:
        """Errors, warnings and whatever a script wrote to the console."""
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [event["params"] for event in self.events if event.get("method") in kinds]


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser whose profile lies in `folder`."""
    (its_read, write), (read, its_write) = os.pipe(), os.pipe()
    redirect = f"exec 3<&{its_read} 4>&{its_write}"
    command = [BROWSER, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(["sh", "-c", f'{redirect}; exec "$@"', "sh", *command], pass_fds=(its_read, its_write),
                               stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    os.close(its_read)
    os.close(its_write)
    try:
        yield Browser(read, write)
    finally:
        process.terminate()
        process.wait()
