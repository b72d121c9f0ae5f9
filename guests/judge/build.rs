//! Links with the layout that all domains share.
include!("../../domain-rt/link/build.rs");
