"""Fonts for names in any script: matplotlib's own has no Chinese, Japanese or Korean characters."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import matplotlib
from matplotlib.font_manager import FontEntry, findSystemFonts, fontManager, get_font

log = logging.getLogger(__name__)

PREFERRED = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "Microsoft YaHei", "SimHei",
             "PingFang SC", "Hiragino Sans GB", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Arial Unicode MS")
MISSING = r"Glyph \d+ .* missing from"  # what matplotlib says of each


@contextmanager
def fonts_for(texts: Iterable[str]) -> Iterator[None]:
    """Within the context, characters that matplotlib's own font lacks are drawn in fonts of this machine that have
    them; where none has, one warning names the characters."""
    fonts, missing = fallback_fonts("".join(texts))
    if missing:
        some = "".join(sorted(missing)[:10]) + " …" * (len(missing) > 10)
        log.warning("pictures show boxes for some names: no font here has the characters %s; install one that does, "
                    "such as Noto Sans CJK for Chinese", some)
    family = [*matplotlib.rcParams["font.family"], *fonts]
    with matplotlib.rc_context({"font.family": family}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", MISSING)
        yield


def fallback_fonts(text: str) -> tuple[list[str], set[str]]:
    """(names of fonts that together have the characters that matplotlib's own font lacks, characters that none has)."""
    own = get_font(matplotlib.get_data_path() + "/fonts/ttf/DejaVuSans.ttf").get_charmap()
    missing = {character for character in text if ord(character) not in own and character.isprintable()}
    found = []
    for fonts in (lambda: fontManager.ttflist, new_fonts):  # the list is kept on disk from matplotlib's first use on
        for font in sorted(fonts(), key=_rank) if missing else ():
            known = get_font(font.fname).get_charmap()
            covered = {character for character in missing if ord(character) in known}
            if covered and font.name != "Last Resort High-Efficiency":  # matplotlib's: a box for everything
                found.append(font.name)
                missing -= covered
            if not missing:
                break
    return found, missing


def new_fonts() -> list[FontEntry]:
    """Fonts that were installed after matplotlib made its list, added to it for this process."""
    count, listed = len(fontManager.ttflist), {font.fname for font in fontManager.ttflist}
    for path in set(findSystemFonts()) - listed:
        try:
            fontManager.addfont(path)
        except (OSError, RuntimeError) as error:  # as matplotlib does with fonts that it cannot draw
            log.debug("%s is no font for pictures: %s", path, error)
    return fontManager.ttflist[count:]


def _rank(font: FontEntry) -> tuple:
    """Preferred ones first, then upright ones of usual weight."""
    place = PREFERRED.index(font.name) if font.name in PREFERRED else len(PREFERRED)
    return place, font.style != "normal", abs(int(font.weight) - 400), font.fname
