"""Names of Mask2Former's tensors: detectron2's, and those of the checkpoints on the hub of transformers.

The hub's names are the ones that transformers reads and writes; a version that names its modules otherwise
translates them when it loads.
"""

import re

_STAGES = range(4)
_CONVOLUTIONS = range(3)

_SWIN = {
    "patch_embed.proj.{x}": "embeddings.patch_embeddings.projection.{x}",
    "patch_embed.norm.{x}": "embeddings.norm.{x}",
    "layers.{i}.blocks.{j}.norm1.{x}": "encoder.layers.{i}.blocks.{j}.layernorm_before.{x}",
    "layers.{i}.blocks.{j}.norm2.{x}": "encoder.layers.{i}.blocks.{j}.layernorm_after.{x}",
    "layers.{i}.blocks.{j}.attn.proj.{x}": "encoder.layers.{i}.blocks.{j}.attention.output.dense.{x}",
    "layers.{i}.blocks.{j}.attn.relative_position_bias_table": (
        "encoder.layers.{i}.blocks.{j}.attention.self.relative_position_bias_table"
    ),
    "layers.{i}.blocks.{j}.mlp.fc1.{x}": "encoder.layers.{i}.blocks.{j}.intermediate.dense.{x}",
    "layers.{i}.blocks.{j}.mlp.fc2.{x}": "encoder.layers.{i}.blocks.{j}.output.dense.{x}",
    "layers.{i}.downsample.{y}.{x}": "encoder.layers.{i}.downsample.{y}.{x}",
    **{f"norm{n}.{{x}}": f"hidden_states_norms.stage{n + 1}.{{x}}" for n in _STAGES},
}
_BOTTLENECK = {
    "shortcut.weight": "shortcut.convolution.weight",
    "shortcut.norm.{x}": "shortcut.normalization.{x}",
    **{f"conv{n + 1}.weight": f"layer.{n}.convolution.weight" for n in _CONVOLUTIONS},
    **{f"conv{n + 1}.norm.{{x}}": f"layer.{n}.normalization.{{x}}" for n in _CONVOLUTIONS},
}
_RESNET = {
    "stem.conv1.weight": "embedder.embedder.convolution.weight",
    "stem.conv1.norm.{x}": "embedder.embedder.normalization.{x}",
    **{
        f"res{n + 2}.{{i}}.{theirs}": f"encoder.stages.{n}.layers.{{i}}.{ours}"
        for n in _STAGES
        for theirs, ours in _BOTTLENECK.items()
    },
}
_PIXEL_DECODER = {
    "input_proj.{i}.{j}.{x}": "input_projections.{i}.{j}.{x}",
    "adapter_1.weight": "adapter_1.0.weight",
    "adapter_1.norm.{x}": "adapter_1.1.{x}",
    "layer_1.weight": "layer_1.0.weight",
    "layer_1.norm.{x}": "layer_1.1.{x}",
    "mask_features.{x}": "mask_projection.{x}",
    "transformer.level_embed": "level_embed",
    "transformer.encoder.layers.{i}.self_attn.{y}.{x}": "encoder.layers.{i}.self_attn.{y}.{x}",
    "transformer.encoder.layers.{i}.norm1.{x}": "encoder.layers.{i}.self_attn_layer_norm.{x}",
    "transformer.encoder.layers.{i}.linear1.{x}": "encoder.layers.{i}.fc1.{x}",
    "transformer.encoder.layers.{i}.linear2.{x}": "encoder.layers.{i}.fc2.{x}",
    "transformer.encoder.layers.{i}.norm2.{x}": "encoder.layers.{i}.final_layer_norm.{x}",
}
_PREDICTOR = {
    "transformer_self_attention_layers.{i}.self_attn.out_proj.{x}": (
        "decoder.layers.{i}.self_attn.out_proj.{x}"
    ),
    "transformer_self_attention_layers.{i}.norm.{x}": "decoder.layers.{i}.self_attn_layer_norm.{x}",
    "transformer_cross_attention_layers.{i}.multihead_attn.in_proj_{x}": (
        "decoder.layers.{i}.cross_attn.in_proj_{x}"
    ),
    "transformer_cross_attention_layers.{i}.multihead_attn.out_proj.{x}": (
        "decoder.layers.{i}.cross_attn.out_proj.{x}"
    ),
    "transformer_cross_attention_layers.{i}.norm.{x}": "decoder.layers.{i}.cross_attn_layer_norm.{x}",
    "transformer_ffn_layers.{i}.linear1.{x}": "decoder.layers.{i}.fc1.{x}",
    "transformer_ffn_layers.{i}.linear2.{x}": "decoder.layers.{i}.fc2.{x}",
    "transformer_ffn_layers.{i}.norm.{x}": "decoder.layers.{i}.final_layer_norm.{x}",
    "decoder_norm.{x}": "decoder.layernorm.{x}",
    "mask_embed.layers.{i}.{x}": "decoder.mask_predictor.mask_embedder.{i}.0.{x}",
    "query_embed.weight": "queries_embedder.weight",
    "query_feat.weight": "queries_features.weight",
    # What `query_feat` was called before version 2.
    "static_query.weight": "queries_features.weight",
    "level_embed.weight": "level_embed.weight",
}
_HEAD = {
    "sem_seg_head.predictor.class_embed.{x}": "class_predictor.{x}",
    "criterion.empty_weight": "criterion.empty_weight",
}
_QUERY_KEY_VALUE = {
    "backbone.layers.{i}.blocks.{j}.attn.qkv.{x}": [
        "model.pixel_level_module.encoder.encoder.layers.{i}.blocks.{j}.attention.self." + part + ".{x}"
        for part in ("query", "key", "value")
    ],
    "sem_seg_head.predictor.transformer_self_attention_layers.{i}.self_attn.in_proj_{x}": [
        "model.transformer_module.decoder.layers.{i}.self_attn." + part + "_proj.{x}" for part in "qkv"
    ],
}


def hub_names(name: str) -> list[str]:
    """What a tensor of detectron2 is called on the hub: one name, or three for equal parts of its rows.

    Raises:
        ValueError: Mask2Former has no such tensor.
    """
    for pattern, targets in _TABLE.items():
        if match := pattern.fullmatch(name):
            return [target.format_map(match.groupdict()) for target in targets]
    raise ValueError(f"tensor {name!r} is none of Mask2Former's")


def _below(theirs: str, ours: str, names: dict[str, str]) -> dict[str, str]:
    return {theirs + source: ours + target for source, target in names.items()}


def _compile(template: str) -> re.Pattern[str]:
    """`{i}` and `{j}` stand for a number, `{x}` and `{y}` for a word."""
    pattern = re.escape(template)
    for letter, accepted in {"i": r"\d+", "j": r"\d+", "x": r"\w+", "y": r"\w+"}.items():
        pattern = pattern.replace(rf"\{{{letter}\}}", f"(?P<{letter}>{accepted})")
    return re.compile(pattern)


_TABLE = {
    _compile(theirs): [ours]
    for theirs, ours in (
        _below("backbone.", "model.pixel_level_module.encoder.", _SWIN | _RESNET)
        | _below("sem_seg_head.pixel_decoder.", "model.pixel_level_module.decoder.", _PIXEL_DECODER)
        | _below("sem_seg_head.predictor.", "model.transformer_module.", _PREDICTOR)
        | _HEAD
    ).items()
} | {_compile(theirs): ours for theirs, ours in _QUERY_KEY_VALUE.items()}
