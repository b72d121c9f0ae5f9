include!("../domain-rt/link/build.rs");
