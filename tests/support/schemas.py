"""Checks JSON against the part of JSON Schema that our schemas use; anything else in a schema is an error here."""

from collections.abc import Iterator
from typing import Any

KINDS: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
KNOWN = {
    *("$schema", "title", "description", "default"),
    *("type", "properties", "required", "additionalProperties", "items", "anyOf", "minimum", "minItems"),
}


def faults(value: Any, schema: dict[str, Any], at: str = "$") -> Iterator[str]:
    """What is wrong with a value, and where; nothing if it is valid."""
    assert schema.keys() <= KNOWN, schema.keys() - KNOWN
    if "anyOf" in schema:
        if all(any(True for _ in faults(value, each, at)) for each in schema["anyOf"]):
            yield f"{at} is none of the kinds that it may be"
        return
    if not isinstance(value, KINDS[schema["type"]]) or (isinstance(value, bool) and schema["type"] != "boolean"):
        yield f"{at} is not of type {schema['type']}"
        return
    if isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        yield from (f"{at}.{name} is missing" for name in schema.get("required", ()) if name not in value)
        for name, each in value.items():
            if name in known:
                yield from faults(each, known[name], f"{at}.{name}")
            elif others is False:
                yield f"{at}.{name} is not known"
            elif others is not True:
                yield from faults(each, others, f"{at}.{name}")
    elif isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            yield f"{at} is too short"
        for k, each in enumerate(value):
            yield from faults(each, schema["items"], f"{at}[{k}]")
    elif "minimum" in schema and value < schema["minimum"]:
        yield f"{at} is too small"
