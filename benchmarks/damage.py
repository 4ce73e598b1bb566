"""Thousands of seeded damages to what this package writes and reads again, and what the commands make of them.

    python benchmarks/damage.py [--cases 2200] [--seed 0] [--fresh 40] [--output FILE.json] [--before FILE.json]

Model folders, stores of vectors, caches of texts and of negatives, benchmark folders and trainings that were stopped
are made by the commands that people use, on a toy corpus. Each case copies one of them, damages one file of the copy
(`damage_kinds`), and runs the command that reads it. Its result is compared with that of the undamaged copy:

    same       status 0 and the same result: the damage had no part in it
    made anew  status 0 and the same result, and the damaged file is whole again
    said       status 2 and a sentence on what is damaged, or a part left out of a report that says so
    other      status 0 and another result, where nothing that says which is right was changed: a fault
    another model   the same where it is a valid folder that others could have saved: it has no checksum
    traceback  any other exception or end of the process: a fault
    hang       longer than `--limit` seconds, when its process is killed: a fault

Each case runs in a forked child of one warm process, by the function behind the command line; `--fresh` of them run
once more in a new process each.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import multiprocessing
import os
import pickle
import pkgutil
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("MKL_CBWR", "AUTO")  # else sums depend on where a tensor lies in memory
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import damage_subjects as subjects
from damage_kinds import Unfit, damage

__all__ = ["Case", "Outcome", "cases", "run_cases", "table"]

GOOD = ("same", "made anew", "said", "another model")
FAULTS = ("traceback", "hang", "other")


@dataclass(frozen=True)
class Case:
    """One damage: the subject, which of its commands reads it, and the seed of the rest."""

    number: int
    subject: str
    command: int
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What came of a case.

    Args:
        case: which one.
        kind, file: what was done to which file.
        verdict: as in the module's description.
        named: whether the message names the file.
        words: the message, or the end of the traceback.
    """

    case: Case
    kind: str
    file: str
    verdict: str
    named: bool
    words: str


def cases(count: int, seed: int, only: str | None = None) -> list[Case]:
    """So many cases, shared among the subjects by their weights."""
    chosen = [subject for subject in subjects.SUBJECTS if only is None or only in subject.name]
    whole = sum(subject.weight for subject in chosen)
    made: list[Case] = []
    for subject in chosen:
        draw = random.Random(f"{seed} {subject.name}")
        for place in range(max(1, round(count * subject.weight / whole))):
            made.append(Case(len(made), subject.name, place % len(subject.arguments), draw.randrange(2**32)))
    return made


def _subject(name: str) -> subjects.Subject:
    return next(subject for subject in subjects.SUBJECTS if subject.name == name)


