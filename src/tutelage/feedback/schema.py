"""The tables of the annotation database: what was asked, who was handed what, and every judgment, append-only."""

from __future__ import annotations

from sqlalchemy import Column, ForeignKey, Index, MetaData, Table, Text, UniqueConstraint, text

from tutelage.feedback.columns import Number, Real, json_column, metadata, number, one, table, time, words

project = table(
    "project",
    Column("name", Text, nullable=False, unique=True),
    words("task", None),  # preference | ranking | rating | yesno | critique | demonstration
    number("overlap", 1),
    Column("expert_share", Real, nullable=False),
    Column("check_share", Real, nullable=False),
    Column("repeat_share", Real, nullable=False),
    words("status", "open"),  # open | paused | closed
    json_column("options"),
    words("media_root", None, null=True),
    words("seed", None),  # decides sides, check items and repeats; never leaves the server
    time("created_at"),
)
prompt = table(
    "prompt",
    one("project"),
    words("root", None),  # hash of the conversation: splits by it, so that no dialogue is on both sides
    words("key", None),  # the data's id, or the root
    words("category"),
    words("split"),
    json_column("messages"),  # [{"role", "content"}]
    UniqueConstraint("project_id", "root", "key"),
)
response = table(
    "response",
    one("prompt", index=True),
    words("text", None),
    json_column("origin"),  # author, policy, step, sampler settings, source row: never sent to an annotator
    json_column("media"),
    number("length", 0),  # characters
)
item = table(
    "item",
    one("project"),
    words("kind", None),
    one("prompt"),
    json_column("responses"),  # response ids in the canonical order that permutations refer to
    json_column("options"),  # over the project's
    json_column("media"),
    number("priority", 0),
    json_column("check_answer", null=True),  # a payload in canonical order: this is a check item
    one("item", "repeat_of", null=True),
    words("client_key", None),
    number("policy_step", None, null=True),
    time("expires_at", null=True),
    number("withdrawn", 0),
    words("explanation"),  # why the known answer of a check item is right: told in a qualification test
    time("created_at"),
    UniqueConstraint("project_id", "client_key"),
)
slot = table(
    "slot",
    one("project"),
    one("item"),
    number("k", None),
    words("pool", "any"),  # any | expert | check | qualify | repeat
    number("priority", 0),
    one("annotator", "who", null=True),
    time("lease_until", null=True),
    number("done", 0),
    UniqueConstraint("item_id", "pool", "k"),
    Index("uq_slot_item_id_who", "item_id", "who", unique=True),  # NULLs differ: free slots are no conflict
    Index(
        "ix_slot_open",
        "project_id",
        "pool",
        "priority",
        "id",
        sqlite_where=text("done = 0"),
        postgresql_where=text("done = 0"),
    ),
    Index("ix_slot_lease", "who", "project_id", sqlite_where=text("done = 0"), postgresql_where=text("done = 0")),
    Index("ix_slot_project_id_pool_done", "project_id", "pool", "done"),
)
assignment = table(
    "assignment",
    one("slot"),
    one("item", index=True),
    one("project"),
    one("annotator"),
    json_column("permutation"),  # canonical index of the response at each place of the screen
    number("turn", None),  # how many of this size the annotator was handed before, in this project
    number("instructions_version", None),
    time("handed_at"),
    Index("ix_assignment_annotator_id_project_id", "annotator_id", "project_id"),
    Index("ix_assignment_slot_id_annotator_id", "slot_id", "annotator_id"),
)
judgment_event = Table(
    "judgment_event",
    metadata,
    Column("seq", Number, primary_key=True),
    Column("key", Text, nullable=False, unique=True),  # idempotency
    one("project"),
    one("item"),
    one("annotator"),
    one("assignment"),
    words("kind", None),  # judgment | skip | undo
    json_column("payload"),  # in shown positions; {} for an undo
    json_column("permutation"),
    words("view", "rendered"),
    number("active_ms", 0),
    number("visible_ms", 0),
    number("keys", 0),
    number("clicks", 0),
    number("instructions_version", 0),
    Column("supersedes", Number, ForeignKey("judgment_event.seq"), nullable=True, unique=True),
    number("late", 0),  # 1: more than the overlap asked for
    number("redacted", 0),
    time("at"),
    Index("ix_judgment_event_item_id_annotator_id", "item_id", "annotator_id"),
    Index("ix_judgment_event_annotator_id_project_id", "annotator_id", "project_id"),
    Index("ix_judgment_event_project_id_seq", "project_id", "seq"),
    sqlite_strict=True,
    sqlite_autoincrement=True,
)
judgment_current = Table(
    "judgment_current",
    MetaData(),  # a view: not made by create_all
    *(Column(c.name, c.type) for c in judgment_event.columns),
)
"""The events that count: judgments and skips that no later event supersedes."""
draft = table("draft", one("assignment", unique=True), json_column("payload"), time("at"))
annotator = table(
    "annotator",
    words("name", None),
    words("role", None),  # admin | researcher | labeller
    number("held_out", 0),
    words("status", "active"),  # active | erased
    time("created_at"),
)
member = table("member", one("project"), one("annotator", index=True), UniqueConstraint("project_id", "annotator_id"))
session = table(
    "session",
    Column("hash", Text, nullable=False, unique=True),
    one("annotator", index=True),
    words("csrf", None),
    time("created_at"),
    time("seen_at"),
)
entry = table(  # links that log a person in: once, or until they expire
    "entry",
    Column("hash", Text, nullable=False, unique=True),
    one("annotator", index=True),
    number("once", 1),
    time("expires_at"),
    time("used_at", null=True),
)
invite = table(
    "invite",
    Column("hash", Text, nullable=False, unique=True),
    one("project", null=True),
    words("role", None),
    number("held_out", 0),
    number("uses", 1),
    number("uses_left", 1),
    time("expires_at"),
    one("annotator", "created_by"),
    time("created_at"),
)
api_token = table(
    "api_token",
    Column("hash", Text, nullable=False, unique=True),
    words("name", None),
    json_column("scopes"),
    one("project", null=True),  # NULL: every project
    time("created_at"),
    time("revoked_at", null=True),
)
instructions = table(
    "instructions",
    one("project"),
    number("version", None),
    words("text", None),
    time("at"),
    UniqueConstraint("project_id", "version"),
)
flag = table(
    "flag",
    one("project"),
    one("item"),
    one("annotator"),
    one("assignment"),
    json_column("tags"),
    words("note"),
    time("at"),
    Index("ix_flag_project_id", "project_id"),
)
audit = table("audit", time("at"), one("annotator", null=True), words("action", None), json_column("detail"))
attempt = table("attempt", words("address", None), time("at"), Index("ix_attempt_address_at", "address", "at"))
"""Failed logins, for the throttle."""
