"""docs/api.md: every endpoint, and every option of official clients in one of three lists.

`scripts/pages.py` writes it.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from pathlib import Path

from fastapi import APIRouter
from fastapi.routing import APIRoute

from qafila.server import anthropic_bodies, ollama_bodies
from qafila.server.app import ROUTERS
from qafila.server.body import Body

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"

INTRODUCTION = """# The server's API

Made by `scripts/api_tables.py` out of the request bodies themselves; `make docs` writes it again.

An option of OpenAI's, Anthropic's or Ollama's client is honoured, or accepted because it cannot change an answer here,
or refused with an error in that API's own shape. An option that stands in none of the lists is refused as unknown.
`null` is as good as absent.
"""


def routes() -> Iterator[tuple[str, APIRoute, type[Body] | None]]:
    """(``POST /path``, the route, its body) of every endpoint."""
    for router in ROUTERS:
        assert isinstance(router, APIRouter)
        for route in router.routes:
            if isinstance(route, APIRoute):
                hints = typing.get_type_hints(route.endpoint).values()
                # A body that may be left out is written `Body | None`.
                kinds = [kind for hint in hints for kind in (typing.get_args(hint) or (hint,))]
                bodies = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Body)]
                methods = ", ".join(sorted((route.methods or set()) - {"HEAD"}))
                yield f"{methods} {route.path.replace(':path', '')}", route, bodies[0] if bodies else None


def listed(title: str, options: Mapping[str, str]) -> list[str]:
    """One list of options with their reasons."""
    return [f"- {title}:", *(f"  - `{name}`: {reason}" for name, reason in sorted(options.items()))] if options else []


def told(body: type[Body]) -> list[str]:
    """The three lists of a body."""
    fields = sorted(field.alias or name for name, field in body.model_fields.items())
    return [
        f"- Honoured: {', '.join(f'`{field}`' for field in fields)}",
        *listed("Accepted, and changes nothing", body.harmless),
        *listed("Refused", body.refused),
        "",
    ]


def page() -> str:
    """The whole page."""
    lines = [INTRODUCTION]
    for name, route, body in routes():
        lines += [f"## `{name}`", "", f"{route.summary or route.name}.", ""]
        query = [one["name"] for one in (route.openapi_extra or {}).get("parameters", ())]
        if query:
            lines += [f"- In the query: {', '.join(f'`{one}`' for one in query)}", ""]
        if body is not None:
            lines += told(body)
    for api, parts in (("Anthropic", anthropic_bodies.PARTS), ("Ollama", ollama_bodies.PARTS)):
        lines += [f"## Inside the bodies of {api}'s API", ""]
        for name, body in parts.items():
            lines += [f"### `{name}`", "", *told(body)]
        if api == "Anthropic":
            for name, (harmless, refused) in anthropic_bodies.TYPES.items():
                lines += [f"### `{name}`", "", *listed("Accepted, and changes nothing", harmless)]
                lines += [*listed("Refused", refused), ""]
    return "\n".join(lines).rstrip() + "\n"
