"""A real MLflow server whose answers are altered on their way: one that lies, or that somebody else has taken over.

Invariant: what no lie is about is forwarded unchanged; every request is written down in `asked`, with its body.

    with lying_server(uri) as server:
        server.lies = [answers("runs/get", lambda answer: answer["run"]["info"].update(run_id="../../out"))]
        connect(server.uri)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from faulty_proxy import faulty_proxy

Lie = Callable[[str, bytes], bytes]
"""(path of the request, what the server answered) -> what arrives."""


@dataclass
class LyingServer:
    """What it says instead of the truth, to be changed while it runs."""

    uri: str = ""
    lies: list[Lie] = field(default_factory=list)
    asked: list[tuple[str, str, bytes]] = field(default_factory=list)
    """(method, path, body) of every request."""


@contextmanager
def lying_server(target: str) -> Iterator[LyingServer]:
    """A proxy on a free port in front of `target`, which lies about nothing yet."""
    server = LyingServer()
    with faulty_proxy(target) as proxy:
        server.uri, honest = proxy.uri, proxy.forward

        def forward(
            method: str, path: str, headers: dict[str, str], body: bytes
        ) -> tuple[int, list[tuple[str, str]], bytes]:
            server.asked.append((method, path, body))
            status, reply_headers, reply = honest(method, path, {**headers, "Accept-Encoding": "identity"}, body)
            for lie in server.lies if status == 200 else []:
                reply = lie(path, reply)
            return status, reply_headers, reply

        proxy.forward = forward  # type: ignore[method-assign]
        yield server


def answers(part: str, alter: Callable[[Any], Any]) -> Lie:
    """A lie in the JSON that answers the requests whose path holds `part`; `alter` changes it in place, or returns
    another.
    """

    def lie(path: str, reply: bytes) -> bytes:
        if part not in path:
            return reply
        answer = json.loads(reply)
        other = alter(answer)
        return json.dumps(answer if other is None else other).encode()

    return lie


def everywhere(key: str, value: Any) -> Lie:
    """A lie in every JSON answer: what stands under `key` is `value`, or where a tag has that key, its value is."""

    def replaced(held: Any) -> Any:
        if isinstance(held, list):
            return [replaced(one) for one in held]
        if not isinstance(held, dict):
            return held
        if held.get("key") == key and "value" in held:
            return {**held, "value": value}
        return {name: value if name == key else replaced(one) for name, one in held.items()}

    def lie(path: str, reply: bytes) -> bytes:
        if "mlflow-artifacts/artifacts/" in path:
            return reply
        try:
            return json.dumps(replaced(json.loads(reply))).encode()
        except ValueError:
            return reply

    return lie


def content(part: str, text: bytes) -> Lie:
    """A lie in place of the files whose path in the artifact store holds `part`, and of any other answer to such a
    path.
    """
    return lambda path, reply: text if part in path else reply
