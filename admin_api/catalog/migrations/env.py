"""Alembic's entry: runs the migrations on the connection of ``catalog/database.py``."""

from alembic import context

from admin_api.catalog.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
)
with context.begin_transaction():
    context.run_migrations()
