"""Object detectors: those of ultralytics whole, those of torchvision around the backbone that can be captured."""

import os
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.field.case import FieldModel, Inputs, normal, uniform
from tests.zoo.torchvision_operators import import_torchvision

CLASSES = 5
SIDE = 64  # of the images of ultralytics
QUIET = {"YOLO_VERBOSE": "false", "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
STEPS = 2  # of training


def _ultralytics() -> Any:
    """The package, which then asks no server and installs nothing."""
    os.environ.update(QUIET)
    import_torchvision()
    return import_module("ultralytics")


def _yolo(name: str) -> nn.Module:
    model: nn.Module = _ultralytics().YOLO(f"{name}.yaml").model
    return model


def _yolo_fit(model: nn.Module, inputs: Inputs) -> float:
    """Train with the loss and the optimizer of ultralytics."""
    trainer: Any = import_module("ultralytics.engine.trainer")
    model.args = import_module("ultralytics.cfg").get_cfg()
    images = inputs[0][0]
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.3, 0.6, 0.2, 0.3]])
    batch = {"img": images, "cls": torch.tensor([[1.0], [2.0]]), "bboxes": boxes, "batch_idx": torch.tensor([0.0, 1.0])}
    optimizer = trainer.BaseTrainer.build_optimizer(_Settings(), model, name="AdamW", lr=1e-4)
    losses = [_step(model, optimizer, batch) for _ in range(STEPS)]
    return losses[-1]


class _Settings:
    """Settings that the builder of optimizers reads from a trainer."""

    def __init__(self) -> None:
        self.args = import_module("ultralytics.cfg").get_cfg()
        self.data = {"nc": 80}


def _step(model: Any, optimizer: Any, batch: Any) -> float:
    loss: Tensor = model.loss(batch)[0].sum()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()
    return float(loss)


def _yolo_export(model: nn.Module, folder: Path) -> Path:
    """ONNX by the exporter of ultralytics, which swaps methods of the layers."""
    yolo = _ultralytics().YOLO("yolov8n.yaml")
    yolo.model = model
    model.pt_path = str(folder / "model.pt")  # type: ignore[assignment]
    model.args = {**vars(import_module("ultralytics.cfg").get_cfg()), "imgsz": SIDE}  # type: ignore[assignment]
    return Path(yolo.export(format="onnx", imgsz=SIDE, simplify=False, device="cpu"))


def _torchvision(name: str, **arguments: Any) -> nn.Module:
    import_torchvision()
    _run_in_python()
    models: Any = import_module("torchvision.models.detection")
    model: nn.Module = getattr(models, name)(weights=None, weights_backbone=None, num_classes=CLASSES, **arguments)
    return model


def _photos(side: int, seed: int) -> Inputs:
    return ([uniform(3, side, side, seed=seed), uniform(3, side, side, seed=seed + 1)],), {}


def _tv_fit(model: nn.Module, inputs: Inputs) -> float:
    """Train with the losses that a detector of torchvision returns in training mode."""
    targets = [{"boxes": torch.tensor([[8.0, 8.0, 40.0, 48.0]]), "labels": torch.tensor([1])} for _ in inputs[0][0]]
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    loss: Tensor = sum(model(*inputs[0], targets).values(), torch.zeros(()))
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(loss)


def _run_in_python() -> None:
    """Give torchvision the two operators of detectors in Python, where its compiled ones do not load."""
    extension: Any = import_module("torchvision.extension")
    if extension._has_ops():
        return
    boxes, poolers = import_module("torchvision.ops.boxes"), import_module("torchvision.ops.poolers")
    boxes.nms = _nms  # type: ignore[attr-defined]
    poolers.roi_align = _roi_align  # type: ignore[attr-defined]


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that no better one overlaps, best first."""
    overlaps = import_module("torchvision.ops.boxes").box_iou(boxes, boxes) > iou_threshold
    retained: list[int] = []
    for index in scores.argsort(descending=True).tolist():
        if not overlaps[index, retained].any():
            retained.append(index)
    return torch.tensor(retained, dtype=torch.long)


def _roi_align(
    input: Tensor, boxes: Tensor, output_size: Any, spatial_scale: float, sampling_ratio: int, aligned: bool = False
) -> Tensor:
    """Features in boxes, by one bilinear sample a cell; shape ``(boxes, channels, height, width)``."""
    height, width = output_size if isinstance(output_size, (tuple, list)) else (output_size, output_size)
    size = torch.tensor([input.shape[3], input.shape[2]])
    low, high = (boxes[:, 1:3] * spatial_scale / size, boxes[:, 3:5] * spatial_scale / size)
    ys, xs = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    x = low[:, :1] + (high - low)[:, :1] * xs
    y = low[:, 1:] + (high - low)[:, 1:] * ys
    grid = torch.stack([x[:, None].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], -1) * 2 - 1
    return nn.functional.grid_sample(input[boxes[:, 0].long()], grid, align_corners=False)


_YOLO = ("ultralytics", "cv2", "torchvision")
_TORCHVISION = ("torchvision",)


def _pictures(seed: int) -> Inputs:
    return (normal(2, 3, SIDE, SIDE, seed=seed),), {}


MODELS = {
    "ultralytics/yolov8n": FieldModel(lambda: _yolo("yolov8n"), _pictures, _YOLO, "", _yolo_fit, _yolo_export),
    "ultralytics/yolo11n": FieldModel(lambda: _yolo("yolo11n"), _pictures, _YOLO, "", _yolo_fit, _yolo_export),
    "torchvision/ssdlite": FieldModel(
        lambda: _torchvision("ssdlite320_mobilenet_v3_large"), lambda seed: _photos(320, seed), _TORCHVISION,
        "backbone", _tv_fit,
    ),
    "torchvision/faster r-cnn": FieldModel(
        lambda: _torchvision("fasterrcnn_mobilenet_v3_large_320_fpn", min_size=96, max_size=128),
        lambda seed: _photos(96, seed), _TORCHVISION, "backbone", _tv_fit,
    ),
}  # fmt: skip
