"""A configuration with the shapes of a narrow model, but other heads, is not taken for its configuration."""

from typing import Any

import pytest
import torch

import graphprune as gp

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize(("heads", "loads"), [(True, False), (False, True)])
def test_a_config_is_followed_only_if_its_model_computes_the_same(heads: bool, loads: bool) -> None:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, image_size=8, patch_size=4
    )
    model: Any = transformers.ViTForImageClassification(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    image = torch.randn(2, 3, 8, 8)
    program = gp.trace(model, (), {"pixel_values": image})
    protected = () if heads else ("*attention*",)
    small = gp.apply(program, gp.plan(program, ratio=0.5, protect=protected))
    result = small.write_back(model)
    again = transformers.ViTForImageClassification(model.config).eval()
    assert (result.config_mismatch == "") is loads
    if loads:
        again.load_state_dict(model.state_dict())
        assert torch.allclose(again(pixel_values=image).logits, model(pixel_values=image).logits, atol=1e-5)
    else:  # the heads of half as many dims have no field, and one head of the same shapes computes otherwise
        assert "save_pretrained writes a folder that from_pretrained cannot load" in result.config_mismatch
        assert model.config.num_attention_heads == 4 and model.config.intermediate_size == 48
