from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image
from rich.console import Console

import maw
from maw.cli import main
from maw.display import wording
from maw.display.heatmap import COLOURS, heat_map
from maw.display.page import render_page
from maw.display.pictures import save_pictures
from maw.display.terminal import print_inspection
from maw.errors import MAWError
from maw.hf.attach import maw_layers
from maw.inspection import inspect
from maw.io.escaping import visible
from maw.retrieval.models import choose_device, load_encoder

TEXTS = ("The kiln cooled while the potter slept.", "<script>x</script> & [bold]loud[/bold] \x1b[31m", "Snow.")


@pytest.fixture(scope="module")
def model():
    model = load_encoder("packaged", device=choose_device("cpu"))
    maw.attach(model, maw.MAWConfig(depth=8))
    weight = maw_layers(model)[0].selector.policy_network[-1].weight
    weight.data += torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
    return model


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspected") / "model"
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


@pytest.fixture(scope="module")
def found(model):
    return inspect(model, TEXTS, depths=3)


class Page(HTMLParser):
    """Every tag's attributes, and that tags close in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_is_whole_and_loads_nothing(found):
    text = render_page(found, "a & b")
    page = Page(text)
    assert not {"script", "link", "iframe", "img"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith(("#", "data:image/png;base64,"))
    assert re.findall(r"url\(|@import|https?://", text) == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"][1:] for link in page.all("a")} <= set(ids)
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_the_page_shows_every_map_and_what_was_typed(found):
    text = render_page(found, "model\x1b[31m\u202e")
    assert r"model\x1b[31m\u202e" in text
    assert visible(text) == text
    page, words = Page(text), "".join(Page(text).words)
    assert len(page.all("image")) == len(TEXTS) * (2 + 3)
    assert TEXTS[0] in words
    assert "<script>x</script> & [bold]loud[/bold]" in words
    for piece in found.texts[0].slices:
        assert f"Depth {piece.depth} alone" in words
        assert f"entropy {piece.entropy:.2f}" in words
    assert wording.notes(found)[-1] in words
    assert all(svg.get("role") == "img" for svg in page.all("svg"))


def test_a_cell_is_as_opaque_as_the_root_of_its_probability():
    attention = torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.5, 0.25], [0.01, 0.01, 0.98]])
    svg = heat_map(attention, ["one", "two", "<3"], "a title", "host")
    assert "&lt;3 looks at &lt;3 98 %, one 1 %, two 1 %" in svg
    image = Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", svg)[1]))).convert("RGBA")
    size = image.width // 3
    for row in range(3):
        for column in range(3):
            pixel = image.getpixel((column * size + size // 2, row * size + size // 2))
            assert pixel[:3] == COLOURS["host"]
            assert pixel[3] == pytest.approx(255 * float(attention[row, column]) ** 0.5, abs=0.51)


def test_long_texts_have_fewer_labels_and_no_rows_to_point_at():
    number = 200
    svg = heat_map(torch.full((number, number), 1 / number), [f"t{place}" for place in range(number)], "t", "maw")
    assert svg.count("<text") < number
    assert 'class="row"' not in svg
    assert len(svg) < 30_000


def shown(found, **settings):
    written = io.StringIO()
    print_inspection(Console(file=written, width=100, **settings), found, "model")
    return written.getvalue()


def test_the_terminal_is_plain_where_it_is_none(found):
    plain = shown(found)
    assert not set(plain) & set("\x1b│─━┃")
    assert "[bold]loud[/bold]" in plain
    for text in found.texts:
        for piece in text.slices:
            assert re.search(rf"depth {piece.depth} .*{wording.percent(piece.weight)}", plain)
    assert "chosen most by text" in plain
    assert max(len(line) for line in plain.splitlines()) <= 100
    assert "\x1b[1m" in shown(found, force_terminal=True, color_system="standard")


def test_one_text_is_not_compared_with_itself(model):
    alone = inspect(model, TEXTS[:1])
    assert "Chosen most by" not in render_page(alone, "model")
    assert "chosen most" not in shown(alone)


def test_notes_say_what_is_special(model):
    long = wording.notes(inspect(model, ["oven " * 300]))
    assert long[0] == "Text 1 has 302 tokens; the first 256 are shown and were encoded."
    fresh = load_encoder("packaged", device=choose_device("cpu"))
    maw.attach(fresh, maw.MAWConfig(depth=8))
    assert "All depth weights are equal (1/8)" in wording.notes(inspect(fresh, TEXTS[:1]))[0]


def test_pictures_are_whole_files(found, tmp_path):
    written = save_pictures(found, tmp_path / "new")
    assert [path.name for path in written] == ["text-1.png", "text-2.png", "text-3.png"]
    assert sorted(written) == sorted((tmp_path / "new").iterdir())
    assert all(Image.open(io.BytesIO(path.read_bytes())).width == 1012 for path in written)
    (tmp_path / "file").write_text("x")
    with pytest.raises(MAWError, match="--png wants a folder"):
        save_pictures(found, tmp_path / "file")


def test_the_command_writes_what_was_asked_for(folder, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("From a file.\n\n  And another: naïve café.\n", encoding="utf-8")
    options = ["--file", str(tmp_path / "texts.txt"), "--depths", "2", "--head", "3", "--layer", "-6"]
    outputs = ["--html", str(tmp_path / "page.html"), "--png", str(tmp_path / "pictures")]
    assert main(["inspect", str(folder), TEXTS[0], *options, *outputs]) == 0
    said = capsys.readouterr().out
    assert "3.   And another: naïve café." in said or "3. And another: naïve café." in said
    assert f"written: {tmp_path / 'page.html'}" in said
    assert "head 3" in said
    Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert len(list((tmp_path / "pictures").iterdir())) == 3
    assert main(["inspect", str(folder), TEXTS[0], *options, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["schema"], values["layer"], values["head"]) == (1, 0, 3)
    assert [len(text["slices"]) for text in values["texts"]] == [2, 2, 2]


@pytest.mark.parametrize("as_json", [False, True])
def test_empty_texts_are_named_and_the_others_shown(folder, tmp_path, capsys, as_json):
    given = ["inspect", str(folder), "--depths", "2", *(["--json"] if as_json else [])]
    assert main([*given, TEXTS[0], TEXTS[1]]) == 0
    wanted = capsys.readouterr()
    assert wanted.err == ""
    assert main([*given, "", TEXTS[0], " ", TEXTS[1]]) == 0
    said = capsys.readouterr()
    assert said.out == wanted.out
    left_out = "is empty and left out: the others are numbered without it"
    assert said.err.splitlines() == [f"maw: text 1 {left_out}", f"maw: text 3 {left_out}"]
    (tmp_path / "texts.txt").write_text(TEXTS[0])
    assert main([*given, "", "--file", str(tmp_path / "texts.txt")]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "wanted a text: maw inspect MODEL"),
        ([""], "the text is empty: give a text with words in it"),
        (["", " \n"], "all 2 texts are empty: give a text with words in it"),
        (["--file", "nowhere.txt"], "nowhere.txt, but it is not there"),
        (["--file", "picture.png"], "picture.png, line 1: wanted UTF-8"),
        (["--file", "zeros.bin"], "zeros.bin, line 1: wanted text, got a NUL character"),
        (
            ["--file", "blank.txt"],
            "blank.txt, line 1: wanted at least one line, but the file is empty or all lines are blank",
        ),
        (["--file", "many.txt"], "wanted at most 200 texts at once"),
        (["a", "--head", "first"], "--head must be a number from 0 on, or mean, got 'first'"),
        (["a", "--html", "no/folder/page.html"], "the folder no/folder is not there"),
        (["a", "--html", "."], "--html wants a file to write"),
        (["a", "--layer", "5"], "layer 5 has no MAW: of layers 0 to 5 these have it: 0"),
    ],
)
def test_bad_input_is_said_in_one_line(folder, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "zeros.bin").write_bytes(bytes(100))
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "many.txt").write_text("a\n" * 1000)
    assert main(["inspect", str(folder), *arguments]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.out == ""
    assert len(said.err.splitlines()) == 1


def test_a_model_without_maw_is_said(capsys):
    assert main(["inspect", "packaged", "a text"]) == 2
    assert "this model has no MAW layer" in capsys.readouterr().err
