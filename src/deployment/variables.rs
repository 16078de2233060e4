//! The variables of `.env`: one row for each that differs from the rest, with all that is known of it but its grammar, which
//! is in `settings`.

use Condition::{Always, IfFilled};
use Kind::{Database, Known, Setting};
use Recipient::{Gateway, Migration, Nobody, Redis, Refused, Units};
use Secrecy::{Clear, Harmless, Secret, Unknown, Url};

use crate::host::outgoing_proxy;

/// Names the known vulnerabilities that the operator accepts.
pub(crate) const ACCEPT_VULNERABILITIES: &str = "LITELLM_ACCEPT_VULNERABILITIES";
/// Whether the write-ahead log of the local database is archived.
pub(crate) const BACKUP_WAL: &str = "BACKUP_WAL";
pub(crate) const BACKUP_BY: &str = "BACKUP_BY";
/// For how many seconds a gateway that stops may finish its requests while another one serves.
pub(crate) const DRAIN_TIMEOUT: &str = "LITELLM_DRAIN_TIMEOUT";
/// Where the gateway listens.
pub(crate) const LISTEN: &str = "LISTEN";
/// Who may connect to its Unix sockets.
pub(crate) const LISTEN_GROUP: &str = "LISTEN_GROUP";
/// Allows addresses that other hosts reach.
pub(crate) const LISTEN_WITHOUT_TLS: &str = "LISTEN_WITHOUT_TLS";
/// For how many seconds the gateway's event loop may be blocked before it is replaced; `units/serve.py` reads it.
pub(crate) const LIVENESS_TIMEOUT: &str = "LITELLM_LIVENESS_TIMEOUT";
/// The first of the loopback ports that serve LiteLLM's own metrics, one for each gateway.
pub(crate) const LITELLM_METRICS_PORT: &str = "LITELLM_METRICS_PORT";
/// The file that gets the metrics.
pub(crate) const METRICS_FILE: &str = "METRICS_FILE";
/// Where the metrics are served by HTTP.
pub(crate) const METRICS_LISTEN: &str = "METRICS_LISTEN";
/// The program that gets notices of faults.
pub(crate) const NOTIFY_COMMAND: &str = "NOTIFY_COMMAND";
/// The webhook that gets notices of faults.
pub(crate) const NOTIFY_URL: &str = "NOTIFY_URL";
/// From which networks the web interface and management are reached at the public address.
pub(crate) const PUBLIC_ADMIN_FROM: &str = "PUBLIC_ADMIN_FROM";
/// Where the entrance publishes the gateway.
pub(crate) const PUBLIC_URL: &str = "PUBLIC_URL";
/// What LiteLLM puts before its own paths, behind a reverse proxy that has other programs as well.
pub(crate) const ROOT_PATH: &str = "SERVER_ROOT_PATH";
/// How much memory a gateway may hold before it is replaced.
pub(crate) const RECYCLE_AT: &str = "LITELLM_RECYCLE_AT";
/// How much the local Redis may hold.
pub(crate) const REDIS_MEMORY: &str = "REDIS_MAXMEMORY";
/// The Sentinels that know which external Redis is the primary; LiteLLM reads it.
pub(crate) const SENTINEL_NODES: &str = "REDIS_SENTINEL_NODES";
/// How many gateways share the address.
pub(crate) const REPLICAS: &str = "LITELLM_REPLICAS";
/// Whether the containers of root have user IDs that no user of the host has.
pub(crate) const USER_NAMESPACES: &str = "USER_NAMESPACES";
/// How many processes each gateway has; LiteLLM reads it.
pub(crate) const WORKERS: &str = "NUM_WORKERS";

/// So begin the names of variables that concern backups.
pub(crate) const BACKUP_PREFIX: &str = "BACKUP_";

/// Addresses of an external Redis that the gateway does not get if there are Sentinels.
pub(crate) const OTHER_REDIS: [&str; 4] = [
    "REDIS_HOST",
    "REDIS_PORT",
    "REDIS_URL",
    "REDIS_CLUSTER_NODES",
];

/// Whose a variable is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Of this program, or one that it writes or reads: a name that resembles it is a mistake.
    Setting,
    /// A setting that says which PostgreSQL there is, and how to log in. It goes with the data: another configuration does
    /// not change it.
    Database,
    /// Of LiteLLM or of another program.
    Known,
}

