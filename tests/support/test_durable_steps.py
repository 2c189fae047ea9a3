"""What a run keeps in its workspace: activations in files, and steps that are durable or not there."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from graphprune.errors import WorkspaceError
from graphprune.support import distributed, durable_steps
from graphprune.support.atomic_output import write_durably
from graphprune.support.durable_steps import Step, read_manifest, stage
from graphprune.support.resume import note_outcome, remove_leftovers, resumable
from graphprune.support.workspace import Activations, Workspace, new_activations, use_workspace, zeros

ASKED = {"sparsity": 0.2, "files": {"a": [1, 2]}}


def filled(*tensors: Tensor) -> Activations:
    found = new_activations()
    assert isinstance(found, Activations)
    for tensor in tensors:
        found.append(tensor)
    return found


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with use_workspace(Workspace(tmp_path, memory_bytes=0, time_share=1)) as found:
        yield found


def test_outside_of_a_workspace_all_is_in_memory() -> None:
    assert new_activations() == [] and stage("walk").finished(3) == []
    step = Step({"a": 1}, {"x": torch.ones(2)}, {"entries": [torch.ones(1)]})
    assert stage("walk").finish(step) is step
    assert zeros(3, 2).equal(torch.zeros(3, 2, dtype=torch.float64))


def test_activations_lie_in_files_that_go_with_them(workspace: Workspace) -> None:
    found = filled(torch.arange(3), torch.randn(2, 2).bfloat16().T)
    assert len(found) == 2 and found[0].equal(torch.arange(3)) and found[-1].is_contiguous()
    assert sorted(path.name for path in found.files) == ["00000.safetensors", "00001.safetensors"]
    folder = found.folder
    del found
    assert not folder.exists()


def test_activations_stay_in_memory_while_there_is_room(tmp_path: Path) -> None:
    with use_workspace(Workspace(tmp_path, memory_bytes=20)) as workspace:
        both = [filled(torch.arange(2), torch.arange(3)) for _ in range(2)]
        assert [sorted(found.in_memory) for found in both] == [[0], []], "16 bytes, and no room for 24 or another 16"
        assert [len(list(found.folder.glob("*"))) for found in both] == [1, 2]
        assert all(found[i].equal(torch.arange(2 + i)) for found in both for i in range(2))
        both[0].write()
        assert all(path.is_file() for path in both[0].files) and both[0][0] is both[0].in_memory[0]
        del both
        assert workspace.has_room(20) and not any(workspace.values.iterdir())


@pytest.mark.parametrize("spill", [None, 8, 1 << 20])
def test_large_sums_lie_in_files_without_a_name(spill: int | None, tmp_path: Path) -> None:
    with use_workspace(Workspace(tmp_path, spill)):
        found = zeros(4, 5)
        found += torch.ones(4, 5)
        assert found.sum() == 20 and list(tmp_path.iterdir()) == []
        assert zeros(4, 5, device="meta").is_meta, "there is no file of what lies on another device"


def test_a_repeated_run_finds_its_steps(tmp_path: Path) -> None:
    entries = torch.randn(3, 4)
    with use_workspace(Workspace(tmp_path)):
        kept = stage("walk")
        first = kept.finish(Step({"n": 1}, {"w": torch.eye(3)}, {"a": filled(torch.zeros(1))}))
        gone = first.values["a"]
        both = filled(entries)
        kept.finish(Step({"n": [2, "x"]}, {}, {"a": both, "b": both}))
        kept.wait()
        assert isinstance(gone, Activations) and not gone.folder.exists(), "what the second step started with"
    with use_workspace(Workspace(tmp_path)) as again:
        one, two = stage("walk").finished(5)
        assert again.finished == 2
    assert one.facts == {"n": 1} and one.tensors["w"].equal(torch.eye(3))
    assert two.facts == {"n": [2, "x"]} and two.values["a"] is two.values["b"] and two.values["a"][0].equal(entries)


def test_tensors_in_the_same_memory_are_stored_each_on_its_own(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    tensors = {"wide": whole, "same": whole, "rows": whole[1:], "columns": whole[:, :2], "empty": whole[:0]}
    with use_workspace(Workspace(tmp_path)):
        kept = stage("walk")
        stored = kept.finish(Step({}, tensors)).tensors
        kept.wait()
    for name, tensor in tensors.items():
        assert stored[name].equal(tensor)


def test_activations_that_two_steps_share_stay(workspace: Workspace) -> None:
    kept, both = stage("walk"), filled(torch.zeros(1))
    for n in range(3):
        kept.finish(Step({"n": n}, {}, {"a": both, "b": filled(torch.ones(1))}))
    kept.wait()
    assert both[0].equal(torch.zeros(1)) and len(list(workspace.values.iterdir())) == 2


def test_a_process_that_is_ahead_goes_back_to_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "barrier", lambda: None)
    monkeypatch.setattr(distributed, "all_reduce_min", int)
    with use_workspace(Workspace(tmp_path, memory_bytes=0, time_share=1)) as workspace:
        kept = stage("walk")
        for n in range(4):
            kept.finish(Step({"n": n}, {"w": torch.full((2,), n)}, {"a": filled(torch.full((3,), n))}))
        assert len(list(workspace.values.iterdir())) == 2, "the last step is not known to be durable everywhere"
    monkeypatch.setattr(distributed, "all_reduce_min", lambda number: min(number, 3))
    with use_workspace(Workspace(tmp_path, memory_bytes=0, time_share=1)) as workspace:
        found = stage("walk").finished(9)
        assert [step.facts["n"] for step in found] == [0, 1, 2] and found[-1].values["a"][0].equal(torch.full((3,), 2))
        assert len(list(workspace.values.iterdir())) == 1 and not (tmp_path / "01-walk" / "00003.json").exists()
    monkeypatch.setattr(distributed, "all_reduce_min", lambda number: 0)
    with use_workspace(Workspace(tmp_path, memory_bytes=0, time_share=1)) as workspace:
        assert stage("walk").finished(9) == [] and not any(workspace.values.iterdir())
        kept = stage("walk")
        kept.finish(Step({}, {}, {"a": filled(torch.zeros(1))}))
        kept.finish(Step({}, {}, {"a": filled(torch.zeros(1))}))
        kept.wait()
        assert len(list(workspace.values.iterdir())) == 1, "all have finished the last step"


def test_steps_wait_for_one_another_where_writing_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError("no room")

    with use_workspace(Workspace(tmp_path, time_share=1e-9)) as workspace:
        kept = stage("walk")
        for n in range(4):
            kept.finish(Step({"n": n}, {}, {"a": filled(torch.full((3,), n))}))
        workspace.worker.submit(int).result()
        assert workspace.finished == 1 and len(list(tmp_path.glob("01-walk/*.json"))) == 1
        fails = {"00001": full}
        monkeypatch.setattr(
            durable_steps, "write_durably", lambda path, text: fails.get(path.stem, write_durably)(path, text)
        )
        with pytest.raises(WorkspaceError, match="no room"):
            kept.wait()
    assert [path.stem for path in sorted(tmp_path.glob("01-walk/*.json"))] == ["00000", "00002", "00003"]
    with use_workspace(Workspace(tmp_path)) as workspace:
        (found,) = stage("walk").finished(9)
        assert found.values["a"][0].equal(torch.full((3,), 0)) and len(list(workspace.values.iterdir())) == 1


def test_a_repeated_run_finds_steps_that_waited(tmp_path: Path) -> None:
    with use_workspace(Workspace(tmp_path, time_share=0)):
        kept = stage("walk")
        for n in range(3):
            kept.finish(Step({"n": n}, {"w": torch.full((2,), n)}, {"a": filled(torch.full((3,), n))}))
        kept.wait()
    with use_workspace(Workspace(tmp_path)):
        found = stage("walk").finished(9)
    assert [(step.facts["n"], int(step.tensors["w"][0])) for step in found] == [(0, 0), (1, 1), (2, 2)]
    assert [len(step.values) for step in found] == [0, 0, 1] and found[-1].values["a"][0].equal(torch.full((3,), 2))
    (tmp_path / "01-walk" / "00002.safetensors").unlink()
    with use_workspace(Workspace(tmp_path)):
        assert stage("walk").finished(9) == [], "step 1 did not keep what it ended with"


@pytest.mark.parametrize("hurt", ["cut", "flipped", "gone"])
@pytest.mark.parametrize("what", ["tensors", "values", "table"])
def test_what_is_damaged_is_made_again(hurt: str, what: str, tmp_path: Path) -> None:
    with use_workspace(Workspace(tmp_path)):
        kept = stage("walk")
        for n in range(2):
            kept.finish(Step({"n": n}, {"w": torch.randn(50)}, {"a": filled(torch.randn(50))}))
        kept.wait()
    files = {"tensors": "01-walk/00001.safetensors", "table": "01-walk/00001.json", "values": "values/*/*"}
    path = next(tmp_path.glob(files[what]))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content[: len(content) // 2] if hurt == "cut" else content)
    if hurt == "gone":
        path.unlink()
    with use_workspace(Workspace(tmp_path)):
        left = stage("walk").finished(3)
    assert len(left) == 0, "step 0 has no activations any more to go on with"


def test_a_folder_that_cannot_be_written_is_named(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "values").write_text("in the way")
    with pytest.raises(WorkspaceError, match=r"cannot write to .*values.*free some space and repeat the command"):
        filled(torch.zeros(1))


def finish_one(folder: Path, restart: bool = False, asked: dict[str, object] | None = None) -> int:
    """How many steps a run that fails after one more finds."""
    found = 0
    with pytest.raises(KeyboardInterrupt), resumable(folder, asked or ASKED, restart, None):
        kept = stage("walk")
        found = len(kept.finished(9))
        kept.finish(Step({}, {}, {"a": filled(torch.zeros(1))}))
        kept.wait()
        raise KeyboardInterrupt
    return found


def test_the_same_run_goes_on_and_another_one_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / ".out.run"
    assert [finish_one(folder) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(WorkspaceError, match=r"not this one: sparsity was 0.2 and is 0.3; repeat .* --restart"):
        finish_one(folder, asked={**ASKED, "sparsity": 0.3})
    with pytest.raises(WorkspaceError, match=r"files a was \[1, 2\] and is \[1, 3\]"):
        finish_one(folder, asked={**ASKED, "files": {"a": [1, 3]}})
    assert finish_one(folder, restart=True, asked={**ASKED, "sparsity": 0.3}) == 0


def test_a_run_that_succeeds_or_has_done_nothing_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / ".out.run"
    with resumable(folder, ASKED, False, None):
        stage("walk").finish(Step({}, {}, {}))
    assert not folder.exists()
    with pytest.raises(KeyboardInterrupt), resumable(folder, ASKED, False, None):
        raise KeyboardInterrupt
    assert not folder.exists()


def test_a_run_that_was_killed_after_its_output_got_its_name_is_tidied_up(tmp_path: Path) -> None:
    folder, unfinished, output = tmp_path / ".out.run", tmp_path / "unfinished", tmp_path / "out"
    unfinished.mkdir()
    with pytest.raises(KeyboardInterrupt), resumable(folder, ASKED, False, None) as workspace:
        note_outcome(unfinished)
        workspace.finished += 1
        raise KeyboardInterrupt
    output.mkdir()
    remove_leftovers(folder, output)
    assert folder.exists(), "that is another output"
    output.rmdir()
    unfinished.rename(output)
    remove_leftovers(folder, output)
    assert not folder.exists() and output.exists()


def test_two_runs_cannot_share_a_workspace(tmp_path: Path) -> None:
    with (
        resumable(tmp_path / "run", ASKED, False, None),
        pytest.raises(WorkspaceError, match="in use by another run"),
        resumable(tmp_path / "run", ASKED, False, None),
    ):
        pass


def test_activations_that_no_step_needs_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / ".out.run"
    finish_one(folder)
    stray = folder / "0" / "values" / "stray"
    stray.mkdir()
    assert finish_one(folder) == 1 and not stray.exists()
    assert len((read_manifest(folder / "0" / "01-walk" / "00001.json") or {})["counts"]) == 1
