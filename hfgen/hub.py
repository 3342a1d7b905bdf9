"""Folders to the Hub and back, over the real client.

    push_folder("runs/vae-mnist", "me/vae-mnist")       everything that belongs to the model, as one commit or none
    pull("me/vae-mnist", "vae-mnist")                   the files, checked before they are put in place
    fetch_checkpoint("me/vae-mnist@main")               the training state that `--hub_strategy checkpoint` published

The commit names the one it was made for: if another writer was faster, the Hub refuses it and it is made anew, so that
two writers never mix their files. What can pass (rate limits, server errors, lost connections) is tried again.
"""

from __future__ import annotations

import logging
import random
import re
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hfgen.cards import name_repository, step_of
from hfgen.model_folder import INDEX, PICKLED_SUFFIXES, WEIGHTS, LoadError, check_folder, explain_missing_weights


logger = logging.getLogger(__name__)

Result = TypeVar("Result")
CheckpointUpload: TypeAlias = Literal["none", "last", "all"]

# Folders of training state and of trackers.
FOREIGN_FOLDERS = {"checkpoints", "logs", "runs", "wandb", "mlruns", "trackio", "__pycache__"}
FOREIGN_SUFFIXES = (*PICKLED_SUFFIXES, ".pyc", ".tmp", ".lock", ".incomplete", ".log")
# In a repository these belong to the model that is pushed: those that it does not have are an earlier model's.
OWN_FILES = re.compile(r"[^/]+\.safetensors|[^/]+\.safetensors\.index\.json|samples/step-[^/]+|last-checkpoint/.+")
LAST_CHECKPOINT = "last-checkpoint"
CHECKPOINT_FILES = ["checkpoints/*", f"{LAST_CHECKPOINT}/*"]
TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")

TRANSIENT_STATUSES = {408, 409, 412, 425, 429}
ATTEMPTS = 6
LONGEST_WAIT = 120.0


class HubError(ValueError):
    """The Hub could not be used; the message says why, what is whole, and what to do, and holds no token."""


@dataclass
class Pushed:
    """What [`push_folder`] did.

    Attributes:
        repo_id: with its owner, even if it was given without.
        url: of the repository.
        commit: 40 hexadecimal digits.
        is_new: False if the repository held everything already; then there is no new commit.
        left_out: files of the folder that do not belong into a repository.
    """

    repo_id: str
    url: str
    commit: str
    is_new: bool
    left_out: list[str] = field(default_factory=list)


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str = "Upload with hfgen",
    checkpoints: CheckpointUpload = "none",
    attempts: int = ATTEMPTS,
) -> Pushed:
    """Publishes a folder as one commit, or makes none if the repository holds it already.

    Training state, logs, pickles and hidden files stay behind. Files of the repository that the folder does not have
    stay, except weights and samples of an earlier model.

    Args:
        folder: a model that would load, with all that belongs to it.
        repo_id: owner/name; without an owner, yours.
        private: make the repository private. One that exists already must be.
        revision: branch, which is made if it is not there; main if None.
        message: title of the commit.
        checkpoints: training state that goes along, the newest as last-checkpoint/, or all.
        attempts: how often to try what can pass.

    Raises:
        LoadError: the folder would not load. Nothing was sent.
        HubError: the push failed, and the message has the command that repeats it. The repository is as it was.
    """
    folder = Path(folder)
    check_folder(folder)
    files, left_out = select_files(folder, checkpoints)
    command = push_command(folder, repo_id, private, revision, checkpoints)
    pushed = push_files(
        files, repo_id, private=private, revision=revision, message=message, command=command, attempts=attempts
    )
    pushed.left_out = left_out
    return pushed


def push_files(
    files: dict[str, Path],
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str,
    command: str,
    attempts: int = ATTEMPTS,
    wait: Callable[[float], None] = time.sleep,
) -> Pushed:
    """The commit of [`push_folder`].

    Args:
        files: path in the repository -> file.
        command: what the user can run to repeat the push.
        wait: called with seconds before another attempt; may raise to give up.

    Raises:
        HubError: see [`push_folder`].
    """
    _check_for_tokens(files)
    _keep_secrets_out_of_logs()
    api = HfApi()

    def attempt() -> Pushed:
        url = api.create_repo(repo_id, private=private or None, exist_ok=True)
        if revision not in (None, "main"):
            api.create_branch(url.repo_id, branch=str(revision), exist_ok=True)
        head = api.model_info(url.repo_id, revision=revision)
        if private and not head.private:
            raise HubError(
                f"{url.repo_id} exists and is public, and the push was to be private. Make it private in its settings "
                "on the Hub, or choose another name. Nothing was pushed."
            )
        assert head.sha is not None
        present = {entry.rfilename for entry in head.siblings or []}
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationDelete(path) for path in sorted(present - set(files)) if _is_left_over(path, files)
        ]
        operations += [_addition(path, file, url.repo_id) for path, file in sorted(files.items())]
        commit = api.create_commit(
            url.repo_id, operations, commit_message=message, revision=revision, parent_commit=head.sha
        )
        return Pushed(url.repo_id, str(url), commit.oid, is_new=commit.oid != head.sha)

    try:
        return _with_retries(attempt, f"Pushing to {repo_id}", attempts, wait)
    except Exception as error:
        known = (HFValidationError, HfHubHTTPError, RuntimeError, OSError, ValueError)
        if isinstance(error, HubError) or not (isinstance(error, known) or _is_connection_error(error)):
            raise
        raise HubError(
            f"Pushing to {repo_id} failed: {explain(error)} The repository holds no half of it, and your files are "
            f"whole. When that is mended, this finishes the push:\n\n    {command}\n"
        ) from None


