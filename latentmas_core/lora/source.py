"""Finds an adapter: a folder of this machine, or a repository of the hub that is fetched from it.

Only the two files of an adapter are ever fetched; pickled weights are not looked at.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from latentmas_core.errors import AdapterError, HubError
from latentmas_core.lora.checkpoint import CONFIG_FILE, PICKLE_FILE, WEIGHTS_FILE

_REPOSITORY = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
ETAG_TIMEOUT_S = 10.0

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
    allow_hub: bool = True,
    max_bytes: int | None = None,
) -> LocatedAdapter:
    """A folder with the two files of an adapter.

    ``roots``: the only folders that it may really lie in, links followed; None allows any.
    ``max_bytes``: what is larger is not fetched. Raises AdapterError; HubError where the hub does
    not hand it out.
    """
    folder = Path(path).expanduser()
    if folder.is_dir() or not _REPOSITORY.fullmatch(path):
        return LocatedAdapter(_local(path, folder, revision, roots))
    if not allow_hub:
        raise AdapterError(
            f"adapter path {path!r} is no folder here, and loading from the hub is not allowed. "
            "Set allow_hub in the config, or give a folder under the allowed roots.",
            param="path",
        )
    return _fetch(path, revision, max_bytes)


def _local(path: str, folder: Path, revision: str | None, roots: Sequence[Path] | None) -> Path:
    if revision is not None:
        raise AdapterError(
            f"revision is {revision!r} for the folder {path!r}; only repositories of the hub have "
            "revisions. Leave it out.",
            param="revision",
        )
    if roots is None:
        return folder
    # The files too: a link in an allowed folder may lead out of it.
    reals = [part.resolve() for part in (folder, folder / CONFIG_FILE, folder / WEIGHTS_FILE)]
    if not any(all(real.is_relative_to(root.resolve()) for real in reals) for root in roots):
        raise AdapterError(
            f"adapter path {path!r} is not under a folder that adapters may be loaded from. Put it "
            "under one of adapters.roots of the config.",
            param="path",
        )
    return reals[0]


def _fetch(repository: str, revision: str | None, max_bytes: int | None) -> LocatedAdapter:
    if not constants.HF_HUB_OFFLINE:
        _check_files(repository, revision, max_bytes)
    folders = [_fetch_file(repository, revision, name) for name in (CONFIG_FILE, WEIGHTS_FILE)]
    if folders[0] != folders[1]:
        raise HubError(
            f"adapter {repository!r} at {_shown(revision)} changed while it was fetched. Try "
            "again, or name a commit as its revision.",
            param="path",
        )
    return LocatedAdapter(folders[0], folders[0].name)


def _fetch_file(repository: str, revision: str | None, name: str) -> Path:
    """The snapshot that the file is in: a folder that is called like its commit."""
    path = _ask(
        repository,
        revision,
        lambda: huggingface_hub.hf_hub_download(
            repository, name, revision=revision, etag_timeout=ETAG_TIMEOUT_S
        ),
    )
    return Path(path).parent


def _ask(repository: str, revision: str | None, call: Callable[[], T]) -> T:
    """What the hub's library answers; whatever it raises is a HubError."""
    try:
        return call()
    except Exception as error:
        raise _hub_error(repository, revision, error) from error


def _check_files(repository: str, revision: str | None, max_bytes: int | None) -> None:
    """Refuse what is incomplete or too large before it is fetched."""
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
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if name not in sizes:
            raise HubError(
                f"adapter {repository!r} at {_shown(revision)} has no {name}: it is no LoRA "
                "adapter as PEFT saves it. Choose another repository or revision.",
                param="path",
            )
    size = sizes[WEIGHTS_FILE] or 0
    if max_bytes is not None and size > max_bytes:
        raise AdapterError(
            f"adapter {repository!r} has {size} bytes of weights; the largest that this base model "
            f"and max_lora_rank allow has {max_bytes}. It was not fetched.",
            param="path",
        )


def _hub_error(repository: str, revision: str | None, error: Exception) -> HubError:
    cause, remedy = _cause_and_remedy(error)
    return HubError(
        f"adapter {repository!r} at {_shown(revision)} cannot be had from the hub: {cause}. "
        f"{remedy}.",
        param="path",
    )


def _cause_and_remedy(error: Exception) -> tuple[str, str]:
    match error:
        case GatedRepoError():
            return "access to it is restricted", "Ask for access, and set HF_TOKEN"
        case RepositoryNotFoundError():
            return (
                "there is no such repository, or it is private",
                "Check the name, and set HF_TOKEN if it is private",
            )
        case RevisionNotFoundError():
            return "there is no such revision", "Check the revision"
        case EntryNotFoundError() if not isinstance(error, LocalEntryNotFoundError):
            return "a file is missing", "Choose another repository or revision"
        case LocalEntryNotFoundError() | OfflineModeIsEnabled() if constants.HF_HUB_OFFLINE:
            return (
                "offline mode is on and it is not in the local cache",
                "Unset HF_HUB_OFFLINE, or give a folder",
            )
        case HfHubHTTPError() if error.response is not None:
            return (
                f"the hub answered {error.response.status_code}",
                "Check HF_TOKEN and HF_ENDPOINT, or try again later",
            )
        case OSError() if error.errno is not None:
            return f"{error.strerror}", "Check the disk and HF_HOME"
        case _:
            return (
                f"it is not reachable ({type(error).__name__})",
                "Check the network and HF_ENDPOINT, or give a folder",
            )


def _shown(revision: str | None) -> str:
    return f"revision {revision!r}" if revision else "its default revision"
