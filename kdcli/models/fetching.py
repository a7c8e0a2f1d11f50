"""Files fetched over the network: gone on with where they broke off, checked, put in place whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from filelock import FileLock

from kdcli.disk import asking, exists, make_folder, remove, size_of, write_whole, writing
from kdcli.errors import RunError
from kdcli.waiting import say, waiting

TIMEOUT_SECONDS = 10.0
"""So long a server may be silent."""

TRIES = 3
"""So often in turn a transfer may break off without a byte more; then it is given up, and what there is stays."""

CHUNK = 1 << 20

Shown = Callable[[str], AbstractContextManager[Callable[[int, int], None] | None]]
"""For a title, a `with` block that takes (bytes there, all bytes); None where nothing is drawn."""


@contextmanager
def unseen(title: str) -> Iterator[None]:
    """Draws nothing."""
    yield None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A file to be fetched. title: what a user is told that it is.

    sha256: of its content, in hex, all of it or the beginning; None where nobody states it. headers: sent along.
    facts: what is kept in the record beside the file, such as its licence.
    """

    title: str
    url: str
    path: Path
    sha256: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)


def is_offline() -> bool:
    """Whether the environment forbids the network: KDCLI_OFFLINE (`--offline`), or the hub's own HF_HUB_OFFLINE."""
    names = ("KDCLI_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in names)


def go_offline() -> None:
    """Forbid the network to this process and those that it starts."""
    os.environ["KDCLI_OFFLINE"] = "1"


def refuse_offline(title: str, place: Path | str) -> None:
    """Raise RunError KD559 where the network is forbidden. place: where the file would lie."""
    if is_offline():
        raise RunError.of(
            "KD559",
            f"{title} are not on this machine, and offline mode forbids to fetch them",
            f"they would lie at `{place}`: copy them there, or run once without `--offline`, KDCLI_OFFLINE and"
            " HF_HUB_OFFLINE",
        )


def fetched(wanted: Wanted, shown: Shown = unseen) -> str:
    """Bring a file to its path, unless it is there already; returns its sha256. Other processes wait for this one.

    Raises RunError KD535 (no network, or it broke off), KD559 (offline), KD571 (another checksum), KD572 (the server
    has no such file or gives it to nobody), KD540 (no room).
    """
    if exists(wanted.path):
        return checked(wanted)
    refuse_offline(wanted.title, wanted.path)
    make_folder(wanted.path.parent)
    lock = FileLock(f"{wanted.path}.lock")
    with writing(wanted.path):
        with waiting(lambda: f"another process that fetches {wanted.title}"):
            lock.acquire()
        try:
            if exists(wanted.path):  # the other one has fetched it
                return checked(wanted)
            return _download(wanted, shown)
        finally:
            lock.release()
            Path(lock.lock_file).unlink(missing_ok=True)


def checked(wanted: Wanted) -> str:
    """The sha256 of a file that is there; RunError KD571 where it is not the one stated, or not the one fetched."""
    digest = sha256_of(wanted.path)
    stated = wanted.sha256 or record_of(wanted.path).get("sha256")
    if stated is not None and not digest.startswith(stated):
        raise RunError.of(
            "KD571",
            f"{wanted.title}: `{wanted.path}` is damaged: its sha256 is {digest[:12]}..., {stated[:12]} was stated",
            "delete the file: it is fetched again",
        )
    return digest


def sha256_of(path: Path) -> str:
    """The checksum of a file's content, in hex."""
    with asking(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_of(path: Path) -> dict[str, str]:
    """What was written beside a file when it was fetched: its sha256, address and facts; empty where nothing was."""
    try:
        record = json.loads(_beside(path, ".fetched.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(k): str(v) for k, v in record.items()} if isinstance(record, dict) else {}


def _download(wanted: Wanted, shown: Shown) -> str:
    part, state = _beside(wanted.path, ".partial"), _beside(wanted.path, ".partial.json")
    host = urlsplit(wanted.url).hostname or wanted.url
    failures = 0
    with shown(f"fetching {wanted.title}") as update, waiting(lambda: _so_far(wanted, part)):
        if update is None:
            say(f"fetching {wanted.title} from {host}")
        while True:
            before = size_of(part) if exists(part) else 0
            try:
                _transfer(wanted, part, state, update)
                break
            except HTTPError as error:
                error.close()
                raise _refused(wanted, error) from error
            except (
                URLError,
                http.client.HTTPException,
                ConnectionError,
                TimeoutError,
                ssl.SSLError,
            ) as error:
                there = size_of(part) if exists(part) else 0
                failures = 0 if there > before else failures + 1
                if there == 0 or failures >= TRIES:
                    raise _broken_off(wanted, host, there, error) from error
                time.sleep(min(0.2 * 2**failures, 2.0))
    digest = sha256_of(part)
    if wanted.sha256 is not None and not digest.startswith(wanted.sha256):
        remove(part)
        remove(state)
        raise RunError.of(
            "KD571",
            f"{wanted.title} came with another checksum than is stated: sha256 {digest[:12]}..., "
            f"not {wanted.sha256[:12]}",
            f"nothing of it was kept; a proxy between here and {host} may have answered in its place",
        )
    record = {**wanted.facts, "sha256": digest, "url": wanted.url}
    write_whole(_beside(wanted.path, ".fetched.json"), json.dumps(record) + "\n")
    os.replace(part, wanted.path)
    remove(state)
    return digest


def _transfer(wanted: Wanted, part: Path, state: Path, update: Callable[[int, int], None] | None) -> None:
    """One request: what is missing at the end of `part`, or all of it where the server's file is another one."""
    there = size_of(part) if exists(part) else 0
    headers = {"User-Agent": "kdcli", "Accept-Encoding": "identity", **wanted.headers}
    tag = _tag(state)
    if there and tag is not None:
        headers |= {"Range": f"bytes={there}-", "If-Range": tag}
    with build_opener(_Redirects).open(
        Request(wanted.url, headers=headers), timeout=TIMEOUT_SECONDS
    ) as answer:
        goes_on = answer.status == 206 and _starts_at(answer.headers.get("Content-Range")) == there
        if not goes_on:
            there = 0
        length = answer.headers.get("Content-Length")
        total = there + int(length) if length is not None else None
        tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        # A weak tag does not promise equal bytes: such a file is fetched from its beginning.
        write_whole(state, json.dumps(None if tag is None or tag.startswith("W/") else tag))
        with part.open("ab" if goes_on else "wb") as file:
            while data := answer.read(CHUNK):
                file.write(data)
                there += len(data)
                if update is not None:
                    update(there, total or there)
    if total is not None and there < total:
        raise ConnectionError(f"it broke off at {_megabytes(there)} of {_megabytes(total)}")


class _Redirects(HTTPRedirectHandler):
    """Follows a server's hints to another host without telling that one the user's token."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """The next request."""
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            following.remove_header("Authorization")
        return following


def _so_far(wanted: Wanted, part: Path) -> str:
    there = size_of(part) if exists(part) else 0
    return f"{wanted.title}: {_megabytes(there)} are there"


def _starts_at(content_range: str | None) -> int | None:
    found = re.match(r"bytes (\d+)-", content_range or "")
    return None if found is None else int(found[1])


def _tag(state: Path) -> str | None:
    try:
        found = json.loads(state.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, str) else None


def _refused(wanted: Wanted, error: HTTPError) -> RunError:
    if error.code in (401, 403, 404, 410):
        return RunError.of(
            "KD572",
            f"{wanted.title}: the server answers {error.code} ({error.reason}) to {wanted.url}",
            "is the name right? download the file elsewhere, and give its path as the weight",
        )
    return no_network(wanted.title, f"the server answers {error.code} ({error.reason})", wanted.path)


def _broken_off(wanted: Wanted, host: str, there: int, error: Exception) -> RunError:
    reason = reason_of(error)
    if not there:
        return no_network(wanted.title, f"no way to {host}: {reason}", wanted.path)
    return RunError.of(
        "KD535",
        f"{wanted.title} can't be fetched: the connection to {host} broke: {reason}",
        f"{_megabytes(there)} are kept: the same command goes on from there",
    )


def no_network(title: str, reason: str, place: Path | str) -> RunError:
    """The error for weights of which nothing could be fetched. place: where the file would lie."""
    return RunError.of(
        "KD535",
        f"{title} can't be fetched: {reason}",
        f"they would lie at `{place}`: download them where there is a network, and copy them there or give the path"
        " as the weight",
    )


def reason_of(error: BaseException) -> str:
    """Why a connection failed, without Python's wrapping."""
    inner = error.reason if isinstance(error, URLError) else error
    if isinstance(inner, TimeoutError):
        return f"no answer for {TIMEOUT_SECONDS:.0f} s"
    if isinstance(inner, http.client.IncompleteRead):
        return "it broke off in the middle"
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    return str(inner) or type(inner).__name__


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
