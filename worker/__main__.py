"""`python -m worker`: a Celery worker for all slots of this machine."""

import logging
from contextlib import suppress

from pydantic import ValidationError

from backend.database import Database
from backend.settings import Settings
from worker.lease import DATABASE_OUTAGES
from worker.schema import OtherSchema, refuse_other_schema
from worker.settings import WorkerSettings, give_up, sentences_of


def main() -> None:
    """Work until a signal ends it; what is wrong before that is one sentence and a status."""
    try:
        WorkerSettings()
        database = Database(Settings().sql_url)
        with suppress(*DATABASE_OUTAGES), database.read() as session:
            refuse_other_schema(session)
        database.close()
    except ValidationError as error:
        give_up(*sentences_of(error))
    except OtherSchema as error:
        give_up(str(error))
    from worker.app import app  # it reads the settings, which are known to be sound by now

    app.worker_main(["worker", "--loglevel=INFO", "--without-gossip", "--without-mingle", "--without-heartbeat"])


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    main()
