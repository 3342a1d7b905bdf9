"""The Hub's routes, in the shapes that `huggingface_hub` 2 sends and reads."""

from __future__ import annotations

import base64
import binascii
import codecs
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeAlias
from urllib.parse import parse_qs, quote, unquote

from . import git_patterns
from .accounts import Principal
from .card_metadata import check_card
from .git_store import Commit, iso_date
from .http_messages import HubError, Request, Response, json_response, parse_object, ranged
from .repository import (
    LARGEST_REGULAR_FILE,
    MAIN,
    SHA256,
    AddBlob,
    AddLfs,
    CommitPlan,
    Delete,
    Entry,
    FileEntry,
    HubRepository,
    HubStore,
    Operation,
    RepoKind,
    RepoRecord,
)
from .storage import Storage, disposition


Access: TypeAlias = Literal["read", "files", "write"]

# A regular file of the largest size in base64, with room for its path.
LONGEST_COMMIT_LINE = 16 * 1024 * 1024
REPO_API = r"/api/(?P<kind>models|datasets|spaces)/(?P<repo>[^/]+/[^/]+)"
REPO_PAGE = r"/(?:(?P<kind>datasets|spaces)/)?(?P<repo>[^/]+/[^/]+)"
COMMIT_PATH = re.compile(REPO_API + r"/commit/(?P<revision>[^/]+)")
KIND_OF_TYPE: dict[str, RepoKind] = {"model": "models", "dataset": "datasets", "space": "spaces"}
DESCRIBED_BY_EXPANSION = {"_id", "id"}


class Moved(Exception):
    """The repository has another name now."""

    def __init__(self, location: str) -> None:
        super().__init__(location)
        self.location = location


@dataclass(frozen=True)
class Route:
    method: str
    pattern: re.Pattern[str]
    handler: Callable[..., Response]
    # What the caller must be allowed to do with the repository that the path names; None if it names none.
    access: Access | None = None


@dataclass(frozen=True)
class Cursor:
    """Where the next page starts, and the commit that the first page showed: pages must not mix two states."""

    offset: int = 0
    commit: str = ""

    @classmethod
    def of(cls, request: Request) -> Cursor:
        encoded = request.query.get("cursor")
        if not encoded:
            return cls()
        try:
            offset, _, commit = base64.urlsafe_b64decode(encoded[0]).decode().partition(":")
            return cls(int(offset), commit)
        except (ValueError, binascii.Error) as error:
            raise HubError(400, "Invalid cursor") from error

    def __str__(self) -> str:
        return base64.urlsafe_b64encode(f"{self.offset}:{self.commit}".encode()).decode()


