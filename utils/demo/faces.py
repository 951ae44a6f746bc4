"""The demo's data: drawn cartoon faces, each of which shows a mixture of Emotion6's six emotions.

A face's action parameters (brows, eyes, mouth, …: Ekman and Friesen's action units in spirit) are the mixture of
one prototype per emotion, weighted by the picture's distribution, plus jitter. So every picture has a true
distribution, and its label is the largest share.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..errors import InputError
from ..files import whole_folder
from .drawing import draw
from .styles import DEMO, Style, sample_style

log = logging.getLogger(__name__)

EMOTIONS = ("anger", "disgust", "fear", "joy", "sadness", "surprise")
VERSION = 2
# one row per action: its value in each pure emotion, in the order of EMOTIONS
PROTOTYPES = {
    "brow_raise": (-0.9, -0.3, 0.7, 0.2, 0.0, 1.2),
    "brow_tilt": (1.0, 0.35, -0.7, -0.1, -1.0, 0.0),
    "brow_skew": (0.0, 0.6, 0.0, 0.0, 0.0, 0.0),
    "eye_open": (0.45, 0.15, 0.95, 0.5, 0.3, 1.0),
    "squint": (0.1, 0.2, 0.0, 0.9, 0.1, 0.0),
    "pupil": (0.45, 0.5, 0.0, 0.8, 0.8, 0.7),
    "gaze_down": (0.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "nose_wrinkle": (0.25, 1.2, 0.0, 0.0, 0.0, 0.0),
    "mouth_curve": (-0.7, -0.6, -0.2, 1.1, -1.1, 0.0),
    "mouth_open": (0.5, 0.25, 0.5, 0.7, 0.0, 1.1),
    "mouth_width": (0.9, 0.6, 0.9, 1.0, 0.6, 0.2),
    "mouth_wave": (0.0, 0.1, 1.0, 0.0, 0.1, 0.0),
    "mouth_skew": (0.0, 1.0, 0.0, 0.0, 0.0, 0.0),
    "teeth": (1.0, 0.0, 0.5, 0.35, 0.0, 0.0),
    "tongue": (0.0, 1.1, 0.0, 0.0, 0.0, 0.0),
    "tear": (0.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "sweat": (0.0, 0.0, 1.0, 0.0, 0.0, 0.0),
    "blush": (0.3, 0.0, 0.0, 1.0, 0.0, 0.0),
}
JITTER = 0.13  # standard deviation of an action about its mixture


def sample_distribution(rng: np.random.Generator, label: int | None = None) -> np.ndarray:
    """Shares of the six emotions [6]: mostly one of them leads clearly. With `label`, that one is the largest."""
    while True:
        leader = rng.integers(len(EMOTIONS)) if label is None else label
        shares = rng.dirichlet(np.where(np.arange(len(EMOTIONS)) == leader, 3.0, 0.3))
        if label is None or shares.argmax() == label:
            return shares


def face_actions(rng: np.random.Generator, distribution: np.ndarray) -> dict[str, float]:
    """The action parameters of one face that shows the distribution."""
    distribution = np.asarray(distribution, dtype=float)
    if distribution.shape != (len(EMOTIONS),) or abs(distribution.sum() - 1) > 1e-3 or distribution.min() < 0:
        raise ValueError(f"a distribution is six shares that sum to 1 ({', '.join(EMOTIONS)}), not {distribution}")
    return {name: float(distribution @ values + rng.normal(0, JITTER)) for name, values in PROTOTYPES.items()}


def draw_face(rng: np.random.Generator, distribution: np.ndarray, style: Style) -> Image.Image:
    """One face, RGB, 64 × 64 pixels, that shows the mixture of emotions (shares in the order of EMOTIONS)."""
    return draw(rng, face_actions(rng, distribution), style)


def draw_dataset(root: str | Path, seed: int = 0, train_per_class: int = 150, test_per_class: int = 100) -> None:
    """Write ROOT/images/{train,test}/NNNNN.png in DEMO styles and ROOT/annotations.json.

    The same seed gives the same files. ROOT is complete or absent; where another process draws it at the same time,
    the faster one's stays. Raises InputError where ROOT holds anything else.
    """
    root = Path(root)
    if root.is_dir() and any(root.iterdir()):
        raise InputError(f"{root} is not empty; remove it, or name another folder for the demo's data")
    with whole_folder(root) as folder:
        rng = np.random.default_rng(seed)
        items = [item for split, count in (("train", train_per_class), ("test", test_per_class))
                 for item in _draw_split(folder, split, count, rng)]
        annotations = {"seed": seed, "version": VERSION, "emotions": EMOTIONS, "items": items}
        (folder / "annotations.json").write_text(json.dumps(annotations), encoding="utf-8")
    log.info("drew %d faces into %s", len(items), root)


def _draw_split(folder: Path, split: str, per_class: int, rng: np.random.Generator) -> list[dict]:
    (folder / "images" / split).mkdir(parents=True)
    labels = rng.permutation(np.repeat(np.arange(len(EMOTIONS)), per_class))
    items = []
    for i, label in enumerate(tqdm(labels, desc=f"drawing the {split} faces", leave=False, disable=None)):
        distribution = sample_distribution(rng, int(label)).round(6)
        file = f"images/{split}/{i:05d}.png"
        draw_face(rng, distribution, sample_style(rng, DEMO)).save(folder / file)
        items.append({"file": file, "split": split, "label": EMOTIONS[label], "distribution": distribution.tolist()})
    return items
