"""What the HTML pages of reports share. Every page is one file that refers to no other."""

from __future__ import annotations

import base64

from jinja2 import Environment, PackageLoader, StrictUndefined


def page_templates() -> Environment:
    """The templates of the pages. They escape text, and an unknown name in them is an error."""
    environment = Environment(
        loader=PackageLoader("medr1.reporting", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["unbroken"] = unbroken
    return environment


def unbroken(text: str) -> str:
    """The text with no line break between a number and its percent sign."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def data_url(kind: str, content: bytes) -> str:
    """The content as a URL, so that a page needs no other file."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
