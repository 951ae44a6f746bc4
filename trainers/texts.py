"""From class names to text features: descriptions and templates, their encoding and its cache."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from yacs.config import CfgNode

import clip
from clip.model import CLIP
from utils.checkpoint import DAMAGE
from utils.config import resolve_path
from utils.errors import InputError

from .distributed import bar_settings

log = logging.getLogger(__name__)


class TextFeatures(NamedTuple):
    """Unit-length features [n, embed_dim] in fp32, the class [n] that each is about, and CLIP's logit scale."""

    features: Tensor
    labels: Tensor
    logit_scale: float

    def class_means(self, num_classes: int) -> Tensor:
        """The normalised mean feature [classes, embed_dim] of each class: CLIP's zero-shot classifier."""
        sums = torch.zeros(num_classes, self.features.shape[1]).index_add_(0, self.labels, self.features)
        return F.normalize(sums, dim=-1)


def class_texts(classnames: Sequence[str], mode: str, cfg: CfgNode) -> list[list[str]]:
    """The texts of each class. `mode`: `lafter` descriptions and templates, `templates_only`, `cls_only` the bare
    name, `zero_shot` the one template of CLIP. Raises InputError for a class without texts, by name."""
    names = [name.replace("_", " ") for name in classnames]
    if mode == "cls_only":
        return [[name] for name in names]
    if mode == "zero_shot":
        return [[fill_template(cfg.TEXT.ZERO_SHOT_TEMPLATE, name, "TEXT.ZERO_SHOT_TEMPLATE")] for name in names]
    own = mode == "templates_only" and cfg.TEXT.TEMPLATES
    key, templates = ("TEXT.TEMPLATES", own) if own else ("DATASET.TEMPLATES", cfg.DATASET.TEMPLATES)
    texts = [[fill_template(template, name, key) for template in templates] for name in names]
    if mode == "lafter":
        described = read_descriptions(cfg.DATASET.DESCRIPTIONS)
        missing = [name for name in classnames if not described.get(name)]
        if missing:
            raise InputError(f"class {missing[0]!r} has no description in {cfg.DATASET.DESCRIPTIONS} ({len(missing)} "
                             f"of {len(classnames)} classes have none); add some, or use --txt_cls templates_only")
        texts = [described[name] + own for name, own in zip(classnames, texts)]
    if not all(texts):
        raise InputError("DATASET.TEMPLATES is empty: give at least one template, such as 'a photo of a {}.'")
    return texts


def fill_template(template: str, name: str, key: str) -> str:
    """`template` with the class name in its one place {}. Raises InputError for another count of places."""
    if template.count("{}") != 1 or template.count("{") + template.count("}") != 2:
        raise InputError(f"{key}: {template!r} must hold one {{}} where the class name goes")
    return template.replace("{}", name)


def read_descriptions(name: str) -> dict[str, list[str]]:
    """{class: [sentence, …]} from a JSON file in LaFTer's format. Raises InputError where it is none."""
    if not name:
        raise InputError("DATASET.DESCRIPTIONS names no file; set it, or use --txt_cls templates_only")
    path = resolve_path(name)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"file of descriptions {path} does not exist; set DATASET.DESCRIPTIONS, or use "
                                "--txt_cls templates_only") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(data, dict) or not all(
            isinstance(texts, list) and all(isinstance(text, str) for text in texts) for texts in data.values()):
        raise InputError(f"{path} must hold {{class: [sentence, ...]}}")
    return data


@torch.no_grad()
def encode_texts(clip_model: CLIP, texts: Sequence[str], batch_size: int = 64) -> Tensor:
    """Unit-length features [n, embed_dim], fp32 on the CPU, in the order of `texts`.

    Batches are sorted by length, so that each is cut to about the length of its texts.
    """
    tokens = clip.tokenize(list(texts), context_length=clip_model.context_length)
    order = tokens.argmax(1).argsort(stable=True)
    features = torch.empty(len(tokens), clip_model.embed_dim)
    for rows in tqdm(order.split(batch_size), desc="texts", leave=False, **bar_settings()):
        encoded = clip_model.encode_text(tokens[rows].to(clip_model.visual.proj.device))
        features[rows] = F.normalize(encoded.float(), dim=-1).cpu()
    return features


