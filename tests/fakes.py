"""Packages that fail when they are imported, for a folder that stands first on the path."""

from pathlib import Path

#: What a compiled module of another torch says.
NMS = "operator torchvision::nms does not exist"


def broken(folder: Path, package: str, fault: str, *, version: str = "", requires: str = "") -> None:
    """Put a package into `folder` that raises `fault`, an expression, and its metadata if it has a version."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text(f"import sys\nraise {fault}\n", encoding="utf-8")
    if version:
        told = folder / f"{package}-{version}.dist-info"
        told.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {package}", f"Version: {version}"]
        lines += [f"Requires-Dist: {requires}"] if requires else []
        (told / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (told / "top_level.txt").write_text(f"{package}\n", encoding="utf-8")


def broken_torchvision(folder: Path) -> None:
    """A torchvision built for another torch, and a Pillow without which transformers does not look for it."""
    broken(folder, "torchvision", f"RuntimeError({NMS!r})", version="0.28.0", requires="torch (==2.99)")
    pillow = {"__init__": "", "Image": "class Image: ...\nclass Resampling: ...\n", "ImageOps": ""}
    (folder / "PIL").mkdir()
    for name, text in pillow.items():
        (folder / "PIL" / f"{name}.py").write_text(text, encoding="utf-8")
