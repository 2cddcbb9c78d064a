"""Checks of the built site: every page exists, nothing loads from another host, no link is dead.

These look at the HTML and the CSS. What a script might fetch later is not seen here; the scripts
themselves are files of the locked packages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

LOADING_ATTRIBUTES = {
    "audio": ("src",),
    "embed": ("src",),
    "iframe": ("src",),
    "image": ("href", "xlink:href"),
    "img": ("src", "srcset"),
    "input": ("src",),
    "object": ("data",),
    "script": ("src",),
    "source": ("src", "srcset"),
    "track": ("src",),
    "use": ("href", "xlink:href"),
    "video": ("src", "poster"),
}
# A browser fetches, or opens a connection to, the target of these relations. `canonical` and
# `search` are only information.
LOADING_RELATIONS = {
    *("stylesheet", "icon", "apple-touch-icon", "mask-icon", "manifest"),
    *("preload", "prefetch", "modulepreload", "preconnect", "dns-prefetch", "prerender"),
}
INERT_SCRIPTS = {"application/json", "application/ld+json", "text/plain"}
CSS_URL = re.compile(r"""(?:url\(\s*|@import\s+(?!url\())["']?([^"')\s;]+)""")
URL_IN_SCRIPT = re.compile(
    r"""["'`](https?://[^"'`\s]+|//[a-z0-9.-]+\.[a-z]{2,}/[^"'`\s]*)""", re.I
)
NAMESPACES = ("http://www.w3.org/", "https://www.w3.org/")


def is_external(address: str) -> bool:
    return (
        address.strip().lower().startswith(("http://", "https://", "//", "ftp://", "ws:", "wss:"))
    )


def css_addresses(css: str) -> list[str]:
    return CSS_URL.findall(re.sub(r"/\*.*?\*/", "", css, flags=re.S))


class Page(HTMLParser):
    """The addresses that a page loads, the links that it offers and the ids that it defines."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.loads: list[tuple[str, str]] = []  # what loads it, the address
        self.links: list[str] = []
        self.ids: set[str] = set()
        self._inside: str | None = None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.ids.update(values[name] for name in ("id", "name") if name in values)
        for name in LOADING_ATTRIBUTES.get(tag, ()):
            for part in values.get(name, "").split(",") if name == "srcset" else [values.get(name)]:
                if part and part.strip():
                    self.loads.append((f"<{tag} {name}>", part.split()[0]))
        relations = set(values.get("rel", "").lower().split())
        if tag == "link" and relations & LOADING_RELATIONS:
            self.loads.append((f"<link rel={values['rel']}>", values.get("href", "")))
        if tag == "meta" and values.get("http-equiv", "").lower() == "refresh":
            self.loads.append(("<meta refresh>", values.get("content", "").partition("=")[2]))
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        self.loads += [(f"<{tag} style>", a) for a in css_addresses(values.get("style", ""))]
        self._inside = None
        if tag == "style" or (tag == "script" and values.get("type") not in INERT_SCRIPTS):
            self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside == "style":
            self.loads += [("<style>", address) for address in css_addresses(data)]
        if self._inside == "script":
            found = URL_IN_SCRIPT.findall(data)
            self.loads += [("inline script", a) for a in found if not a.startswith(NAMESPACES)]


def external_loads(html: str) -> list[str]:
    """What a page loads from another host; links that a reader may click are allowed."""
    return [
        f"{where} loads {address}" for where, address in Page(html).loads if is_external(address)
    ]


def toc_pages(toc: Path) -> list[str]:
    """The pages of `_toc.yml`, without suffix, in reading order."""

    def walk(node: object) -> Iterator[str]:
        if isinstance(node, dict):
            for key, value in node.items():
                if key in ("root", "file"):
                    yield str(value)
                else:
                    yield from walk(value)
        elif isinstance(node, list):
            for value in node:
                yield from walk(value)

    return [re.sub(r"\.(md|ipynb)$", "", page) for page in walk(yaml.safe_load(toc.read_text()))]


def missing_pages(toc: Path, site: Path) -> list[str]:
    return [
        f"{page}: named in {toc.name}, but {page}.html was not built"
        for page in toc_pages(toc)
        if not (site / f"{page}.html").is_file()
    ]


def dead_links(site: Path, pages: dict[Path, Page]) -> list[str]:
    """Local links and loads whose file, or whose `#id` in a page, does not exist."""
    problems = []
    for path, page in pages.items():
        for address in [*page.links, *(address for _, address in page.loads)]:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc or is_external(address):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                problems.append(f"{path.relative_to(site)}: {address} leads to no file")
                continue
            ids = pages[target].ids | {"", "top"} if target in pages else {parts.fragment}
            if unquote(parts.fragment) not in ids:
                problems.append(f"{path.relative_to(site)}: {address} leads to no such id")
    return problems


def check_site(toc: Path, site: Path) -> list[str]:
    """Everything that is wrong with the built site, one line each; empty when all is well."""
    site = site.resolve()
    problems = missing_pages(toc, site)
    html = [p for p in sorted(site.rglob("*.html")) if "_static" not in p.relative_to(site).parts]
    pages = {p: Page(p.read_text(encoding="utf-8")) for p in html}
    for path, page in pages.items():
        for where, address in page.loads:
            if is_external(address):
                problems.append(f"{path.relative_to(site)}: {where} loads {address}")
    for sheet in sorted(site.rglob("*.css")):
        for address in css_addresses(sheet.read_text(encoding="utf-8")):
            if is_external(address):
                problems.append(f"{sheet.relative_to(site)}: loads {address}")
    generated = {site / "search.html", site / "genindex.html"}
    return problems + dead_links(site, {p: v for p, v in pages.items() if p not in generated})
