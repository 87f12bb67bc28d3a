"""Ports of this machine."""

import socket


def free_port() -> int:
    """Nobody listens there; somebody else may take it before its caller does."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
