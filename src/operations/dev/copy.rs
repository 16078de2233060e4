//! A copy of the deployment's database for development, from a backup, without credentials and names.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use crate::deployment::settings::{Database, Settings};
use crate::error::{Failure, Result};
use crate::host::Host;
use crate::host::systemd::job::{JobType, Jobs};
use crate::operations::backup::authentication::Origin;
use crate::operations::backup::database::{NO_TIMEOUTS, Server, literal, scratch_name};
use crate::operations::backup::{Backup, restore};
use crate::random::{kernel_random, password};

const UNIT: &str = "litellm-dev-postgres.service";
const CONTAINER: &str = "litellm-dev-postgres";
const INTERVAL: Duration = Duration::from_millis(200);

/// The tables whose rows are kept. All others are emptied, also those that a later release of LiteLLM brings.
const KEPT_TABLES: [&str; 20] = [
    "LiteLLM_BudgetTable",
    "LiteLLM_DailyAgentSpend",
    "LiteLLM_DailyEndUserSpend",
    "LiteLLM_DailyGlobalSpend",
    "LiteLLM_DailyOrganizationSpend",
    "LiteLLM_DailyTagSpend",
    "LiteLLM_DailyTeamSpend",
    "LiteLLM_DailyUserSpend",
    "LiteLLM_EndUserTable",
    "LiteLLM_ModelTable",
    "LiteLLM_ObjectPermissionTable",
    "LiteLLM_OrganizationMembership",
    "LiteLLM_OrganizationTable",
    "LiteLLM_ProjectTable",
    "LiteLLM_SpendLogs",
    "LiteLLM_TagTable",
    "LiteLLM_TeamMembership",
    "LiteLLM_TeamTable",
    "LiteLLM_UserTable",
    "LiteLLM_VerificationToken",
];

/// Prisma's own, which is kept as it is.
const MIGRATIONS: &str = "_prisma_migrations";

/// The columns of text with words of LiteLLM, names of models and dates, which stay.
const KEPT_COLUMNS: [&str; 15] = [
    "allowed_cache_controls",
    "allowed_routes",
    "budget_duration",
    "cache_hit",
    "call_type",
    "custom_llm_provider",
    "date",
    "endpoint",
    "key_type",
    "model",
    "model_group",
    "models",
    "status",
    "team_member_permissions",
    "user_role",
];

/// Which backup the database is filled with.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// The name of the backup, or `latest`.
    pub name: String,
    /// The file with the age identity, for a backup that is encrypted.
    pub identity: Option<PathBuf>,
}

impl Source {
    /// The backup of the deployment.
    ///
    /// # Errors
    /// When there is none, or another deployment made it.
    pub(super) fn find(&self, production: &Host) -> Result<Backup> {
        let found = Backup::find(&production.paths, &self.name)?;
        match &found.origin {
            Origin::Own => Ok(found),
            Origin::Foreign(reason) => Err(Failure::new(format!(
                "backup {} was not made by this deployment: {reason}",
                found.id()
            ))
            .hint("use one that it made: `litellm-units backup list`")
            .into()),
        }
    }
}

/// Replaces the database of development with the one of a backup, without credentials and names. Only PostgreSQL runs
/// meanwhile, and is started if need be.
///
/// # Errors
/// When the backup is damaged or can't be restored, or something in it can't be removed: then the previous database is in place.
pub(super) async fn fill(
    host: &Host,
    settings: &Settings,
    backup: &Backup,
    source: &Source,
    timeout: Duration,
) -> Result<()> {
    let Database::Local { name, .. } = &settings.database else {
        return Ok(());
    };
    let server = Server::in_recovered(host, CONTAINER, "127.0.0.1", name).await?;
    start(host, &server, timeout).await?;
    for left in server.own_databases().await? {
        server.drop_database(&left).await?;
    }
    let new = &scratch_name("dev", backup.id());
    let identity = source.identity.clone();
    let script = script(&password(&mut kernel_random)?);
    let mut interrupt = signal(SignalKind::interrupt()).context("can't listen for Ctrl-C")?;
    let steps = async {
        restore::restore_copy(host, &server, new, backup, identity).await?;
        host.progress.say("removing credentials and names");
        let removed = server.query(new, &script).await.map(drop);
        removed.context("can't remove the credentials from the copy")
    };
    let attempt = tokio::select! {
        result = steps => result,
        _ = interrupt.recv() => Err(Failure::interrupted("interrupted; the database of development is unchanged").into()),
    };
    if let Err(error) = attempt {
        server.drop_database(new).await?;
        return Err(error);
    }
    server.drop_database(name).await?;
    server.rename(&[(new, name)]).await?;
    host.progress.done(&format!(
        "fill the database of development with backup {}, without credentials and names",
        backup.id()
    ));
    Ok(())
}

