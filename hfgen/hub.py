"""Folders to the Hub and back.

    push_folder("runs/vae-mnist", "me/vae-mnist")       everything that belongs to the model, as one commit or none
    pull("me/vae-mnist", "vae-mnist")                   the files, checked before they are put in place
    fetch_model("me/vae-mnist")                         a checked folder: a local one, or the repository's in the cache
    fetch_checkpoint("me/vae-mnist@main")               the training state that `--hub_strategy checkpoint` published

Each commit names its parent. If another writer was faster, the Hub refuses the commit and it is rebuilt on the new
head, so two writers never mix their files. Transient errors (rate limits, server errors, lost connections)
are retried.
"""

from __future__ import annotations

import logging
import random
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

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

from .cards import name_repository
from .model_folder import (
    INDEX,
    PICKLED_SUFFIXES,
    WEIGHTS,
    LoadError,
    check_folder,
    explain_missing_weights,
    step_of,
)
from .notebook import NOTEBOOK, name_notebook
from .pipelines.repository_files import INDEX as DIFFUSERS_INDEX
from .pipelines.repository_files import write_diffusers_files


logger = logging.getLogger(__name__)

Result = TypeVar("Result")
CheckpointUpload: TypeAlias = Literal["none", "last", "all"]
RepoType: TypeAlias = Literal["model", "space"]

# Folders of training state and trackers.
FOREIGN_FOLDERS = {"checkpoints", "logs", "runs", "wandb", "mlruns", "trackio", "__pycache__"}
FOREIGN_SUFFIXES = (*PICKLED_SUFFIXES, ".pyc", ".tmp", ".lock", ".incomplete", ".log")
# Files of a repository that belong to its model: a push deletes those that the new model does not have.
OWN_FILES = re.compile(
    r"[^/]+\.safetensors|[^/]+\.safetensors\.index\.json|samples/step-[^/]+|samples/film\.webp|last-checkpoint/.+"
)
LAST_CHECKPOINT = "last-checkpoint"
CHECKPOINT_FILES = ["checkpoints/*", f"{LAST_CHECKPOINT}/*"]
TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")

TRANSIENT_STATUSES = {408, 409, 412, 425, 429}
ATTEMPTS = 6
LONGEST_WAIT = 120.0


class HubError(ValueError):
    """A Hub operation failed. The message says why, what is intact and what to do, and never holds a token."""


