"""The host memory of this process while something runs: what it holds itself, and the pages of files it has mapped."""

from __future__ import annotations

import threading
from pathlib import Path

__all__ = ["HostMemory"]


class HostMemory:
    """Peaks of Linux's RssAnon and RssFile, sampled from a thread while the context lasts.

    Anonymous memory is the process's own; pages of mapped files can be dropped by the system at any time and count
    against nobody.
    """

    def __init__(self, every: float = 0.01) -> None:
        self.every, self.done = every, threading.Event()
        self.anonymous = self.file = 0
        self.thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> HostMemory:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def mebibytes(self) -> dict[str, float]:
        """The peaks."""
        return {"own MiB": round(self.anonymous / 1024, 1), "mapped files MiB": round(self.file / 1024, 1)}

    def _sample(self) -> None:
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            now = {
                name: int(value.split()[0])
                for name, _, value in (line.partition(":") for line in lines)
                if "Rss" in name
            }
            self.anonymous, self.file = max(self.anonymous, now["RssAnon"]), max(self.file, now["RssFile"])
            if self.done.wait(self.every):
                return
