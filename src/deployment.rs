//! What lies in the deployment directory: settings, records, and earlier configurations.

pub mod applied;
pub mod completion;
pub mod env_file;
pub mod images_lock;
pub mod installed_release;
pub mod ledger;
pub mod operation_id;
pub mod sealed;
pub mod settings;
pub mod snapshot;
