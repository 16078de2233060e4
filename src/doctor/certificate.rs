//! The certificate of the entrance.

use std::time::Duration;

use super::{Check, CheckName};
use crate::deployment::entrance::Files;
use crate::deployment::settings::Settings;
use crate::host::Host;
use crate::operations::entrance::CertificateReport;

/// Of an operator's own certificate, the time for replacing it.
const NOTICE: Duration = Duration::from_secs(30 * 24 * 3600);

/// How long the certificate that is served is still valid. Check `units` reports an entrance that does not run.
pub(crate) fn check(
    host: &Host,
    settings: Option<&Settings>,
    certificate: Option<&CertificateReport>,
) -> Option<Check> {
    let entrance = settings?.entrance.as_ref()?;
    let certificate = certificate?;
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
    let Some(expires) = certificate.expires else {
        let reason = certificate.error.as_deref().unwrap_or_default();
        let message = format!("{url} does not answer on this host: {reason}");
        let see = "`litellm-units logs entrance`";
        return Some(Check::failure(CheckName::Certificate, message).remedy(see));
    };
    let end = expires.strftime("%F %T UTC");
    let left = expires.duration_since(jiff::Timestamp::now());
    // Caddy replaces its own when a third of the time is left.
    let notice = if is_own {
        NOTICE
    } else {
        certificate.lifetime / 4
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
