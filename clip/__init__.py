"""CLIP with staged prompts: `clip.load`, `clip.tokenize`, `clip.available_models`."""

from .clip import CLIP_MEAN, CLIP_STD, available_models, download, image_transform, load, weights_hash
from .errors import ClipError
from .tokenizer import tokenize

__all__ = ["CLIP_MEAN", "CLIP_STD", "ClipError", "available_models", "download", "image_transform", "load",
           "tokenize", "weights_hash"]