class Bench:
    """The subjects in a folder, and what the undamaged ones give."""

    def __init__(self, base: Path, limit: float = 20.0, work: Path | None = None) -> None:
        self.base, self.limit = base, limit
        self.expected: dict[tuple[str, int], Any] = {}
        self.work = base.with_name(f"{base.name}-case") if work is None else work

    def right(self, subject: subjects.Subject, command: int) -> Any:
        """What the undamaged one gives."""
        key = subject.name, command
        if key not in self.expected:
            copy, new = self._copy(subject)

            def given() -> Any:
                status, words, output = self._run(subject, command, copy, new)
                return status, words, subject.result(copy, new, output) if status == 0 else None

            end, found = _forked(given, 60 * self.limit)
            if found is None or found[0] != 0:
                raise RuntimeError(f"{subject.name}, undamaged, ended with {found or end}")
            self.expected[key] = found[2]
        return self.expected[key]

    def damaged(self, case: Case) -> tuple[Path, Path, Path, str, bytes | None]:
        """A damaged copy, an empty folder, the file, the kind of damage, and what the file held."""
        subject, draw = _subject(case.subject), random.Random(case.seed)
        copy, new = self._copy(subject)
        folder = copy / subject.part
        while True:
            files = sorted(file for file in folder.rglob("*") if file.is_file() and subject.fits(file))
            names = sorted({_alike(file.relative_to(folder)) for file in files})
            name = draw.choice(names)  # of files that are alike there may be many
            path = draw.choice([file for file in files if _alike(file.relative_to(folder)) == name])
            before = path.read_bytes()
            with contextlib.suppress(Unfit):
                return copy, new, path, damage(draw, folder, path), before

    def run(self, case: Case) -> Outcome:
        """Damage, run in a forked process, compare."""
        subject = _subject(case.subject)
        expected = self.right(subject, case.command)
        copy, new, path, kind, before = self.damaged(case)
        name = path.relative_to(copy).as_posix()

        def judged() -> Outcome:
            status, words, output = self._run(subject, case.command, copy, new)
            named = path.name in words or str(path.parent) in words or str(copy) in words
            verdict = {2: "said", 0: "same"}.get(status, "traceback")
            if status == 2 and (not words.startswith("maw: ") or "Traceback" in words):
                verdict = "traceback"
            if status == 0:
                verdict = self._compared(subject, expected, copy, new, output, path, before)
                named = named or verdict == "said"  # in the report
            return Outcome(case, kind, name, verdict, named, words[-700:])

        end, outcome = _forked(judged, self.limit)
        if outcome is None:
            return Outcome(case, kind, name, "hang" if end == "hang" else "traceback", False, end)
        return outcome

    def _compared(
        self, subject: subjects.Subject, expected: Any, copy: Path, new: Path, output: str, path: Path, before: Any
    ) -> str:
        try:
            result = subject.result(copy, new, output)
        except (OSError, ValueError, KeyError) as error:
            result = repr(error)
        if result == expected:
            return "made anew" if path.is_file() and path.read_bytes() == before else "same"
        if subject.told is not None and path.name in (copy / subject.told).read_text(encoding="utf-8"):
            return "said"
        return "other" if subject.caught else "another model"

    def _copy(self, subject: subjects.Subject) -> tuple[Path, Path]:
        shutil.rmtree(self.work, ignore_errors=True)
        copy, new = self.work / "it", self.work / "new"
        shutil.copytree(self.base / subject.folder, copy)
        new.mkdir()
        return copy, new

    def words(self, subject: subjects.Subject, command: int, copy: Path, new: Path) -> list[str]:
        """The command line."""
        return [word.format(it=copy, base=self.base, new=new) for word in subject.arguments[command]]

    def _run(self, subject: subjects.Subject, command: int, copy: Path, new: Path) -> tuple[int, str, str]:
        """The exit status (-1 for an exception), the message or the traceback, and the output."""
        words = self.words(subject, command, copy, new)
        if subject.folder == "cache":
            with subjects.patched(copy):
                return call(words, self.base)
        return call(words, self.base)


def _alike(path: Path) -> str:
    """Names that differ in a number count as one."""
    return "".join("0" if letter.isdigit() else letter for letter in path.as_posix())


