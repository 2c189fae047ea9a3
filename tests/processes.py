"""The command line in processes of their own, forked from one that has imported everything already: saves seconds."""

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

PRELOADED = ["graphprune.api", "graphprune.cli.commands", "torch._dynamo", "transformers.models.llama.modeling_llama"]


@dataclass(frozen=True)
class Stop:
    """A signal that a process sends itself, so that it comes at a known moment on any machine."""

    number: int
    part: str  # of the path of the files that count
    files: int  # that have their names when it comes: the next one is about to get its own

    def install(self) -> None:
        renamed = count()

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            if event == "os.rename" and self.part in str(arguments[1]) and next(renamed) == self.files:
                os.kill(os.getpid(), self.number)

        sys.addaudithook(hook)


class Forked:
    """A running command, whose output is appended to files."""

    def __init__(
        self, words: list[str], errors: Path, limit: int | None = None, *, output: Path | None = None,
        folder: Path | None = None, environment: Mapping[str, str] | None = None, stop: "Stop | None" = None,
    ) -> None:  # fmt: skip
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        settings = {**os.environ, **(environment or {}), "OMP_NUM_THREADS": "1"}
        streams = str(output or errors), str(errors)
        self._process = context.Process(target=_main, args=(words, streams, limit, folder, settings, stop))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int:
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode


def run(*words: str, folder: Path, **environment: str) -> "CompletedProcess[str]":
    """Run a command in a folder, from which it imports, too."""
    with TemporaryDirectory() as place:
        output, errors = Path(place, "stdout"), Path(place, "stderr")
        process = Forked([*words], errors, output=output, folder=folder, environment=environment)
        return CompletedProcess(words, process.wait(), output.read_text(), errors.read_text())


def _main(
    words: list[str], streams: tuple[str, str], limit: int | None, folder: Path | None, settings: dict[str, str],
    stop: Stop | None,
) -> None:  # fmt: skip
    """Run the command line in the forked process; no file may be larger than `limit` bytes."""
    os.environ.clear()
    os.environ.update(settings)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    for number, path in enumerate(streams, 1):
        with open(path, "ab", buffering=0) as file:
            os.dup2(file.fileno(), number)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if folder is not None:
        os.chdir(folder)
        sys.path.insert(0, str(folder))
    import torch  # not in the process of the tests

    from graphprune.cli import main

    torch.set_num_threads(1)
    sys.argv = ["graphprune", *words]
    if stop is not None:
        stop.install()
    main()
