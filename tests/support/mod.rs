//! What several tests share.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]

pub mod cases;
pub mod host;
