"""Let `transformers` scan the files of its models for the names they define once instead of twice.

`import transformers` scans them, and so does the first model, configuration or tokenizer: the results go into a cache
of 128 folders, but there are more than 500. The result of the first scan is passed to the second.

Invariant: transformers gets what it would have found itself. If its code differs from what is expected here, it scans
as usual.

    read_once()     # before the first model, configuration or tokenizer
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

_PREFIX = "models."
Structure = dict[frozenset[str], dict[str, set[str]]]
"""Required packages -> module -> names."""


def read_once() -> None:
    """Import `transformers.models` with the result of the scan that `import transformers` made."""
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
    file = str(folder / "__init__.py")  # the argument of the second scan; other calls are passed on
    utilities.define_import_structure = lambda *asked, **options: (
        found if (asked, options) == ((file,), {}) else own(*asked, **options)
    )
    try:
        with suppress(Exception):  # then it is imported when needed, as usual
            import transformers.models
    finally:
        utilities.define_import_structure = own


def _found(own: Any, folder: Path) -> Structure:
    """The result of the first scan, from the cache of transformers' own function; empty if it is not there."""
    try:
        before = own.cache_info()
        whole = own(folder, prefix=_PREFIX[:-1])
        if own.cache_info().misses > before.misses:
            return {}
        return {
            needed: {name.removeprefix(_PREFIX): names for name, names in modules.items() if name.startswith(_PREFIX)}
            for needed, modules in whole.items()
        }
    except Exception:  # another version's function may fail in any way; then transformers scans twice
        return {}
