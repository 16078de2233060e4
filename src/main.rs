//! `litellm-units`: parses, runs, and prints an error with its hint.

use std::process::ExitCode;

use clap::Parser;
use litellm_units::cli::Cli;
use litellm_units::{error, output};

fn main() -> ExitCode {
    #[cfg(feature = "fault-points")]
    let _faults = faults();
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: can't start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let exit = match runtime
        .block_on(litellm_units::run(cli))
        .map_err(error::on_full_disk)
    {
        Ok(exit) => exit.into(),
        Err(error) => {
            if !error.is::<output::ClosedStdout>() {
                output::say(&format!("error: {error:#}"));
                if let Some(hint) = error::hint(&error) {
                    output::say(&format!("hint: {hint}"));
                }
            }
            error::exit(&error).into()
        }
    };
    // A disk that does not answer may hold up a read for ever.
    runtime.shutdown_background();
    exit
}

/// Sets the points of `FAILPOINTS`, and kills this process at the point `LITELLM_UNITS_KILL_AT`.
#[cfg(feature = "fault-points")]
fn faults() -> fail::FailScenario<'static> {
    let scenario = fail::FailScenario::setup();
    if let Ok(point) = std::env::var("LITELLM_UNITS_KILL_AT") {
        let kill = || {
            let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
        };
        if let Err(error) = fail::cfg_callback(point, kill) {
            eprintln!("warning: {error}");
        }
    }
    scenario
}
