"""What the HTML pages share: their style, and a frame that loads nothing and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from html import escape
from pathlib import Path

STYLE = Path(__file__).with_name("page.css")


def page(title: str, body: Iterable[str], style: str = "", script: str = "") -> str:
    """A whole HTML page: `style` is added to page.css, and `script` runs at the end of the body.

    `title` is text; `body` is HTML, whose maker escapes what it is told by others. The policy in the head refuses all
    that comes from elsewhere than this page and the files beside it, and every script but `script`, by its hash: what
    a name might bring past the escaping is not run.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = ("default-src 'none'; img-src 'self' data: file:; style-src 'unsafe-inline'; base-uri 'none'; "
              f"form-action 'none'; script-src 'sha256-{digest}'")
    return "\n".join([
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(title)}</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}{style}</style>\n</head>\n<body>",
        *body, *([f"<script>{script}</script>"] if script else []), "</body>\n</html>\n"])
