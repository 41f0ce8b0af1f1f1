"""Items from a policy that is being trained: the step they come from, when they expire, and whether they were withdrawn."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"

COLUMNS = {"policy_step": "{number}", "expires_at": "{real}", "withdrawn": "{number} DEFAULT 0 NOT NULL"}


def upgrade() -> None:
    """Three columns of `item`; what is there already neither expires nor was withdrawn."""
    lite = op.get_bind().dialect.name == "sqlite"
    types = {"number": "INTEGER" if lite else "BIGINT", "real": "REAL" if lite else "DOUBLE PRECISION"}
    for name, kind in COLUMNS.items():
        op.execute(f"ALTER TABLE item ADD COLUMN {name} {kind.format(**types)}")


def downgrade() -> None:
    """Without them; judgments stay."""
    for name in COLUMNS:
        op.execute(f"ALTER TABLE item DROP COLUMN {name}")
