//! Control messages between the supervisor and the host.