def _forked(work: Callable[[], Any], limit: float) -> tuple[str, Any]:
    """Do something in a child process, which a crash or a hang ends alone: "" or how it ended, and what it gave."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(work(), pipe)
        except BaseException:  # else the child would go on as the parent
            traceback.print_exc()
        os._exit(0)
    os.close(writing)
    data, end = b"", time.monotonic() + limit
    while True:
        ready, _, _ = select.select([reading], [], [], max(0.0, end - time.monotonic()))
        part = os.read(reading, 1 << 20) if ready else None
        if not part:
            break
        data += part
    os.close(reading)
    if part is None:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if part is None:
        return "hang", None
    if not data:
        return f"ended without a word, status {status}", None
    return "", pickle.loads(data)


def call(words: list[str], base: Path) -> tuple[int, str, str]:
    """Run a command line in this process."""
    from maw.cli import main
    from maw.errors import MAWError

    output, errors = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            if words[0] == "negatives":
                try:
                    print(subjects.mined(base, Path(words[1])))
                    status = 0
                except MAWError as error:
                    print(f"maw: {error}", file=sys.stderr)
                    status = 2
            else:
                status = main(words)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException as error:  # panics of libraries in Rust are no Exception
        return -1, "".join(traceback.format_exception(error))[-3000:], ""
    lines = errors.getvalue().splitlines()
    start = next((place for place, line in enumerate(lines) if line.startswith("maw: ")), 0)
    return status, "\n".join(lines[start:]), output.getvalue()


def fresh(bench: Bench, case: Case) -> str:
    """Run a case in a process of its own; its verdict."""
    subject = _subject(case.subject)
    expected = bench.right(subject, case.command)
    copy, new, path, _, before = bench.damaged(case)
    words = bench.words(subject, case.command, copy, new)
    environment = os.environ | ({"MAW_CACHE": str(copy)} if subject.folder == "cache" else {})
    program = "import sys; from maw.cli import main; sys.exit(main(sys.argv[1:]))"
    if subject.folder == "cache":
        program = f"from maw.retrieval.data import corpora; corpora.IN_MEMORY = 0; {program}"
    command = [sys.executable, "-c", program, *words]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=3 * bench.limit, check=False
        )
    except subprocess.TimeoutExpired:
        return "hang"
    if "Traceback" in done.stderr:
        return "traceback"
    if done.returncode == 0:
        return bench._compared(subject, expected, copy, new, done.stdout, path, before)
    return "said" if done.returncode == 2 and "maw: " in done.stderr else "traceback"


def run_cases(bench: Bench, chosen: Sequence[Case], processes: int = 1) -> Iterator[Outcome]:
    """Run cases, shared among so many processes with a folder each; outcomes come as they are ready."""
    context = multiprocessing.get_context("fork")
    ready: Any = context.Queue()

    def work(number: int) -> None:
        own = Bench(bench.base, bench.limit, bench.work.with_name(f"{bench.work.name}-{number}"))
        for case in chosen[number::processes]:
            try:
                ready.put(own.run(case))
            except BaseException:
                ready.put(traceback.format_exc())
                raise
        shutil.rmtree(own.work, ignore_errors=True)

    workers = [context.Process(target=work, args=(number,)) for number in range(processes)]
    for worker in workers:
        worker.start()
    for _ in chosen:
        outcome = ready.get()
        if isinstance(outcome, str):
            for worker in workers:
                worker.terminate()
            raise RuntimeError(outcome)
        yield outcome
    for worker in workers:
        worker.join()


def _counts(outcomes: Sequence[dict[str, Any]], by: str) -> dict[str, Counter[str]]:
    """Name -> verdict -> cases, by subject or by kind of damage."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome in outcomes:
        counts[outcome["case"]["subject"] if by == "subject" else outcome["kind"]][outcome["verdict"]] += 1
    return counts if by == "subject" else {name: counts[name] for name in sorted(counts)}


def table(outcomes: Sequence[dict[str, Any]], by: str, before: Sequence[dict[str, Any]] = ()) -> str:
    """Counts as a Markdown table: a line a subject or a kind of damage, with the faults of an earlier run first."""
    counts, earlier = _counts(outcomes, by), _counts(before, by)
    columns = [verdict for verdict in GOOD if any(count[verdict] for count in counts.values())]
    names = [*(["cases before", *FAULTS] if before else []), "cases", *FAULTS, *columns]
    lines = [f"| {by} | {' | '.join(names)} |", "|---" + "|---:" * len(names) + "|"]

    def row(name: str, old: Counter[str], new: Counter[str]) -> str:
        cells = [old.total(), *(old[one] for one in FAULTS)] if before else []
        return f"| {name} | {' | '.join(map(str, [*cells, new.total(), *(new[one] for one in (*FAULTS, *columns))]))} |"

    lines += [row(name, earlier.get(name, Counter()), counts[name]) for name in counts]
    whole = [sum((Counter(found) for found in each.values()), Counter()) for each in (earlier, counts)]
    return "\n".join([*lines, row("all", *whole)])


