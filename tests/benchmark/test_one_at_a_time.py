"""Two commands never write into one output folder at once, and one that was killed blocks nobody."""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
import sys

import pytest
from test_train import arguments as train_arguments
from test_train import in_two_processes

from maw.benchmark.plan import Benchmark
from maw.benchmark.runner import Runner
from maw.cli import main
from maw.errors import MAWError
from maw.io.locks import alone_in

HOLD = "import pathlib, sys; from maw.io.locks import alone_in\nwith alone_in(pathlib.Path(sys.argv[1])):\n"
HOLD += "    print('held', flush=True); sys.stdin.read()"


def benchmark(tiny_model, toy_data, output, **more):
    variants = more.pop("variants", ("bm25",))
    given = {"dataset": f"beir:{toy_data}", "model": str(tiny_model), "preset": "full", "output": output}
    return Benchmark(**given, variants=variants, device="cpu", **more)


def test_a_killed_process_blocks_nobody(tmp_path):
    folder = tmp_path / "new" / "out"
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(MAWError, match=f"{folder} is in use, another command writes into it"), alone_in(folder):
            pytest.fail("two at once")
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with alone_in(folder), pytest.raises(MAWError, match="is in use"), alone_in(folder):
        pytest.fail("two at once")
    with alone_in(folder):
        pass


def test_a_folder_without_locks_is_a_warning(tmp_path, monkeypatch):
    def refuse(*given):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="no locks in .* .Function not implemented.: let no other"), alone_in(tmp_path):
        pass


def test_a_second_benchmark_in_the_folder_is_refused_and_changes_nothing(tiny_model, toy_data, tmp_path, capsys):
    output = tmp_path / "out"
    given = ["benchmark", "--dataset", f"beir:{toy_data}", "--model", str(tiny_model), "--device", "cpu"]
    given += ["--variants", "bm25", "--output", str(output)]
    with alone_in(output):
        assert main(given) == 2
        assert f"{output} is in use, another command writes into it" in " ".join(capsys.readouterr().err.split())
        assert [path.name for path in output.iterdir()] == [".lock"]
        assert main([*given, "--dry-run"]) == 0, "a plan may be asked for at any time"
    assert main(given) == 0
    assert json.loads((output / "results.json").read_text())["finished"]


def test_a_folder_that_another_command_started_meanwhile_is_checked_again(tiny_model, toy_data, tmp_path):
    late = Runner(benchmark(tiny_model, toy_data, tmp_path / "out", lora_learning_rate=1e-3))
    Runner(benchmark(tiny_model, toy_data, tmp_path / "out")).go()
    with pytest.raises(MAWError, match="holds a benchmark with other lora_learning_rate"):
        late.go()


def test_a_second_training_into_the_folder_is_refused(tiny_model, toy_data, tmp_path, capsys):
    given = train_arguments(tiny_model, toy_data, tmp_path / "model")
    with alone_in(tmp_path / "model.training"):
        assert main(given) == 2
        assert "model.training is in use" in " ".join(capsys.readouterr().err.split())
        assert [path.name for path in (tmp_path / "model.training").iterdir()] == [".lock"]
        assert not (tmp_path / "model").exists()
        assert main([*given, "--dry-run"]) == 0
    assert main(given) == 0
    assert (tmp_path / "model" / "README.md").is_file()


@pytest.mark.slow
def test_two_processes_of_one_command_hold_the_folder_together(tiny_model, toy_data, tmp_path):
    given = train_arguments(tiny_model, toy_data, tmp_path / "model")
    with alone_in(tmp_path / "model.training"):
        refused = in_two_processes(given)
    assert refused.returncode != 0
    assert refused.stderr.count("model.training is in use, another command writes into it") == 1
    assert not (tmp_path / "model").exists()
    assert in_two_processes(given).returncode == 0
    assert (tmp_path / "model" / "README.md").is_file()
