"""The documentation's site: it builds without a warning, its links lead somewhere, it loads nothing from elsewhere."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest

import maw

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

LOADING = {
    "audio": ("src",),
    "embed": ("src",),
    "iframe": ("src",),
    "img": ("src", "srcset"),
    "image": ("href", "xlink:href"),
    "input": ("src",),
    "link": ("href",),
    "object": ("data",),
    "script": ("src",),
    "source": ("src", "srcset"),
    "use": ("href", "xlink:href"),
    "video": ("src", "poster"),
}
"""Attributes whose address a browser loads by itself."""

ELSEWHERE = re.compile(r"^(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)


class Page(HTMLParser):
    """What a page links to, what it loads, and which anchors it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = {""}
        self.styles = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        self.styles = tag == "style"
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag == "link" and values.get("rel") in ("next", "prev", "author", "canonical"):
            self.links.append(values.get("href", ""))
        else:
            self.loaded += [values[name] for name in LOADING.get(tag, ()) if name in values]
        self.loaded += loaded_by_style(values.get("style", ""))

    def handle_data(self, data: str) -> None:
        if self.styles:
            self.loaded += loaded_by_style(data)


def loaded_by_style(css: str) -> list[str]:
    """The addresses that a style sheet loads."""
    found = re.findall(r"url\(\s*['\"]?([^'\")]+)", css) + re.findall(r"@import\s+['\"]([^'\"]+)", css)
    return [address for address in found if not address.startswith(("data:", "#"))]


def problems(site: Path) -> list[str]:
    """Broken links and anchors of all pages, and everything that is loaded from elsewhere or is not there."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []

    def look(path: Path, address: str, kind: str) -> None:
        name, _, anchor = address.partition("#")
        target = (path.parent / unquote(name.partition("?")[0])).resolve() if name else path
        known = pages[target].anchors if target in pages else {anchor}
        if not target.is_file() or unquote(anchor) not in known:
            found.append(f"{path.relative_to(site)} {kind} {address}")

    for path, page in pages.items():
        for address in page.loaded:
            if ELSEWHERE.match(address):
                found.append(f"{path.relative_to(site)} loads from elsewhere: {address}")
            elif not address.startswith("data:"):
                look(path, address, "loads what is not there:")
        for link in page.links:
            if not re.match(r"[a-z]+:", link):
                look(path, link, "links to nothing:")
    for path in sorted(site.rglob("*.css")):
        addresses = loaded_by_style(path.read_text(encoding="utf-8"))
        found += [f"{path.relative_to(site)} loads from elsewhere: {one}" for one in addresses if ELSEWHERE.match(one)]
    return found


def test_problems_are_noticed(tmp_path):
    (tmp_path / "a.html").write_text(
        '<h1 id="top">x</h1><a href="b.html#there">1</a><a href="b.html#gone">2</a><a href="no.html">3</a>'
        '<a href="https://example.org/">4</a><img src="//example.org/x.png"><script src="lost.js"></script>'
        '<style>@import "https://example.org/a.css"; p { background: url(data:image/png;base64,xx) }</style>'
    )
    (tmp_path / "b.html").write_text('<p id="there"><link rel="stylesheet" href="b.css">')
    (tmp_path / "b.css").write_text("@font-face { src: url('https://example.org/font.woff2') }")
    assert problems(tmp_path) == [
        "a.html loads from elsewhere: //example.org/x.png",
        "a.html loads what is not there: lost.js",
        "a.html loads from elsewhere: https://example.org/a.css",
        "a.html links to nothing: b.html#gone",
        "a.html links to nothing: no.html",
        "b.css loads from elsewhere: https://example.org/font.woff2",
    ]


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder and says nothing."""

    def log_message(self, format: str, *args: object) -> None:
        pass


