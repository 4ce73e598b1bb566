"""The report in a real browser: of a large benchmark, of one seed, of a killed run and of an older folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import growing
import pytest

from maw.benchmark.report import write_report
from maw.io.json import sealed

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WHY = "pages are tested with playwright and axe: pip install 'maw-attention[test]'"
playwright = pytest.importorskip("playwright.sync_api", reason=WHY)
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=WHY)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH: install one to test pages in it")

SCREENS = [(400, "light"), (400, "dark"), (1000, "light"), (1600, "light"), (1600, "dark")]
FURTHEST = {(400, "light"), (1600, "dark")}
"""Both widths and both schemes."""


@pytest.fixture(scope="module")
def large(small_benchmark, tmp_path_factory) -> Path:
    """The report of twelve variants and ten seeds."""
    return (
        growing.grow(small_benchmark, tmp_path_factory.mktemp("large") / "out", variants=12, seeds=10) / "report.html"
    )


@pytest.fixture(scope="module")
def reports(small_benchmark, large, tmp_path_factory) -> dict[str, Path]:
    """Reports by name: large, one seed, killed in its third run, killed before its first result, and an older one."""
    base = tmp_path_factory.mktemp("reports")
    killed = shutil.copytree(large.parent, base / "killed")
    results = json.loads((killed / "results.json").read_text())
    rows = [row for row in results["rows"] if row["seed"] in (None, 0)][:5]
    comparisons: list[Any] = []
    results |= {"finished": False, "rows": rows, "comparisons": comparisons, "verdict": "Nothing yet."}
    (killed / "results.json").write_text(json.dumps(sealed(results)))
    (killed / "moved.json").unlink()
    log = killed / "logs" / "maw-full-seed0.jsonl"
    log.write_text(log.read_text()[:-200])

    begun = base / "begun"
    shutil.copytree(small_benchmark.output / "logs", begun / "logs")
    shutil.copy(small_benchmark.output / "benchmark.json", begun)

    older = shutil.copytree(large.parent, base / "older")
    results = json.loads((older / "results.json").read_text())
    for name in ("depth_usage", "environments", "mixture"):
        del results[name]
    for row in results["rows"]:
        del row["findings"], row["selector"]
    (older / "results.json").write_text(json.dumps(sealed(results)))
    (older / "moved.json").unlink()
    (older / "per_query.parquet").write_bytes(b"no parquet")
    made = {folder.name: write_report(folder) for folder in (killed, begun, older)}
    return {"large": large, "one": small_benchmark.output / "report.html", **made}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with playwright.sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=CHROMIUM)


class Visit:
    """A page that was opened, and everything it said and asked for."""

    def __init__(self, browser: Browser, path: Path, width: int = 1600, scheme: Any = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page: Page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri(), wait_until="load")

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *problem: object) -> None:
        self.context.close()

    def value(self, script: str) -> Any:
        return self.page.evaluate(script)


NAMES = ["large", "one", "killed", "begun", "older"]


def test_a_large_report_is_small_and_opens_quickly(browser, large):
    assert large.stat().st_size < 5e6
    with Visit(browser, large) as visit:
        seconds = visit.value("performance.getEntriesByType('navigation')[0].loadEventEnd / 1000")
        assert 0 < seconds < 2
        words = visit.page.inner_text("body")
    assert "logit-dropout against dense-full, held" in words
    assert "10 (seeds 0, 1, 2, 3, 4, 5, 6, 7, 8, 9)" in words


@pytest.mark.parametrize("name", NAMES)
def test_no_errors_and_no_network(browser, reports, name):
    with Visit(browser, reports[name]) as visit:
        visit.value("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert visit.value("document.documentElement.scrollHeight") > 1000, "all of it was laid out"
    assert visit.said == []
    assert visit.asked == [reports[name].as_uri()]


@pytest.fixture(params=NAMES)
def opened(request, browser, reports) -> Iterator[Visit]:
    """A report with all passages of its first pair; the others have the same parts."""
    with Visit(browser, reports[request.param]) as visit:
        visit.value("document.querySelectorAll('.pair[open] details, .numbers').forEach(one => one.open = true)")
        yield visit


def show(visit: Visit, width: int, scheme: Any) -> None:
    visit.page.set_viewport_size({"width": width, "height": 900})
    visit.page.emulate_media(color_scheme=scheme)


def test_never_wider_than_the_screen(opened):
    for width, scheme in SCREENS:
        show(opened, width, scheme)
        assert opened.value("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(
    ("opened", "screen"),
    [
        # axe reads a large report for half a minute; one of a single seed has the same parts
        pytest.param(
            name,
            screen,
            id=f"{name}, {screen[0]} {screen[1]}",
            marks=() if name in ("one", "begun") and screen in FURTHEST else pytest.mark.slow,
        )
        for name in NAMES
        for screen in SCREENS
        if screen[0] != 1000
    ],
    indirect=["opened"],
)
def test_accessible(opened, screen):
    show(opened, *screen)
    found = axe.Axe().run(opened.page).response["violations"]
    assert [(one["id"], one["impact"], one["nodes"][0]["html"]) for one in found] == []


def test_wide_tables_scroll_in_their_own_box(browser, large):
    with Visit(browser, large, 400) as visit:
        inside = "[...document.querySelectorAll('.wide')].map(one => one.scrollWidth - one.clientWidth)"
        assert min(visit.value(inside)) > 0
        region = visit.page.locator(".wide").first
        region.focus()
        visit.page.keyboard.press("ArrowRight")
        visit.page.wait_for_function("document.querySelector('.wide').scrollLeft > 0")


@pytest.mark.parametrize("width", [400, 1600])
def test_letters_of_plots_are_readable_and_inside_them(browser, large, width):
    measure = """[...document.querySelectorAll('figure svg')].flatMap(svg => {
        const box = svg.getBoundingClientRect();
        return [...svg.querySelectorAll('text')].map(text => {
            const own = text.getBoundingClientRect();
            const size = parseFloat(getComputedStyle(text).fontSize) * box.width / svg.viewBox.baseVal.width;
            const sides = [box.left - own.left, own.right - box.right, box.top - own.top, own.bottom - box.bottom];
            const out = Math.max(...sides);
            return {words: text.textContent, figure: svg.parentNode.id, size, out};
        });
    })"""
    with Visit(browser, large, width) as visit:
        visit.value("document.querySelectorAll('details.pair').forEach(one => one.open = true)")
        texts = visit.value(measure)
    assert len(texts) > 500
    assert [text for text in texts if text["size"] < 9.5] == []
    assert [text for text in texts if text["out"] > 1] == []


def test_a_query_is_opened_by_keyboard(browser, large):
    with Visit(browser, large) as visit:
        passages = visit.page.locator(".sides").first
        assert not passages.is_visible()
        visit.page.locator(".moved summary").first.focus()
        visit.page.keyboard.press("Enter")
        assert passages.is_visible()
        assert "The " in passages.inner_text()


def test_dark_is_dark_and_paper_is_white(browser, large):
    ground = "getComputedStyle(document.body).backgroundColor"
    with Visit(browser, large, scheme="dark") as visit:
        assert visit.value(ground) == "rgb(21, 23, 26)"
        visit.page.emulate_media(media="print", color_scheme="dark")
        assert visit.value(ground) == "rgb(255, 255, 255)"


def test_on_paper_closed_pairs_are_open(browser, large):
    shown = "[...document.querySelectorAll('.pair .scatter')].filter(one => one.checkVisibility()).length"
    with Visit(browser, large) as visit:
        pairs = visit.page.locator(".pair").count()
        assert pairs == 16
        assert visit.value(shown) == 1
        visit.page.emulate_media(media="print")
        assert visit.value(shown) == pairs
        assert not visit.page.locator("nav").is_visible()
        assert visit.page.pdf(format="A4").startswith(b"%PDF")


def test_without_javascript_all_is_there(browser, large):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(large.as_uri())
    page.locator(".pair > summary").nth(5).click()
    assert page.locator(".pair .scatter").nth(5).is_visible()
    context.close()
