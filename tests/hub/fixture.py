"""The test Hub for a test: start it, ask what clients asked it, tell it to fail, run clients against it.

    with running_hub(tmp_path / "hub") as hub:
        hub.inject("status", method="POST", path="/commit/", status=503, times=2)
        hub.run_python("from huggingface_hub import HfApi; HfApi().create_repo('alice/model')")
        assert [request.status for request in hub.requests(path="/repos/create")] == [200]

`huggingface_hub` reads HF_ENDPOINT when it is imported, so clients run in processes of their own, with `hub.env`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from .faults import FaultKind, FaultRule
from .server import CONTROL, LoggedRequest


# Where `python -m` finds this package, under whichever name pytest imported it.
PACKAGE_HOME = Path(__file__).resolve().parents[(__package__ or "").count(".") + 1]
# Settings of the developer's own machine that would change what a client does.
FOREIGN_SETTINGS = re.compile(r"^(HF_|HUGGING|TRANSFORMERS_|.*_proxy$)", re.IGNORECASE)
CLIENT_SETTINGS = {
    # With xet, uploads would go to another service and never fall back to the LFS protocol.
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DISABLE_SAFETENSORS_CONVERSION": "1",
    "NO_PROXY": "127.0.0.1,localhost",
}


@dataclass
class HubProcess:
    """A test Hub that is running, or was.

    Attributes:
        url: the address of the Hub, stable over `stop` and `start`.
        token: Alice's, who may write to `alice/` and `acme/`.
        tokens: every account's: "alice", "alice-read" (cannot write), "bob" (reads `acme/`, writes `bob/`).
        env: environment of a client that is Alice, with a cache of its own.
    """

    root: Path
    page_size: int = 1000
    url: str = ""
    tokens: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def token(self) -> str:
        return self.tokens["alice"]

    def start(self) -> None:
        """Starts the server on what is in `root`; a second start takes the port of the first."""
        port = urlsplit(self.url).port or 0
        command = [sys.executable, "-m", f"{__package__}.server", "--root", str(self.root), "--port", str(port)]
        command += ["--page_size", str(self.page_size), "--until_stdin_closes"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=PACKAGE_HOME)
        assert self.process.stdout
        self.url = self.process.stdout.readline().decode().strip()
        if not self.url:
            raise RuntimeError(f"the test Hub did not start: exit code {self.process.wait()}")
        self._read_tokens()

    @classmethod
    def connect(cls, root: Path, url: str) -> HubProcess:
        """A Hub that another process started."""
        hub = cls(root=root, url=url)
        hub._read_tokens()
        return hub

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Ends the server; SIGKILL to end it in the middle of what it does."""
        if self.process:
            self.process.send_signal(how)
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe:
                    pipe.close()
            self.process = None

    def client_env(self, account: str | None = "alice", home: Path | None = None, **settings: str) -> dict[str, str]:
        """Environment of a client process.

        Args:
            account: whose token it has; None for a stranger.
            home: its HF_HOME (cache and settings); a fresh folder if not given.
        """
        clean = {name: value for name, value in os.environ.items() if not FOREIGN_SETTINGS.match(name)}
        home = home or self.root.parent / f"client-{uuid.uuid4().hex[:8]}"
        environment = {**clean, **CLIENT_SETTINGS, "HF_ENDPOINT": self.url, "HF_HOME": str(home)}
        if account:
            environment["HF_TOKEN"] = self.tokens[account]
        return environment | settings

    def run(
        self,
        command: Sequence[str | Path],
        *,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        check: bool = True,
        timeout: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a client; with `check`, a failure raises AssertionError with what the client wrote."""
        result = subprocess.run(
            list(command),
            check=False,
            env=env or self.env,
            cwd=cwd or self.root.parent,
            text=True,
            capture_output=True,
            timeout=timeout,
        )
        if check and result.returncode:
            raise AssertionError(f"exit code {result.returncode}\n{result.stdout[-4000:]}\n{result.stderr[-8000:]}")
        return result

    def run_python(self, code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Runs Python code in an interpreter of its own, in a folder without hfgen's sources."""
        return self.run([sys.executable, "-c", code, *arguments], **options)

    def inject(self, kind: FaultKind, **rule: Any) -> None:
        """Adds a fault; the arguments are the fields of `FaultRule`."""
        FaultRule(kind, **rule)
        self._control("POST", "faults", {"kind": kind, **rule})

    def clear_faults(self) -> None:
        self._control("DELETE", "faults")

    def requests(self, method: str = ".*", path: str = ".*") -> list[LoggedRequest]:
        """Requests so far, in order of arrival: `method` is matched as a whole, `path` searched for."""
        entries = [_logged(entry) for entry in self._control("GET", "log")]
        return [item for item in entries if re.fullmatch(method, item.method) and re.search(path, item.path)]

    def clear_requests(self) -> None:
        self._control("DELETE", "log")

    def _read_tokens(self) -> None:
        accounts = json.loads((self.root / "accounts.json").read_text())
        self.tokens = {name: entry["token"] for name, entry in accounts["tokens"].items()}

    def _control(self, method: str, name: str, document: dict[str, Any] | None = None) -> Any:
        body = None if document is None else json.dumps(document).encode()
        request = Request(self.url + CONTROL + name, data=body, method=method)
        with build_opener(ProxyHandler({})).open(request, timeout=30) as response:
            return json.load(response)


@contextmanager
def running_hub(folder: Path, page_size: int = 1000) -> Iterator[HubProcess]:
    """A Hub of its own for the `with` block. What it stores is in `folder`/hub, clients' caches are beside it.

    Args:
        page_size: entries on a page of a list; small to make clients turn pages.
    """
    hub = HubProcess(root=folder.resolve() / "hub", page_size=page_size)
    folder.mkdir(parents=True, exist_ok=True)
    hub.start()
    hub.env = hub.client_env()
    try:
        yield hub
    finally:
        hub.stop()


def _logged(entry: dict[str, Any]) -> LoggedRequest:
    return LoggedRequest(**entry)
