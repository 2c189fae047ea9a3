"""The code of a page, and a reader who runs it from the top to the bottom."""

import io
import os
import re
import shlex
import subprocess
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graphprune.cli.commands import app
from graphprune.exporters import EXPORTERS

FENCE = re.compile(
    r'^(?P<indent> *)```(?P<kind>\w*)(?: title="(?P<title>[^"]*)")?[^\n]*\n(?P<code>.*?)^(?P=indent)```$', re.M | re.S
)
INSTALLS = "once"  # the title of blocks that install something, which only the newcomer runs
PRINTS = "prints"  # the title of what the block before it prints, word for word
PLUGINS = ("passes/", "exporters/")  # where files register themselves when their folder is imported
TARGETS = "exporters/targets/"


@dataclass(frozen=True)
class Block:
    """Code between fences: its language, its title or nothing, and the text."""

    kind: str
    title: str
    code: str


def blocks(page: str) -> list[Block]:
    """All code of a page, in order."""
    found = []
    for fence in FENCE.finditer(page):
        lines = (line.removeprefix(fence["indent"]) for line in fence["code"].splitlines(keepends=True))
        found.append(Block(fence["kind"], fence["title"] or "", "".join(lines)))
    return found


@dataclass
class Reader:
    """Someone who follows a page in a folder of their own, and has the programs of `path` at hand."""

    folder: Path
    path: Path
    printed: str = ""
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "page"})

    def follow(self, page: str) -> None:
        """Do all that a page says; a titled Python block is a file of that name."""
        for block in blocks(page):
            match block:
                case Block("toml"):
                    pass  # a part of a file
                case Block("text", title, code):
                    assert title != PRINTS or self.printed.split() == code.split(), self.printed
                case Block("python", title, code):
                    self._python(title, code)
                case Block("sh", title, code):
                    assert title in ("", INSTALLS), f"a shell block has the title {title!r}"
                    self.printed = "" if title else "".join(map(self._command, commands(code)))
                case _:
                    raise AssertionError(f"nobody runs blocks of {block.kind!r}: {block.code}")

    def _python(self, title: str, code: str) -> None:
        if title:
            (self.folder / title).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / title).write_text(code, encoding="utf-8")
        if not title or title.startswith(PLUGINS):
            out = io.StringIO()
            with redirect_stdout(out):
                exec(compile(code, title or "page", "exec"), self.names)
            self.printed = out.getvalue()
        if title.startswith(TARGETS):  # which is known by the name of its file
            EXPORTERS.register(Path(title).stem)(self.names["TARGET"])

    def _command(self, line: str) -> str:
        words = shlex.split(os.path.expandvars(line), comments=True)
        out = io.StringIO()
        if words[0] == "graphprune":  # in this process, which has imported torch already
            with redirect_stdout(out):
                app(words[1:], standalone_mode=False)
            return out.getvalue()
        given = {**os.environ, "PATH": f"{self.path}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run(["bash", "-ec", line], env=given, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout


def commands(code: str) -> list[str]:
    """The commands of a shell block, one a line; what ends in a backslash goes on."""
    joined = code.replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]