def select_files(folder: Path, checkpoints: CheckpointUpload = "none") -> tuple[dict[str, Path], list[str]]:
    """What of a folder belongs into its repository: path there -> file; and the names of what does not."""
    files: dict[str, Path] = {}
    left_out: list[str] = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if entry.name in FOREIGN_FOLDERS or any(entry.rglob("*tfevents*")):
                left_out.append(f"{entry.name}/")
                continue
            inside = [path for path in sorted(entry.rglob("*")) if path.is_file()]
        else:
            inside = [entry]
        for path in inside:
            relative = path.relative_to(folder)
            if any(part.startswith(".") or part == "__pycache__" for part in relative.parts):
                continue
            if path.name.endswith(FOREIGN_SUFFIXES):
                left_out.append(relative.as_posix())
            else:
                files[relative.as_posix()] = path
    saved = sorted((folder / "checkpoints").glob("step-*"), key=step_of)
    for number, checkpoint in enumerate(saved):
        name = f"checkpoints/{checkpoint.name}" if checkpoints == "all" else LAST_CHECKPOINT
        if checkpoints == "all" or (checkpoints == "last" and number == len(saved) - 1):
            files |= {f"{name}/{path.name}": path for path in sorted(checkpoint.iterdir())}
    return files, left_out


def push_command(
    folder: Path,
    repo_id: str,
    private: bool = False,
    revision: str | None = None,
    checkpoints: CheckpointUpload = "none",
) -> str:
    """The command line of a push, as a shell reads it."""
    words = ["hfgen", "push", str(folder), repo_id]
    words += ["--private"] if private else []
    words += ["--revision", revision] if revision else []
    words += ["--checkpoints", checkpoints] if checkpoints != "none" else []
    return shlex.join(words)


def pull(repo_id: str, folder: str | Path | None = None, revision: str | None = None) -> Path:
    """Downloads a model into a folder, which appears only when everything is there and was checked.

    Args:
        repo_id: owner/name.
        folder: a new or empty one; the repository's name if None.
        revision: branch, tag or commit.

    Returns:
        The folder.

    Raises:
        HubError: the repository, or the Hub, cannot be reached; or the folder is taken.
        LoadError: what the repository holds would not load, or not safely.
    """
    target = Path(folder if folder is not None else repo_id.rpartition("/")[2])
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise HubError(f"{target} is not empty. Give the name of a new folder to pull into.")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f".{target.name}.pull")
    # An interrupted download is taken up again, but never with files of another commit.
    commit = _refuse_pickled(repo_id, revision)
    marker = staging / ".commit"
    if not marker.is_file() or marker.read_text(encoding="utf-8") != commit:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        marker.write_text(commit, encoding="utf-8")
    ignored = [*CHECKPOINT_FILES, *(f"*{suffix}" for suffix in PICKLED_SUFFIXES)]
    _download(repo_id, commit, ignore_patterns=ignored, local_dir=staging)
    try:
        check_folder(staging)
    except LoadError as error:
        shutil.rmtree(staging)
        raise LoadError(str(error).replace(str(staging), repo_id)) from None
    marker.unlink()
    shutil.rmtree(staging / ".cache", ignore_errors=True)
    if target.is_dir():
        target.rmdir()
    staging.rename(target)
    return target


def download(repo_id: str, revision: str | None = None) -> Path:
    """The files that loading a model needs, in the cache; from the cache alone when the Hub cannot be reached.

    Raises:
        HubError: there is no such repository or revision, or no network and no copy.
        LoadError: the weights are pickles.
    """
    try:
        commit: str | None = _refuse_pickled(repo_id, revision)
    except _UnreachableError:
        commit = revision
    patterns = ["*.json", "*.safetensors", "*.py", "*.txt", "*.model", "*.jinja"]
    return _download(repo_id, commit, allow_patterns=patterns, ignore_patterns=[*CHECKPOINT_FILES, "samples/*"])


