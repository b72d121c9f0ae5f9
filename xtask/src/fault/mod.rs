//! `cargo xtask fault`: fault-injection campaigns.

pub mod gdb;
pub mod machine;
