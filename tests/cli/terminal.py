"""The program on a real pseudo-terminal, and somebody who types."""

import os
import re
import sys
from typing import Self

import pexpect

TIMEOUT_S = 60.0
_ENVIRONMENT = {"TERM": "xterm", "LC_ALL": "C.UTF-8", "INPUTRC": os.devnull}
_PROMPT = re.compile(r"> (?:\x1b\[\?2004h)?$")
_STEERING = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """``python ARGUMENTS`` with a terminal as its input, output and error; ended on leaving."""

    def __init__(self, *arguments: str) -> None:
        self.child = pexpect.spawn(
            sys.executable,
            list(arguments),
            env=os.environ | _ENVIRONMENT,
            dimensions=(50, 140),
            encoding="utf-8",
            timeout=TIMEOUT_S,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.close(force=True)

    def read_to_prompt(self) -> str:
        """What was printed until somebody may type again, without what steers the terminal."""
        self.child.expect(_PROMPT)
        return _STEERING.sub("", self.child.before)

    def say(self, line: str) -> str:
        """Type a line; what is printed for it."""
        self.child.sendline(line)
        return self.read_to_prompt()

    def press(self, key: str) -> None:
        """Ctrl and a letter."""
        self.child.sendcontrol(key)

    def wait_for(self, text: str) -> None:
        self.child.expect_exact(text)

    def exit_status(self) -> int:
        """Once the program has ended by itself."""
        self.child.expect(pexpect.EOF)
        self.child.close()
        return self.child.exitstatus


def chat(*flags: str) -> Terminal:
    return Terminal("-m", "latentmas_core.cli", "chat", *flags)