/// Which container gets a variable by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recipient {
    /// None: it is for this program, which may give its value to another container.
    Units,
    /// The gateway.
    Gateway(Condition),
    /// The gateway, and the migration before it.
    Migration(Condition),
    /// The gateway, if Redis is external and the value is not empty.
    Redis,
    /// None: the unit sets it, since the units rely on it.
    Nobody,
    /// None: an edit with it is refused, with this hint.
    Refused(&'static str),
}

impl Recipient {
    /// Whether an empty value counts as not set.
    pub(crate) fn needs_a_value(self) -> bool {
        matches!(self, Gateway(IfFilled) | Migration(IfFilled) | Redis)
    }
}

/// What becomes of an empty value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// The container gets an empty value.
    Always,
    /// It counts as not set. With an empty `UI_USERNAME` and `UI_PASSWORD`, LiteLLM lets everyone log in as administrator
    /// with empty fields; an empty provider key or base URL is worse than none.
    IfFilled,
}

/// Who may see a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Secrecy {
    /// Everyone, and it is needed where no sealed value is opened.
    Clear,
    /// Everyone, but it may be sealed.
    Harmless,
    /// Everyone but for the password and the parameters of this URL.
    Url,
    /// No one, since a release of LiteLLM may take a secret from it. Its name and its value tell whether it is sealed.
    Unknown,
    /// No one.
    Secret,
}

/// One row.
#[derive(Debug)]
struct Variable {
    name: &'static str,
    kind: Kind,
    recipient: Recipient,
    secrecy: Secrecy,
}

const fn row(name: &'static str, kind: Kind, recipient: Recipient, secrecy: Secrecy) -> Variable {
    Variable {
        name,
        kind,
        recipient,
        secrecy,
    }
}

const fn of_the_migration(name: &'static str) -> Variable {
    row(name, Known, Migration(Always), Unknown)
}

/// For the gateway as any other, but shown by `config`.
const fn harmless(name: &'static str) -> Variable {
    row(name, Known, Gateway(Always), Harmless)
}

const ADDRESS_HINT: &str = "remove the line; for another address, write LISTEN=127.0.0.1:4000 (docs/configuration.md), then run `litellm-units apply`";
const TLS_HINT: &str = "remove the line, then run `litellm-units apply`; for TLS, give the certificate to a reverse proxy (docs/reverse-proxy.md)";
const SOCKET_HINT: &str = "remove the line, then run `litellm-units apply`";

