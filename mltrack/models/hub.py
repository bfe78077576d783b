"""Hugging Face hub names: does the model exist, can the hub be reached, which files does it have.

Invariant: the answer takes seconds. Without a network the hub's own client retries for half a minute, so one request
with a time-out is sent before any other."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mltrack.errors import ConfigurationError, printable
from mltrack.models.other_formats import WHOLE, content_of, other_content

_REQUEST_TIMEOUT_S = 5.0
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_REVISION = re.compile(r"\w[\w./+-]*", re.ASCII)
_MAIN = "main"
_MANY_REVISIONS = 8


class FoundOnHub(NamedTuple):
    """From where a hub model can be loaded."""

    local_only: bool
    """Only the cache can be used: there is no network, or HF_HUB_OFFLINE is set."""
    commit: str | None
    """The commit that the revision names now; None if the hub does not say."""


def find_on_hub(name: str, revision: str | None = None) -> FoundOnHub:
    """Check that the hub, or its local cache, has the model `name`.

    Args:
        revision: a branch, tag or commit; None: `main`.

    Raises:
        ConfigurationError: the name is neither a folder nor a possible hub name, is unknown to the hub or not allowed,
            has no such revision, or the hub cannot be reached and the model is not cached.
    """
    from huggingface_hub import constants, get_session, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import build_hf_headers

    if not _REPOSITORY.fullmatch(name) or name.startswith((".", "-")) or ".." in name or "--" in name:
        raise ConfigurationError(
            f"model_name: there is no folder '{name}', and it cannot be a hub name; use scratch:tiny|small|base,"
            " owner/name on the hub, a local folder or models:/name@alias"
        )
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise ConfigurationError(f"model_revision: '{printable(revision)}' is no branch, tag or commit")
    in_cache = _cached_commit(name, revision)
    cached = FoundOnHub(True, in_cache) if in_cache is not None else None
    if constants.HF_HUB_OFFLINE:
        if cached is not None:
            return cached
        if isinstance(adapter := try_to_load_from_cache(name, "adapter_config.json", revision=revision), str):
            raise ConfigurationError(f"model_name: {name} {content_of(Path(adapter).parent)}")
        if revision is not None and (there := _cached_revisions(name)):
            raise ConfigurationError(
                f"model_revision: '{revision}' of {name} is not in the hub's cache ({constants.HF_HUB_CACHE}), and"
                f" HF_HUB_OFFLINE is set; use one that is there ({there}), or unset HF_HUB_OFFLINE"
            )
        raise ConfigurationError(
            f"model_name: '{name}' is neither a local folder nor in the hub's cache ({constants.HF_HUB_CACHE}), and"
            " HF_HUB_OFFLINE is set; use scratch:tiny|small|base or a local folder, or unset HF_HUB_OFFLINE"
        )
    try:
        answer = get_session().head(
            hf_hub_url(name, "config.json", revision=revision),
            headers=build_hf_headers(),
            timeout=_REQUEST_TIMEOUT_S,
            follow_redirects=True,
        )
    except Exception as error:  # the http client has many classes for no route, no name, no answer
        if cached is not None:
            return cached
        raise ConfigurationError(
            f"model_name: '{name}' is no local folder, and the hub cannot be reached ({type(error).__name__}); without"
            " a network use scratch:tiny|small|base or a local folder"
        ) from None
    status, headers = answer.status_code, [one.headers for one in (*answer.history, answer)]
    if any(one.get("X-Error-Code") == "RevisionNotFound" for one in headers):
        if cached is not None and cached.commit == revision:  # the hub has dropped a commit that a run began with
            return cached
        raise ConfigurationError(
            f"model_revision: {name} has no branch, tag or commit '{revision or _MAIN}' on the hub; use one that its"
            " page lists under Files"
        )
    if status in (401, 403):
        raise ConfigurationError(
            f"model_name: the hub does not know '{name}', or it is private or gated; use a public name, or log in"
            " with `hf auth login`"
        )
    if status == 404:
        if said := content_on_hub(name, revision):
            raise ConfigurationError(f"model_name: {name} {said}")
        raise ConfigurationError(
            f"model_name: the hub has no model '{name}' with a config.json; use owner/name as its page shows it, a"
            " local folder or scratch:tiny|small|base"
        )
    if status >= 400:
        if cached is not None:
            return cached
        raise ConfigurationError(
            f"model_name: the hub answered {status} for '{name}'; use scratch:tiny|small|base or a local folder,"
            " or try again later"
        )
    return FoundOnHub(False, next((one["X-Repo-Commit"] for one in headers if "X-Repo-Commit" in one), None))


def _cached_commit(name: str, revision: str | None) -> str | None:
    """The commit of that revision whose config.json is in the cache."""
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(name, "config.json", revision=revision)  # .../snapshots/<commit>/config.json
    return Path(file).parent.name if isinstance(file, str) else None


def _cached_revisions(name: str) -> str:
    """The cached revisions of a repository, for messages; empty if there are none."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    refs = [path.relative_to(folder / "refs").as_posix() for path in folder.glob("refs/**/*") if path.is_file()]
    commits = [path.name for path in folder.glob("snapshots/*") if path.is_dir()]
    there = [printable(one) for one in (*sorted(refs), *sorted(commits))]
    return ", ".join(there[:_MANY_REVISIONS]) + (", ..." if len(there) > _MANY_REVISIONS else "")


def hub_files(name: str, revision: str | None = None, *, local_only: bool) -> list[str]:
    """Names of the files of a hub repository; with `local_only`, of the weights in its cached copy.

    Raises:
        ConfigurationError: the hub cannot be asked.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    if local_only:
        return [file for file in WHOLE if isinstance(try_to_load_from_cache(name, file, revision=revision), str)]
    try:
        return HfApi().list_repo_files(name, revision=revision)
    except Exception as error:
        raise ConfigurationError(
            f"model_name: the files of '{name}' cannot be listed on the hub ({type(error).__name__}); use a local"
            " folder, or try again"
        ) from None


def content_on_hub(name: str, revision: str | None = None) -> str | None:
    """What a hub repository without a whole model holds instead, as the end of a sentence that begins with its name;
    None if nothing is known.
    """
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    def read(file: str) -> bytes:
        answer = get_session().get(
            hf_hub_url(name, file, revision=revision),
            headers=build_hf_headers(),
            timeout=_REQUEST_TIMEOUT_S,
            follow_redirects=True,
        )
        return answer.content if answer.status_code == 200 else b""

    with suppress(Exception):  # it only explains why a name cannot be used
        files = hub_files(name, revision, local_only=False)
        return (
            None
            if set(files).intersection(WHOLE)
            else other_content(files, read, lambda part: f"a download of {name}/{part}")
        )
    return None
