"""A headless Chromium, spoken to through its DevTools pipe: what a page asks for, and which pictures it shows."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # no name has an address
)
BEGIN = """
import os, sys
from fcntl import F_DUPFD_CLOEXEC, fcntl
ends = [fcntl(int(end), F_DUPFD_CLOEXEC, 10) for end in sys.argv[1:3]]
for end, place in zip(ends, (3, 4)):
    os.dup2(end, place)
os.execv(sys.argv[3], sys.argv[3:])
"""
SECONDS = 240.0  # for everything; a busy machine takes long to start a browser
PICTURES = "JSON.stringify([...document.images].map(i => [i.complete, i.naturalWidth, i.naturalHeight, i.alt]))"


class Seen(NamedTuple):
    """What a browser made of a page."""

    requests: list[str]  # addresses, the page's own first
    blocked: list[str]  # messages of the browser on what the page may not load
    pictures: list[tuple[bool, int, int, str]]  # complete, width, height, words instead


def find_browser() -> str | None:
    """Path of a Chromium, $NNSSL_BROWSER first."""
    return os.environ.get("NNSSL_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)


def open_page(browser: str, page: Path, profile: Path) -> Seen:
    """Load a file and wait until it is loaded."""
    with _started(browser, profile) as pipe:
        target = pipe.call("Target.createTarget", url="about:blank")["targetId"]
        pipe.session = pipe.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log"):
            pipe.call(f"{domain}.enable")
        pipe.call("Page.navigate", url=page.as_uri())
        pipe.wait_for("Page.loadEventFired")
        found = pipe.call("Runtime.evaluate", expression=PICTURES)["result"]["value"]
        requests = [event["request"]["url"] for event in pipe.events("Network.requestWillBeSent")]
        blocked = [event["entry"]["text"] for event in pipe.events("Log.entryAdded")]
    return Seen(requests, blocked, [tuple(picture) for picture in json.loads(found)])


class _Pipe:
    """Calls and events, one JSON text each, ended by a zero byte."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self.out, self.come, self.session = os.fdopen(to_browser, "wb"), from_browser, ""
        self.seen: list[dict[str, Any]] = []
        self.rest, self.number, self.until = b"", 0, time.monotonic() + SECONDS

    def call(self, method: str, **words: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": words}
        self.out.write(json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        self.out.flush()
        while (answer := self._read()).get("id") != self.number:
            self.seen.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def wait_for(self, event: str) -> None:
        while not self.events(event):
            self.seen.append(self._read())

    def events(self, name: str) -> list[dict[str, Any]]:
        return [message["params"] for message in self.seen if message.get("method") == name]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            assert time.monotonic() < self.until, "the browser did not answer"
            got = os.read(self.come, 1 << 16)
            assert got, "the browser ended"
            self.rest += got
        text, self.rest = self.rest.split(b"\0", 1)
        return json.loads(text)


@contextmanager
def _started(browser: str, profile: Path) -> Iterator[_Pipe]:
    """The browser reads descriptor 3 and writes descriptor 4."""
    (their_in, our_out), (our_in, their_out) = os.pipe(), os.pipe()
    words = [browser, *SWITCHES, f"--user-data-dir={profile}", "about:blank"]
    begin = [sys.executable, "-IS", "-c", BEGIN, str(their_in), str(their_out), *words]
    quiet = subprocess.DEVNULL
    running = subprocess.Popen(begin, pass_fds=(their_in, their_out), stdout=quiet, stderr=quiet)
    os.close(their_in)
    os.close(their_out)
    try:
        yield _Pipe(our_out, our_in)
    finally:
        running.terminate()
        try:
            running.wait(20)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
        os.close(our_in)
