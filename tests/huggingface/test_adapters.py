"""Adapters attached to a model: their ranks stay as their configuration sets them, and the model's own sizes follow."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import transformers
from torch import Tensor, nn

import graphprune as gp
from graphprune.huggingface.adapters import ranks_of, without_adapters
from graphprune.passes.analysis.find_groups import analyze


class Adapted(nn.Module):
    """A linear layer with an adapter of rank 4, as PEFT attaches one."""

    adapter_layer_names: ClassVar[tuple[str, ...]] = ("lora_A", "lora_B")

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base_layer, self.r = nn.Linear(inputs, outputs), {"default": 4}
        self.lora_A = nn.ModuleDict({"default": nn.Linear(inputs, 4, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(4, outputs, bias=False)})

    def forward(self, x: Tensor) -> Any:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


def test_ranks_are_not_cut_and_widths_are() -> None:
    module = nn.Sequential(Adapted(6, 16), nn.ReLU(), Adapted(16, 3)).eval()
    assert set(ranks_of(module)["0.lora_A.default.weight"]) == {0}
    assert set(ranks_of(module)["2.lora_B.default.weight"]) == {1}
    program = gp.trace(module, (torch.randn(2, 6),))
    (group,) = analyze(program).groups
    assert (group.size, len(group.places)) == (16, 5)
    plan = gp.plan(program, ratio=0.5)
    gp.apply(program, plan).write_back(module)
    assert dict(module.named_parameters())["2.lora_A.default.weight"].shape == (4, 8)


def test_a_module_without_adapters_is_its_own_base() -> None:
    module, shapes = nn.Linear(2, 3), {"weight": (3, 2)}
    assert ranks_of(module) == {} and without_adapters(module, shapes) == (module, shapes)


@pytest.mark.slow
def test_adapters_and_the_merged_model_load_after_a_cut(configure: Any, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    torch.manual_seed(0)
    ids, settings = torch.randint(3, 60, (2, 7)), configure("llama", num_hidden_layers=1)
    model = peft.get_peft_model(
        transformers.LlamaForCausalLM(settings), peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"])
    ).eval()
    model.config.use_cache = False
    program = gp.trace(model, (), {"input_ids": ids})
    result = gp.apply(program, gp.plan(program, ratio=0.5, protect=("*self_attn*",))).write_back(model)
    assert result.config_mismatch == ""
    logits = model(input_ids=ids).logits
    model.save_pretrained(tmp_path / "adapter")
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    again: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    again.eval()
    torch.testing.assert_close(again(ids).logits, logits, rtol=1e-4, atol=1e-5)
    peft.PeftModel.from_pretrained(transformers.LlamaForCausalLM(again.config), tmp_path / "adapter")
