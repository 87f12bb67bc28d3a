"""Calls of the HTTP face, and the one shape of its errors."""


def assert_error(response, status, *, code, param=None, type_="invalid_request_error"):
    """The one shape, and nothing beside it; returns the message."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    error = body["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert (error["type"], error["param"], error["code"]) == (type_, param, code)
    assert error["message"]
    return error["message"]


async def ask(client, **fields):
    return await client.post("/v1/reason", json={"question": "Why?"} | fields)


async def post_json(client, content):
    headers = {"content-type": "application/json"}
    return await client.post("/v1/reason", content=content, headers=headers)