class HubApi:
    def __init__(self, store: HubStore, storage: Storage, page_size: int) -> None:
        self._store = store
        self._storage = storage
        self._page_size = page_size
        self._routes = self._build_routes()

    def handle(self, request: Request) -> Response:
        for route in self._routes:
            found = route.pattern.fullmatch(request.path)
            if found is None or route.method != ("GET" if request.method == "HEAD" else request.method):
                continue
            if route.access is None:
                return route.handler(request, **_unquoted(found))
            groups = _unquoted(found)
            kind: RepoKind = groups.pop("kind") or "models"
            try:
                repository = self._repository(request, kind, groups.pop("repo"), route.access)
            except Moved as moved:
                return Response(307, b"", {"Location": moved.location})
            return route.handler(request, repository, **groups)
        if re.match(r"/api/(?:models|datasets|spaces)/", request.path) or "/resolve/" in request.path:
            _refuse_unknown_repository(request.principal)
        raise HubError(404, f"the test Hub does not serve {request.method} {request.path}")

    def land_foreign_commit(self, path: str) -> None:
        """Another writer gets there first: a commit on the branch that a commit request is about to change."""
        found = COMMIT_PATH.fullmatch(path)
        repository = self._store.get(found["kind"], unquote(found["repo"])) if found else None  # type: ignore[arg-type]
        if found is None or repository is None:
            return
        name = f"foreign/{time.time_ns()}.txt"
        blob = repository.git.write("blob", b"written by someone else\n")
        plan = CommitPlan("Foreign commit", operations=[AddBlob(name, blob)])
        repository.commit(_branch_ref(unquote(found["revision"])), plan, "someone-else")

    def _build_routes(self) -> list[Route]:
        plain: list[tuple[str, str, Callable[..., Response]]] = [
            ("GET", "/api/whoami-v2", self._whoami),
            ("GET", "/api/agent-harnesses", self._agent_harnesses),
            ("GET", "/api/settings/repositories", self._own_repositories),
            ("GET", "/api/(?P<kind>models|datasets|spaces)", self._list_repositories),
            ("POST", "/api/validate-yaml", self._validate_yaml),
            ("POST", "/api/repos/create", self._create_repository),
            ("DELETE", "/api/repos/delete", self._delete_repository),
            ("POST", "/api/repos/move", self._move_repository),
        ]
        of_repository: list[tuple[Access, str, str, Callable[..., Response]]] = [
            ("read", "GET", REPO_API + "(?:/revision/(?P<revision>[^/]+))?", self._info),
            ("read", "GET", REPO_API + "/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", self._tree),
            ("read", "POST", REPO_API + "/paths-info/(?P<revision>[^/]+)", self._paths_info),
            ("read", "GET", REPO_API + "/refs", self._refs),
            ("read", "GET", REPO_API + "/commits/(?P<revision>[^/]+)", self._commits),
            ("files", "GET", REPO_API + "/auth-check", self._auth_check),
            ("write", "GET", REPO_API + "/auth-check/write", self._auth_check),
            ("write", "PUT", REPO_API + "/settings", self._change_settings),
            ("write", "POST", REPO_API + "/branch/(?P<name>[^/]+)", self._create_branch),
            ("write", "DELETE", REPO_API + "/branch/(?P<name>[^/]+)", self._delete_branch),
            ("write", "POST", REPO_API + "/tag/(?P<revision>[^/]+)", self._create_tag),
            ("write", "DELETE", REPO_API + "/tag/(?P<name>[^/]+)", self._delete_tag),
            ("write", "POST", REPO_API + "/super-squash/(?P<branch>[^/]+)", self._squash),
            ("write", "POST", REPO_API + "/preupload/(?P<revision>[^/]+)", self._preupload),
            ("write", "POST", COMMIT_PATH.pattern, self._commit),
            ("files", "GET", REPO_PAGE + "/resolve/(?P<revision>refs/[^/]+/[^/]+|[^/]+)/(?P<path>.+)", self._resolve),
            ("read", "POST", REPO_PAGE + r"\.git/info/lfs/objects/batch", self._lfs_batch),
            ("write", "POST", REPO_PAGE + r"\.git/info/lfs/objects/verify", self._lfs_verify),
        ]
        routes = [Route(method, re.compile(path), handler) for method, path, handler in plain]
        routes += [Route(method, re.compile(path), handler, need) for need, method, path, handler in of_repository]
        return routes

    # Access

    def _repository(self, request: Request, kind: RepoKind, repo_id: str, access: Access) -> HubRepository:
        principal = request.principal
        repository = self._store.get(kind, repo_id)
        if repository is None:
            self._follow_rename(request, kind, repo_id)
            _refuse_unknown_repository(principal)
        if not _may_read(principal, repository.record):
            _refuse_unknown_repository(principal)
        if access == "files" and not _may_read_files(principal, repository.record):
            message = f"Access to {repo_id} is restricted and you are not in the authorized list."
            raise HubError(403 if principal else 401, message, code="GatedRepo")
        if access == "write":
            _require_write(principal, repository.record.namespace)
        return repository

    def _follow_rename(self, request: Request, kind: RepoKind, repo_id: str) -> None:
        new_id = self._store.new_name(kind, repo_id)
        target = self._store.get(kind, new_id) if new_id else None
        if target and _may_read(request.principal, target.record):
            path = request.path.replace(quote(repo_id), quote(target.record.id), 1)
            raise Moved(f"{path}?{request.query_string}" if request.query_string else path)

    # Users

    def _whoami(self, request: Request) -> Response:
        principal = _require_user(request.principal)
        organisations = [
            {"type": "org", "id": f"org-{name}", "name": name, "fullname": name, "roleInOrg": role}
            for name, role in principal.organisations.items()
        ]
        token = {"displayName": principal.token_name, "role": principal.role, "createdAt": iso_date(0)}
        document = {
            "type": "user",
            "id": f"user-{principal.user}",
            "name": principal.user,
            "fullname": principal.user.title(),
            "email": f"{principal.user}@users.invalid",
            "emailVerified": True,
            "isPro": False,
            "canPay": False,
            "avatarUrl": "",
            "orgs": organisations,
            "auth": {"type": "access_token", "accessToken": token},
        }
        return json_response(document)

    def _agent_harnesses(self, request: Request) -> Response:
        return json_response({"standardEnvVars": [], "harnesses": {}})

    def _own_repositories(self, request: Request) -> Response:
        user = _require_user(request.principal).user
        own = [item for item in self._store.all() if item.record.namespace == user]
        sizes = {item.record.key: item.used_storage for item in own}
        total = sum(sizes.values()) or 1
        items = [
            {
                "id": item.record.id,
                "type": item.record.kind.removesuffix("s"),
                "updatedAt": item.resolve("main").date,
                "visibility": "private" if item.record.private else "public",
                "storage": sizes[item.record.key],
                "storagePercent": 100 * sizes[item.record.key] / total,
            }
            for item in own
        ]
        return self._page(request, items)

    # Repositories

    def _list_repositories(self, request: Request, kind: RepoKind) -> Response:
        query = {name: values[-1] for name, values in request.query.items()}
        wanted_tags = set(request.query.get("filter", []))
        found = []
        for item in self._store.all(kind):
            document = self._document(item, item.resolve("main"), siblings=request.flag("full"))
            is_wanted = (
                _may_read(request.principal, item.record)
                and query.get("search", "").lower() in item.record.id.lower()
                and query.get("author") in (None, item.record.namespace)
                and query.get("pipeline_tag") in (None, document["pipeline_tag"])
                and wanted_tags <= set(document["tags"])
            )
            if is_wanted:
                found.append(document)
        order = query.get("sort", "createdAt")
        found.sort(key=lambda document: document.get(order) or "", reverse=True)
        return self._page(request, found)

    def _create_repository(self, request: Request) -> Response:
        document = request.json()
        principal = _require_user(request.principal)
        namespace = document.get("organization") or principal.user
        if not principal.may_write(namespace):
            raise HubError(403, f'You don\'t have the rights to create a repository under the namespace "{namespace}"')
        kind, repo_id = _kind(document), f"{namespace}/{document.get('name', '')}"
        url = f"{request.origin}/{_page_prefix(kind)}{repo_id}"
        is_private = document.get("visibility") == "private" or document.get("private") is True
        record = RepoRecord(kind=kind, id=repo_id, private=is_private, sdk=document.get("sdk"))
        try:
            repository = self._store.create(record, principal.user)
        except HubError as error:
            if error.status != 409:
                raise
            # With `exist_ok` the client reads the address from the refusal.
            return json_response({"error": error.message, "url": url}, 409, error.headers)
        return json_response({"url": url, "name": repo_id, "id": repository.record.key})

    def _delete_repository(self, request: Request) -> Response:
        document = request.json()
        namespace = document.get("organization") or _require_user(request.principal).user
        repo_id = f"{namespace}/{document.get('name', '')}"
        self._store.delete(self._repository(request, _kind(document), repo_id, "write"))
        return Response(200, b"OK", {"Content-Type": "text/plain"})

    def _move_repository(self, request: Request) -> Response:
        document = request.json()
        repository = self._repository(request, _kind(document), document.get("fromRepo", ""), "write")
        new_id = document.get("toRepo", "")
        _require_write(request.principal, new_id.split("/")[0])
        self._store.move(repository, new_id)
        return json_response({})

    def _change_settings(self, request: Request, repository: HubRepository) -> Response:
        document = request.json()
        with repository.lock:
            if "visibility" in document:
                repository.record.private = document["visibility"] == "private"
            if "private" in document:
                repository.record.private = bool(document["private"])
            if "gated" in document:
                repository.record.gated = document["gated"]
            repository.save_record()
        return json_response({"private": repository.record.private, "gated": repository.record.gated})

    def _auth_check(self, request: Request, repository: HubRepository) -> Response:
        return json_response({})

    def _info(self, request: Request, repository: HubRepository, revision: str | None) -> Response:
        commit = repository.resolve(revision or "main")
        document = self._document(repository, commit, siblings=True, blobs=request.flag("blobs"))
        if request.flag("securityStatus"):
            document["securityRepoStatus"] = {"scansDone": True, "filesWithIssues": []}
        if expansion := set(request.query.get("expand", [])):
            wanted = expansion | DESCRIBED_BY_EXPANSION
            document = {name: value for name, value in document.items() if name in wanted}
        return json_response(document)

    def _document(
        self, repository: HubRepository, commit: Commit, *, siblings: bool, blobs: bool = False
    ) -> dict[str, Any]:
        record = repository.record
        card = check_card(repository.text(commit, "README.md") or "").metadata
        files = [entry for entry in repository.entries(commit) if isinstance(entry, FileEntry)]
        document: dict[str, Any] = {
            "_id": record.key,
            "id": record.id,
            "author": record.namespace,
            "sha": commit.oid,
            "lastModified": commit.date,
            "createdAt": iso_date(record.created),
            "private": record.private,
            "gated": record.gated,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": _tags(card, files),
            "pipeline_tag": card.get("pipeline_tag"),
            "library_name": card.get("library_name"),
            "usedStorage": sum(entry.size for entry in files),
        }
        if card:
            document["cardData"] = card
            document["model-index"] = card.get("model-index")
        if record.kind == "models":
            document["modelId"] = record.id
            document["config"] = _config_summary(repository.text(commit, "config.json"))
        if siblings:
            document["siblings"] = [_sibling(entry, blobs) for entry in files]
        return document

    # Snapshots

    def _tree(self, request: Request, repository: HubRepository, revision: str, path: str | None) -> Response:
        commit = repository.resolve(Cursor.of(request).commit or revision)
        entries = repository.entries(commit, (path or "").strip("/"), request.flag("recursive"))
        documents = self._describe_entries(repository, commit, list(entries), request.flag("expand"))
        return self._page(request, documents, commit.oid)

    def _paths_info(self, request: Request, repository: HubRepository, revision: str) -> Response:
        content = request.text()
        is_form = request.headers.get_content_type() == "application/x-www-form-urlencoded"
        asked = parse_qs(content) if is_form else parse_object(content)
        commit = repository.resolve(revision)
        found = (repository.find(commit, path.strip("/")) for path in asked.get("paths", []) if path.strip("/"))
        expand = asked.get("expand") in (True, ["true"], ["1"], ["True"])
        present = [entry for entry in found if entry is not None]
        return json_response(self._describe_entries(repository, commit, present, expand))

    def _describe_entries(
        self, repository: HubRepository, commit: Commit, entries: Sequence[Entry], expand: bool
    ) -> list[dict[str, Any]]:
        documents = [_describe_entry(entry) for entry in entries]
        if expand:
            newest = repository.last_commits(commit)
            for document in documents:
                last = newest[document["path"]]
                document["lastCommit"] = {"id": last.oid, "title": last.title, "date": last.date}
                if document["type"] == "file":
                    scan = {"virusFound": False, "virusNames": None}
                    document["securityFileStatus"] = {"status": "safe", "avScan": scan, "pickleImportScan": None}
        return documents

    def _resolve(self, request: Request, repository: HubRepository, revision: str, path: str) -> Response:
        commit = repository.resolve(revision)
        entry = repository.find(commit, path)
        if not isinstance(entry, FileEntry):
            # With the commit, so that the client can remember that this commit lacks the file.
            headers = {"X-Repo-Commit": commit.oid}
            raise HubError(404, "Entry not found", code="EntryNotFound", headers=headers)
        if entry.lfs:
            location = self._storage.signed_address("GET", repository, entry.lfs.sha256, filename=path)
            headers = {
                "Location": location,
                "X-Repo-Commit": commit.oid,
                "X-Linked-ETag": f'"{entry.etag}"',
                "X-Linked-Size": str(entry.size),
                "Accept-Ranges": "bytes",
            }
            return Response(302, b"", headers)
        headers = {
            "X-Repo-Commit": commit.oid,
            "ETag": f'"{entry.etag}"',
            "Content-Disposition": disposition(path),
            "Content-Type": "text/plain; charset=utf-8",
        }
        return ranged(request, repository.git.read("blob", entry.blob_id), headers)

    # History, branches, tags

    def _commits(self, request: Request, repository: HubRepository, revision: str) -> Response:
        head = repository.resolve(Cursor.of(request).commit or revision)
        documents = []
        for commit in repository.git.history(head.oid):
            document: dict[str, Any] = {
                "id": commit.oid,
                "title": commit.title,
                "message": commit.description,
                "authors": [{"user": commit.author, "avatar": ""}],
                "date": commit.date,
            }
            if "formatted" in request.query.get("expand[]", []):
                document["formatted"] = {"title": commit.title, "message": commit.description}
            documents.append(document)
        return self._page(request, documents, head.oid)

    def _refs(self, request: Request, repository: HubRepository) -> Response:
        def described(prefix: str) -> list[dict[str, str]]:
            found = repository.git.refs(prefix).items()
            return [{"name": name, "ref": f"{prefix}/{name}", "targetCommit": oid} for name, oid in found]

        document = {"branches": described("refs/heads"), "tags": described("refs/tags"), "converts": []}
        if request.flag("include_prs"):
            document["pullRequests"] = described("refs/pr")
        return json_response(document)

    def _create_branch(self, request: Request, repository: HubRepository, name: str) -> Response:
        start = repository.resolve(request.json().get("startingPoint") or "main")
        repository.create_ref("heads", name, start.oid)
        return json_response({}, 201)

    def _delete_branch(self, request: Request, repository: HubRepository, name: str) -> Response:
        repository.delete_ref("heads", name)
        return json_response({})

    def _create_tag(self, request: Request, repository: HubRepository, revision: str) -> Response:
        target = repository.resolve(revision)
        repository.create_ref("tags", str(request.json().get("tag", "")), target.oid)
        return json_response({}, 201)

    def _delete_tag(self, request: Request, repository: HubRepository, name: str) -> Response:
        repository.delete_ref("tags", name)
        return json_response({})

    def _squash(self, request: Request, repository: HubRepository, branch: str) -> Response:
        message = request.json().get("message") or "Squash history"
        repository.squash(branch, message, _require_user(request.principal).user)
        return json_response({})

    # Commits and uploads

    def _validate_yaml(self, request: Request) -> Response:
        report = check_card(str(request.json().get("content", "")))
        document = {
            "errors": [{"message": message} for message in report.errors],
            "warnings": [{"message": message} for message in report.warnings],
        }
        return json_response(document, 400 if report.errors else 200)

    def _preupload(self, request: Request, repository: HubRepository, revision: str) -> Response:
        """Tells the client which files to send by LFS, which to leave out, and what it would overwrite."""
        document = request.json()
        commit = repository.resolve(revision)
        attributes = repository.text(commit, ".gitattributes") or ""
        ignore = document.get("gitIgnore")
        if ignore is None:
            ignore = repository.text(commit, ".gitignore") or ""
        answers = []
        for file in document.get("files", []):
            path, size = file["path"], int(file["size"])
            is_large = size > LARGEST_REGULAR_FILE or _is_binary(base64.b64decode(file.get("sample", "")))
            in_lfs = is_large or git_patterns.is_lfs_path(path, attributes)
            present = repository.find(commit, path)
            answer = {
                "path": path,
                "uploadMode": "lfs" if in_lfs else "regular",
                "shouldIgnore": git_patterns.is_ignored(path, ignore),
            }
            if isinstance(present, FileEntry):
                answer["oid"] = present.etag
            answers.append(answer)
        return json_response({"files": answers, "commitOid": commit.oid})

    def _commit(self, request: Request, repository: HubRepository, revision: str) -> Response:
        plan = _read_commit_plan(request, repository)
        user = _require_user(request.principal).user
        url = f"{request.origin}/{_page_prefix(repository.record.kind)}{repository.record.id}"
        pull_request_url = None
        if request.flag("create_pr"):
            with repository.lock:
                number = repository.open_pull_request(repository.resolve(revision))
                try:
                    commit = repository.commit(f"refs/pr/{number}", plan, user)
                except HubError:
                    repository.git.delete_ref(f"refs/pr/{number}")
                    raise
            pull_request_url = f"{url}/discussions/{number}"
        else:
            commit = repository.commit(_branch_ref(revision), plan, user)
        document = {
            "success": True,
            "commitOid": commit.oid,
            "commitUrl": f"{url}/commit/{commit.oid}",
            "hookOutput": "",
            "pullRequestUrl": pull_request_url,
        }
        return json_response(document)

    def _lfs_batch(self, request: Request, repository: HubRepository) -> Response:
        document = request.json()
        operation = document.get("operation")
        if operation == "upload":
            _require_write(request.principal, repository.record.namespace)
        elif operation != "download":
            raise HubError(422, f"unknown operation: {operation}")
        objects = [self._lfs_object(request, repository, operation, item) for item in document.get("objects", [])]
        headers = {"Content-Type": "application/vnd.git-lfs+json"}
        return json_response({"transfer": "basic", "objects": objects}, headers=headers)

    def _lfs_object(
        self, request: Request, repository: HubRepository, operation: str, item: dict[str, Any]
    ) -> dict[str, Any]:
        sha256, size = str(item.get("oid")), item.get("size")
        if not SHA256.fullmatch(sha256) or not isinstance(size, int) or size < 0:
            return {"oid": sha256, "size": size, "error": {"code": 422, "message": "invalid object"}}
        present = repository.lfs_size(sha256)
        answer: dict[str, Any] = {"oid": sha256, "size": size, "authenticated": True}
        if operation == "download":
            if present is None:
                return {"oid": sha256, "size": size, "error": {"code": 404, "message": "no such object"}}
            answer["actions"] = {"download": {"href": self._storage.signed_address("GET", repository, sha256)}}
        elif present is None:
            prefix = _page_prefix(repository.record.kind)
            verify = f"{request.origin}/{prefix}{repository.record.id}.git/info/lfs/objects/verify"
            upload = self._storage.signed_address("PUT", repository, sha256, size=size)
            answer["actions"] = {"upload": {"href": upload, "header": {}}, "verify": {"href": verify, "header": {}}}
        return answer

    def _lfs_verify(self, request: Request, repository: HubRepository) -> Response:
        document = request.json()
        present = repository.lfs_size(str(document.get("oid")))
        if present is None:
            raise HubError(404, "the object was not uploaded")
        if present != document.get("size"):
            raise HubError(422, f"the object has {present} bytes, not {document.get('size')}")
        return json_response({})

    def _page(self, request: Request, items: Sequence[dict[str, Any]], commit: str = "") -> Response:
        """One page of a list, with the address of the next one in a Link header as GitHub's API has it."""
        start = Cursor.of(request).offset
        limit = min(int(request.query.get("limit", [self._page_size])[-1]), self._page_size)
        headers = {}
        if start + limit < len(items):
            query = {**request.query, "cursor": [str(Cursor(start + limit, commit))]}
            encoded = "&".join(f"{quote(name)}={quote(value)}" for name, values in query.items() for value in values)
            headers["Link"] = f'<{request.origin}{request.path}?{encoded}>; rel="next"'
        return json_response(items[start : start + limit], headers=headers)


