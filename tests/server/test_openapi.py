"""The server's own OpenAPI schema says what its routes take, what they answer with, and that they ask for a key."""

from __future__ import annotations

from halka.server.guards.bodies import UPLOADS


def test_routes_errors_and_keys_are_described(visitor):
    schema = visitor.get("/openapi.json").json()
    chat = schema["paths"]["/v1/chat/completions"]["post"]
    assert set(chat["responses"]) == {"200", "4XX", "5XX"}
    assert chat["responses"]["4XX"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorBody")
    assert chat["security"] == [{"HTTPBearer": []}, {"APIKeyCookie": []}]
    assert schema["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    body = schema["components"]["schemas"]["ChatRequest"]
    assert body["additionalProperties"] is False
    assert {"model", "messages", "tools", "response_format", "logit_bias"} <= set(body["properties"])
    assert "audio" not in body["properties"], "what is not supported is no part of the schema"
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            assert route.get("summary"), f"{method} {path}"
            assert "422" not in route["responses"], f"{method} {path}"


def test_bodies_let_files_through_to_the_routes_that_take_them_alone(visitor):
    paths = visitor.get("/openapi.json").json()["paths"]
    contents = {
        path: route["post"].get("requestBody", {}).get("content", {})
        for path, route in paths.items()
        if "post" in route
    }
    takes_files = {path for path, content in contents.items() if "multipart/form-data" in content}
    assert {path for path in paths if UPLOADS.fullmatch(path)} == takes_files
