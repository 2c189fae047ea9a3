"""Names of the hub stand for a snapshot in its cache; what is downloaded, and when, is the user's choice."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from graphprune.errors import LoadError
from graphprune.huggingface.card_facts import card_facts
from graphprune.huggingface.hub_models import hub_model, local_path
from tests.hub_cache import HubCache, online

OLD, NEW = "0" * 40, "1" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubCache:
    return HubCache(tmp_path / "hub", monkeypatch)


def source(folder: Path, *names: str, licence: str = "mit") -> Path:
    """A folder with files of these names, and a card."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    return folder


@pytest.fixture
def two(cache: HubCache, tmp_path: Path) -> HubCache:
    """Two commits of one model: a tag, and the branch main."""
    first = source(tmp_path / "first", "config.json", "model.safetensors")
    cache.add("some/net-1.5", first, OLD, "v1")
    cache.add("some/net-1.5", source(first, licence="apache-2.0"), NEW)
    return cache


@pytest.mark.parametrize(
    ("revision", "commit"), [(None, NEW), ("main", NEW), ("v1", OLD), (OLD, OLD)]
)  # fmt: skip
def test_a_name_is_a_snapshot_of_the_cache(two: HubCache, revision: str | None, commit: str) -> None:
    known = hub_model("some/net-1.5", revision)
    assert known is not None and (known.name, known.commit) == ("some/net-1.5", commit)
    assert known.path == two.root / "models--some--net-1.5" / "snapshots" / commit
    facts = card_facts("some/net-1.5", revision)
    licence = "mit" if commit == OLD else "apache-2.0"
    assert (facts.base_model, facts.revision, facts.licence) == ("some/net-1.5", commit, licence)


def test_local_folders_and_other_names_are_no_names_of_the_hub(
    two: HubCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (
        "./some/net-1.5",
        "/some/net-1.5",
        "net-1.5",
        "a/b/c",
        "some.mod:net",
        "out/model.onnx",
        "../some/net",
    ):
        assert hub_model(name) is None and local_path(name) == name
    with pytest.raises(LoadError, match="out/model.onnx is no name of the hub.*only those have a revision; omit v1"):
        hub_model("out/model.onnx", "v1")
    Path("some/net-1.5").mkdir(parents=True)
    assert hub_model("some/net-1.5") is None and hub_model("some/net-1.5/onnx/model.onnx") is None


def test_what_is_not_in_the_cache_is_one_error_offline(two: HubCache, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LoadError, match=r"has no snapshot of a model of this name.*hf download other/net` where"):
        hub_model("other/net")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(LoadError, match=r"no snapshot of revision v9.*hf download some/net-1.5 --revision v9"):
        hub_model("some/net-1.5", "v9", offline=True)


def test_a_file_of_a_repository_is_a_model(cache: HubCache, tmp_path: Path) -> None:
    snapshot = cache.add("some/onnx", source(tmp_path / "a", "onnx/model.onnx", "onnx/model_q4.onnx"), NEW)
    assert local_path("some/onnx/onnx/model.onnx") == snapshot / "onnx" / "model.onnx"
    with pytest.raises(LoadError, match="name one of its files: some/onnx/onnx/model.onnx, some/onnx/onnx/model_q4"):
        hub_model("some/onnx")
    with pytest.raises(LoadError, match=r"has no model.gguf.*it has README.md, onnx/model.onnx"):
        hub_model("some/onnx/model.gguf")


def test_pickles_are_refused(cache: HubCache, tmp_path: Path) -> None:
    cache.add("some/old", source(tmp_path / "a", "config.json", "pytorch_model.bin"), NEW)
    with pytest.raises(LoadError, match="some/old has its weights in pytorch_model.bin, which may run code"):
        hub_model("some/old")


Download = Callable[..., str]


def hub(cache: HubCache, files: Sequence[str], taken: list[str]) -> Download:
    """Stand-in for the download from a hub whose repository has these files; `taken` receives those of the patterns."""
    real = huggingface_hub.snapshot_download

    def download(name: str, *, local_files_only: bool = False, **options: Any) -> str:
        if local_files_only:
            return str(real(name, local_files_only=True, **options))
        allowed = [file for file in files if any(fnmatch(file, one) for one in options["allow_patterns"])]
        taken.extend(file for file in allowed if not any(fnmatch(file, one) for one in options["ignore_patterns"]))
        return str(cache.add(name, source(cache.root.parent / "served", *taken), NEW, options["revision"]))

    return download


FILES = (
    "config.json", "model-1.safetensors", "model.safetensors", "tokenizer.json", "vocab.txt", "pytorch_model.bin",
    "modeling_net.py", "consolidated.safetensors", "original/tokenizer.model", "onnx/model.onnx",
    "onnx/model.onnx_data", "flax_model.msgpack", "chat_template.jinja", "1_Pooling/config.json",
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("some/net", {"config.json", "model-1.safetensors", "model.safetensors", "tokenizer.json", "vocab.txt",
                      "chat_template.jinja", "1_Pooling/config.json"}),
        ("some/net/onnx/model.onnx", {"config.json", "tokenizer.json", "vocab.txt", "onnx/model.onnx",
                                      "onnx/model.onnx_data", "chat_template.jinja", "1_Pooling/config.json"}),
    ],
)  # fmt: skip
def test_neither_code_nor_pickles_are_downloaded(
    cache: HubCache, monkeypatch: pytest.MonkeyPatch, name: str, expected: set[str]
) -> None:
    taken: list[str] = []
    online(monkeypatch)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub(cache, FILES, taken))
    known = hub_model(name, "v2")
    assert known is not None and known.commit == NEW and {*taken} == expected
    taken.clear()
    again = hub_model(name, "v2")
    assert again == known and not taken, "the cache is enough"


def test_a_part_in_the_cache_is_completed(cache: HubCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.add("some/net", source(tmp_path / "part", "config.json"), OLD)
    with pytest.raises(
        LoadError, match=r"does not hold the model \(reason: .* has no weights: expected model.safetens"
    ):
        hub_model("some/net")
    online(monkeypatch)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub(cache, FILES, []))
    known = hub_model("some/net")
    assert known is not None and known.commit == NEW


def answer(kind: type[Exception]) -> Exception:
    if not issubclass(kind, errors.HfHubHTTPError):
        return kind("no route to host")
    made = kind.__new__(kind, "refused")
    made.args = ("refused",)
    return made


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        (errors.GatedRepoError, r"some/net is gated: accept its terms on https://huggingface.co/some/net"),
        (errors.RevisionNotFoundError, "some/net has no revision v2; name a branch, a tag or a commit"),
        (errors.RepositoryNotFoundError, "the hub has no model of this name.*correct the name, or run `hf auth login`"),
        (ConnectionError, r"cannot be downloaded \(reason: no route to host\); repeat it with a network"),
    ],
)
def test_an_error_of_the_hub_says_what_to_do(
    cache: HubCache, monkeypatch: pytest.MonkeyPatch, kind: type[Exception], advice: str
) -> None:
    real = huggingface_hub.snapshot_download

    def fail(name: str, *, local_files_only: bool = False, **options: Any) -> str:
        if local_files_only:
            return str(real(name, local_files_only=True, **options))
        raise answer(kind)

    online(monkeypatch)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(LoadError, match=advice):
        hub_model("some/net", "v2")
