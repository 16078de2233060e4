//! `litellm-units`: parse, run, and turn an error into words and an exit status.

use std::process::ExitCode;

use clap::Parser;
use litellm_units::cli::Cli;
use litellm_units::error;

fn main() -> ExitCode {
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
    match runtime.block_on(litellm_units::run(cli)) {
        Ok(exit) => exit.into(),
        Err(error) => {
            // A reader that went away (`| head`) wants no more words.
            let broken_pipe = error.chain().any(|cause| {
                cause
                    .downcast_ref::<std::io::Error>()
                    .is_some_and(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
            });
            if !broken_pipe {
                eprintln!("error: {error:#}");
                if let Some(hint) = error::hint(&error) {
                    eprintln!("hint: {hint}");
                }
            }
            error::exit(&error).into()
        }
    }
}
