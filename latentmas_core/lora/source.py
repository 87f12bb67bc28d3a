"""Finds an adapter: a folder of this machine, or a repository of the hub that is fetched from it.

Only the two files of an adapter are ever fetched; pickled weights are not looked at.
"""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from latentmas_core.errors import AdapterError, HubError
from latentmas_core.lora.adapter_config import CONFIG_FILE, MAX_CONFIG_BYTES
from latentmas_core.lora.checkpoint import PICKLE_FILE, WEIGHTS_FILE

ETAG_TIMEOUT_S = 10.0  # for a question; the hub's library waits as long for a part of a file

_REPOSITORY = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
_REVISION = re.compile(r"(?!.*\.\.)\w[\w./+-]*", re.ASCII)  # the cache makes a path of it
_COMMIT = re.compile(r"[0-9a-f]{40}")

T = TypeVar("T")


class LocatedAdapter(NamedTuple):
    """``revision``: the commit of the hub that ``folder`` was fetched from."""

    folder: Path
    revision: str | None = None


def locate_adapter(
    path: str,
    *,
    revision: str | None = None,
    roots: Sequence[Path] | None = None,
    allow_hub: bool | None = None,
    max_bytes: int | None = None,
) -> LocatedAdapter:
    """A folder for ``read_checkpoint``, which checks what is in it.

    ``roots``: the only folders that it may really lie in, links followed; None allows any. What
    lies elsewhere is as if it did not exist. ``allow_hub``: whether ``owner/name`` that is no
    folder may be fetched; None means only where there are no roots. ``max_bytes``: larger weights
    are not fetched. Raises AdapterError; HubError where the hub does not hand it out.
    """
    folder = _folder(path, roots)
    is_repository = _REPOSITORY.fullmatch(path) is not None
    # isdir, unlike Path.is_dir, takes a path that the system cannot have for one that is not there.
    if folder is not None and (os.path.isdir(folder) or not is_repository):
        return LocatedAdapter(_checked_folder(path, folder, revision))
    if is_repository and (roots is None if allow_hub is None else allow_hub):
        return _fetch(path, revision, max_bytes)
    hub = "; loading from the hub is off (adapters.allow_hub)" if is_repository else ""
    raise AdapterError(
        f"adapter path {path!r} is not under a folder that adapters may be loaded from{hub}. Put "
        "it under one of adapters.roots of the config.",
        param="path",
    )


def _folder(path: str, roots: Sequence[Path] | None) -> Path | None:
    """The real folder, or None where it is not under a root; whether it exists does not matter."""
    try:
        folder = Path(path).expanduser()
        if roots is None:
            return folder
        # The files too: a link in an allowed folder may lead out of it.
        reals = [part.resolve() for part in (folder, folder / CONFIG_FILE, folder / WEIGHTS_FILE)]
        bounds = [root.resolve() for root in roots]
    except (OSError, RuntimeError, ValueError):  # too long, a loop of links, no such user, NUL
        return Path(path) if roots is None else None
    is_inside = any(all(real.is_relative_to(bound) for real in reals) for bound in bounds)
    return reals[0] if is_inside else None


def _checked_folder(path: str, folder: Path, revision: str | None) -> Path:
    if not os.path.isdir(folder):
        raise AdapterError(
            f"adapter path {path!r} is neither a folder nor a repository of the hub, which is "
            "called owner/name. Check the path.",
            param="path",
        )
    if revision is not None:
        raise AdapterError(
            f"revision is {revision!r} for the folder {path!r}; only repositories of the hub have "
            "revisions. Leave it out.",
            param="revision",
        )
    return folder.resolve()  # it is read again, perhaps from another working directory


def _fetch(repository: str, revision: str | None, max_bytes: int | None) -> LocatedAdapter:
    if revision is not None and not _REVISION.fullmatch(revision):
        raise AdapterError(
            f"revision {revision!r} of adapter {repository!r} is no name of a branch, tag or "
            "commit. Correct it.",
            param="revision",
        )
    is_asked = not constants.HF_HUB_OFFLINE and not _is_cached(repository, revision)
    checked = _checked_commit(repository, revision, max_bytes) if is_asked else None
    # By its revision, so that the cache knows it offline; the weights by the commit it stands for.
    folder = _fetch_file(repository, revision, revision, CONFIG_FILE)
    commit = checked or folder.name
    weights_folder = _fetch_file(repository, revision, commit, WEIGHTS_FILE)
    if not folder.name == weights_folder.name == commit:
        raise HubError(
            f"adapter {repository!r} at {_shown(revision)} changed while it was fetched: {commit}, "
            f"then {folder.name}. Try again, or name a commit as its revision.",
            param="path",
        )
    return LocatedAdapter(folder, commit)


