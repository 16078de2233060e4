//! `fleet`: several hosts as one.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::cli::fleet::{Fleet as Verb, Release, Status};
use crate::error::{Exit, Result};
use crate::host::Host;
use crate::operations::fleet::{Fleet, ask, said};
use crate::output;

pub(crate) async fn run(host: &Host, verb: Verb) -> Result<Exit> {
    match verb {
        Verb::Plan(hosts) => plan(&Fleet::load(host, &hosts.skip)?).await,
        Verb::Apply(hosts) => {
            Fleet::load(host, &hosts.skip)?.apply().await?;
            Ok(Exit::Success)
        }
        Verb::Upgrade(release) => change_release(host, release, true).await,
        Verb::Rollback(release) => change_release(host, release, false).await,
        Verb::Status(Status { json, hosts }) => {
            status(&Fleet::load(host, &hosts.skip)?, json).await
        }
        Verb::Run { hosts, command } => {
            let words: Vec<String> = command.iter().map(output::shell_word).collect();
            let mut codes = Vec::new();
            for ssh in Fleet::load(host, &hosts.skip)?.hosts() {
                output::line(&format!("== {ssh}"))?;
                let status = ssh.call(&words.join(" "), &[], false).await?.status;
                codes.push(status.code().unwrap_or(1));
            }
            Ok(worst(codes))
        }
    }
}

async fn plan(fleet: &Fleet<'_>) -> Result<Exit> {
    let mut codes = Vec::new();
    for (ssh, plan) in fleet.hosts().zip(fleet.plan().await?) {
        output::text(&format!(
            "== {ssh}\n{}",
            String::from_utf8_lossy(&plan.stdout)
        ))?;
        let words = String::from_utf8_lossy(&plan.stderr);
        if !words.is_empty() {
            output::say(words.trim_end());
        }
        codes.push(plan.status.code().unwrap_or(1));
    }
    Ok(worst(codes))
}

async fn change_release(host: &Host, release: Release, is_upgrade: bool) -> Result<Exit> {
    let fleet = Fleet::load(host, &release.hosts.skip)?;
    fleet
        .change_release(release.image.as_str(), is_upgrade)
        .await?;
    Ok(Exit::Success)
}

async fn status(fleet: &Fleet<'_>, as_json: bool) -> Result<Exit> {
    let asked = fleet.hosts().map(|ssh| async move {
        let answer = ask(ssh, "status --json", &[]).await;
        let output = answer.map_err(|error| format!("{error:#}"))?;
        let report: Value = serde_json::from_slice(&output.stdout).map_err(|_| said(&output))?;
        Ok((report, output.status.code().unwrap_or(1)))
    });
    let answers: Vec<Result<_, String>> = join_all(asked).await;
    let mut rows = vec![
        ["HOST", "STATE", "GATEWAY", "VERSION"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let (mut hosts, mut problems, mut codes) = (Vec::new(), String::new(), Vec::new());
    for (ssh, answer) in fleet.hosts().zip(answers) {
        let (mut report, code, error) = match answer {
            Ok((report, code)) => (report, code, None),
            Err(error) => (Value::Null, 1, Some(error)),
        };
        problems.extend(error.iter().map(|error| format!("! {ssh}: {error}\n")));
        let gateway = &report["gateway"];
        let fields = [&report["state"], &gateway["state"], &gateway["version"]];
        let fields = fields.map(|field| field.as_str().unwrap_or("-").to_owned());
        rows.push([&[ssh.to_string()], &fields[..]].concat());
        hosts.push(json!({ "host": ssh, "status": report.take(), "error": error }));
        codes.push(code);
    }
    if as_json {
        output::json(&json!({ "schema": 1, "hosts": hosts }))?;
    } else {
        output::text(&(output::columns(&rows) + &problems))?;
    }
    Ok(worst(codes))
}

/// The worst exit status: a failure, or else the highest one.
fn worst(codes: Vec<i32>) -> Exit {
    let worst = codes.into_iter().max_by_key(|code| (*code == 1, *code));
    Exit::Passed(u8::try_from(worst.unwrap_or(0)).unwrap_or(1))
}
