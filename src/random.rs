//! Random bytes, and the secrets that are made of them.

use std::fmt::Write as _;

use anyhow::Context;

use crate::error::Result;

/// A source of random bytes: the kernel's, or a fixed one in tests.
pub type Random<'a> = &'a mut dyn FnMut(&mut [u8]) -> Result<()>;

/// Fills `bytes` from the kernel's random number generator.
///
/// # Errors
/// When the kernel has none to give.
pub fn kernel_random(bytes: &mut [u8]) -> Result<()> {
    getrandom::fill(bytes).context("can't get random bytes from the kernel")
}

/// `sk-` and 256 random bits.
///
/// # Errors
/// When there are no random bytes.
pub fn secret_key(random: Random<'_>) -> Result<String> {
    Ok(format!("sk-{}", password(random)?))
}

/// 256 random bits in hexadecimal, which no grammar on the way has to quote.
///
/// # Errors
/// When there are no random bytes.
pub fn password(random: Random<'_>) -> Result<String> {
    let mut bytes = [0; 32];
    random(&mut bytes)?;
    Ok(hex(&bytes))
}

/// Bytes in hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String can't fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}