def build(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """The command of CONTRIBUTING.md, into another folder."""
    (command,) = re.findall(r"^sphinx-build (.*) build/site$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        [sys.executable, "-m", "sphinx", *command.split(), "-q", str(target)],
        cwd=source,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    target = tmp_path_factory.mktemp("site").resolve()
    done = build(ROOT, target)
    assert done.returncode == 0, done.stderr
    return target


@pytest.mark.slow
def test_the_site_is_whole_and_loads_nothing_from_elsewhere(site):
    assert (site / "index.html").is_file()
    assert len(list(site.rglob("*.html"))) > 25
    assert problems(site) == []
    scripts = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.js"))
    assert re.findall(r"(?:import|fetch|importScripts)\(\s*[\"'](?:https?:)?//[^\"']*", scripts) == []


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH: install one to test pages in it")
def test_a_browser_asks_for_nothing_but_the_sites_own_files(site):
    playwright = pytest.importorskip("playwright.sync_api", reason="install the extra test to test pages in a browser")
    handler = functools.partial(Quiet, directory=str(site))
    said, asked = [], []
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, playwright.sync_playwright() as driver:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        page = browser.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.wait_for_url(f"{address}docs/index.html")  # the first page leads on by itself
        for path in sorted(set(site.rglob("*.html")) - {site / "index.html"}):
            page.goto(address + path.relative_to(site).as_posix(), wait_until="load")
        page.goto(f"{address}search.html?q=attach")
        page.get_by_role("link", name="maw.hf.attach.attach", exact=True).first.wait_for()
        browser.close()
        server.shutdown()
    assert said == []
    assert len(asked) > 100
    assert [url for url in asked if not url.startswith((address, "data:"))] == []


@pytest.mark.slow
def test_public_names_are_in_the_reference(site):
    anchors = set().union(*(Page(path.read_text(encoding="utf-8")).anchors for path in site.rglob("api/*.html")))
    for name in maw.__all__:
        thing = getattr(maw, name)
        wanted = f"module-{thing.__name__}" if inspect.ismodule(thing) else f"{thing.__module__}.{name}"
        assert wanted in anchors


@pytest.mark.slow
def test_equations_and_the_commands_help_are_on_their_pages(site):
    assert "logit[b,h] = q[b,h] W[b,h] k[b,h]^T" in re.sub("<[^>]*>", "", (site / "docs" / "method.html").read_text())
    assert "--maw-layer-indices" in (site / "docs" / "commands.html").read_text()


# What the site brings of its own


@pytest.fixture
def in_docs(monkeypatch):
    """Modules of docs/ and docs/pictures/ by name."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "pictures"))
    return importlib.import_module


def test_docstrings_become_restructured_text(in_docs):
    lines = ["First |x|, `|y|`:", "- one", "  more", "- two", "", "    a = b", "", "Next:", "", ">>> f(|)", "    4"]
    assert list(in_docs("site_extension").restructured(lines)) == [
        *(r"First \|x\|, `|y|`:", "", "- one", "  more", "- two", ""),
        *("::", "", "    a = b", "", "Next:", "", ">>> f(|)", "    4"),
    ]


def test_pictures_are_drawn_from_the_encoder(in_docs, tmp_path):
    drawing = in_docs("seven_steps")
    drawn = drawing.compute("The fog lifted.", head=3)
    assert drawn.tokens == ("[CLS]", "the", "fog", "lifted", ".", "[SEP]")
    for draw in (drawing.overview, drawing.slices, drawing.mixing, drawing.attending):
        draw(drawn).save(tmp_path / "picture.svg")
        page = Page((tmp_path / "picture.svg").read_text(encoding="utf-8"))
        assert len(page.loaded) > 2
        assert all(address.startswith("data:image/png;base64,") for address in page.loaded)
        words = "".join(ElementTree.parse(tmp_path / "picture.svg").getroot().itertext())
        assert "lifted" in words


def test_the_pictures_that_are_committed_are_drawn_by_that_code(in_docs):
    drawing = in_docs("seven_steps")
    for name in ("seven-steps", "slices", "mixing", "attention"):
        words = "".join(ElementTree.parse(ROOT / "docs" / "pictures" / f"{name}.svg").getroot().itertext())
        assert all(token in words for token in drawing.SENTENCE.lower().rstrip(".").split())