def _unquoted(found: re.Match[str]) -> dict[str, Any]:
    return {name: unquote(value) if value is not None else None for name, value in found.groupdict().items()}


def _refuse_unknown_repository(principal: Principal | None) -> NoReturn:
    """What is not there and what must not be seen look the same.

    To a stranger the Hub says 401; the client takes that for "no such repository" by the form of an https address.
    Here the address is http, so the error code says it.
    """
    if principal is None:
        headers = {"WWW-Authenticate": 'Bearer realm="Authentication required", charset="UTF-8"'}
        raise HubError(401, "Invalid username or password.", code="RepoNotFound", headers=headers)
    raise HubError(404, "Repository not found", code="RepoNotFound")


def _require_user(principal: Principal | None) -> Principal:
    if principal is None:
        raise HubError(401, "Invalid username or password.")
    return principal


def _require_write(principal: Principal | None, namespace: str) -> None:
    if not _require_user(principal).may_write(namespace):
        raise HubError(403, f"This token is not allowed to write to the namespace {namespace}")


def _may_read(principal: Principal | None, record: RepoRecord) -> bool:
    return not record.private or (principal is not None and principal.may_read_private(record.namespace))


def _may_read_files(principal: Principal | None, record: RepoRecord) -> bool:
    return record.gated is False or (principal is not None and principal.may_read_private(record.namespace))


