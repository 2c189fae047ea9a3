"""Tests of traced models of transformers, alone, of the user's own class or in a module: folders, and write-back."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertModel,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import graphprune as gp
from graphprune.errors import ExportError, PlanError
from graphprune.ir.program import Program

Configure = Callable[..., PreTrainedConfig]
IDS = torch.arange(3, 17).view(2, 7)
PROTECT = ("layers.1.*",)
PIXELS = torch.linspace(-1, 1, 24).view(3, 8)


class OwnConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    model_type = "a kind of its own"

    def __init__(self, width: int = 8, inner: int = 16, num_hidden_layers: int = 2, **others: Any) -> None:
        self.width, self.inner, self.num_hidden_layers = width, inner, num_hidden_layers
        super().__init__(**others)


class OwnLayer(nn.Module):
    def __init__(self, config: OwnConfig) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(config.width, config.inner), nn.Linear(config.inner, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.down(torch.relu(self.up(x))))


class OwnModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    config_class = OwnConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(OwnLayer(config) for _ in range(config.num_hidden_layers))
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Scaled(nn.Module):
    """A model of transformers in a module with a buffer, and with a head or without."""

    body: Any
    factor: Tensor

    def __init__(self, body: nn.Module, head: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.head = body, head or nn.Identity()
        self.register_buffer("factor", torch.tensor(2.0))

    def forward(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self.body(input_ids=ids).last_hidden_state
        result: Tensor = self.head(hidden * self.factor)
        return result


def cut(program: Program, destination: str, **options: Any) -> Program:
    plan = gp.plan(program, recipe="magnitude", destination=destination, **options)
    small = gp.apply(program, plan)
    gp.verify(program, small, plan)
    return small


@pytest.fixture(scope="module")
def decoder() -> tuple[Any, Program]:
    """A decoder whose config has no `head_dim`, and its program."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1, "use_cache": False}
    model: Any = Qwen2ForCausalLM(Qwen2Config(vocab_size=60, num_attention_heads=4, num_key_value_heads=4, **sizes))
    return model, gp.trace(model, (), {"input_ids": IDS})


def test_a_traced_model_is_saved_and_written_back(decoder: tuple[Any, Program], tmp_path: Path) -> None:
    model, program = decoder
    small = cut(program, "stock", ratio=0.5)
    ((compared, error),) = gp.save(small, output=tmp_path / "graph", destination="stock")
    assert compared == "reloaded folder and rewritten graph" and error < 1e-5
    written = small.write_back(model)
    assert not written.config_mismatch
    assert (model.config.num_attention_heads, model.config.head_dim, model.config.intermediate_size) == (2, 8, 20)
    model.save_pretrained(tmp_path / "module")
    expected = small.module()(input_ids=IDS).logits
    for folder in ("graph", "module"):
        again = AutoModelForCausalLM.from_pretrained(tmp_path / folder).train(False)
        with torch.no_grad():
            torch.testing.assert_close(again(IDS).logits, expected)


def test_layers_of_a_users_own_class(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = OwnModel(OwnConfig())
    program = gp.trace(model, (PIXELS,))
    even, uneven = cut(program, "stock", ratio=0.5), cut(program, "per-layer", ratio=0.5, protect=PROTECT)
    gp.save(even, output=tmp_path / "even", destination="stock")
    again: Any = OwnModel.from_pretrained(tmp_path / "even").train(False)
    assert again.config.inner == 8
    torch.testing.assert_close(again(PIXELS), even.module()(PIXELS))
    gp.save(uneven, output=tmp_path / "uneven", destination="per-layer")
    with caplog.at_level(logging.WARNING):
        written = uneven.write_back(model)
    way = "no field of OwnConfig .* since its layers differ in width; save the program with .* destination='per-layer'"
    assert re.search(way, written.config_mismatch) and written.config_mismatch in caplog.text


def test_a_model_in_a_module_is_saved_alone(configure: Configure, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Scaled(BertModel(configure("bert", num_hidden_layers=1)))  # type: ignore[arg-type]
    small = cut(gp.trace(module, (IDS,)), "stock", ratio=0.5)
    gp.save(small, output=tmp_path / "out", destination="stock")
    body = AutoModel.from_pretrained(tmp_path / "out").train(False)
    with torch.no_grad():
        torch.testing.assert_close(2 * body(IDS).last_hidden_state, small.module()(IDS))
    assert not small.write_back(module).config_mismatch
    module.body.save_pretrained(tmp_path / "body")
    assert BertModel.from_pretrained(tmp_path / "body").config.intermediate_size == 20


def test_parameters_outside_the_model_cannot_be_saved(configure: Configure, tmp_path: Path) -> None:
    body = BertModel(configure("bert", num_hidden_layers=1))  # type: ignore[arg-type]
    program = gp.trace(Scaled(body, nn.Linear(32, 2)), (IDS,))
    words = "2 parameters, the first head.bias, outside its BertModel.*call save_pretrained of body and save the others"
    with pytest.raises(ExportError, match=words):
        gp.save(program, output=tmp_path / "out", destination="stock")
    dense = body.get_submodule("encoder.layer.0.intermediate.dense")
    dense.register_parameter("adapter", nn.Parameter(torch.zeros(3)))
    adapted = gp.trace(Scaled(body), (IDS,))
    with pytest.raises(PlanError, match="body.encoder.layer.0.intermediate.dense.adapter is no parameter of the class"):
        gp.plan(adapted, ratio=0.5, destination="stock")