def _is_cached(repository: str, revision: str | None) -> bool:
    """A commit never changes: once it is here there is nothing to ask the hub."""
    if revision is None or not _COMMIT.fullmatch(revision):
        return False
    return all(
        isinstance(huggingface_hub.try_to_load_from_cache(repository, name, revision=revision), str)
        for name in (CONFIG_FILE, WEIGHTS_FILE)
    )


def _fetch_file(repository: str, revision: str | None, asked: str | None, name: str) -> Path:
    """The snapshot that the file is in: a folder that is called like its commit."""
    path = _ask(
        repository,
        revision,
        lambda: huggingface_hub.hf_hub_download(
            repository, name, revision=asked, etag_timeout=ETAG_TIMEOUT_S
        ),
    )
    return Path(path).parent


def _ask(repository: str, revision: str | None, call: Callable[[], T]) -> T:
    """What the hub's library answers; whatever it raises is a HubError."""
    try:
        return call()
    except Exception as error:
        raise _hub_error(repository, revision, error) from error


def _checked_commit(repository: str, revision: str | None, max_bytes: int | None) -> str | None:
    """The commit of the revision; what is incomplete or too large in it is not fetched."""
    info = _ask(
        repository,
        revision,
        lambda: huggingface_hub.HfApi().model_info(
            repository, revision=revision, files_metadata=True, timeout=ETAG_TIMEOUT_S
        ),
    )
    sizes = {file.rfilename: file.size for file in info.siblings or ()}
    if WEIGHTS_FILE not in sizes and PICKLE_FILE in sizes:
        raise AdapterError(
            f"adapter {repository!r} has its weights in {PICKLE_FILE}, a pickle, which can run "
            f"code when it is read. Choose one with {WEIGHTS_FILE}.",
            param="path",
        )
    for name, limit in ((CONFIG_FILE, MAX_CONFIG_BYTES), (WEIGHTS_FILE, max_bytes)):
        if name not in sizes:
            raise HubError(
                f"adapter {repository!r} at {_shown(revision)} has no {name}: it is no LoRA "
                "adapter as PEFT saves it. Choose another repository or revision.",
                param="path",
            )
        _check_size(repository, name, sizes[name], limit)
    return info.sha


def _check_size(repository: str, name: str, num_bytes: int | None, max_bytes: int | None) -> None:
    if max_bytes is None:
        return
    if num_bytes is None:
        raise HubError(
            f"adapter {repository!r}: the hub does not say how large {name} is; at most "
            f"{max_bytes} bytes are fetched. Give a folder instead.",
            param="path",
        )
    if num_bytes > max_bytes:
        raise AdapterError(
            f"adapter {repository!r}: {name} has {num_bytes} bytes; at most {max_bytes} are "
            "fetched. Choose an adapter of this base model and of a rank up to max_lora_rank.",
            param="path",
        )


def _hub_error(repository: str, revision: str | None, error: Exception) -> HubError:
    cause, remedy = _cause_and_remedy(error)
    return HubError(
        f"adapter {repository!r} at {_shown(revision)} cannot be had from the hub: {cause}. "
        f"{remedy}.",
        param="path",
    )


def _cause_and_remedy(error: BaseException) -> tuple[str, str]:
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # not in the cache either: why it could not be fetched
    match error:
        case HFValidationError():
            return "no repository can be called so", "Check the name"
        case GatedRepoError():
            return "access to it is restricted", "Ask for access, and set HF_TOKEN"
        case RepositoryNotFoundError():
            return (
                "there is no such repository, or it is private",
                "Check the name, and set HF_TOKEN if it is private",
            )
        case RevisionNotFoundError():
            return "there is no such revision", "Check the revision"
        case RemoteEntryNotFoundError():
            return "a file is missing", "Choose another repository or revision"
        case LocalEntryNotFoundError() | OfflineModeIsEnabled():
            return (
                "offline mode is on and it is not in the local cache",
                "Unset HF_HUB_OFFLINE, or give a folder",
            )
        case HfHubHTTPError():
            return (
                f"the hub answered {error.response.status_code}",
                "Check HF_TOKEN and HF_ENDPOINT, or try again later",
            )
        case OSError() if error.errno is not None:
            return f"{error.strerror}", "Check the disk and HF_HOME"
        case OSError() | ValueError() | TypeError() | KeyError():
            return (
                f"its answer cannot be used ({_first_line(error)})",
                "Check HF_ENDPOINT, or try again later",
            )
        case _:
            return (
                f"it is not reachable ({_first_line(error)})",
                "Check the network and HF_ENDPOINT, or give a folder",
            )


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(":. ")


def _shown(revision: str | None) -> str:
    return f"revision {revision!r}" if revision else "its default revision"