def fetch_model(name_or_path: str | Path, revision: str | None = None, model_type: str | None = None) -> Path:
    """Returns the checked folder of a model: a local one, or a Hub repository's files in the cache.

    Args:
        name_or_path: folder, or repository on the Hub.
        revision: branch, tag or commit of the repository.
        model_type: the only type to accept; any type if None.

    Raises:
        HubError: there is no such repository or revision, or no network and no copy.
        LoadError: the model would not load, or not safely.
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        folder = download(str(name_or_path), revision)
    check_folder(folder, model_type)
    return folder


def fetch_checkpoint(source: str) -> Path:
    """The newest training state of a repository, in the cache.

    Args:
        source: owner/name or owner/name@revision.

    Returns:
        A folder that `training.checkpoint.load` reads.

    Raises:
        HubError: there is no such repository, or no training state in it.
    """
    repo_id, _, revision = source.partition("@")
    info = _call(lambda: HfApi().model_info(repo_id, revision=revision or None), repo_id, revision or None)
    paths = [entry.rfilename for entry in info.siblings or []]
    names = {path.rpartition("/")[0] for path in paths if path.endswith("/state.json")}
    numbered = sorted((Path(name) for name in names if re.fullmatch(r"checkpoints/step-\d+", name)), key=step_of)
    found = LAST_CHECKPOINT if LAST_CHECKPOINT in names else numbered[-1].as_posix() if numbered else None
    if found is None:
        raise HubError(
            f"{source} holds no training state to resume from. A run publishes it with --hub_strategy checkpoint; the "
            f"model alone is a place to start from: --model_name_or_path {repo_id}."
        )
    return _download(repo_id, info.sha, allow_patterns=[f"{found}/*"]) / found


def explain(error: BaseException) -> str:
    """Why a request failed and what helps, in words for a user and without anything secret."""
    chain = _chain(error)
    text = redact(" ".join(str(error).split())).rstrip(".")
    status = _status(error)
    if any(isinstance(link, HFValidationError) for link in chain):
        return f"the name of the repository will not do: {text}."
    said = f"The client says: {text}."
    if status == 401:
        return (
            "the Hub does not take the token: there is none, or it is wrong or expired. Log in with `hf auth login` "
            f"or set HF_TOKEN. {said}"
        )
    if status == 403:
        return f"the token may not write there: it needs the role write, and the owner must be you or yours. {said}"
    if status == 404:
        return f"there is no such repository or revision, or your token may not see it. {said}"
    if status == 429:
        return f"the Hub asks for patience (too many requests), and went on asking. Wait some minutes. {said}"
    if status in (409, 412):
        return f"others kept changing the repository at the same time. {said}"
    if status is not None and status >= 500:
        return f"the Hub has a problem of its own (status {status}). {said}"
    if any(_is_connection_error(link) for link in chain):
        return f"the Hub could not be reached, or the connection broke. Check the network. {said}"
    return f"{type(error).__name__}: {text}."


def redact(text: str) -> str:
    """A text without tokens, and without the queries of addresses, which can be as good as one."""
    token = get_token()
    if token:
        text = text.replace(token, "<token>")
    text = TOKEN.sub("<token>", text)
    text = re.sub(r"(?i)(bearer\s+)[^\s'\"]+", r"\1<token>", text)
    return re.sub(r"(https?://[^\s?'\"<>]+)\?[^\s'\"<>)]+", r"\1?...", text)


class _UnreachableError(HubError):
    """No network; a copy in the cache may do."""


def _refuse_pickled(repo_id: str, revision: str | None) -> str:
    """The commit that a revision is now; raises LoadError if it holds weights and none as safetensors."""
    info = _call(lambda: HfApi().model_info(repo_id, revision=revision), repo_id, revision)
    names = [entry.rfilename for entry in info.siblings or [] if "/" not in entry.rfilename]
    if WEIGHTS not in names and INDEX not in names:
        raise LoadError(explain_missing_weights(repo_id, names))
    assert info.sha is not None
    return info.sha


def _download(repo_id: str, revision: str | None, **options) -> Path:
    return Path(_call(lambda: snapshot_download(repo_id, revision=revision, **options), repo_id, revision))


def _call(action: Callable[[], Result], repo_id: str, revision: str | None) -> Result:
    """A request that reads; raises HubError in words."""
    _keep_secrets_out_of_logs()
    where = repo_id + (f" at {revision}" if revision else "")
    try:
        return _with_retries(action, f"Reading {where}", ATTEMPTS, time.sleep)
    except GatedRepoError:
        raise HubError(f"{where} is gated: ask for access on its page, and log in (`hf auth login`).") from None
    except RevisionNotFoundError:
        raise HubError(f"{repo_id} has no revision {revision!r}. Check its branches, tags and commits.") from None
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        raise _UnreachableError(
            f"{where} is not in the cache, and the Hub cannot be reached: {explain(error)}"
        ) from None
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise HubError(
            f"There is no {where}: no such folder here, and no such repository that you may see on the Hub. Check the "
            f"spelling, and log in (`hf auth login`) for a private one. ({redact(' '.join(str(error).split()))})"
        ) from None
    except (HfHubHTTPError, EntryNotFoundError, OSError, RuntimeError) as error:
        kind = _UnreachableError if _status(error) is None else HubError
        raise kind(f"{where} cannot be read: {explain(error)}") from None
    except Exception as error:
        if not _is_connection_error(error):
            raise
        raise _UnreachableError(f"{where} cannot be read: {explain(error)}") from None


def _with_retries(action: Callable[[], Result], what: str, attempts: int, wait: Callable[[float], None]) -> Result:
    """Calls until it works, for as long as it fails in ways that can pass."""
    for number in range(1, attempts + 1):
        try:
            return action()
        except Exception as error:
            if number == attempts or not _can_pass(error):
                raise
            seconds = _retry_after(error)
            if seconds is None:
                # The random part keeps two writers from meeting again and again.
                seconds = 2.0 ** (number - 1) * random.uniform(0.5, 1.0)
            logger.info("%s: %s Trying again in %.0f s.", what, explain(error), seconds)
            wait(min(seconds, LONGEST_WAIT))
    raise AssertionError("unreachable")


def _can_pass(error: Exception) -> bool:
    if isinstance(error, (HubError, LoadError, OfflineModeIsEnabled, LocalEntryNotFoundError)):
        return False
    status = _status(error)
    # Storage that refuses an upload does so for its signed address, which another attempt gets anew.
    is_storage = type(error) is RuntimeError and error.__cause__ is not None
    if status is not None:
        return status in TRANSIENT_STATUSES or status >= 500 or (is_storage and status == 403)
    return any(_is_connection_error(link) for link in _chain(error))


def _chain(error: BaseException) -> list[BaseException]:
    """An error and those that led to it."""
    links: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in links:
        links.append(current)
        current = current.__cause__ or current.__context__
    return links


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an error."""
    for link in _chain(error):
        response = getattr(link, "response", None)
        if response is not None and isinstance(getattr(response, "status_code", None), int):
            return response.status_code
    return None