def _warm() -> None:
    """Import once what the commands import, so that no child does."""
    import torch

    import maw

    others = ("sentence_transformers", "transformers.models.bert.modeling_bert", "jinja2", "pyarrow.parquet", "peft")
    more = ("torch.utils.tensorboard", "accelerate", "datasets", "scipy.stats", "PIL.Image", "tyro", "bm25s")
    parts = (found.name for found in pkgutil.walk_packages(maw.__path__, "maw."))
    for name in (*others, *more, *(part for part in parts if "__main__" not in part)):
        with contextlib.suppress(ImportError, OSError):
            importlib.import_module(name)
    torch.set_num_threads(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", type=int, default=40)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--limit", type=float, default=20.0)
    parser.add_argument("--only", help="subjects with this in their name")
    parser.add_argument("--base", type=Path, help="a folder with subjects that were made before")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--before", type=Path, help="the --output of an earlier run, to show beside this one")
    arguments = parser.parse_args()
    room = 8 * 2**30  # sizes in damaged files must not take the machine's memory
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    _warm()
    with tempfile.TemporaryDirectory() as temporary:
        base = arguments.base or Path(temporary) / "subjects"
        bench = Bench(base, arguments.limit)
        if not base.is_dir():
            end, built = _forked(lambda: subjects.build(base, lambda words: _loud(words, base)) or True, 3600)
            if not built:
                raise SystemExit(f"the subjects were not made: {end}")
        start = time.monotonic()
        chosen = cases(arguments.cases, arguments.seed, arguments.only)
        outcomes = []
        for outcome in run_cases(bench, chosen, arguments.processes):
            outcomes.append(asdict(outcome))
            if outcome.verdict in FAULTS or (outcome.verdict == "said" and not outcome.named):
                case = outcome.case
                last = outcome.words.strip().splitlines()[-1:] or [""]
                print(
                    f"{case.number} {case.subject}: {outcome.kind} {outcome.file}: {outcome.verdict}: {last[0][:200]}"
                )
                sys.stdout.flush()
        seconds = time.monotonic() - start
        outcomes.sort(key=lambda outcome: outcome["case"]["number"])
        draw = random.Random(arguments.seed)
        able = [
            case for case in chosen if _subject(case.subject).arguments[case.command][0] != "negatives"
        ]  # no command
        again = draw.sample(able, min(arguments.fresh, len(able)))
        alone = [fresh(bench, case) for case in again]
        differing = [
            [case.number, verdict]
            for case, verdict in zip(again, alone, strict=True)
            if verdict != outcomes[chosen.index(case)]["verdict"]
        ]
    before = json.loads(arguments.before.read_text())["outcomes"] if arguments.before is not None else ()
    for by in ("subject", "damage"):
        print(table(outcomes, by, before), end="\n\n")
    unnamed = sum(outcome["verdict"] == "said" and not outcome["named"] for outcome in outcomes)
    print(f"{len(outcomes)} cases in {seconds:.0f} s; {unnamed} messages do not name the file or its folder")
    print(f"{len(again)} in fresh processes, other verdicts: {differing}")
    if arguments.output is not None:
        whole = {
            "seed": arguments.seed,
            "seconds": round(seconds),
            "fresh": dict(Counter(alone)),
            "fresh_differing": differing,
            "outcomes": outcomes,
        }
        arguments.output.write_text(json.dumps(whole, indent=0, default=str) + "\n")


def _loud(words: list[str], base: Path) -> int:
    status, errors, _ = call(words, base)
    if status:
        print(errors, file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
