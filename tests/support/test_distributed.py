"""Several processes on one job: the same plan, and the same weights within rounding, as one process comes to."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from graphprune.cli.commands import app
from graphprune.errors import WorkspaceError
from graphprune.statistics.moments import Drift, Moments
from graphprune.support import distributed
from graphprune.support.distributed import failure_reported
from tests.processes import Forked

OPTIONS = ("--sparsity", "0.2", "--samples", "24", "--length", "8", "--align", "1")
LAST_NORM = "analyze | calibrate | score{by=fasp} | allocate | select | rewrite | refit | last-norm | verify"
Start = Callable[[list[str]], str]


@pytest.mark.parametrize(("text", "kind"), [
    ("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1", WorkspaceError),
    ("mat1 and mat2 shapes cannot be multiplied", RuntimeError),
])  # fmt: skip
def test_only_errors_of_collectives_are_blamed_on_other_processes(text: str, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught, failure_reported(only_of_others=True):
        raise RuntimeError(text)
    assert type(caught.value) is kind
    assert ("another process of this run has ended" in str(caught.value)) is (kind is WorkspaceError)


def test_one_process_has_it_all() -> None:
    own = [torch.ones(2, dtype=torch.float64)]
    assert (distributed.world_size(), distributed.rank(), list(distributed.batches_of_process(3))) == (1, 0, [0, 1, 2])
    assert distributed.all_reduce_sum(own, 1) == own and distributed.all_reduce_sum(None, 3) is None
    assert Moments.all_reduced(None) is None and Drift.all_reduced(None) is None


def one(words: list[str]) -> str:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def two(words: list[str]) -> str:
    """Standard output of two processes that `torchrun` would start with these variables."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    with TemporaryDirectory() as place:
        output, errors = Path(place, "stdout"), Path(place, "stderr")
        both = [
            Forked(words, errors, output=output, environment={**common, "RANK": rank, "LOCAL_RANK": rank})
            for rank in "01"
        ]
        assert [process.wait() for process in both] == [0, 0], errors.read_text()
        return output.read_text()


def torchrun(words: list[str]) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "-m", "graphprune", *words], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("method", "several"), [
    (("--recipe", "fasp"), two),
    (("--pipeline", LAST_NORM), two),
    pytest.param(("--recipe", "goa"), torchrun, marks=pytest.mark.slow),
])  # fmt: skip
def test_two_processes_come_to_what_one_does(
    method: tuple[str, str], several: Start, folder: Path, text: Path, tmp_path: Path
) -> None:
    for start, name in ((one, "one"), (several, "two")):
        where = ["--output", str(tmp_path / name), *method]
        output = start(["prune", str(folder), *OPTIONS, "--calibration", str(text), *where])
        assert output.count("pruned into") == 1, "only the first process answers"
    plans = [(tmp_path / name / "plan.json").read_bytes() for name in ("one", "two")]
    assert plans[0] == plans[1]
    single, both = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, tensor in single.items():
        torch.testing.assert_close(both[name], tensor, rtol=1e-4, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
