"""Uploads: a verified folder with a valid card reaches the hub, without the files of unfinished runs.

The hub is a stand-in: its library is replaced where it would make requests.
"""

import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import HfApi, ModelCard, constants
from typer.testing import CliRunner

import graphprune as gp
from graphprune.cli.commands import app
from graphprune.errors import ExportError, OptionError, VerificationError

WEIGHTS = "model.safetensors"


@dataclass
class Hub:
    """What a hub received."""

    is_private: bool = False
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    files: set[str] = field(default_factory=set)
    refusal: Exception | None = None

    def note(self, name: str) -> Any:
        def request(api: Any, *args: Any, **options: Any) -> Any:
            self.requests.append((name, {"repo": args[0] if args else options["repo_id"], **options}))
            return SimpleNamespace(private=self.is_private)

        return request

    def upload(self, **options: Any) -> Any:
        self.note("upload_folder")(None, **options)
        if self.refusal is not None:
            raise self.refusal
        root = Path(options["folder_path"])
        every = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
        retained: Any = huggingface_hub.utils.filter_repo_objects  # type: ignore[attr-defined]
        self.files = {*retained(every, ignore_patterns=options["ignore_patterns"])}
        return SimpleNamespace(commit_url="https://huggingface.co/some/net/commit/1")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    for name in ("create_repo", "model_info", "create_branch"):
        monkeypatch.setattr(HfApi, name, made.note(name))
    monkeypatch.setattr(HfApi, "upload_folder", made.upload)
    monkeypatch.setattr(ModelCard, "validate", lambda card: made.requests.append(("validate", card.data.to_dict())))
    return made


@pytest.fixture
def saved(folder: Path, tmp_path: Path) -> Path:
    made = tmp_path / "small"
    shutil.copytree(folder, made)
    (made / "README.md").write_text("---\nlicense: mit\n---\n# small\n")
    for name in (".cache/state", "onnx/.small.run/0/lock", "next.run/0/identity.json", "onnx/model.json"):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text("{}")
    return made


def test_a_verified_folder_is_uploaded(
    hub: Hub, saved: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    (saved / "run.yaml").write_text(f"model: {saved.parent}/dense\n")
    with caplog.at_level(logging.WARNING, "graphprune.run"):
        made = gp.push_to_hub(saved, "some/net")
    assert [name for name, _ in hub.requests] == ["validate", "create_repo", "upload_folder"]
    assert hub.requests[0][1] == {"license": "mit"}
    own = {path.name for path in folder.iterdir()}
    assert hub.files == {*made.files} == {*own, "README.md", "run.yaml", "onnx/model.json"}
    assert (made.repository, made.branch, made.url[-9:]) == ("some/net", "main", "/commit/1")
    assert made.bytes > (saved / WEIGHTS).stat().st_size
    assert caplog.messages == ["run.yaml name folders of this machine, and are uploaded as they are"]


def test_a_branch_is_made_on_the_command_line(hub: Hub, saved: Path) -> None:
    hub.is_private = True
    done = CliRunner().invoke(app, ["push", str(saved), "some/net", "--private", "--revision", "half", "--json"])
    assert done.exit_code == 0, done.stderr
    names = [name for name, _ in hub.requests]
    assert names == ["validate", "create_repo", "model_info", "create_branch", "upload_folder"]
    assert hub.requests[1][1]["private"] is True and hub.requests[3][1]["branch"] == "half"
    assert hub.requests[4][1]["revision"] == "half" and '"branch": "half"' in done.stdout


def test_a_private_model_does_not_reach_a_public_repository(hub: Hub, saved: Path) -> None:
    with pytest.raises(ExportError, match="some/net exists and is public"):
        gp.push_to_hub(saved, "some/net", private=True)
    assert not hub.files


def test_what_is_damaged_is_not_uploaded(hub: Hub, saved: Path) -> None:
    (saved / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes()[:-8])
    with pytest.raises(VerificationError, match="not fully covered"):
        gp.push_to_hub(saved, "some/net")
    assert not hub.requests


def test_access_and_names_come_first(hub: Hub, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("net", "some/net/more", "some/net.git"):
        with pytest.raises(OptionError, match=f"'{name}' is no name of a repository, as org/name"):
            gp.push_to_hub(saved, name)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ExportError, match="there is no token of the hub; run `hf auth login`, or set HF_TOKEN"):
        gp.push_to_hub(saved / "none", "some/net")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ExportError, match="nothing is uploaded offline"):
        gp.push_to_hub(saved / "none", "some/net")


def test_cards_and_refusals(hub: Hub, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.refusal = ConnectionError("403 Forbidden")
    with pytest.raises(ExportError, match=r"the hub refuses some/net \(reason: 403 Forbidden\); see that the token"):
        gp.push_to_hub(saved, "some/net")
    (saved / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(ExportError, match="the hub does not accept .*README.md .*correct its front matter"):
        gp.push_to_hub(saved, "some/net")
    (saved / "README.md").unlink()
    with pytest.raises(ExportError, match="has no card, README.md"):
        gp.push_to_hub(saved, "some/net")
