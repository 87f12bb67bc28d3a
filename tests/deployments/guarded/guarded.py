"""A service that wants a key on every call, and the log files of its replicas."""

import json
from pathlib import Path

from tests.deployments.keys import ALICE
from tests.deployments.service import Service

QUESTION = "Which colour has the unicorn in the cellar?"
BODY_TIMEOUT_S = 1.0
MAX_PER_MINUTE = 3
MAX_ONGOING = 8
MAX_QUEUED = 4


class Guarded(Service):
    """With a key on every call, and the log files of its replicas."""

    def __init__(self, port: int, folder: Path) -> None:
        super().__init__(port)
        self.logs = folder / "logs"
        self.database = database_of(folder)
        self.present(ALICE)

    def lines(self, event: str) -> list[dict]:
        """All lines about requests or stages, with the name of their file."""
        return [
            line | {"file": path.name}
            for path in self.logs.rglob("*.log")
            for text in path.read_text().splitlines()
            if (line := json.loads(text)).get("event") == event
        ]


def database_of(folder: Path) -> str:
    return f"sqlite:///{folder}/conversations.db"
