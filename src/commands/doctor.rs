//! `doctor`: faults of the host and of the deployment, and how to fix each.

use std::io::IsTerminal;

use serde::Serialize;

use crate::cli;
use crate::doctor::{Check, CheckOutcome, examine};
use crate::error::{Exit, Result, hint};
use crate::host::Host;
use crate::host::lock::OperationLock;
use crate::output::{self, say};

/// `doctor --json`
#[derive(Serialize)]
struct DoctorReport<'a> {
    schema: u32,
    outcome: CheckOutcome,
    fixed: &'a [String],
    checks: &'a [Check],
}

pub(crate) async fn run(host: &Host, arguments: &cli::Doctor) -> Result<Exit> {
    let mut checks = Box::pin(examine(host)).await;
    let mut fixed = Vec::new();
    if arguments.fix && checks.iter().any(|check| check.fix.is_some()) {
        let lock = OperationLock::take(&host.paths, "doctor --fix")?;
        fixed = fix(host, &checks).await;
        // The checks ask whether an operation is running.
        drop(lock);
        checks = Box::pin(examine(host)).await;
    }
    let outcome = worst(&checks);
    if arguments.json {
        output::json(&DoctorReport {
            schema: 1,
            outcome,
            fixed: &fixed,
            checks: &checks,
        })?;
    } else {
        let colour = std::io::stdout().is_terminal()
            && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        output::text(&text(&checks, colour))?;
        let fixable = checks.iter().filter(|check| check.fix.is_some()).count();
        if fixable > 0 && !arguments.fix {
            say(&format!(
                "{fixable} of these can be fixed now: `litellm-units doctor --fix`"
            ));
        }
    }
    Ok(match outcome {
        CheckOutcome::Failure => Exit::Failure,
        CheckOutcome::Warning => Exit::Warned,
        CheckOutcome::Ok => Exit::Success,
    })
}

/// Returns what was fixed. A fix that fails is reported, and its check fails again afterwards.
async fn fix(host: &Host, checks: &[Check]) -> Vec<String> {
    let mut done = Vec::new();
    let mut tried = Vec::new();
    for check in checks {
        let Some(fix) = check.fix.as_ref().filter(|fix| !tried.contains(fix)) else {
            continue;
        };
        tried.push(fix);
        match fix.apply(host).await {
            Ok(lines) => {
                for line in lines {
                    say(&format!("fixed {}: {line}", check.name));
                    done.push(format!("{}: {line}", check.name));
                }
            }
            Err(error) => {
                say(&format!("not fixed {}: {error:#}", check.name));
                if let Some(hint) = hint(&error) {
                    say(&format!("hint: {hint}"));
                }
            }
        }
    }
    done
}

fn worst(checks: &[Check]) -> CheckOutcome {
    let has = |outcome| checks.iter().any(|check| check.outcome == outcome);
    if has(CheckOutcome::Failure) {
        CheckOutcome::Failure
    } else if has(CheckOutcome::Warning) {
        CheckOutcome::Warning
    } else {
        CheckOutcome::Ok
    }
}

/// A line for each check, and its remedy on the next one.
fn text(checks: &[Check], colour: bool) -> String {
    let mut text = String::new();
    for check in checks {
        let (word, code) = match check.outcome {
            CheckOutcome::Ok => ("ok     ", "32"),
            CheckOutcome::Warning => ("warning", "33"),
            CheckOutcome::Failure => ("FAILURE", "1;31"),
        };
        let word = if colour {
            format!("\u{1b}[{code}m{word}\u{1b}[0m")
        } else {
            word.to_owned()
        };
        let message = check.message.replace('\n', "\n         ");
        text.push_str(&format!("{word}  {}: {message}\n", check.name));
        if let Some(remedy) = &check.remedy {
            text.push_str(&format!("         hint: {remedy}\n"));
        }
    }
    text
}
