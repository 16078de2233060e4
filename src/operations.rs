//! What changes a host: each operation as one call.

pub mod audit;
pub mod backup;
pub mod install;
pub mod pull;
pub mod recovery;
pub mod rotation;
pub mod seal;
pub mod stack;
pub mod trust;
pub mod up;
pub mod upgrade;
