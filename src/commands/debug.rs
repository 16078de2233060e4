//! `debug`: LiteLLM's debug logs for a limited time.

use crate::cli::{self, DebugCommand};
use crate::error::{Exit, Result};
use crate::host::Host;
use crate::operations::debug;
use crate::output::{self, say};

pub(crate) async fn run(host: &Host, arguments: &cli::Debug) -> Result<Exit> {
    match arguments.command {
        Some(DebugCommand::On { limit }) => {
            debug::turn_on(host, limit).await?;
            say(
                "debug logs contain prompts, answers and headers, and those of LiteLLM 1.80.11 keys in clear: whoever reads the journal reads them",
            );
        }
        Some(DebugCommand::Off) => debug::turn_off(&host.paths)?,
        None => {}
    }
    let until = debug::until(&host.paths);
    if arguments.json {
        output::json(&serde_json::json!({ "debug_until": until }))?;
    } else {
        output::line(&until.map_or("debug logs are off".to_owned(), |until| {
            format!("debug logs are on until {}", debug::time(until))
        }))?;
    }
    Ok(Exit::Success)
}
