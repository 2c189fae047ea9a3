"""Models, their pages, and a browser that opens them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp

Open = Callable[..., Any]


class Block(nn.Module):
    """Two convolutions beside a residual path."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(wide, wide, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2 = nn.BatchNorm2d(wide), nn.BatchNorm2d(wide)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Network(nn.Module):
    """A stem, two lists of blocks, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layer1, self.layer2 = (nn.Sequential(*(Block(8) for _ in range(2))) for _ in range(2))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.layer2(self.layer1(self.stem(x))).mean((2, 3)))
        return y


@pytest.fixture(scope="session")
def network() -> gp.Program:
    torch.manual_seed(0)
    return gp.trace(Network().eval(), (torch.randn(2, 3, 8, 8),))


@pytest.fixture(scope="session")
def decoder(folder: Path) -> gp.Program:
    return gp.load(folder)


@pytest.fixture(scope="session")
def plan(decoder: gp.Program) -> gp.Plan:
    return gp.plan(decoder, ratio=0.5)


@pytest.fixture(scope="session")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on the decoder."""
    output = tmp_path_factory.mktemp("runs") / "by-magnitude"
    gp.prune(folder, output=output, recipe="magnitude", sparsity=0.2, destination="free", align=1, plan_only=True)
    return output


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Open the page of a program; the test fails if the page loads anything, or an error is told on its console."""
    contexts: list[Any] = []
    faults: list[str] = []

    def open_page(program: gp.Program, *, wide: int = 1280, theme: str = "light", at: str = "", **shown: Any) -> Any:
        path = tmp_path / f"{len(contexts)}.html"
        gp.view(program, output=path, title="the model", **shown)
        context = browser.new_context(viewport={"width": wide, "height": 844}, color_scheme=theme)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda fault: faults.append(str(fault)))
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        page.on(
            "request",
            lambda request: faults.append(request.url) if request.url.partition("#")[0] != path.as_uri() else None,
        )
        page.goto(path.as_uri() + at)
        page.wait_for_selector("html[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []
