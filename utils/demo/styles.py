"""How the demo's faces may look: two families of styles that share no skin, head, hair, line or background;
the demo's are turned further and out of focus besides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

COLOURS = {
    "black": (25, 22, 28), "white": (250, 250, 248), "grey": (150, 152, 156), "silver": (196, 200, 206),
    "ivory": (250, 226, 200), "peach": (246, 199, 160), "tan": (214, 161, 112), "brown": (150, 100, 64),
    "umber": (104, 68, 48), "yellow": (250, 214, 70), "red": (214, 52, 48), "pink": (244, 150, 176),
    "orange": (240, 140, 50), "green": (104, 182, 92), "teal": (44, 150, 150), "blue": (78, 132, 214),
    "navy": (34, 48, 104), "purple": (146, 92, 190), "cream": (248, 240, 214), "gold": (206, 158, 44),
}


@dataclass(frozen=True)
class Family:
    """What a style of this family is drawn from; `tilt` is the largest turn of the head in degrees."""
    name: str
    heads: tuple[str, ...]
    skins: tuple[str, ...]
    hairs: tuple[str, ...]
    lines: tuple[str, ...]
    eyes: tuple[str, ...]
    backgrounds: tuple[str, ...]
    tilt: float
    extras: float    # how often tears, sweat and blush are drawn
    outline: float   # how often the face is an outline without colours
    blur: float = 0.0  # the largest standard deviation, in pixels


PRETRAIN = Family("pretrain", heads=("round", "oval"), skins=("ivory", "peach", "tan", "brown", "umber", "yellow"),
                  hairs=("short", "long", "curly"), lines=("clean", "fine"), eyes=("iris", "pupil"),
                  backgrounds=("plain", "spotlight"), tilt=6, extras=0.8, outline=0.0)
DEMO = Family("demo", heads=("square", "pear", "hexagonal"),
              skins=("green", "purple", "grey", "orange", "pink", "silver"), hairs=("spiky", "bald"),
              lines=("bold", "dashed", "sketched"), eyes=("tinted", "ring"),
              backgrounds=("gradient", "striped", "noisy", "chequered"), tilt=35, extras=0.5, outline=0.25, blur=1.8)
FAMILIES = {family.name: family for family in (PRETRAIN, DEMO)}


@dataclass(frozen=True)
class Style:
    """The look of one picture; colours are names in COLOURS."""
    family: str
    head: str
    skin: str
    hair: str
    hair_colour: str
    line: str
    eye: str
    background: str
    background_colour: str
    second_colour: str
    tilt: float
    extras: bool
    outline: bool
    blur: float


def sample_style(rng: np.random.Generator, family: Family) -> Style:
    """A style of the family, each trait drawn by itself; skin and background never have the same colour."""
    def pick(options: tuple[str, ...]) -> str:
        return options[rng.integers(len(options))]

    skin = pick(family.skins)
    first, second = rng.choice([name for name in COLOURS if name != skin], size=2, replace=False).tolist()
    return Style(family.name, head=pick(family.heads), skin=skin, hair=pick(family.hairs),
                 hair_colour=pick(("black", "umber", "brown", "gold", "red", "grey")), line=pick(family.lines),
                 eye=pick(family.eyes), background=pick(family.backgrounds), background_colour=first,
                 second_colour=second, tilt=float(rng.uniform(-family.tilt, family.tilt)),
                 extras=bool(rng.random() < family.extras), outline=bool(rng.random() < family.outline),
                 blur=float(rng.uniform(0, family.blur)) if family.blur else 0.0)


def mix(first: tuple[int, ...], second: tuple[int, ...], share: float) -> tuple[int, ...]:
    """The colour that lies `share` of the way from the first to the second."""
    return tuple(round(a + (b - a) * share) for a, b in zip(first, second))


def paint_background(rng: np.random.Generator, style: Style, size: int) -> Image.Image:
    """The style's background, size × size pixels, RGB."""
    first, second = (np.array(COLOURS[name], float) for name in (style.background_colour, style.second_colour))
    y, x = np.mgrid[-1:1:size * 1j, -1:1:size * 1j]
    angle, period = rng.uniform(0, np.pi), rng.uniform(0.25, 0.6)
    across = x * np.cos(angle) + y * np.sin(angle)
    share = {
        "plain": lambda: np.zeros_like(x),
        "spotlight": lambda: 0.5 * np.exp(-1.5 * (x ** 2 + y ** 2)),
        "gradient": lambda: np.clip(0.5 + 0.5 * across, 0, 1),
        "striped": lambda: (np.mod(across, period) > period / 2) * 0.7,
        "noisy": lambda: rng.uniform(0, 0.9, size=x.shape),
        "chequered": lambda: (np.mod(np.floor(x / period) + np.floor(y / period), 2) > 0) * 0.7,
    }[style.background]()[..., None]
    if style.background == "spotlight":
        second = np.array(COLOURS["white"], float)
    return Image.fromarray((first + (second - first) * share).round().astype(np.uint8))
