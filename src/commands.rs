//! One module per verb.

pub mod down;
pub mod generate;
pub mod pull;
pub mod status;
pub mod unit;
pub mod up;
