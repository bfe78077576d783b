"""Hugging Face hub names: is it there, can it be reached, which files does it have.

Invariant: an answer within seconds. The hub's own client retries for half a minute where there is no network; here one
request is made, with a time-out, before anything else is asked for."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from mltrack.errors import ConfigurationError
from mltrack.models.other_formats import WHOLE, content_of, other_content

_REQUEST_TIMEOUT_S = 5.0
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def find_on_hub(name: str) -> bool:
    """Check that the hub, or its local cache, has the model `name`.

    Returns:
        True where only the cache can be used, because there is no network or HF_HUB_OFFLINE is set.

    Raises:
        ConfigurationError: no such folder and no possible hub name, unknown to the hub, not allowed, or not reachable
            and not cached.
    """
    from huggingface_hub import constants, get_session, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import build_hf_headers

    if not _REPOSITORY.fullmatch(name) or name.startswith((".", "-")) or ".." in name or "--" in name:
        raise ConfigurationError(
            f"model_name: no folder '{name}', and it cannot be a hub name; accepted: scratch:tiny|small|base,"
            " owner/name on the hub, a local folder, models:/name@alias"
        )
    cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
    if constants.HF_HUB_OFFLINE:
        if cached:
            return True
        if isinstance(adapter := try_to_load_from_cache(name, "adapter_config.json"), str):
            raise ConfigurationError(f"model_name: {name} {content_of(Path(adapter).parent)}")
        raise ConfigurationError(
            f"model_name: '{name}' is neither a local folder nor in the hub's cache ({constants.HF_HUB_CACHE}), and"
            " HF_HUB_OFFLINE is set; accepted: scratch:tiny|small|base, a local folder, or unset it"
        )
    try:
        status = (
            get_session()
            .head(
                hf_hub_url(name, "config.json"),
                headers=build_hf_headers(),
                timeout=_REQUEST_TIMEOUT_S,
                follow_redirects=True,
            )
            .status_code
        )
    except Exception as error:  # whatever the http client has for no route, no name, no answer
        if cached:
            return True
        raise ConfigurationError(
            f"model_name: '{name}' is no local folder and the hub cannot be reached ({type(error).__name__}); accepted"
            " without network: scratch:tiny|small|base, a local folder"
        ) from None
    if status in (401, 403):
        raise ConfigurationError(
            f"model_name: the hub does not know '{name}', or it is private or gated; accepted: a public name, or log in"
            " with `hf auth login`"
        )
    if status == 404:
        if said := content_on_hub(name):
            raise ConfigurationError(f"model_name: {name} {said}")
        raise ConfigurationError(
            f"model_name: the hub has no model '{name}' with a config.json; accepted: owner/name as its page shows it,"
            " a local folder, scratch:tiny|small|base"
        )
    if status >= 400:
        if cached:
            return True
        raise ConfigurationError(
            f"model_name: the hub answered {status} for '{name}'; accepted now: scratch:tiny|small|base, a local"
            " folder, or try again later"
        )
    return False


def hub_files(name: str, *, local_only: bool) -> list[str]:
    """Names of the files of a hub repository, or of the weights in its copy in the cache.

    Raises:
        ConfigurationError: the hub cannot be asked.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    if local_only:
        return [file for file in WHOLE if isinstance(try_to_load_from_cache(name, file), str)]
    try:
        return HfApi().list_repo_files(name)
    except Exception as error:
        raise ConfigurationError(
            f"model_name: the files of '{name}' cannot be listed on the hub ({type(error).__name__}); accepted: a local"
            " folder, or try again"
        ) from None


def content_on_hub(name: str) -> str | None:
    """What a hub repository without a whole model holds instead, as the end of a sentence that begins with its name;
    None where nothing is known.
    """
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    def read(file: str) -> bytes:
        answer = get_session().get(
            hf_hub_url(name, file), headers=build_hf_headers(), timeout=_REQUEST_TIMEOUT_S, follow_redirects=True
        )
        return answer.content if answer.status_code == 200 else b""

    with suppress(Exception):  # it explains why a name cannot be used, and is not what decides
        files = hub_files(name, local_only=False)
        return (
            None
            if set(files).intersection(WHOLE)
            else other_content(files, read, lambda part: f"a download of {name}/{part}")
        )
    return None
