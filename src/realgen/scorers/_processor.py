"""A `preprocessor_config.json` as a `Preprocess`, where it is a plain resize and normalisation; refused where not.

Pillow resizes here, as the image processors of transformers do without torchvision. Loads no processor class.
"""

from collections.abc import Mapping
from typing import Any, Literal

from realgen.core.errors import ModelError
from realgen.scorers._pixels import Preprocess, Triple

_RESAMPLE: dict[Any, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_READ = {"do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor"}
_READ |= {"do_normalize", "image_mean", "image_std"}
_HARMLESS = {"image_processor_type", "feature_extractor_type", "processor_class", "_valid_processor_keys"}
_HARMLESS |= {"do_convert_rgb", "default_to_square", "data_format", "input_data_format", "return_tensors"}
_HARMLESS |= {"device", "disable_grouping", "_processor_class", "auto_map"}
_HINT = "this scorer reads processors that resize to a square, rescale by 1/255 and normalise"


def plain_preprocess(config: Mapping[str, Any], *, what: str) -> Preprocess:
    """The same pixels as the processor's; ModelError, naming the key, for anything but a plain resize."""
    for key in sorted(set(config) - _READ - _HARMLESS):
        if config[key]:
            raise ModelError(f"{what}: its image processor has {key}={config[key]!r:.40}", hint=_HINT)
    for key in ("do_resize", "do_rescale"):
        if not config.get(key, True):
            raise ModelError(f"{what}: its image processor has {key}={config[key]!r}", hint=_HINT)
    if abs(config.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-4:
        raise ModelError(f"{what}: its image processor has rescale_factor={config['rescale_factor']}", hint=_HINT)
    if (resample := _RESAMPLE.get(config.get("resample"))) is None:
        raise ModelError(f"{what}: its image processor has resample={config.get('resample')!r}", hint=_HINT)
    side, fit = _geometry(config, what=what)
    mean, std = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)) if config.get("do_normalize") is False else _statistics(config, what)
    return Preprocess(size=side, mean=mean, std=std, fit=fit, resample=resample)


def _geometry(config: Mapping[str, Any], *, what: str) -> tuple[int, Literal["squash", "crop"]]:
    """Side in pixels, and whether the aspect is squashed or the centre cut."""
    size, crop = _edges(config.get("size")), _edges(config.get("crop_size"))
    if not config.get("do_center_crop"):
        if isinstance(config.get("size"), int):
            return config["size"], "squash"
        if set(size) == {"height", "width"} and size["height"] == size["width"]:
            return size["height"], "squash"
    elif set(crop) == {"height", "width"} and crop["height"] == crop["width"]:
        side = crop["height"]
        if size == {"shortest_edge": side}:
            return side, "crop"
        if size == crop:
            return side, "squash"
    said = f"size={config.get('size')!r}, do_center_crop={config.get('do_center_crop')!r}"
    raise ModelError(f"{what}: its image processor has {said}, crop_size={config.get('crop_size')!r}", hint=_HINT)


def _edges(size: Any) -> dict[str, int]:
    if isinstance(size, Mapping):
        return {key: edge for key, edge in size.items() if edge}
    return {"height": size, "width": size, "shortest_edge": size} if isinstance(size, int) else {}


def _statistics(config: Mapping[str, Any], what: str) -> tuple[Triple, Triple]:
    found = [config.get(key) for key in ("image_mean", "image_std")]
    if not all(isinstance(values, list) and len(values) == 3 for values in found):
        raise ModelError(f"{what}: its image processor names no image_mean and image_std of three colours", hint=_HINT)
    mean, std = (tuple(float(value) for value in values or ()) for values in found)
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])
