//! `notify test`: whether notices of faults arrive.

use crate::cli::Notify;
use crate::doctor::watch;
use crate::error::{Exit, Result};
use crate::host::Host;
use crate::output;

pub(crate) async fn run(host: &Host, command: &Notify) -> Result<Exit> {
    match command {
        Notify::Test => {
            let recipients = watch::test(host).await?;
            output::line(&format!("a notice was sent: {}", recipients.join(", ")))?;
        }
    }
    Ok(Exit::Success)
}
