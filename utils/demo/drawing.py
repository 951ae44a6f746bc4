"""Drawing one face of the demo with Pillow: a pen that turns and scales, and the parts of a face.

Coordinates: the picture spans [-1, 1] in both directions, y grows downward, the face's centre is the origin.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .styles import COLOURS, Style, mix, paint_background

SIZE, SUPERSAMPLING = 64, 4
LINE_WIDTHS = {"fine": 0.035, "clean": 0.055, "bold": 0.1, "dashed": 0.065, "sketched": 0.03}
ARC = np.linspace(-1, 1, 25)


def ellipse(x: float, y: float, rx: float, ry: float, exponent: float = 2.0, points: int = 40) -> np.ndarray:
    """Points [points, 2] of a superellipse; exponent 2 is the ellipse, larger ones near the rectangle."""
    t = np.linspace(0, 2 * np.pi, points, endpoint=False)
    c, s = np.cos(t), np.sin(t)
    return np.stack([x + rx * np.sign(c) * np.abs(c) ** (2 / exponent),
                     y + ry * np.sign(s) * np.abs(s) ** (2 / exponent)], axis=1)


class Pen:
    """Draws polygons and lines in face coordinates onto a picture."""

    def __init__(self, image: Image.Image, rng: np.random.Generator, style: Style):
        self.draw, self.rng, self.line_kind = ImageDraw.Draw(image), rng, style.line
        self.width = LINE_WIDTHS[style.line] * rng.uniform(0.85, 1.2)
        self.half, turn, scale = image.width / 2, np.deg2rad(style.tilt), rng.uniform(0.86, 1.02)
        self.matrix = scale * np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        self.shift = rng.uniform(-0.07, 0.07, size=2)

    def pixels(self, points: np.ndarray) -> list[tuple[float, float]]:
        return [tuple(p) for p in ((points @ self.matrix + self.shift + 1) * self.half).tolist()]

    def fill(self, points: np.ndarray, colour: tuple[int, ...]) -> None:
        self.draw.polygon(self.pixels(points), fill=colour)

    def line(self, points: np.ndarray, colour: tuple[int, ...], width: float = 1.0, plain: bool = False) -> None:
        """A stroke along the points; `width` in units of the style's line, `plain` leaves out dashes."""
        strokes = [points]
        if self.line_kind == "sketched":
            strokes = [points + self.rng.normal(0, 0.018, size=2) + self.rng.normal(0, 0.006, size=points.shape)
                       for _ in range(3)]
        elif self.line_kind == "dashed" and not plain:
            strokes = [points[i:i + 3] for i in range(0, len(points) - 1, 4)]
        thick = max(1, round(self.width * width * self.half))
        for stroke in strokes:
            pixels = self.pixels(stroke)
            self.draw.line(pixels, fill=colour, width=thick, joint="curve")
            for x, y in (pixels[0], pixels[-1]):
                self.draw.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), fill=colour)

    def closed(self, points: np.ndarray, colour: tuple[int, ...], width: float = 1.0) -> None:
        self.line(np.concatenate([points, points[:2]]), colour, width)


def head_outline(rng: np.random.Generator, kind: str) -> np.ndarray:
    """Outline [n, 2] of a head of the given kind, of slightly random proportions."""
    rx, ry = rng.uniform(0.72, 0.8), rng.uniform(0.8, 0.88)
    if kind == "hexagonal":
        corners = ellipse(0, 0.02, rx * 1.12, ry * 1.08, points=6)
        return np.concatenate([np.linspace(a, b, 7)[:-1] for a, b in zip(corners, np.roll(corners, -1, axis=0))])
    if kind == "round":
        rx = ry = 0.8
    outline = ellipse(0, 0.02, rx * 0.92 if kind == "oval" else rx, ry, exponent=6 if kind == "square" else 2)
    if kind == "pear":
        outline[:, 0] *= 0.88 + 0.22 * outline[:, 1]
    return outline


def draw_hair(pen: Pen, style: Style, head: np.ndarray, ink: tuple[int, ...], behind: bool) -> None:
    """Long hair hangs behind the head; every other kind is a cap above the hairline."""
    colour = COLOURS[style.hair_colour] if not style.outline else ink
    if behind:
        if style.hair == "long":
            pen.fill(ellipse(0, 0.2, 0.92, 1.0, exponent=3.5), colour)
        if style.hair == "spiky":
            x = np.linspace(-0.6, 0.6, 13)
            y = np.where(np.arange(13) % 2, -0.98, -0.62)
            pen.fill(np.stack([np.append(x, [0.5, -0.5]), np.append(y, [-0.3, -0.3])], axis=1), colour)
    elif style.hair in ("short", "long", "curly"):
        cap = head[head[:, 1] < -0.6] * [1.06, 1.05]
        pen.fill(cap[np.argsort(cap[:, 0])], colour)
        if style.hair == "curly":
            for x, y in cap[np.argsort(cap[:, 0])][::2]:
                pen.fill(ellipse(x, y, 0.15, 0.15), colour)


