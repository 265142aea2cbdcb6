"""The tables of the journal: runs, their events, what is wanted of them, and the audit log over all of it."""

from __future__ import annotations

import sqlalchemy as sa

from qafila.database import TABLES, Schema

RUNS = sa.Table(
    "agent_runs",
    TABLES,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("goal", sa.Text, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("parent", sa.String(32)),
    sa.Column("forked_at", sa.Integer),
    # Since version 2.
    sa.Column("owner", sa.String(128), nullable=False, server_default=""),
    sa.Column("served", sa.String(64)),
)
EVENTS = sa.Table(
    "agent_events",
    TABLES,
    sa.Column("run", sa.String(32), sa.ForeignKey("agent_runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)
INBOX = sa.Table(
    "agent_inbox",
    TABLES,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run", sa.String(32), sa.ForeignKey("agent_runs.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("text", sa.Text, nullable=False),
)
LOG = sa.Table(
    "agent_log",
    TABLES,
    sa.Column("place", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("run", sa.String(32), nullable=False, index=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("commitment", sa.String(64), nullable=False),
    sa.Column("salt", sa.String(32)),
)
CHECKPOINTS = sa.Table(
    "agent_checkpoints",
    TABLES,
    sa.Column("size", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("note", sa.Text, nullable=False),
)


def _with_owners(connection: sa.Connection) -> None:
    """Version 2: whose a run is, and for whom a server works on it."""
    connection.exec_driver_sql("ALTER TABLE agent_runs ADD COLUMN owner VARCHAR(128) NOT NULL DEFAULT ''")
    connection.exec_driver_sql("ALTER TABLE agent_runs ADD COLUMN served VARCHAR(64)")


SCHEMA = Schema("agent", (RUNS, EVENTS, INBOX, LOG, CHECKPOINTS), (_with_owners,))
