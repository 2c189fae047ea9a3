"""A cache of the hub on disk, as huggingface_hub lays it out: links in snapshots to files in one folder."""

import hashlib
import os
from pathlib import Path

import pytest
from huggingface_hub import constants


class HubCache:
    """Cache in a folder of a test, which takes the place of the user's; the hub itself is out of reach."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def add(self, name: str, source: Path, commit: str, ref: str = "main") -> Path:
        """Add the files of a folder as a snapshot of a model; return the snapshot."""
        model = self.root / f"models--{name.replace('/', '--')}"
        snapshot = model / "snapshots" / commit
        for file in (path for path in source.rglob("*") if path.is_file()):
            content = file.read_bytes()
            blob = model / "blobs" / hashlib.sha256(content).hexdigest()
            blob.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(content)
            link = snapshot / file.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
        (model / "refs").mkdir(exist_ok=True)
        (model / "refs" / ref).write_text(commit)
        return snapshot


def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow downloads; the test replaces what would make them."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
