"""Descriptions of structs for JSON Schema, from their docstrings."""

import ast
import inspect
import itertools
from typing import Any


def described(of: type, schema: dict[str, Any]) -> dict[str, Any]:
    """Add descriptions: the first paragraph of the docstring, and the docstrings of the fields."""
    texts = field_docstrings(of)
    properties = {
        name: {**field, "description": texts[name]} if name in texts else field
        for name, field in schema.get("properties", {}).items()
    }
    text = " ".join(inspect.cleandoc(of.__doc__ or "").partition("\n\n")[0].split())
    return {**schema, "description": text, **({"properties": properties} if properties else {})}


def field_docstrings(of: type) -> dict[str, str]:
    """Return the string literal that follows each field of a class, with its white space collapsed.

    Those of its base classes count too.
    """
    texts: dict[str, str] = {}
    for base in reversed(of.__mro__):
        if base.__module__.startswith("fetchfleet."):
            (definition,) = ast.parse(inspect.getsource(base)).body
            assert isinstance(definition, ast.ClassDef)
            for statements in itertools.pairwise(definition.body):
                match statements:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(
                        value=ast.Constant(value=str(text))
                    ):
                        texts[name] = " ".join(text.split())
    return texts
