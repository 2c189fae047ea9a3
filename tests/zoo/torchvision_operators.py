"""Import torchvision, also one that was built for another torch.

A torchvision from the Python package index is built for CUDA: beside a torch for processors its compiled operators do
not load, and its Python part stops because it finds none of them. Declared here they have no kernel, so detection
models do not run; no model of the zoo needs one.
"""

from importlib import import_module
from typing import Any

import torch

_ROIS = "Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width"
_SHAPE = "SymInt batch_size, SymInt channels, SymInt height, SymInt width"
_GRAD = "Tensor grad, Tensor rois, {}float spatial_scale, SymInt pooled_height, SymInt pooled_width"
_CONV = (
    "Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, SymInt stride_w, "
    "SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, SymInt offset_groups, "
    "bool use_mask"
)
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    f"roi_align({_ROIS}, int sampling_ratio, bool aligned) -> Tensor",
    f"qroi_align({_ROIS}, int sampling_ratio, bool aligned) -> Tensor",
    f"_roi_align_backward({_GRAD.format('')}, {_SHAPE}, int sampling_ratio, bool aligned) -> Tensor",
    f"ps_roi_align({_ROIS}, int sampling_ratio) -> (Tensor, Tensor)",
    f"_ps_roi_align_backward({_GRAD.format('Tensor channel_mapping, ')}, int sampling_ratio, {_SHAPE}) -> Tensor",
    f"roi_pool({_ROIS}) -> (Tensor, Tensor)",
    f"_roi_pool_backward({_GRAD.format('Tensor argmax, ')}, {_SHAPE}) -> Tensor",
    f"ps_roi_pool({_ROIS}) -> (Tensor, Tensor)",
    f"_ps_roi_pool_backward({_GRAD.format('Tensor channel_mapping, ')}, {_SHAPE}) -> Tensor",
    f"deform_conv2d({_CONV}) -> Tensor",
    f"_deform_conv2d_backward(Tensor grad, {_CONV}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "box_iou_rotated(Tensor boxes1, Tensor boxes2) -> Tensor",
    "_cuda_version() -> int",
)
_LIBRARY: list[torch.library.Library] = []  # an operator lives as long as its library


def import_torchvision() -> Any:
    """The package.

    Raises:
        ModuleNotFoundError: if it is not installed.
    """
    try:
        return import_module("torchvision")
    except RuntimeError as fault:
        if "does not exist" not in str(fault) or _LIBRARY:
            raise
    library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for schema in SCHEMAS:
        library.define(schema)
    _LIBRARY.append(library)
    return import_module("torchvision")
