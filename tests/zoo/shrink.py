"""Make any configuration of transformers describe a tiny model, by the names of its attributes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig

from tests.zoo.refill import seed_of

VOCABULARY = 128
HEADS = 4
HEAD_DIM = 16
WIDTH = 16  # of the narrowest stage of a model with stages
_SIZES = (
    # widths
    (64, "hidden_size d_model n_embd dim emb_dim hidden_dim decoder_hidden_size encoder_hidden_size embedding_size "
         "word_embed_proj_dim hidden_channels model_dim attention_hidden_size rnn_hidden_size d_embed projection_dim "
         "vision_embed_dim text_embed_dim hidden_size_encoder dim_model d_inner_model lru_width encoder_hidden_dim "
         "attention_dim audio_hidden_size input_hidden_size hidden_size_per_layer_input pooler_output_size "
         "fpn_feature_size reduced_hidden_size fusion_hidden_size backbone_hidden_size"),
    (128, "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim n_inner d_ff dim_feedforward ffn_hidden_size dff "
          "dim_ff shared_intermediate_size moe_shared_expert_intermediate_size ffn_size d_inner hidden_size_ff "
          "intermediate_size_mlp shared_expert_intermediate_size encoder_intermediate_size feed_forward_hidden_dim"),
    (64, "moe_intermediate_size expert_intermediate_size expert_ffn_hidden_size ffn_expert_hidden_size expert_ffn_dim"),
    (VOCABULARY, "vocab_size text_vocab_size vocab_size_per_layer_input decoder_vocab_size audio_vocab_size"),
    # layers, heads and what is in them
    (2, "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers "
        "num_decoder_layers depth n_block num_blocks num_hidden_layers_encoder encoder_num_hidden_layers "
        "decoder_num_hidden_layers num_transformer_layers encoder_n_layers decoder_n_layers"),
    (HEADS, "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
            "num_encoder_attention_heads num_decoder_attention_heads attention_heads num_head linear_num_value_heads "
            "encoder_num_attention_heads decoder_num_attention_heads swa_num_attention_heads"),
    (2, "num_key_value_heads num_kv_heads n_head_kv multi_query_groups swa_num_key_value_heads "
        "encoder_num_key_value_heads decoder_num_key_value_heads linear_num_key_heads multi_query_group_num"),
    (HEAD_DIM, "head_dim kv_channels d_kv attention_head_dim v_head_dim qk_nope_head_dim swa_head_dim "
               "linear_key_head_dim linear_value_head_dim global_head_dim key_value_proj_dim attention_key_dim "
               "head_size swa_v_head_dim"),
    (8, "qk_rope_head_dim rotary_dim"),
    (24, "qk_head_dim"),
    (32, "q_lora_rank kv_lora_rank"),
    # experts
    (4, "num_experts n_routed_experts num_local_experts moe_num_experts num_moe_experts n_experts"),
    (2, "num_experts_per_tok num_experts_per_token moe_k moe_topk experts_per_token num_selected_experts moe_top_k "
        "top_k_experts num_experts_per_topk expert_top_k"),
    (1, "n_group topk_group n_groups_moe n_shared_experts moe_num_shared_experts num_shared_experts"),
    # inputs and outputs
    (128, "max_position_embeddings n_positions n_ctx max_target_positions max_source_positions seq_length max_seq_len "
          "max_sequence_length context_length seq_len"),
    (8, "sliding_window attention_window_size local_attn_size"),
    (3, "num_channels in_channels_img num_input_channels in_chans"),
    (10, "num_labels"),
)  # fmt: skip
SIZES = {name: size for size, names in _SIZES for name in names.split()}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
STAGE_WIDTHS = {
    "hidden_sizes", "embed_dims", "embed_dim", "encoder_hidden_sizes", "neck_hidden_sizes", "stem_hidden_sizes",
    "conv_dim", "layer_dims", "hidden_dims", "widths", "dims",
}  # fmt: skip
STAGE_DEPTHS = {"depths", "layer_depths", "num_blocks", "encoder_depths"}
STAGE_HEADS = {"num_heads", "num_attention_heads", "encoder_num_heads"}
AT_MOST = {"num_layers", "num_hidden_layers", "n_layer", "n_layers", "decoder_layers", "encoder_layers"}
DEPTHS = ("num_hidden_layers", "n_layer", "num_layers")


def shrunk(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields that make `config` small, those of configurations inside it too."""
    fields = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    small = dict(_smaller(config, fields))
    small |= _special_tokens(fields)
    if "use_cache" in fields:
        small["use_cache"] = False
    small |= _heads(fields, small)
    return small | _one_layer_of_each_kind(fields)