/// Starts PostgreSQL alone and waits until it answers.
async fn start(host: &Host, server: &Server<'_>, timeout: Duration) -> Result<()> {
    let begin = Instant::now();
    let mut jobs = Jobs::new(host.systemd().await?).await?;
    jobs.ask(JobType::Start, UNIT).await?;
    jobs.next(timeout).await?;
    while let Err(error) = server.version().await {
        if begin.elapsed() > timeout {
            return Err(Failure::new(format!("{UNIT} does not answer"))
                .hint(format!(
                    "see why: `{} status {UNIT}`",
                    host.scope().systemctl()
                ))
                .caused_by(error)
                .into());
        }
        tokio::time::sleep(INTERVAL).await;
    }
    Ok(())
}

/// What removes credentials and names from a database of LiteLLM, for `psql`. `salt` makes the replacements of a text the
/// same everywhere in this copy, and others in the next one.
fn script(salt: &str) -> String {
    let list = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| literal(name)).collect();
        names.join(", ")
    };
    format!(
        r"{NO_TIMEOUTS}BEGIN;
SET LOCAL session_replication_role = replica;
CREATE FUNCTION pg_temp.unnamed(text) RETURNS text LANGUAGE sql IMMUTABLE STRICT AS
$$SELECT CASE $1 WHEN '' THEN '' ELSE 'x-' || left(encode(sha256(convert_to('{salt}' || $1, 'UTF8')), 'hex'), 20) END$$;
CREATE TEMPORARY TABLE own_tables ON COMMIT DROP AS
SELECT c.oid, c.oid::regclass::text AS name, c.relname IN ({tables}) AS kept FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname NOT LIKE 'pg\_%' AND n.nspname <> 'information_schema' AND c.relname <> '{MIGRATIONS}';
SELECT 'TRUNCATE ' || string_agg(name, ', ') FROM own_tables WHERE NOT kept HAVING count(*) > 0 \gexec
SELECT count(lo_unlink(oid)) FROM pg_largeobject_metadata \g /dev/null
SELECT format('UPDATE %s SET %s', name, string_agg(format('%I = %s', attname, value), ', ')) FROM (
SELECT t.name, a.attname, CASE
WHEN y.typcategory = 'S' THEN format('pg_temp.unnamed(%I::text)', a.attname)
WHEN y.typname IN ('_text', '_varchar') THEN format('CASE WHEN %1$I IS NOT NULL THEN ARRAY(SELECT pg_temp.unnamed(item::text) FROM unnest(%1$I) item) END', a.attname)
WHEN y.typname = 'jsonb' THEN format($$CASE jsonb_typeof(%1$I) WHEN 'array' THEN '[]'::jsonb WHEN 'null' THEN %1$I ELSE CASE WHEN %1$I IS NOT NULL THEN '{{}}'::jsonb END END$$, a.attname)
ELSE 'NULL' END AS value
FROM own_tables t JOIN pg_attribute a ON a.attrelid = t.oid JOIN pg_type y ON y.oid = a.atttypid
WHERE t.kept AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' AND y.typcategory NOT IN ('N', 'D', 'T', 'B', 'E') AND a.attname NOT IN ({columns})
) columns GROUP BY name \gexec
SELECT 'REFRESH MATERIALIZED VIEW ' || oid::regclass FROM pg_class WHERE relkind = 'm' ORDER BY oid \gexec
COMMIT;
VACUUM FULL;
ANALYZE;
",
        tables = list(&KEPT_TABLES),
        columns = list(&KEPT_COLUMNS),
    )
}