static VARIABLES: &[Variable] = &[
    row("LITELLM_IMAGE", Setting, Units, Clear),
    row(ACCEPT_VULNERABILITIES, Setting, Units, Clear),
    row("LITELLM_MASTER_KEY", Setting, Gateway(Always), Secret),
    row("LITELLM_SALT_KEY", Setting, Gateway(Always), Secret),
    row(REPLICAS, Setting, Units, Clear),
    row(LIVENESS_TIMEOUT, Setting, Gateway(Always), Clear),
    row(DRAIN_TIMEOUT, Setting, Units, Clear),
    row(RECYCLE_AT, Setting, Units, Clear),
    row(WORKERS, Setting, Gateway(Always), Harmless),
    row(USER_NAMESPACES, Setting, Units, Clear),
    row("POSTGRES_IMAGE", Database, Units, Clear),
    row("POSTGRES_USER", Database, Units, Clear),
    row("POSTGRES_PASSWORD", Database, Units, Secret),
    row("POSTGRES_DB", Database, Units, Clear),
    row("DATABASE_URL", Database, Migration(IfFilled), Url),
    row("DIRECT_URL", Database, Migration(IfFilled), Url),
    row("REDIS_IMAGE", Setting, Units, Clear),
    row(REDIS_MEMORY, Setting, Units, Clear),
    row("REDIS_PASSWORD", Setting, Redis, Secret),
    row("REDIS_HOST", Setting, Redis, Harmless),
    row("REDIS_PORT", Setting, Redis, Harmless),
    row(SENTINEL_NODES, Setting, Redis, Harmless),
    row("REDIS_DB", Known, Redis, Harmless),
    row("REDIS_SSL", Known, Redis, Harmless),
    row("REDIS_USERNAME", Known, Redis, Harmless),
    row("UI_USERNAME", Setting, Gateway(IfFilled), Clear),
    row("UI_PASSWORD", Setting, Gateway(IfFilled), Secret),
    row("PROXY_BASE_URL", Setting, Gateway(IfFilled), Clear),
    row("FORWARDED_ALLOW_IPS", Setting, Gateway(Always), Clear),
    row(LISTEN, Setting, Units, Clear),
    row(LISTEN_GROUP, Setting, Units, Clear),
    row(LISTEN_WITHOUT_TLS, Setting, Units, Clear),
    row(PUBLIC_URL, Setting, Units, Clear),
    row(PUBLIC_ADMIN_FROM, Setting, Units, Clear),
    row(METRICS_FILE, Setting, Units, Clear),
    row(METRICS_LISTEN, Setting, Units, Clear),
    row(LITELLM_METRICS_PORT, Setting, Units, Clear),
    row(NOTIFY_COMMAND, Setting, Units, Unknown),
    // Whoever knows such a URL can write to its channel.
    row(NOTIFY_URL, Setting, Units, Secret),
    row("BACKUP_AGE_RECIPIENT", Setting, Units, Clear),
    row("BACKUP_URL", Setting, Units, Clear),
    row(BACKUP_WAL, Setting, Units, Clear),
    row(BACKUP_BY, Setting, Units, Clear),
    // The deployment of `generate` has them.
    row("OPENAI_API_KEY", Known, Gateway(IfFilled), Secret),
    row("ANTHROPIC_API_KEY", Known, Gateway(IfFilled), Secret),
    of_the_migration("LITELLM_BUILD_SPEND_LOGS_INDEXES"),
    row("LITELLM_LOG", Known, Migration(Always), Harmless),
    of_the_migration("LITELLM_MIGRATION_DIR"),
    of_the_migration("LITELLM_MIGRATION_LOCK_TIMEOUT"),
    of_the_migration("LITELLM_SET_REPLICA_IDENTITY_FULL"),
    of_the_migration("USE_V2_MIGRATION_RESOLVER"),
    row("DISABLE_SCHEMA_UPDATE", Known, Nobody, Unknown),
    row("LITELLM_MODE", Known, Nobody, Harmless),
    // Of a server that takes its own address; the gateway serves on the socket of systemd.
    row("HOST", Known, Refused(ADDRESS_HINT), Unknown),
    row("PORT", Known, Refused(ADDRESS_HINT), Unknown),
    row("SSL_KEYFILE_PATH", Known, Refused(TLS_HINT), Unknown),
    row("SSL_CERTFILE_PATH", Known, Refused(TLS_HINT), Unknown),
    row("LISTEN_FDNAMES", Known, Refused(SOCKET_HINT), Unknown),
    row("LISTEN_FDS", Known, Refused(SOCKET_HINT), Unknown),
    row("LISTEN_PID", Known, Refused(SOCKET_HINT), Unknown),
    harmless("DATABASE_HOST"),
    harmless("NO_PROXY"),
    row("HTTP_PROXY", Known, Gateway(Always), Unknown),
    row("HTTPS_PROXY", Known, Gateway(Always), Unknown),
    row("ALL_PROXY", Known, Gateway(Always), Unknown),
    harmless("LITELLM_LOCAL_MODEL_COST_MAP"),
    harmless(ROOT_PATH),
    harmless("STORE_MODEL_IN_DB"),
    harmless("TZ"),
];

/// By the beginning of a name that has no row.
static FAMILIES: [Variable; 3] = [
    // Options of an object store.
    row(BACKUP_PREFIX, Known, Units, Unknown),
    // Timeouts of the migration's commands.
    row("LITELLM_PRISMA_", Known, Migration(Always), Unknown),
    row("REDIS_", Known, Redis, Unknown),
];

/// Whether programs that give values get the variable, and then the gateway does not.
pub(crate) fn is_of_programs(name: &str) -> bool {
    ["SOPS_", "VAULT_"]
        .iter()
        .any(|begin| name.starts_with(begin))
}

/// Any other.
static OTHER: Variable = row("", Known, Gateway(Always), Unknown);

fn variable(name: &str) -> &'static Variable {
    VARIABLES
        .iter()
        .find(|row| row.name == name)
        .or_else(|| FAMILIES.iter().find(|row| name.starts_with(row.name)))
        .unwrap_or(&OTHER)
}

/// All of them.
#[cfg(test)]
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    VARIABLES.iter().map(|row| row.name)
}

/// Which container gets the variable.
pub(crate) fn recipient(name: &str) -> Recipient {
    variable(name).recipient
}

/// Who may see its value.
pub(crate) fn secrecy(name: &str) -> Secrecy {
    variable(name).secrecy
}

