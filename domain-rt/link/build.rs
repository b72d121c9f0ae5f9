// Links this domain's program with the layout that all domains share.
//
// The build script of a domain is one line:
// `include!("../../domain-rt/link/build.rs");` (mind the depth).

fn main() -> Result<(), &'static str> {
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .map(|folder| folder.join("domain-rt/link/domain.ld"))
        .find(|script| script.exists())
        .ok_or("no folder above this crate has domain-rt/link/domain.ld")?;
    println!("cargo:rerun-if-changed={}", script.display());
    for argument in [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--build-id=none",
        "-Wl,-z,max-page-size=4096",
        "-Wl,-z,norelro",
        "-Wl,--gc-sections",
    ] {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
    println!("cargo:rustc-link-arg-bins=-Wl,-T,{}", script.display());
    Ok(())
}
