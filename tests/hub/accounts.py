"""Who may do what: users, organisations and access tokens, read once from a JSON file when the server starts."""

from __future__ import annotations

import json
import os
import secrets
import string
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias


Role: TypeAlias = Literal["read", "write"]


@dataclass(frozen=True)
class Principal:
    """The user behind a request, with the role of the token that was sent."""

    user: str
    role: Role
    token_name: str
    # Organisation to the role in it.
    organisations: dict[str, Role] = field(default_factory=dict)

    def may_read_private(self, namespace: str) -> bool:
        return namespace == self.user or namespace in self.organisations

    def may_write(self, namespace: str) -> bool:
        owns = namespace == self.user or self.organisations.get(namespace) == "write"
        return owns and self.role == "write"


class Accounts:
    """Tokens to principals."""

    def __init__(self, principals: dict[str, Principal]) -> None:
        self._principals = principals

    @classmethod
    def load(cls, path: Path) -> Accounts:
        """Reads the accounts; a missing file is first written, with fresh tokens."""
        if not path.exists():
            write_default_accounts(path)
        document = json.loads(path.read_text())
        memberships: dict[str, dict[str, Role]] = document["organisations"]
        return cls(
            {
                entry["token"]: Principal(
                    user=entry["user"],
                    role=entry["role"],
                    token_name=name,
                    organisations={
                        org: roles[entry["user"]] for org, roles in memberships.items() if entry["user"] in roles
                    },
                )
                for name, entry in document["tokens"].items()
            }
        )

    def principal(self, token: str) -> Principal | None:
        return self._principals.get(token)


def write_default_accounts(path: Path) -> None:
    """Alice (also with a token that only reads) and Bob; both are in `acme`, where only Alice writes."""
    users: dict[str, tuple[str, Role]] = {
        "alice": ("alice", "write"),
        "alice-read": ("alice", "read"),
        "bob": ("bob", "write"),
    }
    document = {
        "organisations": {"acme": {"alice": "write", "bob": "read"}},
        "tokens": {name: {"user": user, "role": role, "token": new_token()} for name, (user, role) in users.items()},
    }
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w") as file:
        json.dump(document, file, indent=2)


def new_token() -> str:
    """Random, with the prefix and length of real tokens, so that a scan for leaked tokens would find it."""
    letters = string.ascii_letters
    return "hf_" + "".join(secrets.choice(letters) for _ in range(34))