/// The variables that have a meaning here.
pub(crate) fn settings() -> impl Iterator<Item = &'static str> {
    VARIABLES
        .iter()
        .filter(|row| row.kind != Known)
        .map(|row| row.name)
}

/// The variables that say which PostgreSQL there is. They stay as they are when another configuration is put in the place of
/// the current one.
pub(crate) fn of_the_database() -> Vec<&'static str> {
    VARIABLES
        .iter()
        .filter(|row| row.kind == Database)
        .map(|row| row.name)
        .collect()
}

/// The variables that an edit may not have, each with what to do instead.
pub(crate) fn refused() -> impl Iterator<Item = (&'static str, &'static str)> {
    VARIABLES.iter().filter_map(|row| match row.recipient {
        Refused(hint) => Some((row.name, hint)),
        _ => None,
    })
}

/// Whether an edit may not have the variable.
pub(crate) fn is_refused(name: &str) -> bool {
    matches!(recipient(name), Refused(_))
}

/// Whether the units rely on the value that they give to the gateway under this name.
pub(crate) fn is_of_units(name: &str) -> bool {
    let row = variable(name);
    let is_key = ["LITELLM_MASTER_KEY", "LITELLM_SALT_KEY"].contains(&name);
    is_key
        || matches!(row.recipient, Redis | Nobody)
        || row.kind == Database && row.recipient != Units
}