@dataclass
class Pushed:
    """What [`push_folder`] did.

    Attributes:
        repo_id: owner/name, even if only the name was given.
        url: of the repository.
        commit: 40 hexadecimal digits.
        is_new: False if the repository already held everything, so that no commit was made.
        left_out: files of the folder that do not belong in a repository.
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
    command: str | None = None,
) -> Pushed:
    """Publishes a folder as one commit, or makes none if the repository already holds everything.

    Training state, logs, pickles and hidden files are left out. Files that only the repository has are kept, except
    weights and samples of an earlier model. What a model that draws images needs for diffusers is added if the folder
    does not have it.

    Args:
        folder: a model that would load, with everything that belongs to it.
        repo_id: owner/name, or a name in your own namespace.
        private: make the repository private. An existing one must be private already.
        revision: branch, created if needed; main if None.
        message: title of the commit.
        checkpoints: training state to include: none, the newest as last-checkpoint/, or all.
        command: what an error tells the user to run again, if that is not `push_command`.

    Raises:
        LoadError: the folder would not load. Nothing was sent.
        HubError: the push failed; the message has the command that repeats it. The repository is unchanged.
    """
    folder = Path(folder)
    check_folder(folder)
    files, left_out = select_files(folder, checkpoints)
    command = command or push_command(folder, repo_id, private, revision, checkpoints)
    with tempfile.TemporaryDirectory() as home:
        if DIFFUSERS_INDEX not in files:
            write_diffusers_files(folder, Path(home))
            files |= {path.relative_to(home).as_posix(): path for path in Path(home).rglob("*") if path.is_file()}
        pushed = push_files(files, repo_id, private=private, revision=revision, message=message, command=command)
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
    repo_type: RepoType = "model",
    own_files: re.Pattern[str] = OWN_FILES,
    wait: Callable[[float], None] = time.sleep,
) -> Pushed:
    """Makes the commit of [`push_folder`].

    Args:
        files: path in the repository -> file.
        command: what the user can run to repeat the push.
        repo_type: "model", or "space" for a static Space.
        own_files: what the repository's files are called that the push deletes if they are not among these.
        wait: called with the number of seconds before the next attempt; may raise to give up.

    Raises:
        HubError: see [`push_folder`].
    """
    _check_for_tokens(files)
    _keep_secrets_out_of_logs()
    api = HfApi()

    def attempt() -> Pushed:
        sdk = "static" if repo_type == "space" else None
        url = api.create_repo(repo_id, private=private or None, exist_ok=True, repo_type=repo_type, space_sdk=sdk)
        if revision not in (None, "main"):
            api.create_branch(url.repo_id, branch=str(revision), exist_ok=True, repo_type=repo_type)
        head: Any = api.repo_info(url.repo_id, revision=revision, repo_type=repo_type)
        if private and not head.private:
            raise HubError(
                f"{url.repo_id} must be private, got a public repository. Make it private in its settings on the Hub, "
                "or choose another name. Nothing was pushed."
            )
        assert head.sha is not None
        present = {entry.rfilename for entry in head.siblings or []}
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationDelete(path)
            for path in sorted(present - set(files))
            if _is_left_over(path, files, own_files)
        ]
        operations += [_addition(path, file, url.repo_id, NOTEBOOK in files) for path, file in sorted(files.items())]
        commit = api.create_commit(
            url.repo_id, operations, commit_message=message, revision=revision, parent_commit=head.sha,
            repo_type=repo_type,
        )  # fmt: skip
        return Pushed(url.repo_id, str(url), commit.oid, is_new=commit.oid != head.sha)

    try:
        return _with_retries(attempt, f"Pushing to {repo_id}", wait)
    except Exception as error:
        known = (HFValidationError, HfHubHTTPError, RuntimeError, OSError, ValueError)
        if isinstance(error, HubError) or not (isinstance(error, known) or _is_connection_error(error)):
            raise
        raise HubError(
            f"Pushing to {repo_id} failed: {explain(error)} Nothing was committed; your files are intact. Once "
            f"fixed, run:\n\n    {command}\n"
        ) from None


def select_files(folder: Path, checkpoints: CheckpointUpload = "none") -> tuple[dict[str, Path], list[str]]:
    """Splits a folder into what belongs in its repository (path there -> file) and the names of what does not."""
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
    """The command that repeats a push, quoted for a shell."""
    words = ["hfgen", "push", str(folder), repo_id]
    words += ["--private"] if private else []
    words += ["--revision", revision] if revision else []
    words += ["--checkpoints", checkpoints] if checkpoints != "none" else []
    return shlex.join(words)


def pull(repo_id: str, folder: str | Path | None = None, revision: str | None = None) -> Path:
    """Downloads a model into a folder, which appears only once everything is there and has been checked.

    Args:
        repo_id: owner/name.
        folder: a new or empty folder; the repository's name if None.
        revision: branch, tag or commit.

    Returns:
        The folder.

    Raises:
        HubError: the repository or the Hub cannot be reached, or the folder is not empty.
        LoadError: the model would not load, or not safely.
    """
    target = Path(folder if folder is not None else repo_id.rpartition("/")[2])
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise HubError(f"{target} must be a new or empty folder, got one that is not empty. Name another folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f".{target.name}.pull")
    # An interrupted download is resumed, but never with files of another commit.
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


def fetch_model(name_or_path: str | Path, revision: str | None = None, model_type: str | None = None) -> Path:
    """The checked folder of a model: a local one, or a Hub repository's files in the cache.

    Args:
        name_or_path: a folder, or a repository on the Hub.
        revision: branch, tag or commit of the repository.
        model_type: the type of model it must hold; any type if None.

    Raises:
        HubError: there is no such folder or repository, or no network and no copy.
        LoadError: the model would not load, or not safely.
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        folder = download(str(name_or_path), revision)
    check_folder(folder, model_type)
    return folder


