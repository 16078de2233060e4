//! `upgrade`: another release of the gateway, rolled back if a step fails.

use crate::cli::upgrade::Upgrade;
use crate::deployment::settings::Settings;
use crate::error::{Exit, Result};
use crate::host::Host;
use crate::litellm::{advisories, config};
use crate::operations::postgres::ClusterPlan;
use crate::operations::upgrade::ReleasePlan;
use crate::operations::upgrade::check::{Candidate, Newest, ReleaseReport};
use crate::output::{self, Loss, say};

/// Columns of a vulnerability's summary, so that a line has 80.
const SUMMARY: usize = 38;

pub(crate) async fn run(host: &Host, arguments: Upgrade) -> Result<Exit> {
    if arguments.check {
        return check(host, arguments.json).await;
    }
    let _lock = super::begin(host, "upgrade", arguments.dry_run, arguments.pace.timeout).await?;
    if let Some(image) = &arguments.postgres {
        let plan = ClusterPlan::upgrade(host, image).await?;
        output::text(&(plan.lines().join("\n") + "\n"))?;
        if !arguments.dry_run {
            Box::pin(plan.carry_out(host, arguments.pace.timeout)).await?;
        }
        return Ok(Exit::Success);
    }
    let settings = Settings::load(&host.paths.env_file())?;
    let image = arguments.image.as_ref().unwrap_or(&settings.litellm_image);
    let again = match &arguments.image {
        Some(image) => format!("litellm-units upgrade --image {image}"),
        None => "litellm-units upgrade".to_owned(),
    };
    let accepted = &arguments.accept.vulnerabilities;
    advisories::admit(host, &settings, image, accepted, &again)?;
    let plan = ReleasePlan::upgrade(host, arguments.image.as_ref(), arguments.restore_data).await?;
    if plan.is_done() {
        output::line("nothing to do: this is the current release")?;
        return Ok(Exit::Success);
    }
    config::refuse_errors(host)?;
    let options = arguments.pace.into();
    super::change_release(host, plan, arguments.dry_run, options).await
}

async fn check(host: &Host, json: bool) -> Result<Exit> {
    let report = ReleaseReport::gather(host).await?;
    if json {
        output::json(&report)?;
        return Ok(report.exit());
    }
    output::text(&table(&report))?;
    if let Some(error) = &report.error {
        host.progress
            .warn_wrapped(&format!("can't list newer releases: {error}"));
    }
    if let Some(step) = report.next_step() {
        say(&format!("to upgrade: {step}"));
    }
    Ok(report.exit())
}

fn table(report: &ReleaseReport) -> String {
    let current = &report.current;
    let known = current.vulnerabilities.as_ref().map(|findings| {
        let open = || findings.iter().filter(|finding| !finding.accepted);
        count(
            open().count(),
            open().filter(|finding| finding.exploited).count(),
        )
    });
    let mut rows = vec![
        ["RELEASE", "IMAGE", "VULNERABILITIES", "FIXES"]
            .map(str::to_owned)
            .to_vec(),
        vec![
            "current".into(),
            current.image.split('@').next().unwrap_or_default().into(),
            known.unwrap_or_else(|| "unknown".into()),
            String::new(),
        ],
    ];
    rows.extend(report.candidates.iter().map(|candidate| {
        vec![
            kinds(candidate),
            candidate.image.clone(),
            count(candidate.vulnerabilities.len(), candidate.exploited.len()),
            match candidate.fixes.len() {
                0 => "-".into(),
                fixes => fixes.to_string(),
            },
        ]
    }));
    // The whole name: `upgrade --image` takes it.
    let mut text = output::table(&rows, &[Loss::Column("FIXES")]);
    let findings = current.vulnerabilities.as_deref().unwrap_or_default();
    if findings.is_empty() {
        return text;
    }
    let mut rows = vec![
        ["VULNERABILITY", "SEVERITY", "FIXED IN", ""]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(findings.iter().map(|finding| {
        let severity = match (finding.accepted, finding.exploited) {
            (true, _) => "accepted".to_owned(),
            (_, true) => "exploited".to_owned(),
            _ => finding.severity.to_string(),
        };
        vec![
            finding.id.clone(),
            severity,
            finding.fixed.clone().unwrap_or_else(|| "-".into()),
            shortened(&finding.summary),
        ]
    }));
    text.push('\n');
    text.push_str(&output::table(&rows, &[Loss::End("")]));
    text
}

fn kinds(candidate: &Candidate) -> String {
    [
        (Newest::LongTerm, "long-term"),
        (Newest::Line, "same line"),
        (Newest::All, "newest"),
    ]
    .into_iter()
    .find(|(kind, _)| candidate.newest_of.contains(kind))
    .map_or_else(String::new, |(_, word)| word.to_owned())
}

fn count(all: usize, exploited: usize) -> String {
    match (all, exploited) {
        (0, _) => "none known".into(),
        (all, 0) => all.to_string(),
        (all, exploited) => format!("{all}, {exploited} exploited"),
    }
}

fn shortened(summary: &str) -> String {
    if summary.chars().count() <= SUMMARY {
        return summary.to_owned();
    }
    let kept: String = summary.chars().take(SUMMARY - 1).collect();
    format!("{}…", kept.trim_end())
}
