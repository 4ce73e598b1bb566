"""Keeps the documentation true: its links, its Python, the equations the code cites, and the house rules it states."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import maw

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "maw"
METHOD = ROOT / "docs" / "method.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
MODULES = sorted(SOURCE.rglob("*.py"))

FENCE = re.compile(r"^(?P<before>[^\n]*)\n```(?P<language>[a-z]+)[^\n]*\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: \S.*-->")


def identify(path):
    return path.relative_to(ROOT).as_posix()


def text_of(path):
    return path.read_text(encoding="utf-8")


# Links


def prose(text):
    """A page without its code: fenced blocks and inline code."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors(text):
    """What GitHub makes of the headings."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ +(.+?) *$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page, text):
    found = re.findall(r"\]\(<?([^)\s>]+)", prose(text)) + re.findall(r"(?:src|href)=\"([^\"]+)\"", prose(text))
    broken = []
    for link in found:
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        lost = not target.exists() or (
            anchor and target.suffix == ".md" and anchor not in anchors(text if target == page else text_of(target))
        )
        if lost:
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_relative_links_lead_somewhere(page):
    assert broken_links(page, text_of(page)) == []


def test_a_broken_link_is_noticed():
    text = "[a](method.md) [b](nowhere.md) [c](#words) [d](#nothing) [e](https://example.org)\n## Words\n"
    assert broken_links(METHOD, text) == ["nowhere.md", "#nothing"]


# Python in pages


def code_blocks(text):
    return [
        (text.count("\n", 0, block.start("code")) + 1, block["language"], block["code"])
        for block in FENCE.finditer(f"\n{text}")
        if not NOT_RUN.fullmatch(block["before"].strip())
    ]


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_python_blocks_run(page, tmp_path, monkeypatch, pydocs_read_once):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}  # the blocks of a page are one program
    for line, language, code in code_blocks(text_of(page)):
        if language in ("python", "py"):
            exec(compile("\n" * (line - 2) + code, str(page), "exec"), names)
        elif language == "pycon":
            test = doctest.DocTestParser().get_doctest(code, names, identify(page), str(page), line)
            assert doctest.DocTestRunner().run(test, clear_globs=False).failed == 0


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_fences_are_closed_and_name_their_language(page):
    fences = re.findall(r"^ *```(.*)$", text_of(page), flags=re.MULTILINE)
    assert len(fences) % 2 == 0
    assert [name for name in fences[::2] if not name] == []


def test_only_blocks_with_a_reason_are_left_out():
    fence = "```python\n{}\n```\n"
    text = (
        fence.format("a") + "<!-- not run: slow -->\n" + fence.format("b") + "<!-- not run: -->\n" + fence.format("c")
    )
    assert code_blocks(text) == [(2, "python", "a\n"), (10, "python", "c\n")]


# What is cited


def sections_and_equations(text):
    """Numbers of the sections and of the equations that a page defines, and its subheadings."""
    sections = {int(number) for number in re.findall(r"^## (\d+)\. ", text, flags=re.MULTILINE)}
    blocks = "".join(re.findall(r"^```text\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL))
    equations = {int(number) for number in re.findall(r" \((\d+)\)$", blocks, flags=re.MULTILINE)}
    return sections, equations


def numbers(tail, pattern):
    """All numbers in a citation such as `(1) to (6)` or `1, readings, and 4`."""
    single = {int(number) for number in re.findall(pattern, tail)}
    for first, last in re.findall(rf"{pattern} (?:to|-) {pattern}", tail):
        single |= set(range(int(first), int(last) + 1))
    return single


def citations(text):
    """Sections and equations of method.md that a source file cites."""
    text = re.sub(r"\s+", " ", text)
    tails = re.findall(r"method\.md,? ((?:sections?|equations?|\()[^.;:\"]*)", text)
    sections, equations = set(), set()
    for tail in tails:
        plain, cited = re.sub(r"\(\d+\)", "", tail), re.match(r"sections? (.*)", tail)
        equations |= numbers(tail, r"\((\d+)\)")
        if cited:
            sections |= numbers(plain, r"\b(\d+)\b")
    equations |= numbers(text, r"(?:[Ee]quation|\bof|\bin|[Ss]tep \d,) \((\d+)\)")
    return sections, equations


@pytest.mark.parametrize("path", MODULES, ids=identify)
def test_cited_sections_and_equations_exist(path):
    sections, equations = sections_and_equations(text_of(METHOD))
    cited_sections, cited_equations = citations(text_of(path))
    assert cited_sections <= sections
    assert cited_equations <= equations
    pages = {page.name for page in PAGES}
    assert [name for name in re.findall(r"([\w.-]+\.md)\b", text_of(path)) if name not in pages] == []


def test_citations_are_read():
    assert sections_and_equations(text_of(METHOD)) == ({1, 2, 3, 4, 5}, set(range(1, 12)))
    assert citations("(method.md sections 1 (readings) and 4)") == ({1, 4}, set())
    assert citations("method.md sections 1 to 4. Then 9") == ({1, 2, 3, 4}, set())
    assert citations("Source: method.md (1) to (6).\n") == (set(), {1, 2, 3, 4, 5, 6})
    assert citations('"""W of (7): see equation (8)."""') == (set(), {7, 8})
    everything = "\n".join(text_of(path) for path in MODULES)
    assert citations(everything) == ({1, 2, 3, 4, 5}, set(range(1, 12)))
    assert "readings" in text_of(METHOD).partition("## 2. ")[0].lower()


# What pages name in code


def identifiers():
    """Every name that the source defines or uses."""
    names = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(text_of(path))):
            names |= {
                value
                for field in ("id", "arg", "attr", "name")
                if isinstance(value := getattr(node, field, None), str) and value
            }
    return names


def test_names_in_the_notation_table_are_in_the_code():
    table = [line for line in text_of(ROOT / "docs" / "notation.md").splitlines() if line.startswith("|")]
    named = {name for line in table for name in re.findall(r"`([a-z_]+)`", line.split("|")[3])}
    assert len(named) > 40
    assert named - identifiers() == set()


def test_the_table_of_rewards_is_whole():
    from typing import get_args

    from maw.config import Reward

    rows = re.findall(r"^\| `(\w+)`(?: \(default\))? \|", text_of(ROOT / "docs" / "reward.md"), flags=re.MULTILINE)
    assert [*rows] == ["reward", *get_args(Reward)]


def resolve(name):
    """Import the longest module in a dotted name and follow the rest."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            thing = getattr(thing, part)
        return thing
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_dotted_names_exist(page):
    for name in sorted(set(re.findall(r"`(maw(?:\.\w+)+)(?:\(.*?\))?`", text_of(page)))):
        resolve(name)


