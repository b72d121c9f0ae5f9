//! Links the program with the layout of all domains.

include!("../domain-rt/link/build.rs");
