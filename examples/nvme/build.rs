//! Links the program as a domain.

include!("../../domain-rt/link/build.rs");
