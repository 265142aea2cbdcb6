"""Request bodies: what is honoured is a field; what is harmless or refused is in a table that the documentation shows.

Nothing is dropped in silence: an option is honoured, accepted because it cannot change the answer, or refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator


class Body(BaseModel):
    """A body of one endpoint.

    Class attributes:
        harmless: options of official clients that are accepted and change nothing here, with the reason.
        refused: options of official clients that are not supported, with the reason; null is as good as absent. A
            value in ``neutral`` is accepted for them: it asks for what happens anyway.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    harmless: ClassVar[Mapping[str, str]] = {}
    refused: ClassVar[Mapping[str, str]] = {}
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _sort_out(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name, reason in cls.refused.items():
            value = data.get(name)
            if value is not None and value not in cls.neutral.get(name, ()):
                raise ValueError(f"{name}: not supported: {reason}")
        return {
            key: value
            for key, value in data.items()
            if key not in cls.harmless and key not in cls.refused and not (value is None and key in cls._optional())
        }

    @classmethod
    def _optional(cls) -> Collection[str]:
        """What may be null, as official clients send it for what is not given."""
        fields = cls.model_fields.items()
        return {field.alias or name for name, field in fields if not field.is_required()}
