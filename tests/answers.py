"""What a server of HTTP answered, as every test that asks one sees it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What a server said; names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    text: str

    @classmethod
    def read(cls, response: HTTPResponse, errors: str = "strict") -> Answer:
        """All of a response; ``errors`` says what becomes of bytes that are not UTF-8."""
        text = response.read().decode(errors=errors)
        return cls(response.status, {k.lower(): v for k, v in response.getheaders()}, text)

    def json(self) -> Any:
        """The body as data."""
        return json.loads(self.text)

    @property
    def index(self) -> int:
        """``X-Etcd-Index``."""
        return int(self.headers["x-etcd-index"])
