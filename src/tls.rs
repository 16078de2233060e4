//! The cryptography of TLS.

/// Gives TLS its cryptography, without which even a client that only speaks plain HTTP can't be built. To be called
/// before each client is.
pub(crate) fn install() {
    // An error means that there is one already.
    #[cfg(feature = "tls")]
    let _ = rustls::crypto::ring::default_provider().install_default();
}
