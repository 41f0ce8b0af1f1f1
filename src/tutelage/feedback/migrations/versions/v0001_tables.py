"""The first tables, as they were then: later versions change them, this file never changes."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None

TABLES = (
    (
        "annotator",
        """id {key}, name TEXT NOT NULL, role TEXT NOT NULL, held_out {number} DEFAULT 0 NOT NULL, status TEXT DEFAULT
        'active' NOT NULL, created_at {real} NOT NULL""",
    ),
    (
        "attempt",
        """id {key}, address TEXT NOT NULL, at {real} NOT NULL""",
    ),
    (
        "project",
        """id {key}, name TEXT NOT NULL, task TEXT NOT NULL, overlap {number} DEFAULT 1 NOT NULL, expert_share {real} NOT
        NULL, check_share {real} NOT NULL, repeat_share {real} NOT NULL, status TEXT DEFAULT 'open' NOT NULL, options
        TEXT NOT NULL, media_root TEXT, seed TEXT NOT NULL, created_at {real} NOT NULL, CONSTRAINT uq_project_name
        UNIQUE (name)""",
    ),
    (
        "api_token",
        """id {key}, hash TEXT NOT NULL, name TEXT NOT NULL, scopes TEXT NOT NULL, project_id {number}, created_at {real}
        NOT NULL, revoked_at {real}, CONSTRAINT uq_api_token_hash UNIQUE (hash), CONSTRAINT fk_api_token_project_id
        FOREIGN KEY(project_id) REFERENCES project (id)""",
    ),
    (
        "audit",
        """id {key}, at {real} NOT NULL, annotator_id {number}, action TEXT NOT NULL, detail TEXT NOT NULL, CONSTRAINT
        fk_audit_annotator_id FOREIGN KEY(annotator_id) REFERENCES annotator (id)""",
    ),
    (
        "entry",
        """id {key}, hash TEXT NOT NULL, annotator_id {number} NOT NULL, once {number} DEFAULT 1 NOT NULL, expires_at
        {real} NOT NULL, used_at {real}, CONSTRAINT uq_entry_hash UNIQUE (hash), CONSTRAINT fk_entry_annotator_id
        FOREIGN KEY(annotator_id) REFERENCES annotator (id)""",
    ),
    (
        "instructions",
        """id {key}, project_id {number} NOT NULL, version {number} NOT NULL, text TEXT NOT NULL, at {real} NOT NULL,
        CONSTRAINT uq_instructions_project_id_version UNIQUE (project_id, version), CONSTRAINT
        fk_instructions_project_id FOREIGN KEY(project_id) REFERENCES project (id)""",
    ),
    (
        "invite",
        """id {key}, hash TEXT NOT NULL, project_id {number}, role TEXT NOT NULL, held_out {number} DEFAULT 0 NOT NULL,
        uses {number} DEFAULT 1 NOT NULL, uses_left {number} DEFAULT 1 NOT NULL, expires_at {real} NOT NULL, created_by {number} NOT NULL, created_at
        {real} NOT NULL, CONSTRAINT uq_invite_hash UNIQUE (hash), CONSTRAINT fk_invite_project_id FOREIGN
        KEY(project_id) REFERENCES project (id), CONSTRAINT fk_invite_created_by FOREIGN KEY(created_by) REFERENCES
        annotator (id)""",
    ),
    (
        "member",
        """id {key}, project_id {number} NOT NULL, annotator_id {number} NOT NULL, CONSTRAINT
        uq_member_project_id_annotator_id UNIQUE (project_id, annotator_id), CONSTRAINT fk_member_project_id FOREIGN
        KEY(project_id) REFERENCES project (id), CONSTRAINT fk_member_annotator_id FOREIGN KEY(annotator_id)
        REFERENCES annotator (id)""",
    ),
    (
        "prompt",
        """id {key}, project_id {number} NOT NULL, root TEXT NOT NULL, "key" TEXT NOT NULL, category TEXT DEFAULT '' NOT
        NULL, split TEXT DEFAULT '' NOT NULL, messages TEXT NOT NULL, CONSTRAINT uq_prompt_project_id_root_key UNIQUE
        (project_id, root, "key"), CONSTRAINT fk_prompt_project_id FOREIGN KEY(project_id) REFERENCES project (id)""",
    ),
    (
        "session",
        """id {key}, hash TEXT NOT NULL, annotator_id {number} NOT NULL, csrf TEXT NOT NULL, created_at {real} NOT NULL,
        seen_at {real} NOT NULL, CONSTRAINT uq_session_hash UNIQUE (hash), CONSTRAINT fk_session_annotator_id FOREIGN
        KEY(annotator_id) REFERENCES annotator (id)""",
    ),
    (
        "item",
        """id {key}, project_id {number} NOT NULL, kind TEXT NOT NULL, prompt_id {number} NOT NULL, responses TEXT NOT
        NULL, options TEXT NOT NULL, media TEXT NOT NULL, priority {number} DEFAULT 0 NOT NULL, check_answer TEXT,
        repeat_of {number}, client_key TEXT NOT NULL, created_at {real} NOT NULL, CONSTRAINT
        uq_item_project_id_client_key UNIQUE (project_id, client_key), CONSTRAINT fk_item_project_id FOREIGN
        KEY(project_id) REFERENCES project (id), CONSTRAINT fk_item_prompt_id FOREIGN KEY(prompt_id) REFERENCES prompt
        (id), CONSTRAINT fk_item_repeat_of FOREIGN KEY(repeat_of) REFERENCES item (id)""",
    ),
    (
        "response",
        """id {key}, prompt_id {number} NOT NULL, text TEXT NOT NULL, origin TEXT NOT NULL, media TEXT NOT NULL, length
        {number} DEFAULT 0 NOT NULL, CONSTRAINT fk_response_prompt_id FOREIGN KEY(prompt_id) REFERENCES prompt (id)""",
    ),
    (
        "slot",
        """id {key}, project_id {number} NOT NULL, item_id {number} NOT NULL, k {number} NOT NULL, pool TEXT DEFAULT
        'any' NOT NULL, priority {number} DEFAULT 0 NOT NULL, who {number}, lease_until {real}, done {number} DEFAULT
        0 NOT NULL, CONSTRAINT uq_slot_item_id_pool_k UNIQUE (item_id, pool, k), CONSTRAINT fk_slot_project_id FOREIGN
        KEY(project_id) REFERENCES project (id), CONSTRAINT fk_slot_item_id FOREIGN KEY(item_id) REFERENCES item (id),
        CONSTRAINT fk_slot_who FOREIGN KEY(who) REFERENCES annotator (id)""",
    ),
    (
        "assignment",
        """id {key}, slot_id {number} NOT NULL, item_id {number} NOT NULL, project_id {number} NOT NULL, annotator_id
        {number} NOT NULL, permutation TEXT NOT NULL, turn {number} NOT NULL, instructions_version {number} NOT NULL,
        handed_at {real} NOT NULL, CONSTRAINT fk_assignment_slot_id FOREIGN KEY(slot_id) REFERENCES slot (id),
        CONSTRAINT fk_assignment_item_id FOREIGN KEY(item_id) REFERENCES item (id), CONSTRAINT
        fk_assignment_project_id FOREIGN KEY(project_id) REFERENCES project (id), CONSTRAINT
        fk_assignment_annotator_id FOREIGN KEY(annotator_id) REFERENCES annotator (id)""",
    ),
    (
        "draft",
        """id {key}, assignment_id {number} NOT NULL, payload TEXT NOT NULL, at {real} NOT NULL, CONSTRAINT
        uq_draft_assignment_id UNIQUE (assignment_id), CONSTRAINT fk_draft_assignment_id FOREIGN KEY(assignment_id)
        REFERENCES assignment (id)""",
    ),
    (
        "flag",
        """id {key}, project_id {number} NOT NULL, item_id {number} NOT NULL, annotator_id {number} NOT NULL,
        assignment_id {number} NOT NULL, tags TEXT NOT NULL, note TEXT DEFAULT '' NOT NULL, at {real} NOT NULL,
        CONSTRAINT fk_flag_project_id FOREIGN KEY(project_id) REFERENCES project (id), CONSTRAINT fk_flag_item_id
        FOREIGN KEY(item_id) REFERENCES item (id), CONSTRAINT fk_flag_annotator_id FOREIGN KEY(annotator_id)
        REFERENCES annotator (id), CONSTRAINT fk_flag_assignment_id FOREIGN KEY(assignment_id) REFERENCES assignment
        (id)""",
    ),
    (
        "judgment_event",
        """seq {key}, "key" TEXT NOT NULL, project_id {number} NOT NULL, item_id {number} NOT NULL, annotator_id {number}
        NOT NULL, assignment_id {number} NOT NULL, kind TEXT NOT NULL, payload TEXT NOT NULL, permutation TEXT NOT
        NULL, "view" TEXT DEFAULT 'rendered' NOT NULL, active_ms {number} DEFAULT 0 NOT NULL, visible_ms {number}
        DEFAULT 0 NOT NULL, keys {number} DEFAULT 0 NOT NULL, clicks {number} DEFAULT 0 NOT NULL, instructions_version
        {number} DEFAULT 0 NOT NULL, supersedes {number}, late {number} DEFAULT 0 NOT NULL, redacted {number} DEFAULT
        0 NOT NULL, at {real} NOT NULL, CONSTRAINT uq_judgment_event_key UNIQUE ("key"), CONSTRAINT
        fk_judgment_event_project_id FOREIGN KEY(project_id) REFERENCES project (id), CONSTRAINT
        fk_judgment_event_item_id FOREIGN KEY(item_id) REFERENCES item (id), CONSTRAINT fk_judgment_event_annotator_id
        FOREIGN KEY(annotator_id) REFERENCES annotator (id), CONSTRAINT fk_judgment_event_assignment_id FOREIGN
        KEY(assignment_id) REFERENCES assignment (id), CONSTRAINT uq_judgment_event_supersedes UNIQUE (supersedes),
        CONSTRAINT fk_judgment_event_supersedes FOREIGN KEY(supersedes) REFERENCES judgment_event (seq)""",
    ),
)
INDEXES = (
    "CREATE INDEX ix_attempt_address_at ON attempt (address, at)",
    "CREATE INDEX ix_entry_annotator_id ON entry (annotator_id)",
    "CREATE INDEX ix_member_annotator_id ON member (annotator_id)",
    "CREATE INDEX ix_session_annotator_id ON session (annotator_id)",
    "CREATE INDEX ix_response_prompt_id ON response (prompt_id)",
    "CREATE INDEX ix_slot_lease ON slot (who, project_id) WHERE done = 0",
    "CREATE INDEX ix_slot_open ON slot (project_id, pool, priority, id) WHERE done = 0",
    "CREATE INDEX ix_slot_project_id_done ON slot (project_id, done)",
    "CREATE UNIQUE INDEX uq_slot_item_id_who ON slot (item_id, who)",
    "CREATE INDEX ix_assignment_annotator_id_project_id ON assignment (annotator_id, project_id)",
    "CREATE INDEX ix_assignment_item_id ON assignment (item_id)",
    "CREATE INDEX ix_assignment_slot_id_annotator_id ON assignment (slot_id, annotator_id)",
    "CREATE INDEX ix_flag_project_id ON flag (project_id)",
    "CREATE INDEX ix_judgment_event_annotator_id_project_id ON judgment_event (annotator_id, project_id)",
    "CREATE INDEX ix_judgment_event_item_id_annotator_id ON judgment_event (item_id, annotator_id)",
    "CREATE INDEX ix_judgment_event_project_id_seq ON judgment_event (project_id, seq)",
)

VIEW = """CREATE VIEW judgment_current AS SELECT e.* FROM judgment_event e WHERE e.kind IN ('judgment', 'skip')
    AND NOT EXISTS (SELECT 1 FROM judgment_event later WHERE later.supersedes = e.seq)"""
KEPT = (
    "seq",
    "key",
    "project_id",
    "item_id",
    "annotator_id",
    "assignment_id",
    "kind",
    "permutation",
    "supersedes",
    "late",
    "at",
)
"""Columns of an event that not even an erasure may change."""


def upgrade() -> None:
    """Make everything."""
    lite = op.get_bind().dialect.name == "sqlite"
    types = {
        "key": "INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT" if lite else "BIGSERIAL PRIMARY KEY",
        "number": "INTEGER" if lite else "BIGINT",
        "real": "REAL" if lite else "DOUBLE PRECISION",
    }
    for name, columns in TABLES:
        op.execute(f"CREATE TABLE {name} ({columns.format(**types)}){' STRICT' if lite else ''}")
    for index in INDEXES:
        op.execute(index)
    op.execute(VIEW)
    for statement in sqlite_guards() if lite else postgres_guards():
        op.execute(statement)


def sqlite_guards() -> list[str]:
    """Events are never deleted, and changed only to redact them."""
    changed = " OR ".join(f'NEW."{c}" IS NOT OLD."{c}"' for c in KEPT)
    refuse = "BEGIN SELECT RAISE(ABORT, 'judgment_event is append-only'); END"
    return [
        f"CREATE TRIGGER event_delete BEFORE DELETE ON judgment_event {refuse}",
        f"CREATE TRIGGER event_update BEFORE UPDATE ON judgment_event WHEN NEW.redacted <> 1 OR {changed} {refuse}",
    ]


def postgres_guards() -> list[str]:
    """The same for PostgreSQL."""
    changed = " OR ".join(f'NEW."{c}" IS DISTINCT FROM OLD."{c}"' for c in KEPT)
    body = f"""BEGIN
        IF TG_OP = 'UPDATE' THEN IF NEW.redacted = 1 AND NOT ({changed}) THEN RETURN NEW; END IF; END IF;
        RAISE EXCEPTION 'judgment_event is append-only';
    END"""
    return [
        f"CREATE FUNCTION event_guard() RETURNS trigger LANGUAGE plpgsql AS $${body}$$",
        "CREATE TRIGGER event_guard BEFORE UPDATE OR DELETE ON judgment_event FOR EACH ROW EXECUTE FUNCTION event_guard()",
        "CREATE TRIGGER event_truncate BEFORE TRUNCATE ON judgment_event EXECUTE FUNCTION event_guard()",
    ]


def downgrade() -> None:
    """Remove everything."""
    op.execute("DROP VIEW judgment_current")
    for name, _ in reversed(TABLES):
        op.execute(f"DROP TABLE {name}")
    if op.get_bind().dialect.name != "sqlite":
        op.execute("DROP FUNCTION event_guard()")
