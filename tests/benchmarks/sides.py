"""A side for the tests of workers: it lives in a process of its own."""

import os


class EchoSide:
    def __init__(self, greeting: str) -> None:
        if not greeting:
            raise ValueError("nothing to say")
        self._greeting = greeting

    def close(self) -> None:
        pass

    def greet(self, *, name: str) -> str:
        return f"{self._greeting} {name}"

    def num_threads(self) -> str:
        return os.environ["OMP_NUM_THREADS"]

    def fail(self) -> None:
        raise ValueError("the side is out of order")

    def vanish(self) -> None:
        os._exit(3)
