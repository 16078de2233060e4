//! One module per verb.

pub mod config;
pub mod down;
pub mod generate;
pub mod pull;
pub mod status;
pub mod unit;
pub mod up;