def _kind(document: dict[str, Any]) -> RepoKind:
    name = document.get("type") or "model"
    if name not in KIND_OF_TYPE:
        raise HubError(400, f"unknown type of repository: {name}")
    return KIND_OF_TYPE[name]


def _page_prefix(kind: RepoKind) -> str:
    return "" if kind == "models" else f"{kind}/"


def _branch_ref(revision: str) -> str:
    if revision.startswith("refs/"):
        return revision
    return MAIN if revision == "main" else f"refs/heads/{revision}"


def _is_binary(sample: bytes) -> bool:
    """As git decides it, and also whatever is not UTF-8 (a sample may end inside a character)."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        return True
    return b"\0" in sample


def _read_commit_plan(request: Request, repository: HubRepository) -> CommitPlan:
    """Reads the lines of a commit request one by one; a file's content goes to disk before the next line is read."""
    plan: CommitPlan | None = None
    for key, value in _commit_lines(request):
        if key == "header":
            plan = CommitPlan(str(value.get("summary", "")), value.get("description") or "", value.get("parentCommit"))
            if not plan.summary.strip():
                raise HubError(400, '"summary" is required')
        elif plan is None:
            raise HubError(400, "the first line of a commit should be its header")
        else:
            plan.operations.append(_operation(repository, key, value))
    if plan is None:
        raise HubError(400, "the commit is empty")
    return plan


