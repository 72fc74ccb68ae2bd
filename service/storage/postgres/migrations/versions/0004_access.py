"""Let API keys expire; make the audit append-only, with the reason and the id of the request.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

from service.storage.postgres.migrations.losses import refuse_losses

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: None = None
depends_on: None = None


def upgrade() -> None:
    """Add the columns, and a trigger that refuses changes of the audit."""
    op.add_column("api_keys", sa.Column("expires_at", sa.DateTime(timezone=True)))
    op.add_column("audit", sa.Column("reason", sa.Text()))
    op.add_column("audit", sa.Column("request_id", sa.Text()))
    op.execute("UPDATE audit SET reason = detail ->> 'reason', detail = detail - 'reason' WHERE detail ? 'reason'")
    op.execute("""
        CREATE FUNCTION refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'rows of the audit are only added; % is refused', TG_OP
                USING ERRCODE = 'insufficient_privilege';
        END $$
    """)
    # FOR EACH STATEMENT refuses a statement that affects no row too. ENABLE ALWAYS keeps the trigger on when a session
    # sets session_replication_role to replica, which turns ordinary triggers off.
    op.execute("""
        CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
        FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change()
    """)
    op.execute("ALTER TABLE audit ENABLE ALWAYS TRIGGER append_only")


def downgrade() -> None:
    """Let the audit be changed again, and move reasons back into the details. Request ids are lost.

    Expired keys become revoked ones; other keys that would expire become valid for ever.
    """
    refuse_losses(
        {
            "api_keys.expires_at": "api_keys WHERE expires_at IS NOT NULL",
            "audit.request_id": "audit WHERE request_id IS NOT NULL",
        }
    )
    op.execute("DROP TRIGGER append_only ON audit")
    op.execute("DROP FUNCTION refuse_audit_change()")
    op.execute("""
        UPDATE audit SET detail = detail || jsonb_build_object('reason', reason) WHERE reason IS NOT NULL
    """)
    op.drop_column("audit", "request_id")
    op.drop_column("audit", "reason")
    op.execute("UPDATE api_keys SET revoked_at = expires_at WHERE revoked_at IS NULL AND expires_at <= now()")
    op.drop_column("api_keys", "expires_at")
