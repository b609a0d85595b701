"""Alembic's entry: migrates the connection that backend/migrate.py hands over, or the database of the settings."""

from alembic import context
from sqlalchemy import Connection

import backend.access_records
import backend.alert_records
import backend.prompt_file_records
import backend.records  # noqa: F401  # their tables belong to the metadata
from backend.migrate import migrating
from backend.settings import Settings
from backend.tables import Table


def _migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Table.metadata,
        # SQLite cannot alter a constraint: the table is rebuilt.
        render_as_batch=connection.dialect.name == "sqlite",
        compare_type=True,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


handed_over = context.config.attributes.get("connection")
if handed_over is not None:
    _migrate(handed_over)
else:
    with migrating(Settings().sql_url) as opened:
        _migrate(opened)
