"""What the JSON file beside a checkpoint says of the model that no tensor's shape tells: its activation above all."""

from __future__ import annotations

import json
from pathlib import Path

from .errors import ClipError

ACTIVATIONS = {"quick_gelu": True, "gelu": False}
# settings of OpenCLIP that this package's model does not have, and what they are when nothing is written
OPEN_CLIP = {"vision_cfg": {"head_width": 64, "pool_type": "tok", "attentional_pool": False, "act_kwargs": None,
                            "norm_kwargs": None},
             "text_cfg": {"pool_type": "argmax", "no_causal_mask": False, "act_kwargs": None, "norm_kwargs": None}}


def quick_gelu_beside(weights: Path, hugging_face: bool) -> tuple[bool | None, str]:
    """Whether the model's activation is QuickGELU, and the name of the file that says so; (None, "") if none does.

    Weights with Hugging Face's names have a `config.json` in their folder, others may have OpenCLIP's
    `open_clip_config.json`. Raises ClipError for a file that cannot be read or describes a model that is not
    supported.
    """
    path = weights.parent / ("config.json" if hugging_face else "open_clip_config.json")
    if not path.is_file():
        return None, ""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ClipError(f"{path} is no valid JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise ClipError(f"{path} holds no settings of a model")
    quick_gelu = (_read_hugging_face if hugging_face else _read_open_clip)(content, path)
    return quick_gelu, "" if quick_gelu is None else path.name


def _read_hugging_face(content: dict, path: Path) -> bool | None:
    kind = content.get("model_type", "")
    if kind and kind not in ("clip", "clip_vision_model"):
        raise ClipError(f"{path} says that this is a model of type {kind!r}; only CLIP's (clip, clip_vision_model) "
                        "work here")
    towers = {name: content[name] for name in ("text_config", "vision_config") if isinstance(content.get(name), dict)}
    if not kind and not any("hidden_act" in tower for tower in (content, *towers.values())):
        return None
    for tower in towers.values() or [content]:
        _require(tower, {"layer_norm_eps": 1e-5}, path)
        width, heads = tower.get("hidden_size"), tower.get("num_attention_heads")
        if width and heads and width != 64 * heads:
            raise ClipError(f"{path}: {heads} heads of {width / heads:g} channels; only heads of 64 work here")
    default = content.get("hidden_act", "quick_gelu")  # what transformers takes where nothing is written
    activations = {tower.get("hidden_act", default) for tower in towers.values()} or {default}
    if len(activations) > 1 or not activations <= set(ACTIVATIONS):
        raise ClipError(f"{path}: hidden_act {', '.join(sorted(map(str, activations)))}; only one of quick_gelu and "
                        "gelu, for both towers, works here")
    return ACTIVATIONS[activations.pop()]


def _read_open_clip(content: dict, path: Path) -> bool:
    model = content.get("model_cfg", content)  # OpenCLIP's own files of settings are the inner part alone
    if not isinstance(model, dict) or "vision_cfg" not in model:
        raise ClipError(f"{path} holds no model_cfg with a vision_cfg")
    for tower, settings in OPEN_CLIP.items():
        _require(model.get(tower) or {}, settings, path)
    return bool(model.get("quick_gelu", False))


def _require(tower: dict, settings: dict[str, object], path: Path) -> None:
    for name, value in settings.items():
        if tower.get(name, value) != value:
            raise ClipError(f"{path}: {name} is {tower[name]!r}; only {value!r} works here")