def _commit_lines(request: Request) -> Iterator[tuple[str, dict[str, Any]]]:
    while line := request.body.readline(LONGEST_COMMIT_LINE + 1):
        if len(line) > LONGEST_COMMIT_LINE:
            raise HubError(413, "a line of the commit is too long; send large files by LFS")
        if line.strip():
            document = parse_object(line.decode())
            yield document.get("key", ""), document.get("value") or {}


def _operation(repository: HubRepository, key: str, value: dict[str, Any]) -> Operation:
    path = str(value.get("path", ""))
    if key in ("deletedFile", "deletedFolder"):
        return Delete(path, is_folder=key == "deletedFolder")
    if key == "lfsFile":
        return AddLfs(path, str(value.get("oid")))
    if key == "file":
        text = str(value.get("content", ""))
        content = base64.b64decode(text) if value.get("encoding") == "base64" else text.encode()
        if len(content) > LARGEST_REGULAR_FILE:
            raise HubError(400, f"{path} is too large for a regular file; send it by LFS")
        return AddBlob(path, repository.git.write("blob", content))
    raise HubError(400, f"unknown operation in a commit: {key}")


def _describe_entry(entry: Entry) -> dict[str, Any]:
    if not isinstance(entry, FileEntry):
        return {"type": "directory", "oid": entry.tree_id, "size": 0, "path": entry.path}
    document: dict[str, Any] = {"type": "file", "oid": entry.blob_id, "size": entry.size, "path": entry.path}
    if entry.lfs:
        document["lfs"] = {"oid": entry.lfs.sha256, "size": entry.lfs.size, "pointerSize": entry.blob_size}
    return document


