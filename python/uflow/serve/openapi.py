"""What the service answers, as OpenAPI describes it."""

from __future__ import annotations

from typing import Any

from .. import __version__

__all__ = ["describe"]

# Each entry of a line, as docs/prediction.schema.json has them in full.
LINE: dict[str, Any] = {
    "schema": {"type": "integer"},
    "image": {"type": ["string", "null"]},
    "sha256": {"type": ["string", "null"]},
    "time": {"type": "string", "format": "date-time"},
    "model": {"type": ["string", "null"]},
    "model_sha256": {"type": ["string", "null"]},
    "alpha": {"type": ["number", "null"]},
    "look_alpha": {"type": ["number", "null"]},
    "size": {"type": "array", "items": {"type": "integer"}},
    "score": {"type": "number"},
    "is_anomalous": {"type": "boolean"},
    "verdict": {"enum": ["good", "look", "reject"]},
    "p_value": {"type": ["number", "null"]},
    "calibration_images": {"type": ["integer", "null"]},
    "log_nfa": {"type": "number"},
    "regions": {"type": "array", "items": {"type": "object"}},
}
ERROR = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
REFUSALS = {
    "400": "no image in the request, or a form that cannot be read",
    "401": "a token is needed",
    "403": "the token's role may not do this",
    "404": "there is no such product",
    "408": "the image did not arrive in time",
    "413": "the image has too many bytes or pixels",
    "415": "no image format that is read",
    "422": "the image is broken: it was accepted, and could not be judged",
    "500": "the part was accepted, and could not be judged",
    "503": "too many parts are waiting, or the model cannot be read: try again after Retry-After",
    "504": "not judged in time; the part is stored, and will be judged: see Location",
}


def describe() -> dict[str, Any]:
    """The description, ready for JSON."""
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    overlay = {"name": "overlay", "in": "query", "schema": {"enum": ["0", "1"]}}
    named = {"name": "name", "in": "query", "schema": {"type": "string", "maxLength": 200}}
    part = {"name": "part", "in": "path", "required": True, "schema": {"type": "integer"}}
    image = {"schema": {"type": "string", "format": "binary"}}
    form = {"schema": {"type": "object", "properties": {"image": image["schema"]}, "required": ["image"]}}
    judged = {
        "description": "what uflow says of the image; with overlay=1 the image under its map, regions outlined",
        "headers": {
            "Uflow-Part": {"schema": {"type": "integer"}, "description": "the part's number"},
            "Uflow-Stored": {"schema": {"enum": ["yes", "no"]}, "description": "whether part and verdict are kept"},
        },
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Prediction"}}, "image/png": image},
    }
    predict = {
        "summary": "Judge an image",
        "parameters": [name, named, overlay],
        "requestBody": {"required": True, "content": {"image/*": image, "multipart/form-data": form}},
        "responses": {"200": judged} | {status: _refusal(why) for status, why in REFUSALS.items()},
    }
    said = {"type": "object", "required": ["answer"], "properties": {"answer": {"enum": ["good", "defective", None]}}}
    answer = _plain("Keep what an operator says of a part; null takes it back", part)
    answer["requestBody"] = {"required": True, "content": {"application/json": {"schema": said}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "uflow", "version": __version__},
        "security": [{"bearer": []}],
        "paths": {
            "/v1/products/{name}/predict": {"post": predict},
            "/v1/products/{name}/monitor/restart": {"post": _plain("Begin a new watch of the p-values", name)},
            "/v1/products": {"get": _plain("The products, and how each is")},
            "/v1/parts/{part}": {"get": _plain("What is known of a part", part)},
            "/v1/parts/{part}/picture": {"get": _plain("Its image, smaller", part, content="image/jpeg")},
            "/v1/parts/{part}/map": {"get": _plain("Its anomaly map, in colours", part, content="image/png")},
            "/v1/parts/{part}/answer": {"post": answer},
            "/health": {"get": _plain("Whether anything is wrong")},
            "/ready": {"get": _plain("Whether every product's model serves: else 503")},
            "/version": {"get": _plain("The version of uflow")},
            "/metrics": {"get": _plain("Figures, as Prometheus reads them", content="text/plain")},
        },
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Prediction": {"type": "object", "required": list(LINE), "properties": LINE}, "Error": ERROR},
        },
    }


def _plain(summary: str, *parameters: dict[str, Any], content: str = "application/json") -> dict[str, Any]:
    answer = {"description": summary, "content": {content: {}}}
    return {"summary": summary, "parameters": list(parameters), "responses": {"200": answer}}


def _refusal(why: str) -> dict[str, Any]:
    return {"description": why, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
