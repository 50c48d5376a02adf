"""The page: one file without network beyond this server; only the script and the style within it may run."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from megatron_retrieval.reports.html import base_style

_STYLE = "/*base style*/"


@cache
def page() -> str:
    """The HTML."""
    template = (files(__package__ or "") / "page.html").read_text(encoding="utf-8")
    return template.replace(_STYLE, base_style())


@cache
def policy() -> str:
    """The page's Content-Security-Policy."""
    own = {
        tag: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
            for text in re.findall(rf"<{tag}>(.*?)</{tag}>", page(), re.DOTALL)
        )
        for tag in ("script", "style")
    }
    return (
        f"default-src 'none'; script-src {own['script']}; style-src {own['style']}; connect-src 'self'; img-src data:; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )
