"""`python -m backend`: the API on INCIPIT_HOST and INCIPIT_PORT."""

import sys

import uvicorn
from pydantic import ValidationError

from backend.app import create_app
from backend.settings import Settings

_BAD_CONFIGURATION = 78  # EX_CONFIG of sysexits.h


def main() -> None:
    """Serve until a signal ends it."""
    try:
        settings = Settings()
    except ValidationError as error:
        for details in error.errors():
            name = ".".join(map(str, details["loc"]))
            print(f"incipit: {f'INCIPIT_{name.upper()}: ' if name else ''}{details['msg']}", file=sys.stderr)
        sys.exit(_BAD_CONFIGURATION)
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        server_header=False,
        timeout_graceful_shutdown=5,
    )


if __name__ == "__main__":
    main()
