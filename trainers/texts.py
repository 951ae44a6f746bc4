"""From class names to text features: descriptions and templates, their encoding and its cache."""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import logging
import os
from collections import Counter, defaultdict
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
from utils.config import resolve_path
from utils.datasets.reading import normal_name, shorten
from utils.errors import InputError, words
from utils.files import read_json, write_whole
from utils.runs.checkpoint import DAMAGED_ARCHIVE

from .distributed import bar_settings

log = logging.getLogger(__name__)

CACHE_FORMAT = "features, cut; GELU folded"  # the arrays of a cache's file, and what rounds them


class TextFeatures(NamedTuple):
    """Unit-length features [n, embed_dim] in fp32, the class [n] that each is about, and CLIP's logit scale."""

    features: Tensor
    labels: Tensor
    logit_scale: float

    def class_means(self, num_classes: int) -> Tensor:
        """The normalised mean feature [classes, embed_dim] of each class: CLIP's zero-shot classifier."""
        sums = torch.zeros(num_classes, self.features.shape[1]).index_add_(0, self.labels, self.features)
        return F.normalize(sums, dim=-1)


SAME_CLASS = 0.999  # cosine from which two classes' embeddings are one


def tell_same_classes(means: Tensor, classnames: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of classes whose embeddings [classes, embed_dim], unit-length, coincide; one warning names them."""
    cosines = (means @ means.t()).triu(diagonal=1)
    pairs = [(classnames[a], classnames[b]) for a, b in (cosines > SAME_CLASS).nonzero().tolist()]
    if pairs:
        log.warning("to this CLIP the texts of these classes are the same (cosine above %g): %s; what it predicts of "
                    "them means nothing. Describe them in words that it knows (DATASET.CLASSNAMES, "
                    "DATASET.DESCRIPTIONS), or take another --backbone", SAME_CLASS,
                    shorten([f"{a} and {b}" for a, b in pairs]))
    return pairs


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
        described = by_normal_name(read_descriptions(cfg.DATASET.DESCRIPTIONS))
        missing = [name for name in classnames if not described.get(normal_name(name))]
        if missing:
            raise InputError(f"class {missing[0]!r} has no description in {cfg.DATASET.DESCRIPTIONS} ({len(missing)} "
                             f"of {len(classnames)} classes have none); add some, or use --txt_cls templates_only")
        texts = [described[normal_name(name)] + own for name, own in zip(classnames, texts)]
    if not all(texts):
        raise InputError("DATASET.TEMPLATES is empty: give at least one template, such as 'a photo of a {}.'")
    return texts


def fill_template(template: str, name: str, key: str) -> str:
    """`template` with the class name in its one place {}. Raises InputError for another count of places."""
    if template.count("{}") != 1 or template.count("{") + template.count("}") != 2:
        raise InputError(f"{key}: {template!r} must hold one {{}} where the class name goes")
    return template.replace("{}", name)


def read_descriptions(name: str) -> dict[str, list[str]]:
    """{class: [sentence, …]} from a JSON file in LaFTer's format. Raises InputError where it is none.

    A class that stands in the file twice, as in some of LaFTer's own, has the sentences of both places.
    """
    if not name:
        raise InputError("DATASET.DESCRIPTIONS names no file; set it, or use --txt_cls templates_only")
    path = resolve_path(name)
    if not path.is_file():
        raise FileNotFoundError(f"file of descriptions {path} does not exist; set DATASET.DESCRIPTIONS, or use "
                                "--txt_cls templates_only")
    pairs = read_json(path, object_pairs_hook=tuple)  # a dict would keep the last of two equal keys alone
    if not isinstance(pairs, tuple) or not all(
            isinstance(texts, list) and all(isinstance(text, str) for text in texts) for _, texts in pairs):
        raise InputError(f"{path} must hold {{class: [sentence, ...]}}")
    described: dict[str, list[str]] = {}
    for key, texts in pairs:
        described.setdefault(key, []).extend(texts)
    return described


def by_normal_name(described: dict[str, list[str]]) -> dict[str, list[str]]:
    """The texts by `normal_name`. Where several keys have one, its texts are all of theirs, each once; that is told."""
    keys = defaultdict(list)
    for key in described:
        keys[normal_name(key)].append(key)
    twins = [" and ".join(map(repr, own)) for own in keys.values() if len(own) > 1]
    if twins:
        log.warning("DATASET.DESCRIPTIONS: %s are one class; it has the texts of both", shorten(twins))
    return {name: described[own[0]] if len(own) == 1 else list(dict.fromkeys(text for key in own
                                                                           for text in described[key]))
            for name, own in keys.items()}


def tokenize_texts(texts: Sequence[str], context_length: int) -> tuple[Tensor, Tensor]:
    """(token ids [n, context_length], whether a text is too long [n]: it is cut, its end token in the last place)."""
    tokens = clip.tokenize(list(texts), context_length + 1, truncate=True)
    cut, end = tokens[:, -1] != 0, tokens.amax(1)  # of all tokens the end's number is the highest
    tokens = tokens[:, :-1].clone()
    tokens[cut, -1] = end[cut]
    return tokens, cut


@torch.no_grad()
def encode_tokens(clip_model: CLIP, tokens: Tensor, batch_size: int = 64) -> Tensor:
    """Unit-length features [n, embed_dim], fp32 on the CPU, in the order of `tokens` [n, context_length].

    Batches are sorted by length, so that each is cut to about the length of its texts.
    """
    order = tokens.argmax(1).argsort(stable=True)
    features = torch.empty(len(tokens), clip_model.embed_dim)
    for rows in tqdm(order.split(batch_size), desc="texts", leave=False, **bar_settings()):
        encoded = clip_model.encode_text(tokens[rows].to(clip_model.visual.proj.device))
        features[rows] = F.normalize(encoded.float(), dim=-1).cpu()
    return features


def encode_texts(clip_model: CLIP, texts: Sequence[str], batch_size: int = 64) -> Tensor:
    """As `encode_tokens`, from texts; too long ones are cut."""
    return encode_tokens(clip_model, tokenize_texts(texts, clip_model.context_length)[0], batch_size)


def cache_key(texts: Sequence[Sequence[str]], weights_hash: str, precision: str, quick_gelu: bool) -> str:
    """SHA-256 of all that the features depend on: texts in order by class, weights, precision, activation."""
    content = json.dumps([list(map(list, texts)), weights_hash, precision, quick_gelu, CACHE_FORMAT],
                         ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()


def check_text_tower(clip_model: CLIP, cfg: CfgNode) -> None:
    """ClipError where texts are to be encoded and the checkpoint is an image tower alone."""
    if not (clip_model.has_text or cfg.TEXT.SKIP or cfg.DATASET.TEXT_FEATURES):
        raise clip.ClipError("this checkpoint has no text tower: set DATASET.TEXT_FEATURES to embeddings of the class "
                             "names, load a full CLIP, or, where the images are labelled, skip the text phase "
                             "(--direct_dualtask, or TEXT.SKIP True with TRAIN.SUPERVISION labels)")


def text_features(clip_model: CLIP, classnames: Sequence[str], mode: str, cfg: CfgNode) -> TextFeatures:
    """The features of all classes' texts: from DATASET.TEXT_FEATURES, from the cache, or encoded now and cached.

    Texts of more tokens than CLIP reads are cut, which is told; InputError where TEXT.TRUNCATE forbids that.
    """
    if cfg.DATASET.TEXT_FEATURES:
        return read_text_features(resolve_path(cfg.DATASET.TEXT_FEATURES), classnames, clip_model.embed_dim,
                                  cfg.DATASET.TEXT_FEATURES_TEMPLATE)
    texts = class_texts(classnames, mode, cfg)
    labels = torch.tensor([label for label, own in enumerate(texts) for _ in own])
    key = cache_key(texts, clip.weights_hash(clip_model), clip_model.precision, clip_model.quick_gelu)
    path = Path(cfg.TEXT.CACHE_DIR) / f"texts_{key}.npz"
    cached = _read_cache(path)
    if cached is None:
        tokens, cut = tokenize_texts([text for own in texts for text in own], clip_model.context_length)
        features = encode_tokens(clip_model, tokens)
        content = io.BytesIO()
        np.savez(content, features=features.numpy(), cut=cut.numpy())
        write_whole(path, content.getvalue(), writer=f".{os.getpid()}")  # another run may encode the same texts
    else:
        features, cut = cached
    log.info("text features: %d texts %s", len(features), "encoded" if cached is None else "from the cache")
    if cut.any():
        tell_cut_texts(labels, cut, classnames, clip_model.context_length, mode, cfg)
    return TextFeatures(features, labels, clip_model.logit_scale.exp().item())


def tell_cut_texts(labels: Tensor, cut: Tensor, classnames: Sequence[str], context_length: int, mode: str,
                   cfg: CfgNode) -> None:
    """One line about the texts that are too long; InputError without TEXT.TRUNCATE."""
    source = {"lafter": f"{cfg.DATASET.DESCRIPTIONS} and DATASET.TEMPLATES", "templates_only": "DATASET.TEMPLATES",
              "zero_shot": "TEXT.ZERO_SHOT_TEMPLATE", "cls_only": "the class names"}[mode]
    counts = Counter(classnames[label] for label in labels[cut].tolist())
    told = (f"{int(cut.sum())} of {len(cut)} texts have more than {context_length} tokens (class "
            + shorten([f"{name}: {count}" for name, count in counts.items()]) + f"; from {source})")
    if not cfg.TEXT.TRUNCATE:
        raise InputError(f"{told}; shorten them, or let CLIP read their beginning: TEXT.TRUNCATE True")
    log.warning("%s and are cut there; TEXT.TRUNCATE False refuses them", told)


def _read_cache(path: Path) -> tuple[Tensor, Tensor] | None:
    """Cached (features, which texts are cut), None where there are none or, by the checksums of their zip, damaged
    ones."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as data:
            return torch.from_numpy(data["features"]), torch.from_numpy(data["cut"])
    except DAMAGED_ARCHIVE as error:
        log.warning("%s is damaged (%s): encoding the texts anew", path, words(error, path))
        return None


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
    except DAMAGED_ARCHIVE as error:
        raise InputError(f"{path} is no .npz file with an array 'features' ({words(error, path)})") from error
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
        index = {normal_name(name): label for label, name in enumerate(classnames)}
        labels = np.array([index.get(normal_name(str(name)), -1) for name in data["classnames"]])
    elif "labels" in data:
        labels = data["labels"].astype(np.int64)
    else:
        raise InputError(f"{path} needs an array 'labels' or 'classnames' beside 'features'")
    if len(labels) != len(features):
        raise InputError(f"{path}: {len(features)} features but {len(labels)} labels")
    rows &= (labels >= 0) & (labels < len(classnames))
    for label, name in enumerate(classnames):
        if label not in labels[rows]:
            near = difflib.get_close_matches(name, {str(own) for own in data.get("classnames", ())})
            raise InputError(f"{path} has no embedding of class {name!r}"
                             + (f"; it has {', '.join(sorted(near))}" if near else ""))
    return TextFeatures(features[torch.from_numpy(rows)], torch.from_numpy(labels[rows]),
                        float(data.get("logit_scale", 100.0)))
