"""What arrives at the service's sockets beside whole and right requests."""

import select
import socket
import time

import pytest

from tests.deployments.guarded.guarded import BODY_TIMEOUT_S, QUESTION
from tests.deployments.keys import ALICE
from tests.deployments.wrong_calls import CHAT, JSON, MAX_BODY_BYTES, WRONG

pytestmark = [pytest.mark.serve, pytest.mark.slow]


def talk(service, parts, *, pause_s=0.0):
    """All that comes back on a connection of its own until the service closes it.

    It may close it before it has everything, but not without an answer.
    """
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
        for part in parts:
            try:
                connection.sendall(part)
            except (BrokenPipeError, ConnectionResetError):
                break  # it is closed; the answer that came before lies in our buffer
            if select.select([connection], [], [], pause_s)[0]:
                break  # it answers before it has everything
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert answer, "the service closed the connection without an answer"
    return answer


def test_slow_client_is_cut_and_holds_nobody_up(service):
    head = (
        "POST /v1/reason HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {ALICE}\r\nContent-Length: 100\r\n\r\n"
    )
    began_at = time.monotonic()
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as slow:
        slow.sendall(head.encode() + b'{"question": ')
        assert service.ask(question=QUESTION, max_tokens=2).status_code == 200
        answer = b""
        while part := slow.recv(65536):  # until the service closes the connection
            answer += part
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"body_timeout" in answer
    assert time.monotonic() - began_at < BODY_TIMEOUT_S + 10


def test_endless_body_is_cut(service):
    head = (
        "POST /v1/reason HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {ALICE}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    chunk = b"400\r\n" + b"x" * 1024 + b"\r\n"
    answer = talk(service, [head.encode(), *[chunk] * (64 * MAX_BODY_BYTES // 1024)], pause_s=0.01)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"body_too_large" in answer
    assert service.ask(question=QUESTION, max_tokens=2).status_code == 200


def test_body_that_drips_is_cut(service):
    head = (
        "POST /v1/reason HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {ALICE}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    began_at = time.monotonic()
    answer = talk(service, [head.encode(), *[b"1\r\nx\r\n"] * 1000], pause_s=0.1)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"body_timeout" in answer
    assert BODY_TIMEOUT_S <= time.monotonic() - began_at < BODY_TIMEOUT_S + 10


def test_client_that_leaves_within_its_body_harms_nobody(service):
    for content in (b"", b'{"question": "W'):
        with socket.create_connection(("127.0.0.1", service.port), timeout=20) as leaving:
            head = f"POST /v1/reason HTTP/1.1\r\nHost: x\r\nX-API-Key: {ALICE}\r\n"
            leaving.sendall(head.encode() + b"Content-Length: 100\r\n\r\n" + content)
    assert service.ask(question=QUESTION, max_tokens=2).status_code == 200
    service.wait_until_idle()


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (b"Authorization: Bearer \xff", b"401"),
        (b"X-API-Key: \x80", b"401"),
        (b"\xff: x", b"400"),
        (b"X-Request-Id: \xff", b"401"),
        (b"Serve-Multiplexed-Model-Id: \xff", b"401"),
        (b"X-Session-Id: \xff", b"401"),
    ],
)
def test_header_that_is_no_text_harms_nobody(service, header, status):
    head = b"GET /v1/stats HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    answer = talk(service, [head + header + b"\r\n\r\n"])
    assert answer.startswith(b"HTTP/1.1 " + status), answer
    assert b"Traceback" not in answer
    # What is no HTTP uvicorn refuses before any code of ours sees it.
    assert (b'{"error":' in answer) == (status != b"400")
    assert service.ask(question=QUESTION, max_tokens=2).status_code == 200


def test_wrong_input_has_its_status_and_shape_and_leaves_the_service_as_it_was(service):
    for name, (path, content, headers, status, code) in WRONG.items():
        response = service._http.post(path, content=content, headers=headers)
        assert response.status_code == status, f"{name}: {response.text}"
        error = response.json()["error"]
        assert list(error) == ["message", "type", "param", "code"], name
        assert error["code"] == code, f"{name}: {error}"
        assert len(response.headers.get_list("x-request-id")) == 1, name
    for method in ("HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"):
        response = service._http.request(method, "/v1/reason")
        assert (response.status_code, response.headers["allow"]) == (405, "POST"), method
    zero = service._http.post(
        "/v1/reason", content=b'{"question": "\\u0000\xc2\x85x", "max_tokens": 2}', headers=JSON
    )
    assert zero.status_code == 200, zero.text
    service.wait_until_idle()
    assert service.ask(question=QUESTION, max_tokens=2).status_code == 200


def test_clients_do_not_choose_serves_time_limit(service):
    headers = {"x-request-timeout-seconds": "0.000001", "x-request-disconnect-disabled": "?1"}
    body = {"question": QUESTION, "max_tokens": 2}
    response = service._http.post("/v1/reason", json=body, headers=headers)
    assert response.status_code == 200


def test_stream_that_the_client_breaks_off_frees_everything(service):
    body = {"question": QUESTION, "max_tokens": 1500, "ignore_eos": True, "stream": True}
    for path, fields in (
        ("/v1/reason", {}),
        (CHAT, {"model": "latentmas/chat", "messages": [{"role": "user", "content": QUESTION}]}),
    ):
        sent = body | fields
        if fields:
            sent = fields | {"max_tokens": 1500, "stream": True, "latentmas": {"ignore_eos": True}}
        with service._http.stream("POST", path, json=sent) as response:
            assert response.status_code == 200
            next(response.iter_raw())
        service.wait_until_idle()
