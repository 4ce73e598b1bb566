"""Files that are whole or not there, whatever is at their path before."""

import ast
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from maw.errors import MAWError
from maw.io.atomic import atomic_folder, atomic_write, remove_parts, write_text, write_whole
from maw.retrieval.ranking.runs import write_run

SOURCE = Path(__file__).resolve().parents[2] / "src" / "maw"
RUN = {"q": {"d": 1.5}}
LINE = "q Q0 d 1 1.5 tag\n"


def read_fifo(path, write):
    """What comes out of a pipe with a name while `write` fills it."""
    found = []
    reader = threading.Thread(target=lambda: found.append(path.read_bytes()), daemon=True)
    reader.start()
    write()
    reader.join(10)
    assert not reader.is_alive(), "nothing was written into the pipe"
    return found[0]


def test_a_pipe_is_written_through(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert read_fifo(path, lambda: write_run(path, RUN, "tag")) == LINE.encode()
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_its_file_is_written(tmp_path, there):
    (tmp_path / "far").mkdir()
    target, link, second = tmp_path / "far" / "run", tmp_path / "link", tmp_path / "second"
    if there:
        target.write_text("before")
    link.symlink_to("far/run")
    second.symlink_to(link)
    write_run(second, RUN, "tag")
    assert link.is_symlink()
    assert second.is_symlink()
    assert target.read_text() == LINE
    assert os.listdir(tmp_path / "far") == ["run"]


def test_a_link_to_a_pipe_is_written_through(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    assert read_fifo(tmp_path / "pipe", lambda: write_text(tmp_path / "link", "é")) == "é".encode()
    assert (tmp_path / "link").is_symlink()


def test_links_in_a_circle_are_refused(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(MAWError, match="could not be written"):
        write_text(tmp_path / "a", "text")
    assert (tmp_path / "a").is_symlink()


def test_a_full_device_is_a_message_and_stays(tmp_path):
    link = tmp_path / "full"
    link.symlink_to("/dev/full")
    with pytest.raises(MAWError, match=r"full could not be written: No space left on device"):
        write_text(link, "text")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


@pytest.mark.parametrize("redirected", [True, False], ids=["file", "pipe"])
def test_standard_output_by_its_name_is_where_the_process_prints(tmp_path, redirected):
    code = (
        "from maw.io.atomic import write_text\n"
        "print('before')\nwrite_text('/dev/stdout', 'between\\n')\nprint('after')\n"
    )
    with (tmp_path / "out").open("w") as file:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=file if redirected else subprocess.PIPE, text=True, check=True
        )
    assert (done.stdout or (tmp_path / "out").read_text()) == "before\nbetween\nafter\n"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(("before", "wanted"), [(None, 0o640), (0o604, 0o604), (0o755, 0o755)])
def test_permissions_are_those_of_a_file_that_is_opened(tmp_path, before, wanted):
    path = tmp_path / "file"
    if before is not None:
        path.touch()
        path.chmod(before)
    old = os.umask(0o027)
    try:
        write_text(path, "text")
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == wanted


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize(("mode", "part"), [("w", "half"), ("wb", b"half")])
def test_what_is_not_finished_leaves_the_old_file(tmp_path, error, mode, part):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path, mode) as file:  # noqa: PT012
        file.write(part)
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_is_no_place_for_a_file(tmp_path):
    with pytest.raises(MAWError, match="it is a folder"):
        write_text(tmp_path, "text")


def test_the_longest_name_is_written(tmp_path):
    write_text(tmp_path / ("é" * 127), "text")
    assert (tmp_path / ("é" * 127)).read_text() == "text"


def test_text_is_utf_8_with_line_feeds(tmp_path):
    with atomic_write(tmp_path / "file") as file:
        file.write("é\n")
    assert (tmp_path / "file").read_bytes() == "é\n".encode()
    assert write_whole(tmp_path / "other", [b"a", b"b"])["bytes"] == 2


def test_a_folder_appears_when_it_is_whole(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "old").touch()
    (tmp_path / "model").symlink_to("real")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "model") as folder:  # noqa: PT012
        (folder / "new").touch()
        raise RuntimeError
    assert os.listdir(tmp_path / "real") == ["old"]
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "new").touch()
    assert (tmp_path / "model").is_symlink()
    assert os.listdir(tmp_path / "real") == ["new"]
    assert sorted(os.listdir(tmp_path)) == ["model", "real"]


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    code = (
        "import os, sys\nfrom maw.io.atomic import atomic_folder, atomic_write\n"
        "with atomic_folder(sys.argv[1]) as folder, atomic_write(sys.argv[2]) as file:\n"
        "    (folder / 'a').touch()\n    file.write('half')\n    os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "folder", tmp_path / "file"], check=True)
    assert len(os.listdir(tmp_path)) == 2
    with atomic_write(tmp_path / "file") as file:
        file.write("whole")
        remove_parts(tmp_path)
    assert os.listdir(tmp_path) == ["file"]


APART = {"text_writer.py", "trainer.py"}
"""Those that write plain files: into a folder that is written aside, and a log that grows line by line."""


def writes(call):
    """Whether a call renames, or writes a file, by itself."""
    function, values = call.func, [*call.args, *(pair.value for pair in call.keywords)]
    if not isinstance(function, ast.Attribute):
        name = getattr(function, "id", "")
    elif function.attr == "replace":  # of `os`, or of a path: that of a text has two arguments
        return getattr(function.value, "id", "") == "os" or len(values) == 1
    else:
        name = function.attr
    if name == "open":
        modes = [str(one.value) for one in values if isinstance(one, ast.Constant)]
        return any(set(mode) <= set("rwxa+bt") and set(mode) & set("wxa+") for mode in modes)
    return name in ("write_bytes", "rename", "fsync", "mkstemp", "NamedTemporaryFile", "flock") or (
        name == "write_text" and isinstance(function, ast.Attribute)
    )


def test_one_module_alone_writes_files():
    wrong = {
        f"{path.name}:{node.lineno}"
        for path in SOURCE.rglob("*.py")
        if path != SOURCE / "io" / "atomic.py" and path.name not in APART
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and writes(node)
    }
    assert wrong == set()