def draw_brows(pen: Pen, action: dict[str, float], ink: tuple[int, ...]) -> None:
    """Raised or lowered; a positive tilt pulls the inner ends down (a scowl), a negative one up (worry)."""
    for side, lift in ((-1, action["brow_skew"]), (1, -action["brow_skew"])):
        t = np.linspace(0, 1, 9)  # from the inner end outwards
        y = -0.44 - 0.13 * action["brow_raise"] - 0.1 * lift + 0.26 * action["brow_tilt"] * (0.5 - t)
        y -= 0.05 * (1 + action["brow_raise"]) * np.sin(np.pi * t)
        pen.line(np.stack([side * (0.12 + 0.42 * t), y], axis=1), ink, width=1.5, plain=True)


def draw_eyes(pen: Pen, style: Style, action: dict[str, float], ink: tuple[int, ...], iris: tuple[int, ...]) -> None:
    """White between two lids with a pupil that the lids cover; cheeks that push up leave a happy arc."""
    rx, bow = 0.2 + 0.02 * action["eye_open"], np.sqrt(1 - ARC ** 2)
    white = mix(COLOURS["white"], COLOURS[style.second_colour], 0.5 if style.eye == "tinted" else 0)
    for side in (-1, 1):
        x0, y0 = side * 0.33, -0.12
        slant = 1 - 0.55 * action["brow_tilt"] * -side * ARC  # the upper lid follows the brow
        upper = -np.clip(0.05 + 0.25 * action["eye_open"], 0.04, 0.32) * bow * slant
        lower = np.clip(0.04 + 0.2 * action["eye_open"] - 0.3 * action["squint"], -0.16, 0.26) * bow
        lower = np.maximum(lower, upper + 0.03 * bow)
        upper_lid, lower_lid = (np.stack([x0 + rx * ARC, y0 + lid], 1) for lid in (upper, lower))
        pen.fill(np.concatenate([upper_lid, lower_lid[::-1]]), white)
        pupil = np.clip(0.05 + 0.09 * action["pupil"], 0.035, 0.15)
        if style.eye == "ring":  # a dot in the middle, whatever the gaze
            pen.fill(ellipse(x0, y0 + (upper.min() + lower.max()) / 2, pupil * 0.6, pupil * 0.6), ink)
        else:
            for radius, colour in ((pupil * 1.5, iris), (pupil, ink)) if style.eye == "iris" else ((pupil, ink),):
                disc = ellipse(0.02 * side, 0.08 * action["gaze_down"] - 0.01, radius, radius)
                column = disc[:, 0] / rx
                disc[:, 1] = np.clip(disc[:, 1], np.interp(column, ARC, upper), np.interp(column, ARC, lower))
                pen.fill(disc + [x0, y0], colour)
        pen.line(upper_lid, ink, width=0.9, plain=True)
        pen.line(lower_lid, ink, width=0.5, plain=True)


def draw_nose(pen: Pen, action: dict[str, float], ink: tuple[int, ...]) -> None:
    """A small hook, and creases across the bridge when it is wrinkled."""
    pen.line(np.array([[-0.07, 0.17], [0.0, 0.21], [0.07, 0.17]]), ink, width=0.7, plain=True)
    wrinkle = action["nose_wrinkle"]
    if wrinkle > 0.3:
        for y in (-0.02, 0.05, 0.12):
            x = 0.12 * min(wrinkle, 1.2)
            pen.line(np.array([[-x, y + 0.04], [0, y - 0.03], [x, y + 0.04]]), ink, width=0.55, plain=True)
        for side in (-1, 1):
            pen.line(np.array([[side * 0.13, 0.1], [side * 0.19, 0.2], [side * 0.24, 0.32]]), ink, 0.55, plain=True)