@pytest.mark.parametrize("name", maw.__all__)
def test_public_names_are_importable_and_documented(name):
    thing = getattr(maw, name)
    assert thing.__doc__
    assert not thing.__doc__.startswith(f"{name}("), "the docstring is only a generated signature"


# House rules

ROOMS = [
    {
        *(
            "auxiliary",
            "choice",
            "collapse",
            "compiled",
            "config",
            "controls",
            "entropy",
            "errors",
            "functional",
            "grpo",
            "interpolation",
            "io",
            "kernels",
        ),
        *("operations", "random_numbers", "records", "reference", "rewards", "selector", "shapes", "views"),
    },
    {"module"},
    {"hf"},
    {"console"},
    {"progress"},
    {"retrieval"},
    {"inspection"},
    {"benchmark"},
    {"display"},
    {
        *("__main__", "cli", "commands", "help", "options", "output", "spelling", "stopping"),
        *("train_command", "vector_commands", "vector_options"),
    },
]
LIGHT = {"torch", "numpy", "jaxtyping"}
EXTRA = {"io": {"filelock"}, "kernels": {"triton"}}
# `maw/__init__.py` and what it needs to register a model type reach everything, lazily.
ENTRANCES = {"__init__", "_registration"}


def room(module):
    """Which floor `maw.X...` is on; the top level is no module of its own."""
    return next((floor for floor, names in enumerate(ROOMS) if module in names), None)


