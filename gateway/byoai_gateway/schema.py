"""The tables. Plain SQL types only: the same statements run on SQLite and PostgreSQL.

Times are whole Unix seconds. Whatever is secret stands in `secrets`, sealed, and nowhere else.
The migrations in `migrations/` make these tables; a test holds the two against each other.
"""

from typing import Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    false,
    text,
)

metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

tunnels: Final = Table(
    "tunnels",
    metadata,
    Column("tunnel_id", String(32), primary_key=True),
    Column("user_id", String(255), nullable=False),
    Column("model_name", String(200), nullable=False),
    Column("capabilities", JSON, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
    # Null since agents are locked instead; gateways of the version before still read it.
    Column("locked_at", BigInteger),
    # However many tunnels a user has revoked, counting the others does not read them.
    Index(
        "ix_tunnels_live_user_id",
        "user_id",
        sqlite_where=text("revoked_at IS NULL"),
        postgresql_where=text("revoked_at IS NULL"),
    ),
    Index("ix_tunnels_revoked_at", "revoked_at"),
)

agents: Final = Table(
    "agents",
    metadata,
    Column("agent_id", String(32), primary_key=True),
    Column(
        "tunnel_id",
        String(32),
        ForeignKey("tunnels.tunnel_id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    Column("hostname", String(255), nullable=False),
    Column("agent_version", String(64), nullable=False),
    Column("end_to_end_pem", Text, nullable=False),
    # Still pinned: the agent changes over only when it has the answer to its renewal.
    Column("previous_end_to_end_pem", Text),
    # Of its link key; rises with each renewal.
    Column("generation", Integer, nullable=False),
    Column("enrolled_at", BigInteger, nullable=False),
    Column("token_issued_at", BigInteger, nullable=False),
    Column("token_expires_at", BigInteger, nullable=False),
    # The newest authentication key it was given, and when.
    Column("authentication_version", Integer, nullable=False),
    Column("authentication_fetched_at", BigInteger, nullable=False),
    Column("removed_at", BigInteger),
    # When a key that had been replaced was last used, and the host name that came with it.
    Column("old_key_used_at", BigInteger),
    Column("old_key_host", String(255)),
    # Since when the agent is locked because of that; its owner unlocks it.
    Column("locked_at", BigInteger),
    # Keys of an earlier generation are known to be copied: they lock the agent no more.
    Column("cleared_generation", Integer),
)

# The runs of an agent's program: two that overlap are two hosts with the same state.
agent_instances: Final = Table(
    "agent_instances",
    metadata,
    Column(
        "agent_id",
        String(32),
        ForeignKey("agents.agent_id", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("instance", String(64), primary_key=True),
    Column("hostname", String(255), nullable=False),
    Column("first_seen_at", BigInteger, nullable=False),
    Column("last_seen_at", BigInteger, nullable=False),
)

link_keys: Final = Table(
    "link_keys",
    metadata,
    Column(
        "agent_id",
        String(32),
        ForeignKey("agents.agent_id", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("generation", Integer, primary_key=True),
    Column("public_key", LargeBinary, nullable=False),
    Column("certificate_thumbprint", String(64), nullable=False),
    Column("certificate_expires_at", BigInteger, nullable=False),
    # When the agent first used it; until then its predecessor may ask again.
    Column("confirmed_at", BigInteger),
)

join_codes: Final = Table(
    "join_codes",
    metadata,
    # SHA-256 of 256 random bits: there is nothing to guess, so no slow hash.
    Column("secret_hash", String(64), primary_key=True),
    Column(
        "tunnel_id",
        String(32),
        ForeignKey("tunnels.tunnel_id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    Column("expires_at", BigInteger, nullable=False),
    Column("used_at", BigInteger),
    Index("ix_join_codes_expires_at", "expires_at"),
)

authentication_keys: Final = Table(
    "authentication_keys",
    metadata,
    Column(
        "tunnel_id",
        String(32),
        ForeignKey("tunnels.tunnel_id", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("version", Integer, primary_key=True),
    Column("created_at", BigInteger, nullable=False),
)

signing_keys: Final = Table(
    "signing_keys",
    metadata,
    Column("kid", String(64), primary_key=True),
    Column("public_jwk", JSON, nullable=False),
    Column("active_from", BigInteger, nullable=False),
)

authorities: Final = Table(
    "authorities",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("certificate_pem", Text, nullable=False),
)

# Revoked tunnels and agents that relays must still refuse.
denials: Final = Table(
    "denials",
    metadata,
    # A tunnel's id, or a tunnel's and an agent's.
    Column("subject", String(128), primary_key=True),
    Column("user_id", String(255), nullable=False),
    # Of the trust when it was last changed: relays are sent what is newer than what they have.
    Column("revision", BigInteger, nullable=False),
    Column("denied_at", BigInteger, nullable=False),
    # When the last token of it has expired; 0 when it was withdrawn before that.
    Column("denied_until", BigInteger, nullable=False),
    Index("ix_denials_user_id", "user_id"),
    Index("ix_denials_revision", "revision"),
    Index("ix_denials_denied_at", "denied_at"),
    Index("ix_denials_denied_until", "denied_until"),
)

# Certificates of relays and gateways: all that a service had until a moment.
revoked_services: Final = Table(
    "revoked_services",
    metadata,
    # The SAN URI that names it.
    Column("service", String(128), primary_key=True),
    Column("issued_until_ms", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
)

secrets: Final = Table(
    "secrets",
    metadata,
    Column("owner", String(255), primary_key=True),
    Column("field", String(64), primary_key=True),
    Column("key_id", String(64), nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    # Records of one key in their order, for when they are sealed anew.
    Index("ix_secrets_key_id_owner_field", "key_id", "owner", "field"),
)

counters: Final = Table(
    "counters",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", BigInteger, nullable=False),
)

_ROW_ID: Final = BigInteger().with_variant(Integer, "sqlite")
"""SQLite numbers rows by itself only in a column of exactly this type."""

preferences: Final = Table(
    "preferences",
    metadata,
    Column("user_id", String(255), primary_key=True),
    Column("ai_provider", String(16), nullable=False),
    Column("openrouter_model", String(200)),
    Column("fallback_to_default", Boolean, nullable=False),
    Column("tunnel_id", String(32)),
    Column("self_hosted_url", String(2048)),
    Column("self_hosted_model", String(200)),
    # The server's default is for gateways of the version before, which insert without it.
    Column("always_use_my_model", Boolean, nullable=False, server_default=false()),
    Column("updated_at", BigInteger, nullable=False),
)

# Settings that stopped working, and why; gone when they are saved anew or work again.
attention: Final = Table(
    "attention",
    metadata,
    Column("user_id", String(255), primary_key=True),
    Column("setting", String(64), primary_key=True),
    Column("code", String(64), nullable=False),
    Column("noticed_at", BigInteger, nullable=False),
)

usage_records: Final = Table(
    "usage_records",
    metadata,
    Column("record_id", _ROW_ID, primary_key=True, autoincrement=True),
    # Made by the gateway, so that a batch can be written again when nobody knows whether it was.
    # Null in rows of older gateways.
    Column("record_key", String(32)),
    Column("request_id", String(128), nullable=False),
    Column("user_id", String(255), nullable=False),
    Column("started_at", BigInteger, nullable=False),
    Column("endpoint", String(64), nullable=False),
    Column("provider", String(16), nullable=False),
    Column("model", String(200)),
    Column("prompt_tokens", BigInteger),
    Column("completion_tokens", BigInteger),
    # US dollars, where the provider says it.
    Column("cost", Float),
    Column("first_token_ms", Integer),
    Column("duration_ms", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("fallback_reason", String(64)),
    Column("outcome", String(64), nullable=False),
    Index("ix_usage_records_user_id_started_at", "user_id", "started_at"),
    Index("ix_usage_records_started_at", "started_at"),
    Index("ix_usage_records_record_key", "record_key", unique=True),
)

audit_log: Final = Table(
    "audit_log",
    metadata,
    Column("entry_id", _ROW_ID, primary_key=True, autoincrement=True),
    Column("at", BigInteger, nullable=False),
    # "user", "agent", "gateway" or "operator".
    Column("actor", String(16), nullable=False),
    # Whose settings or tunnel it is; NULL for what is nobody's own, as the signing keys are.
    Column("user_id", String(255)),
    Column("action", String(64), nullable=False),
    Column("subject", String(255)),
    # Names of fields, never their values.
    Column("fields", JSON, nullable=False),
    # Those of them that hold nothing since; NULL in entries that are older than this column.
    Column("emptied", JSON),
    Column("request_id", String(128)),
    Index("ix_audit_log_user_id_at", "user_id", "at"),
    Index("ix_audit_log_at", "at"),
)