def download(repo_id: str, revision: str | None = None) -> Path:
    """The files needed to load a model, in the cache. If the Hub cannot be reached, uses the cached copy.

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


def fetch_checkpoint(source: str) -> Path:
    """The newest training state of a repository, in the cache.

    Args:
        source: owner/name or owner/name@revision.

    Returns:
        A checkpoint folder, as training writes it.

    Raises:
        HubError: there is no such repository, or it holds no training state.
    """
    repo_id, _, revision = source.partition("@")
    info = _call(lambda: HfApi().model_info(repo_id, revision=revision or None), repo_id, revision or None)
    paths = [entry.rfilename for entry in info.siblings or []]
    names = {path.rpartition("/")[0] for path in paths if path.endswith("/state.json")}
    numbered = sorted((Path(name) for name in names if re.fullmatch(r"checkpoints/step-\d+", name)), key=step_of)
    found = LAST_CHECKPOINT if LAST_CHECKPOINT in names else numbered[-1].as_posix() if numbered else None
    if found is None:
        raise HubError(
            f"{source} holds no training state to resume from. Runs publish it with --hub_strategy checkpoint. To "
            f"start a new run from its weights, use --model_name_or_path {repo_id}."
        )
    return _download(repo_id, info.sha, allow_patterns=[f"{found}/*"]) / found


def explain(error: BaseException) -> str:
    """Explains to a user why a request failed and what helps, without revealing anything secret."""
    chain = _chain(error)
    text = redact(" ".join(str(error).split())).rstrip(".")
    status = _status(error)
    if any(isinstance(link, HFValidationError) for link in chain):
        return f"that is not a valid repository name: {text}."
    details = f"Details: {text}."
    if status == 401:
        return (
            "the Hub rejected the token: it is missing, wrong or expired. Log in with `hf auth login` or set "
            f"HF_TOKEN. {details}"
        )
    if status == 403:
        return (
            "the token has no write access to that namespace. Use a token with the role write, and a namespace that "
            f"is yours or your organization's. {details}"
        )
    if status == 404:
        return f"there is no such repository or revision, or your token cannot see it. {details}"
    if status == 429:
        return f"the Hub kept limiting the rate of requests. Wait a few minutes. {details}"
    if status in (409, 412):
        return f"others kept changing the repository at the same time. {details}"
    if status is not None and status >= 500:
        return f"the Hub has a problem of its own (status {status}). {details}"
    if any(_is_connection_error(link) for link in chain):
        return f"the Hub could not be reached, or the connection broke. Check the network. {details}"
    return f"{type(error).__name__}: {text}."


def redact(text: str) -> str:
    """Removes tokens from a text, and the query strings of URLs, whose signatures are as good as tokens."""
    token = get_token()
    if token:
        text = text.replace(token, "<token>")
    text = TOKEN.sub("<token>", text)
    text = re.sub(r"(?i)(bearer\s+)[^\s'\"]+", r"\1<token>", text)
    return re.sub(r"(https?://[^\s?'\"<>]+)\?[^\s'\"<>)]+", r"\1?...", text)


class _UnreachableError(HubError):
    """The Hub cannot be reached; a cached copy may serve."""


def _refuse_pickled(repo_id: str, revision: str | None) -> str:
    """The commit that a revision points to. Raises LoadError if it has no safetensors weights."""
    info = _call(lambda: HfApi().model_info(repo_id, revision=revision), repo_id, revision)
    names = [entry.rfilename for entry in info.siblings or [] if "/" not in entry.rfilename]
    if WEIGHTS not in names and INDEX not in names:
        raise LoadError(explain_missing_weights(repo_id, names))
    assert info.sha is not None
    return info.sha


def _download(repo_id: str, revision: str | None, **options) -> Path:
    return Path(_call(lambda: snapshot_download(repo_id, revision=revision, **options), repo_id, revision))


def _call(action: Callable[[], Result], repo_id: str, revision: str | None) -> Result:
    """Makes a request that only reads; failures are raised as HubErrors with an explanation."""
    _keep_secrets_out_of_logs()
    where = repo_id + (f" at {revision}" if revision else "")
    try:
        return _with_retries(action, f"Reading {where}", time.sleep)
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
            f"There is no {where}: neither a local folder nor a repository on the Hub that you can see. Check the "
            f"spelling; for a private one, log in (`hf auth login`). ({redact(' '.join(str(error).split()))})"
        ) from None
    except (HfHubHTTPError, EntryNotFoundError, OSError, RuntimeError) as error:
        kind = _UnreachableError if _status(error) is None else HubError
        raise kind(f"{where} cannot be read: {explain(error)}") from None
    except Exception as error:
        if not _is_connection_error(error):
            raise
        raise _UnreachableError(f"{where} cannot be read: {explain(error)}") from None


def _with_retries(action: Callable[[], Result], what: str, wait: Callable[[float], None]) -> Result:
    """Retries transient failures, up to ATTEMPTS calls in all."""
    for number in range(1, ATTEMPTS + 1):
        try:
            return action()
        except Exception as error:
            if number == ATTEMPTS or not _is_transient(error):
                raise
            seconds = _retry_after(error)
            if seconds is None:
                # Randomized, so that two writers do not keep colliding.
                seconds = 2.0 ** (number - 1) * random.uniform(0.5, 1.0)
            logger.info("%s: %s Trying again in %.0f s.", what, explain(error), seconds)
            wait(min(seconds, LONGEST_WAIT))
    raise AssertionError("unreachable")


def _is_transient(error: Exception) -> bool:
    if isinstance(error, (HubError, LoadError, OfflineModeIsEnabled, LocalEntryNotFoundError)):
        return False
    status = _status(error)
    # Storage refuses an upload when its signed URL has expired; the next attempt gets a new one.
    is_storage = type(error) is RuntimeError and error.__cause__ is not None
    if status is not None:
        return status in TRANSIENT_STATUSES or status >= 500 or (is_storage and status == 403)
    return any(_is_connection_error(link) for link in _chain(error))


def _chain(error: BaseException) -> list[BaseException]:
    """An error followed by its causes."""
    links: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in links:
        links.append(current)
        current = current.__cause__ or current.__context__
    return links


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an error, if any."""
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
    """True for timeouts and broken connections of either HTTP library: huggingface_hub 1 uses httpx, 2 uses httpx2."""
    names = {cls.__name__ for cls in type(error).__mro__ if cls.__module__.partition(".")[0] in ("httpx", "httpx2")}
    return "TransportError" in names or isinstance(error, (ConnectionError, TimeoutError))


