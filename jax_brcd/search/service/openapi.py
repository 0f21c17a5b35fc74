"""What the service promises, as an OpenAPI document."""

from typing import Any

import jax_brcd
from jax_brcd.search.service.engine import Engine
from jax_brcd.search.service.limits import Limits

Schema = dict[str, Any]
TEXT, NUMBER, WHOLE, SWITCH = ({"type": kind} for kind in ("string", "number", "integer", "boolean"))
BYTES = {"type": "string", "format": "binary"}
HEX = {"type": "string", "pattern": "^[0-9a-f]+$", "description": "a code's bytes, the first bit the highest"}
ERRORS = {400: "a parameter or a body that cannot be", 401: "without the token", 404: "nothing of that name",
          408: "a body that does not come", 409: "codes that the index cannot compare", 413: "too many bytes or pixels",
          415: "no image", 421: "a name of another host, without a token",
          503: "too much at a time, or the index does not answer"}


def document(engine: Engine, limits: Limits) -> Schema:
    """The document of a service of this engine under these limits."""
    k = _parameter("k", {**WHOLE, "minimum": 1, "maximum": limits.max_hits, "default": min(10, limits.max_hits)},
                   "how many of the nearest items")
    radius = _parameter("radius", {**WHOLE, "minimum": 0, "maximum": engine.bits}, "the most bits that may differ among the k")
    soft = _parameter("soft", SWITCH, "rank by the logits of the image instead of its bits")
    mode = _parameter("mode", {**TEXT, "enum": list(engine.encoders)}, "symmetric: by the encoder that filled the index; "
                      "asymmetric: by another one of its space")
    space = _parameter("space", TEXT, "the space of the code, which must be the index's")
    original = _parameter("original", SWITCH, "the file that was indexed, as long as it is unchanged")
    id = {"name": "id", "in": "path", "required": True, "schema": TEXT, "description": "as hits tell it, percent-encoded"}
    image = {"image/*": {"schema": BYTES}, "multipart/form-data": {"schema": _object(image=BYTES)}}
    code = {"application/octet-stream": {"schema": {**BYTES, "minLength": engine.code_bytes, "maxLength": engine.code_bytes}}}
    found = _json({"$ref": "#/components/schemas/Found"})
    paths = {
        "/v1/search": {"post": _operation("the nearest items of an image", found, [k, radius, soft, mode], image)},
        "/v1/search/codes": {"post": _operation("the nearest items of a code", found, [k, radius, space], code)},
        "/v1/images/{id}": {"get": _operation("the thumbnail or the original of an item", {"image/*": {"schema": BYTES}},
                                              [id, original])},
        "/v1/encoder.onnx": {"get": _operation("the encoder that runs in the page, where the service was started with it",
                                               {"application/octet-stream": {"schema": BYTES}})},
        "/v1/status": {"get": _operation("what is served", _json({"$ref": "#/components/schemas/Status"}))},
        "/healthz": {"get": _operation("whether the index answers", _json(_object(status=TEXT)), open=True)},
        "/metrics": {"get": _operation("counts and durations for Prometheus", {"text/plain": {"schema": TEXT}})},
        "/openapi.json": {"get": _operation("this document", _json({"type": "object"}))},
    }
    return {"openapi": "3.1.0", "info": {"title": "jax_brcd: search by images", "version": jax_brcd.__version__},
            "paths": paths, "security": [{}, {"token": []}],
            "components": {"schemas": _schemas(), "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}}


def _schemas() -> dict[str, Schema]:
    maybe = {"type": ["number", "null"]}
    hit = _object(id=TEXT, distance={**WHOLE, "description": "bits that differ"},
                  soft={**maybe, "description": "the sum of the sizes of the logits whose bits differ"}, code=HEX,
                  image={**TEXT, "description": "where its thumbnail is"}, attributes={"type": "object"})
    return {
        "Error": _object(error=TEXT, status=WHOLE), "Hit": hit,
        "Found": _object(bits=WHOLE, space={"type": ["string", "null"]}, code=HEX, k=WHOLE, radius=maybe, soft=SWITCH,
                         mode={"type": ["string", "null"]}, milliseconds={"type": "object", "additionalProperties": NUMBER},
                         hits={"type": "array", "items": {"$ref": "#/components/schemas/Hit"}}),
        "Status": _object(version=TEXT, items=WHOLE, bits=WHOLE, bytes=WHOLE, space={"type": ["string", "null"]},
                          modes={"type": "object"}, browser={"type": ["object", "null"]}, limits={"type": "object"},
                          uptime_seconds=NUMBER)}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _parameter(name: str, schema: Schema, description: str) -> Schema:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def _operation(summary: str, answer: Schema, parameters: list[Schema] | None = None, body: Schema | None = None, *,
               open: bool = False) -> Schema:
    error = _json({"$ref": "#/components/schemas/Error"})
    responses = {"200": {"description": summary, "content": answer}}
    responses |= {str(status): {"description": why, "content": error} for status, why in ERRORS.items()}
    operation = {"summary": summary, "parameters": parameters or [], "responses": responses}
    if body is not None:
        operation["requestBody"] = {"required": True, "content": body}
    return operation | ({"security": [{}]} if open else {})
