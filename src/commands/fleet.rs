//! `fleet`: several hosts as one.

use serde_json::json;

use crate::cli::fleet::Fleet as Verb;
use crate::error::{Exit, Result};
use crate::host::Host;
use crate::operations::fleet::{APPLY, Fleet, good};
use crate::output;

pub(crate) async fn run(host: &Host, verb: Verb) -> Result<Exit> {
    let load = |skip: &[_]| Fleet::load(host, skip);
    match verb {
        Verb::Plan(hosts) => {
            let mut refused = false;
            for answer in load(&hosts.skip)?.plan(APPLY).await? {
                let ssh = &answer.member.ssh;
                let text = answer.output.and_then(good).unwrap_or_else(|error| {
                    refused = true;
                    format!("{error:#}\n").into()
                });
                let text = String::from_utf8_lossy(&text);
                output::text(&format!("== {ssh}\n{text}"))?;
            }
            Ok(if refused {
                Exit::Failure
            } else {
                Exit::Success
            })
        }
        Verb::Apply(hosts) => {
            load(&hosts.skip)?.roll_out(APPLY).await?;
            Ok(Exit::Success)
        }
        Verb::Upgrade { image, hosts } => {
            load(&hosts.skip)?.upgrade(image.as_str()).await?;
            Ok(Exit::Success)
        }
        Verb::Status { json, hosts } => status(&load(&hosts.skip)?, json).await,
        Verb::Run { hosts, command } => {
            let words: Vec<String> = command.iter().map(output::shell_word).collect();
            let mut codes = Vec::new();
            for member in load(&hosts.skip)?.members {
                output::line(&format!("== {}", member.ssh))?;
                let ran = member.ssh.call(&words.join(" "), &[], false).await;
                let code = ran.map(|ran| ran.status.code());
                codes.push(code.unwrap_or_else(|error| {
                    output::say(&format!("error: {error:#}"));
                    None
                }));
            }
            Ok(worst(codes))
        }
    }
}

async fn status(fleet: &Fleet<'_>, as_json: bool) -> Result<Exit> {
    let mut rows = vec![
        ["HOST", "STATE", "GATEWAY", "VERSION"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let (mut hosts, mut problems, mut codes) = (Vec::new(), String::new(), Vec::new());
    let (mut is_backed_up, mut relies_on_it) = (None, false);
    for answer in fleet.ask("status --json").await {
        let ssh = &answer.member.ssh;
        let answer =
            answer
                .output
                .and_then(|output| match serde_json::from_slice(&output.stdout) {
                    Ok(report) => Ok((report, output.status.code().unwrap_or(1))),
                    Err(_) => Ok((
                        json!({ "error": String::from_utf8_lossy(&good(output)?) }),
                        1,
                    )),
                });
        let (report, code) =
            answer.unwrap_or_else(|error| (json!({ "error": format!("{error:#}") }), 1));
        let backup = &report["backup"];
        if *ssh == fleet.backup {
            is_backed_up = Some(backup["id"].is_string() && backup["failed"] == false);
        }
        relies_on_it |= backup["by"] == fleet.backup.to_string();
        let gateway = &report["gateway"];
        let fields = [&report["state"], &gateway["state"], &gateway["version"]];
        let fields = fields.map(|field| field.as_str().unwrap_or("-").to_owned());
        if let Some(error) = report["error"].as_str() {
            problems += &format!("! {ssh}: {error}\n");
        }
        rows.push([&[ssh.to_string()], &fields[..]].concat());
        hosts.push(json!({ "host": ssh, "status": report }));
        codes.push(Some(code));
    }
    if relies_on_it && is_backed_up == Some(false) {
        let ssh = &fleet.backup;
        problems += &format!(
            "! {ssh} backs up the database of all, and has no backup or its last one failed: `litellm-units --host {ssh} backup`\n"
        );
        codes.push(Some(1));
    }
    if as_json {
        output::json(&json!({ "schema": 1, "hosts": hosts }))?;
    } else {
        output::text(&(output::columns(&rows) + &problems))?;
    }
    Ok(worst(codes))
}

/// The worst exit status: a failure, or else the highest one.
fn worst(codes: Vec<Option<i32>>) -> Exit {
    let codes = codes.into_iter().map(|code| code.unwrap_or(1));
    let worst = codes.max_by_key(|code| (*code == 1, *code));
    Exit::Passed(u8::try_from(worst.unwrap_or(0)).unwrap_or(1))
}