def imports(tree):
    """Dotted names of everything a module imports, wherever in it; `from maw import grpo` is `maw.grpo`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def home(name):
    """The module a dotted name is imported from: `maw.attach` comes from `hf`, `maw.grpo.k3` from `grpo`."""
    target = name.split(".")[1]
    if room(target) is None and target in maw.__all__:
        return getattr(maw, target).__module__.split(".")[1]
    return target


def wrong_imports(module, code):
    """Imports of `maw.module` that point up, use the reference, hide what they use, or are too heavy."""
    own, wrong = room(module), []
    for name in imports(ast.parse(code)):
        package = name.partition(".")[0]
        if name == "maw":
            wrong.append(name)
        elif package == "maw":
            target = home(name)
            floor = 0 if target == "__version__" else room(target)
            if floor is None or floor > own or (target == "reference" and module != "inspection"):
                wrong.append(name)
        elif own == 0 and package not in LIGHT | EXTRA.get(module, set()) | sys.stdlib_module_names:
            wrong.append(name)
    return wrong


def modules_with_rooms():
    for path in MODULES:
        module = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if module not in ENTRANCES:
            yield pytest.param(module, path, id=identify(path))


@pytest.mark.parametrize(("module", "path"), list(modules_with_rooms()))
def test_imports_point_one_way(module, path):
    assert room(module) is not None, f"{module} has no place in ROOMS: decide what may import it"
    assert wrong_imports(module, text_of(path)) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("views", "from maw.module import DepthAttention"),
        ("views", "def f():\n    import transformers"),
        ("views", "from sentence_transformers import SentenceTransformer"),
        ("functional", "from maw import reference"),
        ("functional", "from maw.reference import seven_steps"),
        ("module", "from maw.hf.attach import attach"),
        ("hf", "from maw.retrieval import training"),
        ("retrieval", "if TYPE_CHECKING:\n    from maw.benchmark.plan import Run"),
        ("benchmark", "import maw.cli"),
        ("module", "from maw.nowhere import something"),
        ("module", "from maw import attach"),
        ("hf", "import maw"),
    ],
)
def test_wrong_imports_are_noticed(module, line):
    assert len(wrong_imports(module, line)) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("module", "from maw import grpo"),
        ("hf", "import transformers"),
        ("inspection", "from maw.reference import seven_steps"),
        ("kernels", "import triton"),
        ("module", "from maw import MAWConfig"),
        ("benchmark", "from maw import attach, __version__"),
    ],
)
def test_right_imports_are_left_alone(module, line):
    assert wrong_imports(module, line) == []


def run_python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", ["maw", "maw.cli"])
def test_importing_is_light(name):
    heavy = ("torch", "transformers", "sentence_transformers", "peft", "datasets", "matplotlib")
    assert run_python(f"import sys, {name}; print(*[m for m in {heavy} if m in sys.modules])") == ""


@pytest.mark.parametrize(
    "name",
    [name if name == "MAWModel" else pytest.param(name, marks=pytest.mark.slow) for name in maw.__all__],
)
def test_every_public_name_can_be_the_first_one_used(name):
    assert run_python(f"import maw; maw.{name}; print('there')") == "there"


@pytest.mark.filterwarnings("default:.*lines, more than:UserWarning")
def test_files_are_one_idea():
    lengths = {identify(path): len(text_of(path).splitlines()) for path in MODULES}
    for name, length in lengths.items():
        if length > 300:
            warnings.warn(f"{name} has {length} lines, more than about 300: split it by idea", stacklevel=1)


def published_texts():
    """Every text file that git has or would take; without git, the folders that are published."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    names = listed.stdout.decode().split("\0") if listed.returncode == 0 else []
    paths = {ROOT / name for name in names if name} or {*MODULES, *PAGES, *(ROOT / "tests").rglob("*.py")}
    for path in sorted(paths):
        if path.is_file():
            content = path.read_bytes()
            if b"\0" not in content:
                yield path, content.decode("utf-8", errors="replace")


def private_paths(text):
    """Absolute paths into somebody's own machine."""
    return re.findall(r"(?<![\w.\-])/(?:home|root|work|Users)/[\w.\-]+", text)


def test_no_text_names_a_private_path():
    found = {identify(path): private_paths(text) for path, text in published_texts()}
    assert len(found) > 50
    assert {name: paths for name, paths in found.items() if paths} == {}


def test_private_paths_are_noticed():
    path = "/".join(["", "home", "somebody"])
    assert private_paths(f'open("{path}/x.txt")') == [path]
    assert private_paths("https://example.org/home/page and src/work/file") == []
