"""Templates of the HTML pages, a file each in the folder `page`; what they make needs no network."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


def page_templates() -> Environment:
    """The templates of the folder page: what they are given is escaped, and a name that nobody gave is an error."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    folder = files("sum.data").joinpath("page")
    return Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        loader=FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8")),
    )
