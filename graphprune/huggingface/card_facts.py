"""Facts about the source of a model for the card of a pruned one: its name on the hub, license and task."""

import re
from dataclasses import dataclass
from pathlib import Path

from graphprune.errors import LoadError
from graphprune.huggingface.hub_models import hub_model
from graphprune.huggingface.model_folder import CONFIG, read_json

_SNAPSHOT = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/([\w.-]+)$")  # a model in the cache of the hub
_TASKS = {
    "ForCausalLM": "text-generation", "LMHeadModel": "text-generation", "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification", "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering", "ForImageClassification": "image-classification",
    "ForObjectDetection": "object-detection", "ForSemanticSegmentation": "image-segmentation",
    "ForAudioClassification": "audio-classification", "ForCTC": "automatic-speech-recognition",
    "ForSpeechSeq2Seq": "automatic-speech-recognition", "ForDepthEstimation": "depth-estimation",
    "ForImageTextToText": "image-text-to-text",
}  # fmt: skip


@dataclass(frozen=True)
class CardFacts:
    """Name of the source on the hub, its commit, license and task, as the hub has them; None and "" where unknown."""

    base_model: str | None = None
    revision: str | None = None
    licence: str | None = None
    task: str = ""


def card_facts(model: object, revision: str | None = None) -> CardFacts:
    """Facts that a model, in files or on the hub, tells by its card, its configuration and its place in the cache."""
    known = hub_model(model, revision, offline=True) if isinstance(model, str | Path) else None
    folder = known.folder if known else Path(model) if isinstance(model, str | Path) else None
    if folder is None or not folder.is_dir():
        return CardFacts()
    from huggingface_hub import ModelCard  # here, so that modules in memory are pruned without it
    from yaml import YAMLError

    try:
        card = ModelCard.load(folder / "README.md", ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, YAMLError):  # no card, or one that the hub would refuse
        card = {}
    name, licence, task = (card.get(key) for key in ("base_model", "license", "pipeline_tag"))
    name = next(iter(name), None) if isinstance(name, list) else name
    cached = _SNAPSHOT.search(folder.absolute().as_posix())
    return CardFacts(
        base_model=f"{cached[1]}/{cached[2]}" if cached else name if isinstance(name, str) else None,
        revision=cached[3] if cached else None,
        licence=licence if isinstance(licence, str) else None,
        task=task if isinstance(task, str) else _task(folder),
    )


def _task(folder: Path) -> str:
    """Task of the class that config.json names, by the end of its name."""
    try:
        classes = read_json(folder / CONFIG).get("architectures") or [""]
    except LoadError:
        return ""
    name = str(classes[0]) if isinstance(classes, list) else ""
    return next((task for end, task in _TASKS.items() if name.endswith(end)), "")
