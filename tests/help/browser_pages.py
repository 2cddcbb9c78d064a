"""Pages in a real Chromium: what they log, load and break, and what axe finds."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
HOME = "127.0.0.1"
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@contextmanager
def chromium() -> Iterator[Any]:
    """The system's Chromium without a window; skips where it or playwright is absent."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is absent: `make browser-test` installs it"
    )
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no Chromium on this machine: none of {', '.join(BROWSERS)} is installed")
    alone = ["--no-sandbox"] if os.geteuid() == 0 else []  # the sandbox refuses root
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=[*alone, "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server of this folder that only this machine reaches."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer((HOME, 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://{HOME}:{server.server_port}"
    server.shutdown()
    server.server_close()


@dataclass
class Watched:
    """A page, and what it must not do: log an error, or ask another host."""

    page: Any
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.route("**/*", self._request)

    def _console(self, message: Any) -> None:
        if message.type == "error":
            self.faults.append(f"console: {message.text}")

    def _request(self, route: Any) -> None:
        address = urlsplit(route.request.url)
        if address.scheme in ("http", "https", "ws", "wss") and address.hostname != HOME:
            self.faults.append(f"request: {route.request.url}")
            route.abort()
        else:
            route.continue_()

    def wider_than_the_window(self) -> int:
        """How many pixels the page can be scrolled sideways."""
        return self.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )


@contextmanager
def opened(browser: Any, **options: Any) -> Iterator[Watched]:
    """A fresh page; `options` are those of a playwright context."""
    context = browser.new_context(**{"viewport": DESKTOP, **options})
    try:
        yield Watched(context.new_page())
    finally:
        context.close()


def document(*views: Any, attributes: str = "", body: str = "") -> str:
    parts = "\n".join(view._repr_html_() for view in views)
    return (
        f'<!doctype html><html lang="en" {attributes}><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Views</title>'
        f"</head><body {body}><main><h1>Views</h1>{parts}</main></body></html>"
    )


def violations(
    page: Any, selector: str = "html", without: tuple[str, ...] = (), skip: tuple[str, ...] = ()
) -> list[str]:
    """What axe finds wrong in the part of a page that a selector names: one line a rule.

    Args:
        without: selectors of parts that are not looked at.
        skip: rules that are not looked at.
    """
    base = pytest.importorskip(
        "axe_playwright_python.base", reason="axe-playwright-python is absent"
    )
    page.evaluate(base.AXE_SCRIPT)
    options = {
        "runOnly": {"type": "tag", "values": TAGS},
        "rules": {rule: {"enabled": False} for rule in skip},
        "resultTypes": ["violations"],
        "preload": False,  # else axe reads the style sheets again, by addresses that are wrong
    }
    part = {"include": [[selector]], "exclude": [[name] for name in without]}
    found = page.evaluate("([part, options]) => axe.run(part, options)", [part, options])
    return [
        f"{v['id']} ({v['impact']}), {len(v['nodes'])}: {v['nodes'][0]['html'][:160]} "
        f"{v['nodes'][0]['failureSummary'][:300]}"
        for v in found["violations"]
    ]