/// Whether it is a name of an environment variable.
pub(crate) fn is_name(name: &str) -> bool {
    name.len() < 200
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Whether the variable may be sealed.
pub(crate) fn may_be_sealed(name: &str) -> bool {
    secrecy(name) != Clear && is_name(name)
}

/// Whether another program may give the value: only containers need it, and no other command here changes it.
pub(crate) fn may_be_external(name: &str) -> bool {
    let row = variable(name);
    row.kind == Known
        && matches!(row.recipient, Gateway(_))
        && matches!(row.secrecy, Unknown | Secret)
        && !outgoing_proxy::is_variable(name)
        && !is_of_programs(name)
        && is_name(name)
}

/// What a variable's name holds if its value is a secret.
const SECRET_WORDS: [&str; 7] = [
    "KEY",
    "TOKEN",
    "SECRET",
    "PASSWORD",
    "PASSWD",
    "CREDENTIAL",
    "AUTH",
];

/// Judged by the name, as no value tells that it is secret; of a URL, only with a password in it.
pub(crate) fn is_secret(name: &str, value: &str) -> bool {
    // What names a place where the secret is, is not the secret.
    if value.starts_with('/') || value.starts_with("os.environ/") {
        return false;
    }
    let name = name.to_ascii_uppercase();
    secrecy(&name) == Secret
        || SECRET_WORDS.iter().any(|word| name.contains(word))
        || password_in_url(value).is_some()
}

/// The password in a URL with one, as it is written there.
pub(crate) fn password_in_url(value: &str) -> Option<&str> {
    let (_, rest) = value.split_once("://")?;
    let (login, _) = rest.split('/').next()?.rsplit_once('@')?;
    let (_, password) = login.split_once(':')?;
    (!password.is_empty()).then_some(password)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const PAGE: &str = include_str!("../../docs/configuration.md");
    const MANUAL: &str = include_str!("../../packaging/man/litellm.env.5");

    fn names(choose: impl Fn(&Variable) -> bool) -> BTreeSet<&'static str> {
        VARIABLES
            .iter()
            .filter(|row| choose(row))
            .map(|row| row.name)
            .collect()
    }

    /// The names in a text, as they are written in any of its languages.
    fn words(text: &str) -> BTreeSet<&str> {
        let is_other = |c: char| !c.is_ascii_alphanumeric() && c != '_';
        text.split(is_other).collect()
    }

    /// The part of a text between two others.
    fn between<'a>(text: &'a str, begin: &str, end: &str) -> &'a str {
        let from = text.find(begin).unwrap() + begin.len();
        let length = text[from..].find(end).unwrap();
        &text[from..from + length]
    }

    #[test]
    fn each_has_one_row() {
        assert_eq!(names(|_| true).len(), VARIABLES.len());
        assert!(VARIABLES.iter().all(|row| is_name(row.name)));
    }

    /// So that a new setting can't be read without a row.
    #[test]
    fn what_is_read_has_a_row() {
        let (constants, _) = include_str!("variables.rs")
            .split_once("/// So begin")
            .unwrap();
        let code = include_str!("settings.rs").to_owned() + constants;
        let is_name = |text: &&str| {
            text.contains('_') && text.chars().all(|c| c.is_ascii_uppercase() || c == '_')
        };
        let read: BTreeSet<&str> = code.split('"').filter(is_name).collect();
        let mut others = &read - &names(|_| true);
        // The health check of Redis has it, and .env has not.
        assert!(others.remove("REDISCLI_AUTH"));
        assert_eq!(others, BTreeSet::new());
        assert!(read.len() > 25, "{read:?}");
    }

    #[test]
    fn nothing_that_is_shown_looks_like_a_secret() {
        for row in VARIABLES {
            if matches!(row.secrecy, Clear | Harmless) {
                assert!(!is_secret(row.name, "x"), "{}", row.name);
            }
        }
    }

    /// A row that only says that the value is harmless needs no documentation.
    #[test]
    fn each_is_documented_on_both_pages() {
        let backup = include_str!("../../docs/backup.md");
        let migration = between(
            include_str!("../../docs/upgrade.md"),
            "## Variables of the migration",
            "## Roll back",
        );
        let pages: BTreeSet<&str> = [PAGE, backup, migration]
            .into_iter()
            .flat_map(words)
            .collect();
        let expected = names(|row| {
            let rest = FAMILIES
                .iter()
                .find(|family| row.name.starts_with(family.name));
            row.kind != Known || row.recipient != rest.unwrap_or(&OTHER).recipient
        });
        assert!(expected.len() > 45);
        for name in expected {
            assert!(pages.contains(name), "docs/: {name}");
            assert!(words(MANUAL).contains(name), "litellm.env(5): {name}");
        }
        for name in names(|row| matches!(row.recipient, Migration(_)) && row.name != "DATABASE_URL")
        {
            assert!(words(migration).contains(name), "docs/upgrade.md: {name}");
        }
    }

    #[test]
    fn what_counts_as_not_set_is_documented() {
        let mut expected =
            names(|row| matches!(row.recipient, Gateway(IfFilled) | Migration(IfFilled)));
        // For all of its family.
        expected.insert("REDIS_HOST");
        for (text, begin) in [(PAGE, "`BACKUP_…`"), (MANUAL, "SH OTHER VARIABLES")] {
            let text = between(text, begin, "count as not set while they are empty");
            let end = text.rfind("\n\n").or(text.rfind(".PP")).unwrap();
            let found: BTreeSet<&str> = words(&text[end..])
                .into_iter()
                .filter(|word| word.contains('_'))
                .collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn what_stays_in_clear_is_documented() {
        let found = words(between(
            MANUAL,
            ".SH SEALED VALUES",
            "To change a sealed value",
        ));
        for name in names(|row| row.secrecy == Clear && !row.name.ends_with("_IMAGE")) {
            assert!(found.contains(name), "{name}");
        }
    }

    #[test]
    fn what_the_gateway_does_not_get_is_documented() {
        let found = between(PAGE, "| gateway | all but ", "|\n");
        for name in names(|row| row.recipient == Units) {
            let is_named = words(found).contains(name)
                || name.ends_with("_IMAGE")
                || ["BACKUP_", "LISTEN", "POSTGRES_"].iter().any(|family| {
                    name.starts_with(family) && found.contains(&format!("`{family}…`"))
                });
            assert!(is_named, "{name}");
        }
    }

    #[test]
    fn secrets() {
        for (name, value, expected) in [
            ("LITELLM_MASTER_KEY", "sk-1", true),
            ("LITELLM_IMAGE", "ghcr.io/berriai/litellm:v1", false),
            ("UI_PASSWORD", "x", true),
            ("UI_USERNAME", "ann", false),
            (
                "GOOGLE_APPLICATION_CREDENTIALS",
                "/app/config/google.json",
                false,
            ),
            ("SLACK_HOOK", "https://user:pass@example.com/x", true),
            ("PROXY_BASE_URL", "https://example.com", false),
            ("NOTIFY_URL", "https://example.com/hooks/1", true),
        ] {
            assert_eq!(is_secret(name, value), expected, "{name}");
        }
    }

    #[test]
    fn passwords_in_urls() {
        assert_eq!(
            password_in_url("postgresql://u:p%40x@host:5432/db"),
            Some("p%40x")
        );
        assert_eq!(password_in_url("redis://:p@h"), Some("p"));
        assert_eq!(password_in_url("https://host/a@b:c"), None);
        assert_eq!(password_in_url("sk-abc"), None);
    }
}
