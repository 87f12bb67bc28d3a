"""What single tokens spell, in bytes: a token may be a part of a character."""

import re
from typing import NamedTuple

from tokenizers import Tokenizer, decoders
from tokenizers.pre_tokenizers import ByteLevel

from latentmas_core.logprobs import AnswerToken, TokenLogprob

MIN_LOGPROB = -9999.0  # JSON has no infinity and no NaN
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class RowLogprobs(NamedTuple):
    """The chosen token of one row, and the likeliest ones; ids with their log-probabilities."""

    chosen: tuple[int, float]
    top: tuple[tuple[int, float], ...]


class TokenTexts:
    """Spells the tokens of one vocabulary."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = tokenizer.get_added_tokens_decoder()
        has_byte_alphabet = isinstance(tokenizer.decoder, decoders.ByteLevel)
        self._byte_of = _byte_alphabet() if has_byte_alphabet else {}

    def describe(self, row: RowLogprobs) -> AnswerToken:
        chosen = self._describe(*row.chosen)
        return AnswerToken(
            token=chosen.token,
            logprob=chosen.logprob,
            bytes=chosen.bytes,
            top_logprobs=tuple(self._describe(*candidate) for candidate in row.top),
        )

    def bytes_of(self, token_id: int) -> bytes:
        """Empty for a row of the vocabulary that is no token."""
        symbol = self._tokenizer.id_to_token(token_id)
        if symbol is None:
            return b""
        if token_id in self._added:
            return str(symbol).encode()
        if self._byte_of:
            return bytes(self._byte_of[char] for char in symbol)
        byte = _BYTE.fullmatch(symbol)
        return bytes([int(byte[1], 16)]) if byte else symbol.replace("▁", " ").encode()

    def _describe(self, token_id: int, logprob: float) -> TokenLogprob:
        spelt = self.bytes_of(token_id)
        return TokenLogprob(
            token=spelt.decode(errors="replace"),
            logprob=max(MIN_LOGPROB, logprob),  # in this order: of NaN the first is the larger
            bytes=tuple(spelt),
        )


def _byte_alphabet() -> dict[str, int]:
    """The printable character that byte-level vocabularies write for each byte (from GPT-2): its
    own where it has one, else the next behind them all."""
    alphabet = sorted(ByteLevel.alphabet())
    own = {char: ord(char) for char in alphabet if ord(char) < 256}
    others = [char for char in alphabet if ord(char) >= 256]
    left = sorted(set(range(256)) - set(own.values()))
    return own | dict(zip(others, left, strict=True))
