"""`transformers` reads the files of all its models to know which names they define; here it does so once instead of
twice, a third of a second each.

`import transformers` reads them, and so does the first model, configuration or tokenizer: the answers are kept in a
cache of 128 folders, and there are more than 500. What the first reading found is handed to the second.

Invariant: transformers gets what it would have found itself; where it is built otherwise than expected, it is left to
find it.

    read_once()     # before the first model, configuration or tokenizer
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

_PREFIX = "models."
Structure = dict[frozenset[str], dict[str, set[str]]]
"""Packages that are needed -> module -> names."""


def read_once() -> None:
    """Import `transformers.models` with what `transformers` has read already."""
    if "transformers.models" in sys.modules:
        return
    import transformers
    from transformers.utils import import_utils

    utilities: Any = import_utils
    own: Any = getattr(utilities, "define_import_structure", None)
    folder = Path(transformers.__file__).parent / "models"
    found = _found(own, folder)
    if not found:
        return
    file = str(folder / "__init__.py")  # what the second reading asks for; anything else is transformers' own business
    utilities.define_import_structure = lambda *asked, **options: (
        found if (asked, options) == ((file,), {}) else own(*asked, **options)
    )
    try:
        with suppress(Exception):  # then it is imported where it is needed, in its own way
            import transformers.models
    finally:
        utilities.define_import_structure = own


def _found(own: Any, folder: Path) -> Structure:
    """What the first reading found, from the cache of transformers' own function; empty where it is not there."""
    try:
        before = own.cache_info()
        whole = own(folder, prefix=_PREFIX[:-1])
        if own.cache_info().misses > before.misses:
            return {}
        return {
            needed: {name.removeprefix(_PREFIX): names for name, names in modules.items() if name.startswith(_PREFIX)}
            for needed, modules in whole.items()
        }
    except Exception:  # another version's function may fail in any way; then transformers reads twice, as without this
        return {}
