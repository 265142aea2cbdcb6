"""Parts of a body that are read one by one, because what they must be depends on what they say they are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from qafila.server.body import Body

B = TypeVar("B", bound=Body)


def read_part(kind: type[B], source: Mapping[str, Any], where: str) -> B:
    """One part of a body.

    Args:
        kind: what it must be. source: what was sent. where: its place in the body, as ``messages[0].content[1]``.

    Raises:
        RequestValidationError: what is wrong with it, named as if FastAPI had found it in the whole body.
    """
    try:
        return kind.model_validate(source)
    except ValidationError as error:
        parts = (int(part) if part.isdecimal() else part for part in re.findall(r"\w+", where))
        location = ("body", *parts)
        raise RequestValidationError([{**each, "loc": (*location, *each["loc"])} for each in error.errors()]) from None
