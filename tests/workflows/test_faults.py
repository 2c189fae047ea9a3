"""Runs that are killed, find no room, or whose files are damaged: no wrong output ever, and nothing done is lost."""

import gzip
import logging
import random
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import graphprune as gp
from graphprune.errors import GraphpruneError, VerificationError
from tests.conftest import DATA
from tests.faults import ONE, TWO, Job, Storm, damage, kill_after, stop_after, watched

SMALL = ("--samples", "24", "--length", "8")
LARGE = ("--samples", "192", "--length", "64")
KILLS, KILLS_OF_TWO, DAMAGES = 50, 16, 16

log = logging.getLogger(__name__)
pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="limits and signals are those of Linux")


@pytest.fixture(scope="module")
def whole(folder: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The command on the small model, finished without being disturbed."""
    job = Job(folder, text, tmp_path_factory.mktemp("whole") / "place", SMALL)
    assert job.finish() == 0, job.messages()
    assert job.left() == ["out"]
    return job


@pytest.fixture
def expected(whole: Job) -> dict[str, bytes]:
    """What it comes to."""
    return whole.bits()


@pytest.fixture
def job(folder: Path, text: Path, tmp_path: Path) -> Job:
    return Job(folder, text, tmp_path / "place", SMALL)


def complete(job: Job, expected: dict[str, bytes]) -> None:
    """Repeat the command: it must come to the same bits."""
    assert job.finish() == 0, job.messages()
    assert job.bits() == expected
    assert job.left() == ["out"]


def refused(job: Job, *words: str, limit: int | None = None) -> None:
    """The command must fail with one error that has these words, and no output."""
    assert job.finish(limit) == 2, job.messages()
    messages = job.messages()
    assert sum(line.startswith("error: ") for line in messages.splitlines()) == 1 and "Traceback" not in messages, (
        messages
    )
    assert all(word in messages for word in words), messages
    assert [name for name in job.left() if name != ".out.run"] == []


def test_a_run_on_a_full_disk_or_killed_goes_on(job: Job, expected: dict[str, bytes]) -> None:
    kill_after(job, "calibrate")
    interrupt_after(job, "refit", signal.SIGTERM)
    assert "steps were finished before" in job.messages(), "what the first run calibrated"
    refused(job, "free some space", str(job.run), limit=5_000)
    refused(job, "free some space", str(job.out), limit=30_000)
    complete(job, expected)
    assert job.messages().count("steps were finished before") == 2


def test_a_run_killed_among_its_gradients_goes_on_with_them(folder: Path, text: Path, tmp_path: Path) -> None:
    more = (*SMALL, "--recipe", "best", "--memory", "20GiB")
    jobs = [Job(folder, text, tmp_path / name, more) for name in ("one", "other")]
    assert jobs[0].finish() == 0, jobs[0].messages()
    kill_after(jobs[1], "gradients")
    complete(jobs[1], jobs[0].bits())
    assert re.search(r"gradients: [1-9] of \d+ steps were finished before", jobs[1].messages())


def interrupt_after(job: Job, steps: str, number: int) -> None:
    """Ask a run to stop once it has finished a step of a kind: it says so."""
    assert stop_after(job, steps, number) == 130, job.messages()
    assert "interrupted: no output was written" in job.messages() and "repeat the command to continue" in job.messages()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_says_so_and_goes_on(number: int, job: Job, expected: dict[str, bytes]) -> None:
    interrupt_after(job, "calibrate", number)
    complete(job, expected)


@pytest.mark.slow
def test_a_disk_too_small_for_a_graph(job: Job) -> None:
    job.more += ("--destination", "free")
    refused(job, "free some space", str(job.out), limit=200_000)
    assert job.finish() == 0, job.messages()
    assert job.left() == ["out"]


def test_a_model_that_changed_while_a_run_was_dead_is_refused(job: Job, tmp_path: Path) -> None:
    job.model = Path(shutil.copytree(job.model, tmp_path / "model"))
    kill_after(job, "calibrate")
    weights = job.model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    refused(job, f"files {weights} was", "--restart")


def test_damage_to_an_output_is_noticed(whole: Job, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole.out, tmp_path / "out"))
    gp.verify_folder(out)
    weights, moments = out / "model.safetensors", random.Random(0)
    content = weights.read_bytes()
    for _ in range(50):
        damage(weights, moments)
        with pytest.raises(VerificationError, match=r"model\.safetensors has sha256 .* it was damaged or replaced"):
            gp.verify_folder(out)
        weights.write_bytes(content)
    weights.unlink()
    with pytest.raises(VerificationError, match=r"model\.safetensors is missing"):
        gp.verify_folder(out)


@pytest.fixture
def stories(folder: Path, text: Path, tmp_path: Path) -> Callable[[tuple[str, ...]], Job]:
    """A job on a trained model where that is at hand, else on a random one."""
    packed = DATA / "text" / "tinystories.2MiB.txt.gz"

    def make(start: tuple[str, ...]) -> Job:
        if not packed.is_file():
            return Job(folder, text, tmp_path / "place", SMALL, start)
        known = tmp_path / "stories.txt"
        known.write_bytes(gzip.decompress(packed.read_bytes())[: 1 << 20])
        return Job(DATA / "stories260k", known, tmp_path / "place", LARGE, start)

    return make


@pytest.mark.slow
@pytest.mark.parametrize(("start", "kills"), [(ONE, KILLS), (TWO, KILLS_OF_TWO)], ids=["one", "two"])
def test_kills_at_any_moment(
    start: tuple[str, ...], kills: int, stories: Callable[[tuple[str, ...]], Job], record_property: Callable[..., None]
) -> None:
    job = stories(start)
    seconds = watched(job)
    bits = job.bits()
    job.again()
    storm = Storm(job, seconds, random.Random(0))
    storm.blow(kills, bits)
    log.warning("seconds without kills: %s", {name: round(value, 1) for name, value in seconds.items()})
    record_property("storm", str(storm))
    log.warning("%s", storm)
    assert storm.wrong == 0 and storm.resumed > 0
    assert len(storm.kills) > 2, "they fall into different phases"


@pytest.mark.slow
def test_a_damaged_workspace_is_made_again(
    stories: Callable[[tuple[str, ...]], Job], record_property: Callable[..., None]
) -> None:
    job, moments, faults = stories(()), random.Random(1), Counter[str]()
    seconds, bits = watched(job), {}
    bits = job.bits()
    job.again()

    def harm() -> None:
        kinds = {"table": "*/*.json", "tensors": "*/*.safetensors", "activations": "values/*/*"}
        for kind, pattern in kinds.items():
            found = sorted(path for path in job.run.glob(f"0/{pattern}") if path.stat().st_size)
            if found and moments.random() < 0.5:
                faults[f"{kind} {damage(moments.choice(found), moments)}"] += 1

    storm = Storm(job, seconds, moments)
    storm.blow(DAMAGES, bits, harm)
    record_property("storm", f"{storm}; {dict(faults)}")
    log.warning("%s; damaged: %s", storm, dict(faults))
    assert storm.wrong == 0 and faults


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A small disk of its own; called again, it has another size."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def of(size: str) -> Path:
        nonlocal mounted
        options = f"{'remount,' if mounted else ''}size={size}"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"no small disk can be made here ({done.stderr.strip()}); a limit on files is tested instead")
        mounted = True
        return place

    yield of
    if mounted:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(("scratch", "output"), [("32k", "32k"), ("700k", "300k"), ("2m", "700k")])
def test_a_disk_that_is_full(
    scratch: str, output: str, disk: Callable[[str], Path], stories: Callable[[tuple[str, ...]], Job]
) -> None:
    """For the workspace, and for the output."""
    job = stories(())
    assert job.finish() == 0, job.messages()
    bits = job.bits()
    job.again()
    options, place = job.more, disk(scratch)
    job.more = (*options, "--scratch", str(place))
    refused(job, "free some space", str(place))
    disk("64m")
    complete(job, bits)
    assert list(place.iterdir()) == []

    job.place = disk(output) / "place"
    job.place.mkdir()
    job.more = (*options, "--scratch", str(job.text.parent / "scratch"))
    refused(job, "free some space", str(job.place))
    disk("64m")
    complete(job, bits)


@pytest.mark.slow
def test_an_input_that_is_damaged(folder: Path, tmp_path: Path, record_property: Callable[..., None]) -> None:
    """A header that is not what it was is told, or says the same; numbers cannot be told from other numbers."""
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    weights, moments, faults = broken / "model.safetensors", random.Random(0), Counter[str]()
    whole = weights.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    program = gp.load(folder)
    for _ in range(40):
        content = bytearray(whole)
        content[moments.randrange(header)] ^= 1 << moments.randrange(8)
        weights.write_bytes(content)
        faults[_told(broken, program)] += 1
    for _ in range(40):
        weights.write_bytes(whole[: moments.randrange(len(whole))])
        faults["cut: " + _told(broken, program)] += 1
    record_property("faults", str(dict(faults)))
    log.warning("%s", dict(faults))
    assert set(faults) <= {"told", "harmless", "cut: told"} and faults["told"] and faults["cut: told"] == 40


def _told(folder: Path, whole: gp.Program) -> str:
    """What loading says of a damaged folder."""
    try:
        found = gp.load(folder)
        same = all(found.weights[name].equal(whole.weights[name]) for name in whole.weights)
    except GraphpruneError:
        return "told"
    return "harmless" if same else "wrong"
