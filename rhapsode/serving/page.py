"""The page in the browser, and the description of the API: `rhapsode serve runs/mytext`, then http://127.0.0.1:8000/.

Everything comes from the package. The browser is told to load nothing from elsewhere, and to run no script but these.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException

START, DOCS = "index.html", "docs.html"
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI) -> None:
    """Let `app` answer /, /page/NAME and /docs. The files are read now: nothing in a request is ever a path."""
    import jinja2

    folder = resources.files("rhapsode.serving") / "page"
    files = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir() if file.is_file()}
    start, docs = files.pop(START), files.pop(DOCS)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(docs)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(start, headers=HEADERS)

    @app.get("/page/{name}", include_in_schema=False)
    async def page_file(name: str) -> Response:
        if name not in files:
            raise HTTPException(404, f"the page has no file {name!r}")
        ending = name[name.rindex(".") :]
        return Response(files[name], media_type=TYPES[ending], headers=HEADERS)

    @app.get("/docs", include_in_schema=False)
    async def description() -> Response:
        return HTMLResponse(template.render(**_described(app.openapi())), headers=HEADERS)


def _described(api: Mapping[str, Any]) -> dict[str, Any]:
    """What the description shows of an OpenAPI document."""
    schemas = api.get("components", {}).get("schemas", {})
    routes = []
    for path, methods in api["paths"].items():
        for method, route in methods.items():
            content = route.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            parameters = [
                _field(each["name"], each["schema"], each["required"], f"in the {each['in']}")
                for each in route.get("parameters", ())
            ]
            routes.append(
                {
                    "method": method.upper(),
                    "path": path,
                    "summary": route.get("description") or route.get("summary", ""),
                    "body": content and _name(content),
                    "parameters": parameters,
                }
            )
    asked = _reached([route["body"] for route in routes if route["body"]], schemas)
    forms = [
        {
            "name": name,
            "description": schemas[name].get("description", ""),
            "fields": [
                _field(field, form, field in schemas[name].get("required", ()))
                for field, form in schemas[name].get("properties", {}).items()
            ],
        }
        for name in asked
    ]
    return {"title": api["info"]["title"], "version": api["info"]["version"], "routes": routes, "forms": forms}


def _reached(names: list[str], schemas: Mapping[str, Any]) -> list[str]:
    """These schemas, and after each those that it mentions."""
    found: list[str] = []

    def visit(name: str) -> None:
        if name in schemas and name not in found:
            found.append(name)
            for mentioned in _mentioned(schemas[name]):
                visit(mentioned)

    for name in names:
        visit(name)
    return found


def _mentioned(form: object) -> list[str]:
    if isinstance(form, Mapping):
        own = [_name(form)] if "$ref" in form else []
        return own + [name for each in form.values() for name in _mentioned(each)]
    return [name for each in form for name in _mentioned(each)] if isinstance(form, list) else []


def _name(form: Mapping[str, Any]) -> str:
    return str(form.get("$ref", form.get("title", ""))).rpartition("/")[2]


def _field(name: str, form: Mapping[str, Any], required: bool, note: str = "") -> dict[str, Any]:
    default = form.get("default")
    return {
        "name": name,
        "type": _type(form),
        "default": "" if default is None else str(default).lower() if isinstance(default, bool) else str(default),
        "required": required,
        "description": " ".join(part for part in (form.get("description", ""), note) if part),
    }


LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "ge": "at least {}",  # where a field may be of several kinds, pydantic writes its own names
    "gt": "above {}",
    "le": "at most {}",
    "lt": "below {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {}",
    "maxItems": "at most {}",
    "maxProperties": "at most {}",
}


def _type(form: Mapping[str, Any]) -> str:
    """A field's type and limits in words."""
    kind = _kind(form)
    limits = [
        told.format(f"{form[name]:,}" if isinstance(form[name], int) else form[name])
        for name, told in LIMITS.items()
        if name in form
    ]
    return f"{kind} ({', '.join(limits)})" if limits else kind


def _kind(form: Mapping[str, Any]) -> str:
    if "$ref" in form:
        return _name(form)
    if "anyOf" in form:
        kinds = list(dict.fromkeys(_type(each) for each in form["anyOf"]))
        return " or ".join(kind for kind in kinds if not (kind == "integer" and "number" in kinds))
    if "enum" in form or "const" in form:
        return " or ".join(f'"{value}"' for value in form.get("enum", [form.get("const")]))
    kind = str(form.get("type", "anything"))
    return f"list of {_type(form.get('items', {}))}" if kind == "array" else kind