def _addition(path: str, file: Path, repo_id: str, has_notebook: bool) -> CommitOperationAdd:
    if path == "README.md":
        card = name_repository(file.read_text(encoding="utf-8"), repo_id, has_notebook)
        return CommitOperationAdd(path, card.encode("utf-8"))
    if path == NOTEBOOK:
        return CommitOperationAdd(path, name_notebook(file.read_text(encoding="utf-8"), repo_id).encode("utf-8"))
    return CommitOperationAdd(path, str(file))


def _is_left_over(path: str, files: dict[str, Path], own_files: re.Pattern[str]) -> bool:
    """True if a file of the repository belongs to the model, checkpoint or page that these files replace."""
    if path.startswith(LAST_CHECKPOINT):
        return any(name.startswith(LAST_CHECKPOINT) for name in files)
    return own_files.fullmatch(path) is not None


def _check_for_tokens(files: dict[str, Path]) -> None:
    """Refuses files that hold an access token: a published commit cannot be taken back."""
    token = (get_token() or "").encode()
    pattern = re.compile(TOKEN.pattern.encode())
    for path, file in files.items():
        if file.suffix in (".safetensors", ".png", ".jpg") or file.stat().st_size > 20_000_000:
            continue
        content = file.read_bytes()
        if pattern.search(content) or (token and token in content):
            raise HubError(
                f"{file} ({path} in the repository) holds an access token of the Hub. Nothing was pushed. Remove the "
                "token, and revoke it if others may have seen it."
            )


class _RedactingFilter(logging.Filter):
    """Redacts what the Hub client logs: the URLs of uploads carry signatures that are as good as tokens."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] != "huggingface_hub":
            return True
        record.msg, record.args = redact(record.getMessage()), ()
        return not record.msg.startswith("No files have been modified")


_REDACTING_FILTER = _RedactingFilter()


def _keep_secrets_out_of_logs() -> None:
    """Filters every handler that the Hub client's records reach. (A logger's filter would miss its children.)"""
    for name in ("huggingface_hub", None):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(_REDACTING_FILTER)
