//! What changes a host: each operation as one call.

pub(crate) mod apply;
pub(crate) mod audit;
pub(crate) mod backup;
pub(crate) mod database;
pub(crate) mod debug;
pub(crate) mod dev;
pub(crate) mod edits;
pub(crate) mod entrance;
pub(crate) mod fleet;
pub(crate) mod import;
pub(crate) mod install;
pub(crate) mod postgres;
pub(crate) mod pull;
pub(crate) mod recovery;
pub(crate) mod recycle;
pub(crate) mod rotation;
pub(crate) mod seal;
pub(crate) mod stack;
pub mod trust;
pub(crate) mod up;
pub(crate) mod upgrade;