def _smaller(config: PreTrainedConfig, fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What can be told from one field alone."""
    aliases: dict[str, str] = {}
    for alias, name in (type(config).attribute_map or {}).items():
        aliases.setdefault(name, alias)
    for name, value in fields.items():
        if isinstance(value, PreTrainedConfig):
            yield name, {**shrunk(value), "model_type": value.model_type}
        elif isinstance(value, list | tuple):
            if stages := _stages(name, value):
                yield name, stages
        elif type(value) is int and value > 0:
            known = name if name in SIZES else aliases.get(name, "")
            if known in SIZES:
                yield name, _size(known, value)


def _size(name: str, value: int) -> int:
    """The size that an attribute gets; a model with one key/value head or one layer keeps it."""
    if name in ("num_key_value_heads", "num_kv_heads") and value == 1:
        return 1
    return min(SIZES[name], value) if name in AT_MOST else SIZES[name]


def _stages(name: str, sizes: Sequence[Any]) -> list[int]:
    """Smaller widths, depths or heads of the stages of a model; nothing if they are something else."""
    if not sizes or any(type(size) is not int for size in sizes):
        return []
    if name in STAGE_WIDTHS:
        narrowest = min(sizes)
        if max(sizes) > 16 * narrowest:
            return [WIDTH * (i + 1) for i in range(len(sizes))]
        return [max(8, round(WIDTH * size / narrowest / 8) * 8) for size in sizes]
    if name in STAGE_DEPTHS:
        return [1 if size <= 2 else 2 for size in sizes]
    if name in STAGE_HEADS:
        return [min(size, 2 ** min(i, 2)) if sizes[0] == 1 else 2 for i, size in enumerate(sizes)]
    return []


def _special_tokens(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of special tokens that lie in the small vocabulary."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if name in TOKENS and isinstance(value, int | list):
            found[name] = TOKENS[name] if isinstance(value, int) else [TOKENS[name]]
        elif name.endswith(("_token_id", "_token_index", "_token_idx")) and isinstance(value, int) and value >= 3:
            found[name] = 3 + seed_of(name) % 4
    if fields.get("decoder_start_token_id") is not None:
        found["decoder_start_token_id"] = 2
    return found


def _heads(fields: Mapping[str, Any], small: Mapping[str, Any]) -> dict[str, int]:
    """Sizes of heads that depend on one another."""
    found: dict[str, int] = {}
    if "qk_rope_head_dim" in fields:  # latent attention: a head's size is that of its rotary part, keys have all heads
        if "head_dim" in small:
            found["head_dim"] = SIZES["qk_rope_head_dim"]
        if isinstance(fields.get("kv_lora_rank"), int) and "num_key_value_heads" in fields:
            found["num_key_value_heads"] = HEADS
    derived = "head_dim" in fields and fields["head_dim"] is None
    if derived and isinstance(fields.get("num_attention_heads"), int) and "hidden_size" in small:
        found["head_dim"] = HEAD_DIM
    return found


def _one_layer_of_each_kind(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Lists that name a kind for every layer, cut to one layer a kind; at least two layers."""
    depth = next((name for name in DEPTHS if isinstance(fields.get(name), int)), None)
    if depth is None:
        return {}
    lists = {name: value for name, value in fields.items() if _names_layers(value, fields[depth])}
    kinds = {name: list(dict.fromkeys(value)) for name, value in lists.items()}
    if not kinds:
        return {}
    layers = max(2, *map(len, kinds.values()))
    return {**{name: own + own[-1:] * (layers - len(own)) for name, own in kinds.items()}, depth: layers}


def _names_layers(value: Any, layers: int) -> bool:
    is_list = isinstance(value, list | tuple) and len(value) == layers and layers > 2
    return is_list and all(isinstance(kind, str) for kind in value)
