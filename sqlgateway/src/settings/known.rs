//! The settings that exist: names, defaults, what they accept.

/// What a setting accepts.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Text,
    Bool,
    Integer(i64, i64),
    Real,
    /// One of these (lower case).
    Choice(&'static [&'static str]),
    /// Milliseconds with units.
    Time,
    /// Cannot be changed.
    Fixed,
}

pub(super) struct Known {
    pub(super) name: &'static str,
    pub(super) default: &'static str,
    pub(super) kind: Kind,
    pub(super) description: &'static str,
}

const ISOLATION: &[&str] = &[
    "serializable",
    "repeatable read",
    "read committed",
    "read uncommitted",
];

const fn known(
    name: &'static str,
    default: &'static str,
    kind: Kind,
    description: &'static str,
) -> Known {
    Known {
        name,
        default,
        kind,
        description,
    }
}

/// In the order of `SHOW ALL`.
pub(super) static KNOWN: &[Known] = &[
    known(
        "application_name",
        "",
        Kind::Text,
        "Sets the application name to be reported in statistics and logs.",
    ),
    known(
        "backslash_quote",
        "safe_encoding",
        Kind::Text,
        "Sets whether \"\\'\" is allowed in string literals.",
    ),
    known(
        "bytea_output",
        "hex",
        Kind::Choice(&["hex"]),
        "Sets the output format for bytea.",
    ),
    known(
        "client_encoding",
        "UTF8",
        Kind::Text,
        "Sets the client's character set encoding.",
    ),
    known(
        "client_min_messages",
        "notice",
        Kind::Text,
        "Sets the message levels that are sent to the client.",
    ),
    known(
        "constraint_exclusion",
        "partition",
        Kind::Text,
        "Has no effect.",
    ),
    known("cursor_tuple_fraction", "0.1", Kind::Real, "Has no effect."),
    known(
        "datestyle",
        "ISO, MDY",
        Kind::Text,
        "Sets the display format for date and time values.",
    ),
    known(
        "default_text_search_config",
        "pg_catalog.english",
        Kind::Text,
        "Has no effect.",
    ),
    known(
        "default_transaction_deferrable",
        "off",
        Kind::Bool,
        "Has no effect.",
    ),
    known(
        "default_transaction_isolation",
        "serializable",
        Kind::Choice(ISOLATION),
        "Sets the isolation level of each new transaction.",
    ),
    known(
        "default_transaction_read_only",
        "off",
        Kind::Bool,
        "Sets the read-only status of new transactions.",
    ),
    known("enable_hashjoin", "on", Kind::Bool, "Has no effect."),
    known("enable_indexscan", "on", Kind::Bool, "Has no effect."),
    known("enable_mergejoin", "on", Kind::Bool, "Has no effect."),
    known("enable_nestloop", "on", Kind::Bool, "Has no effect."),
    known("enable_seqscan", "on", Kind::Bool, "Has no effect."),
    known("escape_string_warning", "on", Kind::Bool, "Has no effect."),
    known(
        "extra_float_digits",
        "1",
        Kind::Integer(-15, 3),
        "Floats are shown in their shortest exact form.",
    ),
    known("geqo", "on", Kind::Bool, "Has no effect."),
    known(
        "gin_fuzzy_search_limit",
        "0",
        Kind::Integer(0, i64::MAX),
        "Has no effect.",
    ),
    known(
        "idempotency_key",
        "",
        Kind::Text,
        "Makes the next transaction happen once under this key.",
    ),
    known(
        "idle_in_transaction_session_timeout",
        "0",
        Kind::Time,
        "Ends transactions that are idle for longer; 0 turns this off.",
    ),
    known(
        "idle_session_timeout",
        "0",
        Kind::Time,
        "Ends sessions that are idle for longer outside of a transaction; 0 turns this off.",
    ),
    known(
        "in_hot_standby",
        "off",
        Kind::Fixed,
        "Shows whether the server is a hot standby.",
    ),
    known(
        "integer_datetimes",
        "on",
        Kind::Fixed,
        "Shows whether datetimes are integer based.",
    ),
    known(
        "intervalstyle",
        "postgres",
        Kind::Choice(&["postgres"]),
        "Sets the display format for interval values.",
    ),
    known(
        "is_superuser",
        "on",
        Kind::Fixed,
        "Shows whether the current user is a superuser.",
    ),
    known("jit", "off", Kind::Bool, "Has no effect."),
    known(
        "lc_collate",
        "C.UTF-8",
        Kind::Fixed,
        "Shows the collation order.",
    ),
    known(
        "lc_ctype",
        "C.UTF-8",
        Kind::Fixed,
        "Shows the character classification.",
    ),
    known(
        "lc_messages",
        "C",
        Kind::Text,
        "Sets the language of messages.",
    ),
    known("lc_monetary", "C", Kind::Text, "Has no effect."),
    known("lc_numeric", "C", Kind::Text, "Has no effect."),
    known("lc_time", "C", Kind::Text, "Has no effect."),
    known(
        "lock_timeout",
        "0",
        Kind::Time,
        "Sets the maximum wait for one lock; 0 turns this off.",
    ),
    known("log_statement", "none", Kind::Text, "Has no effect."),
    known("maintenance_work_mem", "64MB", Kind::Text, "Has no effect."),
    known(
        "max_identifier_length",
        "63",
        Kind::Fixed,
        "Shows the maximum identifier length.",
    ),
    known(
        "max_index_keys",
        "32",
        Kind::Fixed,
        "Shows the maximum number of index keys.",
    ),
    known(
        "max_parallel_workers_per_gather",
        "2",
        Kind::Integer(0, 1024),
        "Has no effect.",
    ),
    known("plan_cache_mode", "auto", Kind::Text, "Has no effect."),
    known("quote_all_identifiers", "off", Kind::Bool, "Has no effect."),
    known("random_page_cost", "4", Kind::Real, "Has no effect."),
    known("row_security", "on", Kind::Bool, "Has no effect."),
    known(
        "search_path",
        "\"$user\", public",
        Kind::Text,
        "Sets the schema search order for names that are not qualified.",
    ),
    known("seq_page_cost", "1", Kind::Real, "Has no effect."),
    known(
        "server_encoding",
        "UTF8",
        Kind::Fixed,
        "Shows the server (database) character set encoding.",
    ),
    known(
        "server_version",
        SERVER_VERSION,
        Kind::Fixed,
        "Shows the server version.",
    ),
    known(
        "server_version_num",
        "150000",
        Kind::Fixed,
        "Shows the server version as an integer.",
    ),
    known(
        "session_authorization",
        "lineradb",
        Kind::Fixed,
        "Shows the session user.",
    ),
    known(
        "session_replication_role",
        "origin",
        Kind::Choice(&["origin"]),
        "Has no effect.",
    ),
    known("ssl", "off", Kind::Fixed, "Shows whether TLS is on."),
    known(
        "standard_conforming_strings",
        "on",
        Kind::Choice(&["on", "true", "1", "yes"]),
        "Causes '...' strings to treat backslashes literally.",
    ),
    known(
        "statement_timeout",
        "0",
        Kind::Time,
        "Sets the maximum allowed duration of any statement; 0 turns this off.",
    ),
    known("synchronize_seqscans", "on", Kind::Bool, "Has no effect."),
    known(
        "synchronous_commit",
        "on",
        Kind::Text,
        "Commits are always synchronous.",
    ),
    known(
        "timezone",
        "UTC",
        Kind::Text,
        "Sets the time zone for displaying and interpreting time stamps.",
    ),
    known(
        "transaction_deferrable",
        "off",
        Kind::Bool,
        "Has no effect.",
    ),
    known(
        "transaction_isolation",
        "serializable",
        Kind::Choice(ISOLATION),
        "Sets the current transaction's isolation level.",
    ),
    known(
        "transaction_read_only",
        "off",
        Kind::Bool,
        "Sets the current transaction's read-only status.",
    ),
    known(
        "transform_null_equals",
        "off",
        Kind::Choice(&["off", "false", "0", "no"]),
        "Treats \"expr=NULL\" as \"expr IS NULL\".",
    ),
    known("work_mem", "4MB", Kind::Text, "Has no effect."),
    known("xmloption", "content", Kind::Text, "Has no effect."),
];

/// What `server_version` says: the PostgreSQL release whose behaviour we follow.
pub const SERVER_VERSION: &str = concat!("15.0 (LineraDB ", env!("CARGO_PKG_VERSION"), ")");

/// Settings that PostgreSQL reports to the client when they change, under these
/// names.
pub const REPORTED: &[(&str, &str)] = &[
    ("application_name", "application_name"),
    ("client_encoding", "client_encoding"),
    ("datestyle", "DateStyle"),
    (
        "default_transaction_read_only",
        "default_transaction_read_only",
    ),
    ("in_hot_standby", "in_hot_standby"),
    ("integer_datetimes", "integer_datetimes"),
    ("intervalstyle", "IntervalStyle"),
    ("is_superuser", "is_superuser"),
    ("server_encoding", "server_encoding"),
    ("server_version", "server_version"),
    ("session_authorization", "session_authorization"),
    ("standard_conforming_strings", "standard_conforming_strings"),
    ("timezone", "TimeZone"),
];
