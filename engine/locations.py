"""Where references of a spec lead: a path, a hub id, `builtin:…` or `home:…`."""

import os
from pathlib import Path

import platformdirs

_BUILTIN_ROOT = Path(__file__).resolve().parent.parent / "experiments"


def incipit_home() -> Path:
    """INCIPIT_HOME, or the user's data directory: database, run folders, fetched models, broker state."""
    configured = os.environ.get("INCIPIT_HOME")
    return Path(configured).expanduser().resolve() if configured else platformdirs.user_data_path("incipit")


def resolve(reference: str) -> str:
    """The path, or the hub id, that a reference of a spec stands for.

    `builtin:tiny/models/teacher` lies below the `experiments` folder that comes with Incipit, `home:…` below
    INCIPIT_HOME. A reference may not climb out of either. Anything else is returned as it is.
    """
    for prefix, root in (("builtin:", _BUILTIN_ROOT), ("home:", incipit_home())):
        if reference.startswith(prefix):
            path = (root / reference.removeprefix(prefix)).resolve()
            if not path.is_relative_to(root.resolve()):
                raise ValueError(f"{reference!r} leads out of its folder; name a path below {prefix} without '..'.")
            return str(path)
    return reference
