"""How the annotation database changed from version to version (Alembic), each step up and down."""