def _sibling(entry: FileEntry, blobs: bool) -> dict[str, Any]:
    document: dict[str, Any] = {"rfilename": entry.path}
    if blobs:
        document |= {"size": entry.size, "blobId": entry.blob_id}
        if entry.lfs:
            document["lfs"] = {"sha256": entry.lfs.sha256, "size": entry.lfs.size, "pointerSize": entry.blob_size}
    return document


def _tags(card: dict[str, Any], files: Sequence[FileEntry]) -> list[str]:
    """The tags by which the Hub finds a repository: those of the card, and those made from its other fields."""
    tags = [card.get("library_name"), card.get("pipeline_tag")]
    tags += ["safetensors"] if any(entry.path.endswith(".safetensors") for entry in files) else []
    tags += _listed(card.get("tags"))
    for name in ("license", "dataset", "base_model"):
        tags += [f"{name}:{value}" for value in _listed(card.get(f"{name}s" if name == "dataset" else name))]
    return list(dict.fromkeys(str(tag) for tag in tags if tag))


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _config_summary(content: str | None) -> dict[str, Any]:
    try:
        config = json.loads(content or "{}")
    except json.JSONDecodeError:
        return {}
    names = ("architectures", "model_type", "auto_map")
    return {name: config[name] for name in names if isinstance(config, dict) and name in config}
