"""Tags under names that earlier versions gave them."""

from __future__ import annotations

from collections.abc import Mapping

FORMER_TAGS = {f"mltrack.{name}": f"mltrack.trainer_{name}" for name in ("boot_id", "pid_namespace", "heartbeat")}
"""They name the trainer of a run."""


def with_present_names(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags under their present names; a present name wins over a former one."""
    renamed = {FORMER_TAGS[name]: value for name, value in tags.items() if name in FORMER_TAGS}
    return renamed | {name: value for name, value in tags.items() if name not in FORMER_TAGS}
