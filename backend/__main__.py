"""`python -m backend`: the API on INCIPIT_HOST and INCIPIT_PORT."""

import os
import socket
import sys
from contextlib import closing
from typing import NoReturn

import uvicorn
from pydantic import ValidationError
from sqlalchemy.exc import ArgumentError, OperationalError

from backend.app import create_app
from backend.database import Database
from backend.logs import set_up_logs
from backend.migrate import SchemaMismatch, require_head
from backend.settings import Settings
from backend.sign_in import can_anyone_sign_in

_BAD_CONFIGURATION = 78  # EX_CONFIG of sysexits.h
_BACKLOG = 2048


def main() -> None:
    """Serve until a signal ends it; what is wrong before that is one sentence and a status."""
    try:
        settings = Settings()
        settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with closing(Database(settings.sql_url)) as database:
            require_head(database)
            is_usable = can_anyone_sign_in(settings, database)
    except ValidationError as error:
        _give_up(_BAD_CONFIGURATION, *map(_sentence, error.errors()))
    except (ValueError, ArgumentError, SchemaMismatch) as error:
        _give_up(_BAD_CONFIGURATION, str(error))
    except OperationalError:
        _give_up(1, "The database of INCIPIT_DATABASE_URL does not answer; start it, or correct the address.")
    if not is_usable:
        _give_up(
            _BAD_CONFIGURATION,
            f"Nobody could use the API on {settings.host}: there is no valid API key; make one with `incipit keys create "
            "NAME --role admin --project '*'`, or start everything on this machine with `incipit up`.",
        )
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)
        # asyncio does so for sockets that it makes; without it each answer waits 40 ms for the client's acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        where = f"{settings.host}, port {settings.port}"
        _give_up(1, f"Cannot listen on {where} ({os.strerror(error.errno or 0)}); set INCIPIT_PORT to a free port.")
    set_up_logs("api", settings.log_level)
    config = uvicorn.Config(
        create_app(settings),
        server_header=False,
        timeout_graceful_shutdown=5,
        log_config=None,  # ours
    )
    server = uvicorn.Server(config)
    server.run(sockets=[listener])


def _sentence(details: object) -> str:
    assert isinstance(details, dict)
    name = "__".join(map(str, details["loc"])).upper()
    message = str(details["msg"]).removeprefix("Value error, ")
    return f"INCIPIT_{name} is {details['input']!r}: {message}." if name else message


def _give_up(status: int, *sentences: str) -> NoReturn:
    for sentence in sentences:
        print(f"incipit: {sentence}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
