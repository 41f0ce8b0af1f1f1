"""Alembic's way in: the open connection that `tutelage.feedback.database` hands over."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], target_metadata=None)
context.run_migrations()
