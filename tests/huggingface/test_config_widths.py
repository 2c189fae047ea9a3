"""Tests of config widths: fields are identified by their effect on shapes."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import transformers
from transformers import BertConfig, LlamaConfig, PreTrainedConfig

from graphprune.errors import ExportError
from graphprune.huggingface.config_widths import expressible, fit
from graphprune.huggingface.meta_models import auto_class, describe, on_meta, stock_class

Configure = Callable[..., PreTrainedConfig]
Shapes = dict[str, tuple[int, ...]]

CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"intermediate_size": 31}),
    ("llama", {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}),
    ("llama", {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "intermediate_size": 13}),
    ("llama", {"hidden_size": 24, "head_dim": 4}),
    ("opt", {"ffn_dim": 7}),
    ("gpt2", {"n_inner": 100}),
    ("gpt2", {"n_embd": 16, "n_head": 2, "n_inner": 128}),
    ("bert", {"intermediate_size": 3}),
    ("t5", {"d_ff": 20}),
    ("t5", {"num_heads": 2}),
    ("vit", {"intermediate_size": 36}),
    ("resnet", {"hidden_sizes": [8, 12]}),
    ("resnet", {"embedding_size": 4, "hidden_sizes": [4, 10]}),
]
HALF = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 4}


def shapes_of(config: PreTrainedConfig) -> Shapes:
    return dict(describe(on_meta(config)).shapes)


@pytest.mark.parametrize(("kind", "changes"), CHANGES)
def test_the_fields_that_were_changed_are_identified(configure: Configure, kind: str, changes: dict[str, Any]) -> None:
    narrow = configure(kind, **changes)
    before, fitted = configure(kind), fit(configure(kind), shapes_of(narrow))
    assert shapes_of(fitted) == shapes_of(narrow)
    assert {name: fitted.to_dict()[name] for name in changes} == changes
    changed = {name for name, value in fitted.to_dict().items() if before.to_dict()[name] != value}
    assert changed <= changes.keys()


def test_names_of_tied_weights_may_be_absent(configure: Configure) -> None:
    shapes = shapes_of(configure("llama", intermediate_size=30))
    del shapes["lm_head.weight"]
    assert fit(configure("llama"), shapes).intermediate_size == 30


def test_constants_of_a_graph_are_passed_over(configure: Configure) -> None:
    shapes = shapes_of(configure("llama", intermediate_size=30)) | {"lifted_tensor_0": ()}
    assert fit(configure("llama"), shapes).intermediate_size == 30
    with pytest.raises(ExportError, match="none of the names is that of a parameter of LlamaForCausalLM"):
        fit(configure("llama"), {"lifted_tensor_0": ()})


def test_the_given_config_stays_as_it_is(configure: Configure) -> None:
    config = configure("llama")
    fit(config, shapes_of(configure("llama", intermediate_size=30)))
    assert config.to_dict() == configure("llama").to_dict()


def test_value_dimensions_alone_have_no_field(configure: Configure) -> None:
    shapes = shapes_of(configure("llama"))
    for layer in range(2):
        shapes[f"model.layers.{layer}.self_attn.v_proj.weight"] = (8, 32)
        shapes[f"model.layers.{layer}.self_attn.o_proj.weight"] = (32, 16)
    words = r"no field of LlamaConfig makes dimension 0 of model\.layers\.0\.self_attn\.v_proj\.weight 8 instead of 16"
    with pytest.raises(ExportError, match=words + r".*use destination free"):
        fit(configure("llama"), shapes)


def test_layers_that_differ_are_named_as_the_reason(configure: Configure) -> None:
    shapes = shapes_of(configure("bert"))
    shapes["bert.encoder.layer.1.intermediate.dense.weight"] = (20, 32)
    shapes["bert.encoder.layer.1.intermediate.dense.bias"] = (20,)
    shapes["bert.encoder.layer.1.output.dense.weight"] = (32, 20)
    words = r"bert\.encoder\.layer\.1.*20 instead of 40, since its layers differ in width; use destination per-layer"
    with pytest.raises(ExportError, match=words):
        fit(configure("bert"), shapes)


def test_a_smaller_head_is_refused_since_the_scale_follows_it(configure: Configure) -> None:
    shapes = shapes_of(configure("llama", head_dim=2))
    words = r"rotary_emb\.inv_freq 1 instead of 2 .*would also change model\.layers\.0\.self_attn\.\w+ from .* to "
    with pytest.raises(ExportError, match=words):
        fit(configure("llama"), shapes)


def test_fewer_heads_are_preferred_to_smaller_ones(configure: Configure) -> None:
    shapes = shapes_of(configure("bert", hidden_size=16, num_attention_heads=2))
    assert fit(configure("bert"), shapes).num_attention_heads == 2
    with pytest.raises(ExportError, match="no field of BertConfig makes dimension 1"):
        fit(configure("bert"), shapes_of(configure("bert", hidden_size=12, num_attention_heads=4)))


@pytest.mark.parametrize("kind", ["Qwen2", "Phi", "Cohere"])
def test_a_width_that_the_config_lacks_is_set_if_its_class_reads_it(kind: str) -> None:
    fields = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 8}
    make: Any = getattr(transformers, f"{kind}Config")
    config, narrow = (make(**{**fields, **more}, architectures=[f"{kind}ForCausalLM"]) for more in ({}, HALF))
    assert not hasattr(config, "head_dim")
    fitted = fit(config, shapes_of(narrow))
    assert (fitted.head_dim, fitted.num_attention_heads) == (4, 4) and not hasattr(config, "head_dim")
    assert shapes_of(make.from_dict(fitted.to_dict())) == shapes_of(narrow)


def test_widths_made_of_fractions_have_no_field(configure: Configure) -> None:
    with pytest.raises(ExportError, match=r"no field of MobileNetV2Config .* mobilenet_v2.*use destination free"):
        fit(configure("mobilenet"), shapes_of(configure("mobilenet", depth_multiplier=0.2)))


def test_the_vocabulary_is_never_changed(configure: Configure) -> None:
    with pytest.raises(ExportError, match=r"embed_tokens\.weight 30 instead of 60"):
        fit(configure("llama"), shapes_of(configure("llama", vocab_size=30)))


def test_the_message_contains_the_error_of_the_config(configure: Configure) -> None:
    shapes = shapes_of(configure("llama"))
    rows = {"q": 12, "k": 12, "v": 12}
    for layer in range(2):
        for kind, size in rows.items():
            shapes[f"model.layers.{layer}.self_attn.{kind}_proj.weight"] = (size * 2 if kind == "q" else size, 32)
        shapes[f"model.layers.{layer}.self_attn.o_proj.weight"] = (32, 24)
    with pytest.raises(ExportError, match=r"LlamaConfig: .*hidden size \(32\) is not a multiple .* heads \(6\)"):
        fit(configure("llama"), shapes)


def test_expressible_returns_the_reason_or_none(configure: Configure) -> None:
    before = shapes_of(configure("llama"))
    assert expressible(configure("llama"), before, shapes_of(configure("llama", intermediate_size=20))) is None
    after = {**before, "model.norm.weight": (31,)}
    assert "model.norm.weight 31 instead of 32" in str(expressible(configure("llama"), before, after))


def test_a_shape_of_another_rank_is_refused(configure: Configure) -> None:
    with pytest.raises(ExportError, match=r"model\.norm\.weight has shape \(4, 8\), LlamaForCausalLM gives it \(32,\)"):
        fit(configure("llama"), {"model.norm.weight": (4, 8)})


@pytest.mark.parametrize(
    ("names", "words"), [([], "names no class"), (["Nonsense"], "'Nonsense', which transformers does not")]
)
def test_a_config_without_a_known_class(configure: Configure, names: list[str], words: str) -> None:
    config = configure("llama")
    config.architectures = names
    with pytest.raises(ExportError, match=words + r".*destination free"):
        stock_class(config)


def test_the_auto_class_is_the_specific_one(configure: Configure) -> None:
    names = [auto_class(configure(kind)).__name__ for kind in ("llama", "bert", "vit", "t5")]
    kinds = ("CausalLM", "SequenceClassification", "ImageClassification", "Seq2SeqLM")
    assert names == [f"AutoModelFor{kind}" for kind in kinds]


def test_a_model_of_many_layers_is_quick() -> None:
    fields: dict[str, Any] = {"vocab_size": 49152, "hidden_size": 576, "num_hidden_layers": 30}
    fields["architectures"] = ["LlamaForCausalLM"]
    config = LlamaConfig(**fields, num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536)
    narrow = LlamaConfig(**fields, num_attention_heads=6, num_key_value_heads=2, intermediate_size=1000, head_dim=64)
    start = time.process_time()
    assert expressible(config, shapes_of(config), shapes_of(narrow)) is None
    assert time.process_time() - start < 3


def test_a_folder_that_transformers_refuses_is_named() -> None:
    config = BertConfig(hidden_size=30, num_attention_heads=4, architectures=["BertModel"])
    with pytest.raises(ExportError, match=r"cannot build a model from config\.json: .*30.*repair the source folder"):
        fit(config, {"embeddings.LayerNorm.weight": (30,)})
