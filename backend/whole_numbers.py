"""Whole numbers in requests: pydantic would also take true, false and text for them."""

from pydantic_core import PydanticCustomError


def whole(value: object) -> object:
    """For a BeforeValidator: refuses true, false and text."""
    if isinstance(value, bool | str):
        raise PydanticCustomError("int_type", "must be a whole number")
    return value