def _retry_after(error: BaseException) -> float | None:
    for link in _chain(error):
        headers = getattr(getattr(link, "response", None), "headers", None) or {}
        value = headers.get("Retry-After", "")
        if value.isdigit():
            return float(value) + random.uniform(0.0, 0.5)
    return None


def _is_connection_error(error: BaseException) -> bool:
    """Timeouts and broken connections, whichever HTTP library the client uses: httpx in its release 1, httpx2 in 2."""
    names = {cls.__name__ for cls in type(error).__mro__ if cls.__module__.partition(".")[0] in ("httpx", "httpx2")}
    return "TransportError" in names or isinstance(error, (ConnectionError, TimeoutError))


def _addition(path: str, file: Path, repo_id: str) -> CommitOperationAdd:
    if path == "README.md":
        card = name_repository(file.read_text(encoding="utf-8"), repo_id)
        return CommitOperationAdd(path, card.encode("utf-8"))
    return CommitOperationAdd(path, str(file))


def _is_left_over(path: str, files: dict[str, Path]) -> bool:
    """Whether a file of the repository was part of what these files replace."""
    if path.startswith(LAST_CHECKPOINT):
        return any(name.startswith(LAST_CHECKPOINT) for name in files)
    return OWN_FILES.fullmatch(path) is not None


def _check_for_tokens(files: dict[str, Path]) -> None:
    """Refuses a text that holds an access token: a commit cannot be taken back."""
    token = (get_token() or "").encode()
    pattern = re.compile(TOKEN.pattern.encode())
    for path, file in files.items():
        if file.suffix in (".safetensors", ".png", ".jpg") or file.stat().st_size > 20_000_000:
            continue
        content = file.read_bytes()
        if pattern.search(content) or (token and token in content):
            raise HubError(f"{file} holds an access token of the Hub ({path} in the repository). Nothing was pushed.")


class _Redacting(logging.Filter):
    """The client logs addresses of uploads, whose signatures are as good as a token."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage()), ()
        return not record.msg.startswith("No files have been modified")


_REDACTING = _Redacting()


def _keep_secrets_out_of_logs() -> None:
    for name in ("utils._http", "_commit_api", "hf_api", "lfs", "file_download", "_snapshot_download"):
        logging.getLogger(f"huggingface_hub.{name}").addFilter(_REDACTING)
