//! One module per verb.

pub mod apply;
pub mod audit;
pub mod backup;
pub mod completion;
pub mod config;
pub mod doctor;
pub mod down;
pub mod exec;
pub mod generate;
pub mod health;
pub mod key;
pub mod logs;
pub mod pull;
pub mod secrets;
pub mod status;
pub mod trust;
pub mod ui;
pub mod unit;
pub mod units;
pub mod up;
