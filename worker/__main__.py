"""`python -m worker`: a Celery worker for all slots of this machine."""

import logging
import sys
from contextlib import suppress

from celery.signals import setup_logging
from pydantic import ValidationError

from backend.artifact_store import artifact_store
from backend.database import Database
from backend.logs import set_up_logs
from backend.settings import Settings
from backend.store_problem import StoreProblem
from worker.lease import DATABASE_OUTAGES
from worker.schema import OtherSchema, refuse_other_schema
from worker.settings import WorkerSettings, give_up, sentences_of


def main() -> None:
    """Work until a signal ends it; what is wrong before that is one sentence and a status."""
    try:
        WorkerSettings()
        settings = Settings()
        database = Database(settings.sql_url)
        with suppress(*DATABASE_OUTAGES), database.read() as session:
            refuse_other_schema(session)
        database.close()
    except ValidationError as error:
        give_up(*sentences_of(error))
    except OtherSchema as error:
        give_up(str(error))

    def set_up_worker_logs(**_: object) -> None:
        set_up_logs("worker", settings.log_level)

    setup_logging.connect(set_up_worker_logs, weak=False)  # with a receiver Celery leaves the loggers alone
    set_up_worker_logs()
    try:
        artifact_store(settings).check(writes=True)
    except StoreProblem as problem:
        # It may be mended while this worker runs: what it makes waits on its disk.
        logging.getLogger(__name__).error("%s", problem)
    if not sys.stderr.isatty():
        # Celery's signal handlers write to it past all loggers, and a log of JSON lines has no room for sentences.
        vars(sys)["__stdout__"] = None
    from worker.app import app  # it reads the settings, which are known to be sound by now

    # Quiet: without Celery's banner, which is no log line.
    app.worker_main(["--quiet", "worker", "--without-gossip", "--without-mingle", "--without-heartbeat"])


if __name__ == "__main__":
    main()
