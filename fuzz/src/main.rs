//! libFuzzer around one target, which `BULKHEAD_FUZZ_TARGET` names.
#![no_main]

use std::sync::OnceLock;

use fuzz_targets::Target;

static TARGET: OnceLock<&Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let target = TARGET.get_or_init(|| {
        let name = std::env::var("BULKHEAD_FUZZ_TARGET").unwrap_or_default();
        match fuzz_targets::target(&name) {
            Some(target) => target,
            None => {
                eprintln!("BULKHEAD_FUZZ_TARGET names no target: {name:?}");
                std::process::exit(2);
            }
        }
    });
    (target.run)(data);
});
