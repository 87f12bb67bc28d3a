"""Turns sampled ids into text as they come. Never splits a character; holds back what may become a
stop string. Knows one answer, nothing of sequences.
"""

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class Detokenizer:
    """The text of one answer, piece by piece."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = ()) -> None:
        self.text = ""
        self.has_stopped = False
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._decoded = ""
        self._stop = stop
        self._starts: list[int] = []
        self._is_finished = False

    def append(self, token_id: int) -> str:
        """The text that became certain with this token; empty while nothing did."""
        self._ids.append(token_id)
        self._starts.append(len(self._decoded))
        self._decoded += self._stream.step(self._tokenizer, token_id) or ""
        return self._settle(len(self._decoded) - self._num_held_back())

    def finish(self) -> str:
        """What was held back: an unfinished character, or the beginning of a stop string."""
        self._is_finished = True
        if self.has_stopped:
            return ""
        self._decoded = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return self._settle(len(self._decoded))

    @property
    def num_tokens(self) -> int:
        """Tokens that the text holds at least a part of; once it is finished all, also those that
        spell nothing, but none behind where a stop string ended it."""
        if self._is_finished and not self.has_stopped:
            return len(self._ids)
        return sum(start < len(self.text) for start in self._starts)

    def _settle(self, end: int) -> str:
        starts = [start for stop in self._stop if (start := self._decoded.find(stop)) >= 0]
        if starts:
            self.has_stopped = True
            end = min(starts)
        piece = self._decoded[len(self.text) : end]
        self.text += piece
        return piece

    def _num_held_back(self) -> int:
        """Length of the longest ending that begins a stop string."""
        longest = max(map(len, self._stop), default=0)
        for length in range(min(longest, len(self._decoded)), 0, -1):
            ending = self._decoded[-length:]
            if any(stop.startswith(ending) for stop in self._stop):
                return length
        return 0
