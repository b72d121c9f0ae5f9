//! Which accelerator to use.

use std::fs::{File, read_to_string};
use std::str::FromStr;

/// Who executes the machine's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// QEMU's translator: works everywhere.
    Tcg,
    /// The host's processor; needs nested SVM.
    Kvm,
    /// KVM where nested SVM really is there, else TCG.
    Auto,
}

impl FromStr for Accel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "tcg" => Ok(Self::Tcg),
            "kvm" => Ok(Self::Kvm),
            "auto" => Ok(Self::Auto),
            other => Err(format!("`{other}` is not `tcg`, `kvm` or `auto`")),
        }
    }
}

impl Accel {
    /// Whether KVM is to be used.
    ///
    /// # Errors
    ///
    /// KVM was asked for, and this says what is missing.
    pub fn use_kvm(self) -> Result<bool, String> {
        match self {
            Self::Tcg => Ok(false),
            Self::Kvm => nested_svm().map(|()| true),
            Self::Auto => Ok(nested_svm().is_ok()),
        }
    }
}

/// Looks for nested SVM. That `/dev/kvm` opens says nothing about it: inside
/// another virtual machine the processor often has no `svm` flag.
fn nested_svm() -> Result<(), String> {
    File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map_err(|why| format!("/dev/kvm can't be opened: {why}"))?;
    let cpuinfo = read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut flags = cpuinfo.lines().filter(|line| line.starts_with("flags"));
    if !flags.any(|line| line.split_whitespace().any(|flag| flag == "svm")) {
        return Err("this processor does not offer SVM".to_owned());
    }
    let nested = read_to_string("/sys/module/kvm_amd/parameters/nested").unwrap_or_default();
    match nested.trim() {
        "1" | "Y" => Ok(()),
        _ => Err("kvm_amd does not offer nested SVM (its parameter `nested` is off)".to_owned()),
    }
}