def cache_key(texts: Sequence[Sequence[str]], weights_hash: str, precision: str, quick_gelu: bool) -> str:
    """SHA-256 of all that the features depend on: texts in order by class, weights, precision, activation."""
    content = json.dumps([list(map(list, texts)), weights_hash, precision, quick_gelu], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()


def text_features(clip_model: CLIP, classnames: Sequence[str], mode: str, cfg: CfgNode) -> TextFeatures:
    """The features of all classes' texts: from DATASET.TEXT_FEATURES, from the cache, or encoded now and cached."""
    if cfg.DATASET.TEXT_FEATURES:
        return read_text_features(Path(cfg.DATASET.TEXT_FEATURES), classnames, clip_model.embed_dim,
                                  cfg.DATASET.TEXT_FEATURES_TEMPLATE)
    if not clip_model.has_text:
        raise clip.ClipError("this checkpoint has no text tower: set DATASET.TEXT_FEATURES to embeddings of the class "
                             "names, load a full CLIP, or skip the text phase (TEXT.SKIP True with true labels)")
    texts = class_texts(classnames, mode, cfg)
    labels = torch.tensor([label for label, own in enumerate(texts) for _ in own])
    key = cache_key(texts, clip.weights_hash(clip_model), cfg.MODEL.PRECISION, clip_model.quick_gelu)
    path = Path(cfg.TEXT.CACHE_DIR) / f"texts_{key}.npz"
    features = _read_cache(path)
    if features is not None:
        log.info("text features: %d texts from the cache", len(features))
    else:
        features = encode_texts(clip_model, [text for own in texts for text in own])
        _save_atomically(path, features.numpy())
        log.info("text features: %d texts encoded", len(features))
    return TextFeatures(features, labels, clip_model.logit_scale.exp().item())


def _read_cache(path: Path) -> Tensor | None:
    """Cached features, None where there are none or, by the checksums of their zip, damaged ones."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as data:
            return torch.from_numpy(data["features"])
    except DAMAGE as error:
        log.warning("%s is damaged (%s): encoding the texts anew", path, " ".join(str(error).split()))
        return None


def _save_atomically(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.{os.getpid()}.part")
    with partial.open("wb") as file:
        np.savez(file, features=array)
    os.replace(partial, path)


def read_text_features(path: Path, classnames: Sequence[str], embed_dim: int, template: str = "") -> TextFeatures:
    """Embeddings made elsewhere: `features [n, embed_dim]`, `labels [n]` or `classnames [n]`, `logit_scale` (else 100).

    Where the file has a `template [n]` column, `template` selects rows by it ("" takes all). Raises InputError
    for a mismatch of width and, by name, for a class without an embedding; FileNotFoundError.
    """
    if not path.is_file():
        raise FileNotFoundError(f"DATASET.TEXT_FEATURES {path} does not exist")
    try:
        data = dict(np.load(path, allow_pickle=False))
        features = F.normalize(torch.from_numpy(data["features"].astype(np.float32)), dim=-1)
    except DAMAGE as error:
        raise InputError(f"{path} is no .npz file with an array 'features' ({' '.join(str(error).split())})") from error
    if features.ndim != 2 or features.shape[1] != embed_dim:
        raise InputError(f"{path}: features are {list(features.shape)}, but the backbone's joint space has width "
                         f"{embed_dim}")
    rows = np.ones(len(features), dtype=bool)
    if template:
        if template not in data.get("template", []):
            raise InputError(f"{path} has no embedding of template {template!r}: set DATASET.TEXT_FEATURES_TEMPLATE "
                             f"to one of {', '.join(sorted(set(data.get('template', [])))) or 'none'}")
        rows = data["template"] == template
    if "classnames" in data:
        index = {name: label for label, name in enumerate(classnames)}
        labels = np.array([index.get(str(name), -1) for name in data["classnames"]])
    elif "labels" in data:
        labels = data["labels"].astype(np.int64)
    else:
        raise InputError(f"{path} needs an array 'labels' or 'classnames' beside 'features'")
    if len(labels) != len(features):
        raise InputError(f"{path}: {len(features)} features but {len(labels)} labels")
    rows &= (labels >= 0) & (labels < len(classnames))
    for label, name in enumerate(classnames):
        if label not in labels[rows]:
            raise InputError(f"{path} has no embedding of class {name!r}")
    return TextFeatures(features[torch.from_numpy(rows)], torch.from_numpy(labels[rows]),
                        float(data.get("logit_scale", 100.0)))
