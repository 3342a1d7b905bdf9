"""What the server was told to do wrong: rules that match requests and spoil the answer a given number of times."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias, get_args


FaultKind: TypeAlias = Literal[
    "status",  # answer with `status` (and `retry_after`) and do nothing
    "drop_response",  # do as asked, send `body_bytes` of the answer's body, then close the connection
    "drop_upload",  # take `body_bytes` of the request's body, then close the connection and do nothing
    "slow",  # wait `seconds`, then move bodies at `bytes_per_second`
    "expired_token",  # answer 401 as for a token that is no longer valid
    "foreign_commit",  # another writer's commit lands first; the request then goes on (and a stale parent gives 412)
    "parent_moved",  # another writer's commit lands first; the request is refused with `status`, 412 unless given
]


@dataclass
class FaultRule:
    """One rule. It fires for requests that match, after `after` such requests were left alone, `times` times.

    Args:
        method: regular expression for the whole method.
        path: regular expression searched for in the path (without host and query).
        user: only requests of this user.
        times: how often it fires; None for always.
        reset: end a dropped connection with a TCP reset, not with an orderly close.
    """

    kind: FaultKind
    method: str = ".*"
    path: str = ".*"
    user: str | None = None
    times: int | None = 1
    after: int = 0
    status: int | None = None
    message: str | None = None
    retry_after: int | None = None
    body_bytes: int = 0
    reset: bool = False
    seconds: float = 0.0
    bytes_per_second: int | None = None
    # Counted by the rule itself.
    seen: int = field(default=0, init=False)
    fired: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.kind not in get_args(FaultKind):
            raise ValueError(f"`kind` should be one of {', '.join(get_args(FaultKind))}, got {self.kind!r}")
        if self.kind == "status" and self.status is None:
            raise ValueError("a fault of kind 'status' needs `status`")
        re.compile(self.method), re.compile(self.path)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> FaultRule:
        known = {item.name for item in fields(cls) if item.init}
        if unknown := sorted(set(document) - known):
            raise ValueError(f"unknown fields of a fault: {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        return cls(**document)

    def matches(self, method: str, path: str, user: str | None) -> bool:
        of_user = self.user is None or self.user == user
        return of_user and re.fullmatch(self.method, method) is not None and re.search(self.path, path) is not None

    @property
    def is_spent(self) -> bool:
        return self.times is not None and self.fired >= self.times


class FaultBook:
    """The rules in force. The first rule that fires for a request is the one it gets."""

    def __init__(self) -> None:
        self._rules: list[FaultRule] = []
        self._lock = threading.Lock()

    def add(self, rule: FaultRule) -> None:
        with self._lock:
            self._rules.append(rule)

    def clear(self) -> None:
        with self._lock:
            self._rules.clear()

    def take(self, method: str, path: str, user: str | None) -> FaultRule | None:
        with self._lock:
            for rule in self._rules:
                if rule.is_spent or not rule.matches(method, path, user):
                    continue
                rule.seen += 1
                if rule.seen > rule.after:
                    rule.fired += 1
                    return rule
        return None

    def describe(self) -> list[dict[str, Any]]:
        with self._lock:
            return [dict(vars(rule)) for rule in self._rules]
