//! Links each program as a domain.

include!("../../../domain-rt/link/build.rs");
