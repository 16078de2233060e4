//! What lies in the deployment directory: settings, records, and earlier configurations.

pub(crate) mod applied;
pub(crate) mod certificates;
pub mod completion;
pub mod configuration;
pub(crate) mod database_url;
pub mod entrance;
pub mod env_file;
pub(crate) mod external;
pub mod extra;
pub mod fleet;
pub mod images_lock;
pub(crate) mod installed_release;
pub mod ledger;
pub mod listen;
pub mod operation_id;
pub(crate) mod postgres_sizes;
pub(crate) mod sealed;
pub mod settings;
pub(crate) mod snapshot;
pub(crate) mod variables;
