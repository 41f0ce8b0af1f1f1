"""Why the known answer of a check item is right; an index from which the progress of a project is counted alone."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """One column of `item`, empty for what is there."""
    op.execute("ALTER TABLE item ADD COLUMN explanation TEXT DEFAULT '' NOT NULL")
    op.execute("DROP INDEX ix_slot_project_id_done")
    op.execute("CREATE INDEX ix_slot_project_id_pool_done ON slot (project_id, pool, done)")


def downgrade() -> None:
    """Without it."""
    op.execute("DROP INDEX ix_slot_project_id_pool_done")
    op.execute("CREATE INDEX ix_slot_project_id_done ON slot (project_id, done)")
    op.execute("ALTER TABLE item DROP COLUMN explanation")