def draw_mouth(pen: Pen, action: dict[str, float], ink: tuple[int, ...], inside: tuple[int, ...],
               tongue: tuple[int, ...]) -> None:
    """Two lips over one base line that may curve, tremble and slope; teeth and tongue between them."""
    width, opening = 0.16 + 0.27 * action["mouth_width"], max(action["mouth_open"], 0.0)
    bow = np.sqrt(1 - ARC ** 2)
    base = 0.48 - 0.2 * action["mouth_curve"] * (ARC ** 2 - 0.5) + 0.1 * action["mouth_skew"] * ARC
    base = base + 0.05 * action["mouth_wave"] * np.sin(3.5 * np.pi * ARC)
    upper = base - 0.12 * opening * bow * (1 - 0.8 * np.clip(action["mouth_curve"], 0, 1))
    lower = base + 0.27 * opening * bow
    x = width * ARC
    if opening > 0.12:
        pen.fill(np.concatenate([np.stack([x, upper], 1), np.stack([x, lower], 1)[::-1]]), inside)
        edge = upper + (lower - upper) * np.clip(action["teeth"], 0, 1)
        if action["teeth"] > 0.15:
            pen.fill(np.concatenate([np.stack([x, upper], 1), np.stack([x, edge], 1)[::-1]]), COLOURS["white"])
        if action["teeth"] > 0.5:
            for i in range(4, 22, 4):
                pen.line(np.array([[x[i], upper[i]], [x[i], edge[i]]]), ink, width=0.35, plain=True)
            pen.line(np.stack([x, (upper + edge) / 2], 1), ink, width=0.35, plain=True)
        pen.line(np.stack([x, lower], 1), ink, width=0.8, plain=True)
    pen.line(np.stack([x, upper], 1), ink, plain=True)
    if action["tongue"] > 0.3:
        length = 0.22 * min(action["tongue"], 1.2)
        middle = float(lower[len(ARC) // 2]) - 0.04
        lick = ellipse(0.05, middle + length / 2, 0.12, length / 2 + 0.03)
        pen.fill(lick, tongue)
        pen.closed(lick, ink, width=0.45)


def draw_blush(pen: Pen, action: dict[str, float], skin: tuple[int, ...]) -> None:
    if action["blush"] > 0.25:
        for side in (-1, 1):
            colour = mix(skin, COLOURS["red"], min(0.55 * action["blush"], 0.7))
            pen.fill(ellipse(side * 0.5, 0.2, 0.16, 0.11), colour)


def draw_drops(pen: Pen, action: dict[str, float], water: tuple[int, ...]) -> None:
    """Tears below the eyes and sweat at the temples, where they are strong enough to see."""
    drops = [(-0.4, 0.3, action["tear"]), (0.42, 0.22, action["tear"]),
             (0.62, -0.42, action["sweat"]), (-0.62, -0.3, 0.8 * action["sweat"])]
    for x, y, strength in drops:
        if strength > 0.28:
            drop = ellipse(0, 0, 0.085, 0.15)
            drop[:, 0] *= np.clip(0.75 + drop[:, 1] / 0.2, 0, 1.2)  # pointed at the top
            pen.fill(drop * min(max(strength, 0.6), 1.2) + [x, y], water)


def draw(rng: np.random.Generator, action: dict[str, float], style: Style) -> Image.Image:
    """The face that the action parameters describe, in the style: RGB, SIZE × SIZE pixels."""
    image = paint_background(rng, style, SIZE).resize((SIZE * SUPERSAMPLING,) * 2, Image.Resampling.NEAREST)
    pen = Pen(image, rng, style)
    skin = mix(COLOURS[style.skin], COLOURS["white" if rng.random() < 0.5 else "black"], rng.uniform(0, 0.15))
    ink, inside, tongue, water = COLOURS["black"], (110, 24, 34), (232, 110, 122), (120, 190, 246)
    if style.outline:
        skin, inside, tongue, water = COLOURS["cream"], ink, COLOURS["silver"], COLOURS["silver"]
    head = head_outline(rng, style.head)
    draw_hair(pen, style, head, ink, behind=True)
    pen.fill(head, skin)
    if style.extras:
        draw_blush(pen, action, skin)
    draw_hair(pen, style, head, ink, behind=False)
    pen.closed(head, ink)
    iris = COLOURS[("blue", "green", "brown", "teal")[rng.integers(4)]] if not style.outline else ink
    draw_nose(pen, action, ink)
    draw_mouth(pen, action, ink, inside, tongue)
    draw_eyes(pen, style, action, ink, iris)
    draw_brows(pen, action, ink)
    if style.extras:
        draw_drops(pen, action, water)
    image = image.reduce(SUPERSAMPLING)
    return image.filter(ImageFilter.GaussianBlur(style.blur)) if style.blur else image
