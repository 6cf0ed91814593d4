"""Any Hugging Face image-classification checkpoint as a detector: one of its labels means "real".

P(real) is softmax or sigmoid of the logits over a temperature, at that label. The labels' order differs between the
published detectors, so the label is never guessed. Pictures are made as the checkpoint's own image processor says,
where that is a plain resize and normalisation. Knows no particular checkpoint.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from realgen.core.errors import ConfigError, ModelError, unloadable
from realgen.core.spec import Machine, Spec
from realgen.core.types import ScorerInfo
from realgen.hub.integrity import check_folder
from realgen.hub.names import find_local
from realgen.scorers._detector import ImageDetector, widened
from realgen.scorers._processor import plain_preprocess
from realgen.scorers._shapes import listed
from realgen.scorers._weights import place_of

_LOAD_ERRORS = (ImportError, OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError)


class Options(Spec):
    """Which classifier, and how its answer is P(real)."""

    model: str | None = None
    """Folder or hub id of the checkpoint; a card sets it."""

    real_label: str | int | None = None
    """Name or index of the label that means a real photograph."""

    activation: Literal["softmax", "sigmoid"] = "softmax"
    """How logits become probabilities: labels that exclude each other, or labels that stand alone."""

    temperature: float = Field(default=1.0, gt=0)
    """What the logits are divided by, as calibrated on held-out pictures; above 1 is less certain."""


def build(options: Options, machine: Machine) -> ImageDetector:
    """The classifier, loaded; ModelError where it cannot be, ConfigError where `real_label` is none of its labels."""
    if options.model is None:
        raise ConfigError("image_classifier: no model", hint="give a card, or options.model=FOLDER or a hub id")
    if (folder := find_local(options.model)) is not None:
        check_folder(folder)
    name = str(folder or options.model)
    preprocess = plain_preprocess(_processor_config(name), what=name)
    model = _load(name, machine)
    labels = model.config.id2label
    real = real_of(options, index=label_index(labels, options.real_label), num_labels=len(labels))
    info = ScorerInfo(
        low=0.0, high=1.0, is_detector=True, is_held_out=False, licence="unknown: see its card", source=options.model
    )
    return ImageDetector(model, preprocess, real=lambda answer: real(answer.logits), info=info, batch=machine.batch)


def label_index(labels: Mapping[int, str], wanted: str | int | None) -> int:
    """The index of the label that means real, by name in any case, or by number; ConfigError lists the labels."""
    named = {str(label).casefold(): index for index, label in labels.items()}
    if isinstance(wanted, int) and wanted in labels:
        return wanted
    if isinstance(wanted, str) and wanted.casefold() in named:
        return named[wanted.casefold()]
    known = ", ".join(f"{index}: {label}" for index, label in sorted(labels.items()))
    said = "no real_label" if wanted is None else f"no label {wanted!r}"
    raise ConfigError(f"image_classifier: {said}", hint=f"set options.real_label to one of {known}")


def real_of(options: Options, *, index: int, num_labels: int) -> Callable[[Tensor], Tensor]:
    """What turns logits (B, labels) into P(real) (B,)."""
    if num_labels == 1 and options.activation == "softmax":
        raise ConfigError("image_classifier: softmax over one label is always 1", hint="options.activation=sigmoid")

    def real(logits: Tensor) -> Tensor:
        scaled = widened(logits) / options.temperature
        return (scaled.softmax(dim=-1) if options.activation == "softmax" else scaled.sigmoid())[:, index]

    return real


def _processor_config(name: str) -> dict[str, Any]:
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        config: dict[str, Any] = ImageProcessingMixin.get_image_processor_dict(name)[0]
    except (OSError, ValueError) as error:
        hint = "it needs the preprocessor_config.json of its checkpoint"
        raise ModelError(f"{name} holds no image processor's settings", hint=hint) from error
    return config


def _load(name: str, machine: Machine) -> Any:
    """The model in evaluation mode; a head that the checkpoint does not hold is an error, not a random one."""
    from safetensors import SafetensorError
    from transformers import AutoModelForImageClassification

    device, dtype = place_of(machine)
    try:
        model, report = AutoModelForImageClassification.from_pretrained(
            name, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except (*_LOAD_ERRORS, SafetensorError) as error:
        said = " ".join(str(error).split())[:200]
        hint = "give the folder or the hub id of an image-classification model in safetensors"
        raise unloadable(error, f"cannot load {name}: {said}", hint=hint) from error
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"{name} is no image classifier: missing: {listed(missing)}", hint="give another checkpoint")
    return model.to(device)
