"""The only Jinja2 there is. A template can emit nothing but nginx arguments: any other value, a plain string above all, is an error.

Templates hold directives and conditions; what stands in `{{ }}` is a `nginxtext.arguments.Argument`, which knows its quoting.
"""

from __future__ import annotations

from typing import Any, Final

import jinja2

from services.shared.nginxtext.arguments import Argument


class UntypedValue(TypeError):
    """A template tried to emit something that is not a typed argument: a bug."""


def _only_arguments(value: Any) -> str:
    if not isinstance(value, Argument):
        raise UntypedValue(f"a template emitted a {type(value).__name__}; only nginxtext arguments are possible")
    return value.text


ENVIRONMENT: Final = jinja2.Environment(
    loader=jinja2.PackageLoader("services.compiler", "templates"),
    undefined=jinja2.StrictUndefined,
    finalize=_only_arguments,
    autoescape=False,  # noqa: S701 - nginx text, not HTML: `finalize` is the gate
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render(template: str, **values: object) -> str:
    """One template, with typed values."""
    return ENVIRONMENT.get_template(template).render(**values)
