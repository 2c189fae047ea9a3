"""Decoders with sliding windows: a cache of all tokens gives the numbers of the own cache, also beyond a window."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import graphprune as gp
from graphprune.errors import ExportError
from graphprune.exporters.subjects.decoders import decoder_subject
from graphprune.exporters.subjects.sliding_windows import require_windows_of_masks
from graphprune.exporters.subjects.subject import next_cache
from graphprune.exporters.subjects.trial_inputs import empty_cache, prompts, step_feeds

BASE = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 64, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "sliding_window": 6,
}  # fmt: skip
ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"]}
KINDS: dict[str, dict[str, Any]] = {
    "Gemma3Text": ALTERNATING,
    "Gemma2": ALTERNATING,
    "Mistral": {},
    "Cohere2": ALTERNATING,
    "GptOss": {**ALTERNATING, "num_local_experts": 4, "num_experts_per_tok": 2},
}


def decoder(kind: str) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**BASE, **KINDS[kind]})
    name = f"{kind.removesuffix('Text')}ForCausalLM"
    model = getattr(transformers, name)(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.0 if parameter.dim() > 1 else 1.0, 0.3)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_steps_beyond_the_window_are_those_of_the_whole_text(kind: str) -> None:
    model = decoder(kind)
    subject = decoder_subject(model)
    assert subject.window == 6
    ids = torch.randint(60, (1, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
    past, parts = empty_cache(subject, 1), []
    for start, end in ((0, 9), (9, 10), (10, 20)):
        outputs = subject.run({**step_feeds(subject, ids, torch.ones_like(ids), start, end), **past})
        past = next_cache(outputs)
        parts.append(outputs["logits"])
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)
    assert all(tensor.shape[2] == 20 for tensor in past.values())  # no token is dropped
    assert model.config.sliding_window == 6


def test_half_precision_rounds_more() -> None:
    assert require_windows_of_masks(decoder("Gemma3Text").bfloat16()) == 6


def test_a_prompt_is_longer_than_the_window() -> None:
    longest = max(prompt.ids.shape[1] for prompt in prompts(decoder_subject(decoder("Mistral"))))
    assert longest == 9


def test_a_model_that_takes_its_window_from_elsewhere_is_refused() -> None:
    model = decoder("Mistral")
    frozen = type(model.config)(**model.config.to_dict())

    def masked(*args: Any, **kwargs: Any) -> Any:
        return transformers.masking_utils.create_sliding_window_causal_mask(*args, **{**kwargs, "config": frozen})

    model.config.sliding_window = frozen.sliding_window = 32
    require_windows_of_masks(model)
    code = vars(__import__(type(model).__module__, fromlist=["_"]))
    name = "create_sliding_window_causal_mask"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(code, name, masked)
        with pytest.raises(ExportError, match="same with a sliding_window of 4 and of 32"):
            require_windows_of_masks(model)


def test_a_narrower_decoder_is_exported_with_its_cache(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    decoder("Gemma3Text").save_pretrained(tmp_path / "dense")
    gp.prune(tmp_path / "dense", recipe="magnitude", ratio=0.25, destination="stock", output=tmp_path / "small")
    result = gp.export(tmp_path / "small", target="onnx", output=tmp_path / "onnx")
    assert result is not None and list((tmp_path / "onnx").rglob("*.onnx"))
