"""Language models of transformers in tiny configurations, one of them with adapters."""

from importlib import import_module
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from tests.zoo.field.case import FieldModel, Inputs, tokens

transformers: Any = import_module("transformers")
PLAIN = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128,
}  # fmt: skip
GROUPED = {**PLAIN, "num_key_value_heads": 2}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def built(kind: Any, config: PreTrainedConfig) -> nn.Module:
    """A model, with no cache in the outputs of the model or of its parts."""
    for part in (config, *(value for value in vars(config).values() if isinstance(value, PreTrainedConfig))):
        if hasattr(part, "use_cache"):
            part.use_cache = False
    model: nn.Module = kind(config)
    return model


def t5() -> nn.Module:
    """An encoder-decoder; both halves read their widths from the same fields."""
    config = transformers.T5Config(
        vocab_size=128, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    return built(transformers.T5ForConditionalGeneration, config)


def mixtral() -> nn.Module:
    """A mixture of experts in every layer."""
    config = transformers.MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2)
    return built(transformers.MixtralForCausalLM, config)


def deepseek_v3() -> nn.Module:
    """Latent attention; a dense block before those with experts."""
    config = transformers.DeepseekV3Config(
        **PLAIN, num_key_value_heads=4, moe_intermediate_size=32, n_routed_experts=4, n_shared_experts=1, n_group=1,
        num_experts_per_tok=2, topk_group=1, first_k_dense_replace=1, kv_lora_rank=16, q_lora_rank=24,
        qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=16,
    )  # fmt: skip
    return built(transformers.DeepseekV3ForCausalLM, config)


def nemotron_h() -> nn.Module:
    """State spaces, attention and feed-forward layers in turn."""
    config = transformers.NemotronHConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, layers_block_type=["mamba", "attention", "mlp"],
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, ssm_state_size=16, mamba_num_heads=4,
        mamba_head_dim=16, n_groups=2, chunk_size=8, max_position_embeddings=128,
    )  # fmt: skip
    return built(transformers.NemotronHForCausalLM, config)


def modernbert() -> nn.Module:
    """An encoder with local and global attention."""
    config = transformers.ModernBertConfig(
        **PLAIN, **SPECIAL, local_attention=8, global_attn_every_n_layers=2, cls_token_id=1, sep_token_id=2
    )
    return built(transformers.ModernBertForMaskedLM, config)


def llama() -> nn.Module:
    """A decoder with grouped queries."""
    return built(transformers.LlamaForCausalLM, transformers.LlamaConfig(**GROUPED))


def _adapted() -> nn.Module:
    """A decoder with low-rank adapters attached."""
    library: Any = import_module("peft")
    adapters = library.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model: nn.Module = library.get_peft_model(llama(), adapters)
    return model


def text(seed: int, length: int = 12) -> Inputs:
    """Inputs of a language model."""
    return (), {"input_ids": tokens(2, length, seed=seed), "attention_mask": torch.ones(2, length, dtype=torch.long)}


def two_texts(seed: int) -> Inputs:
    """Inputs of an encoder-decoder."""
    return (), {**text(seed)[1], "decoder_input_ids": tokens(2, 9, seed=seed + 1)}


MODELS = {
    "transformers/t5": FieldModel(t5, two_texts),
    "transformers/mixtral": FieldModel(mixtral, text),
    "transformers/deepseek-v3": FieldModel(deepseek_v3, text),
    "transformers/nemotron-h": FieldModel(nemotron_h, text),
    "transformers/modernbert": FieldModel(modernbert, text),
    "peft/lora on llama": FieldModel(_adapted, text, ("peft",)),
}
