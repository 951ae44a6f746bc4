"""What the JSON files beside a checkpoint say of the model that no tensor's shape tells: its activation above all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from .errors import ClipError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
ACTIVATIONS = {"quick_gelu": True, "gelu": False}
# settings of OpenCLIP that this package's model does not have, and what they are when nothing is written
OPEN_CLIP = {"vision_cfg": {"head_width": 64, "pool_type": "tok", "attentional_pool": False, "act_kwargs": None,
                            "norm_kwargs": None},
             "text_cfg": {"pool_type": "argmax", "no_causal_mask": False, "act_kwargs": None, "norm_kwargs": None}}


class Settings(NamedTuple):
    """What lies beside a checkpoint tells of its model."""

    quick_gelu: bool | None = None  # None: nothing tells the activation
    told_by: str = ""  # what tells it
    pixel_mean: tuple[float, ...] = CLIP_MEAN  # of the images it was trained on
    pixel_std: tuple[float, ...] = CLIP_STD


def settings_beside(weights: Path, hugging_face: bool) -> Settings:
    """The settings of the model whose weights lie in the file `weights`.

    Weights with Hugging Face's names may have a `config.json` and a `preprocessor_config.json` in their folder,
    others OpenCLIP's `open_clip_config.json`. Raises ClipError for a file that cannot be read or describes a model
    that is not supported.
    """
    return _hugging_face(weights.parent) if hugging_face else _open_clip(weights.parent)


def _hugging_face(folder: Path) -> Settings:
    path, pixels = folder / "config.json", folder / "preprocessor_config.json"
    content = _read(path)
    kind = content.get("model_type", "")
    if kind and kind not in ("clip", "clip_vision_model"):
        raise ClipError(f"{path} says that this is a model of type {kind!r}; only CLIP's (clip, clip_vision_model) "
                        "work here")
    towers = [content[name] for name in ("text_config", "vision_config") if isinstance(content.get(name), dict)]
    for tower in towers or [content]:
        _require(tower, {"layer_norm_eps": 1e-5}, path)
        width, heads = tower.get("hidden_size"), tower.get("num_attention_heads")
        if width and heads and width != 64 * heads:
            raise ClipError(f"{path}: {heads} heads of {width / heads:g} channels; only heads of 64 work here")
    mean, std = _pixels(_read(pixels), "image_mean", "image_std", pixels)
    if not kind and not any("hidden_act" in part for part in (content, *towers)):
        return Settings(None, "", mean, std)
    default = content.get("hidden_act", "quick_gelu")  # what transformers takes where nothing is written
    activations = {tower.get("hidden_act", default) for tower in towers} or {default}
    if len(activations) > 1 or not activations <= set(ACTIVATIONS):
        raise ClipError(f"{path}: hidden_act {', '.join(sorted(map(str, activations)))}; only one of quick_gelu and "
                        "gelu, for both towers, works here")
    return Settings(ACTIVATIONS[activations.pop()], path.name, mean, std)


def _open_clip(folder: Path) -> Settings:
    path = folder / "open_clip_config.json"
    if not path.is_file():
        return Settings()
    content = _read(path)
    model = content.get("model_cfg", content)  # OpenCLIP's own files of settings are the inner part alone
    if not isinstance(model, dict) or "vision_cfg" not in model:
        raise ClipError(f"{path} holds no model_cfg with a vision_cfg")
    for tower, settings in OPEN_CLIP.items():
        _require(model.get(tower) or {}, settings, path)
    return Settings(bool(model.get("quick_gelu", False)), path.name,
                    *_pixels(content.get("preprocess_cfg") or {}, "mean", "std", path))


def _read(path: Path) -> dict:
    """The settings in a JSON file; none where there is no file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ClipError(f"{path} is no valid JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise ClipError(f"{path} holds no settings of a model")
    return content


def _pixels(settings: dict, mean: str, std: str, path: Path) -> list[tuple[float, ...]]:
    """Mean and standard deviation of the images' three channels; CLIP's own where they are not written."""
    found = [settings.get(name) or default for name, default in ((mean, CLIP_MEAN), (std, CLIP_STD))]
    for values in found:
        if not isinstance(values, (list, tuple)) or [isinstance(v, (int, float)) for v in values] != [True] * 3:
            raise ClipError(f"{path}: {mean} and {std} must be three numbers each, not {values!r}")
    return [tuple(values) for values in found]


def _require(tower: dict, settings: dict[str, object], path: Path) -> None:
    for name, value in settings.items():
        if tower.get(name, value) != value:
            raise ClipError(f"{path}: {name} is {tower[name]!r}; only {value!r} works here")
