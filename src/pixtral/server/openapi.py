"""The OpenAPI document: bodies that the routes parse themselves are described by their models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

if TYPE_CHECKING:
    from fastapi import FastAPI

_REF = "#/components/schemas/{model}"
_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_STATUSES = {
    "400": "the request cannot be honoured", "401": "no key, or a wrong one", "404": "no such model",
    "408": "the request took too long", "413": "the body is too large", "415": "the body is not JSON",
    "429": "too many requests are waiting", "503": "the server is being stopped",
}  # fmt: skip


class Bodies:
    """Models of bodies, collected while routes are made."""

    def __init__(self) -> None:
        self._models: dict[str, type[BaseModel]] = {}

    def of(self, model: type[BaseModel]) -> dict[str, Any]:
        """`openapi_extra` of a route that reads this body."""
        self._models[model.__name__] = model
        schema = {"$ref": _REF.format(model=model.__name__)}
        error = {"application/json": {"schema": {"$ref": _REF.format(model="Error")}}}
        return {
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
            "responses": {
                status: {"description": description, "content": error} for status, description in _STATUSES.items()
            },
        }

    def schemas(self) -> dict[str, Any]:
        """The schemas of all of them, and of errors."""
        pairs: Any = [(model, "validation") for model in self._models.values()]
        _, document = models_json_schema(pairs, ref_template=_REF)
        return {**document.get("$defs", {}), "Error": _ERROR}


def describe(app: FastAPI, bodies: Bodies) -> None:
    """Give the application a document that has them; it is made when it is first asked for."""
    plain = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = plain()
            made.setdefault("components", {}).setdefault("schemas", {}).update(bodies.schemas())
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
