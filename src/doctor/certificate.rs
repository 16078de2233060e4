//! The certificate of the entrance.

use std::time::Duration;

use super::{Check, CheckName, units};
use crate::deployment::entrance::Files;
use crate::deployment::settings::Settings;
use crate::host::Host;
use crate::host::caddy;
use crate::service::Service;

/// Of an operator's own certificate, the time for replacing it.
const NOTICE: Duration = Duration::from_secs(30 * 24 * 3600);

/// How long the certificate that is served is still valid. Check `units` reports an entrance that does not run.
pub(crate) async fn check(host: &Host, settings: Option<&Settings>) -> Option<Check> {
    let entrance = settings?.entrance.as_ref()?;
    if !units::is_active(host, Service::Entrance.unit()).await {
        return None;
    }
    let url = entrance.url();
    let is_own = Files::load(&host.paths).is_ok_and(|files| files.certificate);
    let remedy = if is_own {
        format!(
            "replace certificate.pem and key.pem in {}, then run `litellm-units apply`",
            host.paths.entrance().display()
        )
    } else {
        "see why Caddy gets no new one: `litellm-units logs entrance`".to_owned()
    };
    let validity = match caddy::served(&url, &entrance.host, entrance.port).await {
        Ok(validity) => validity?,
        Err(error) => {
            let message = format!("{url} does not answer on this host: {error:#}");
            let see = "`litellm-units logs entrance`";
            return Some(Check::failure(CheckName::Certificate, message).remedy(see));
        }
    };
    let end = validity.end.strftime("%F %T UTC");
    let left = validity.end.duration_since(jiff::Timestamp::now());
    // Caddy replaces its own when a third of the time is left.
    let notice = if is_own {
        NOTICE
    } else {
        validity.lifetime / 4
    };
    Some(if left.is_negative() || left.is_zero() {
        let message = format!("the certificate of {url} has expired: {end}");
        Check::failure(CheckName::Certificate, message).remedy(remedy)
    } else if left.unsigned_abs() < notice {
        let message = format!("the certificate of {url} expires soon: {end}");
        Check::warning(CheckName::Certificate, message).remedy(remedy)
    } else {
        let message = format!("that of {url} is valid until {end}");
        Check::ok(CheckName::Certificate, message)
    })
}
