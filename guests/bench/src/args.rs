//! The words of `args`.

/// What this guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Measures over rings.
    Ring,
    /// Measures with the drivers linked in.
    Fused,
    /// Is measured against.
    Peer,
    /// Keeps the disk busy and watches its driver die.
    RecoveryBlk,
    /// The same with the NIC.
    RecoveryNet,
}

/// What the manifest says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Args {
    pub(crate) mode: Mode,
    /// Parts of names, separated by commas; empty = all.
    only: &'static str,
}

impl Args {
    /// Reads the words; the error is the one that was not understood.
    pub(crate) fn parse(text: &'static str) -> Result<Self, &'static str> {
        let mut args = Self { mode: Mode::Ring, only: "" };
        for word in text.split_ascii_whitespace() {
            match word.split_once('=') {
                Some(("mode", "ring")) => args.mode = Mode::Ring,
                Some(("mode", "fused")) => args.mode = Mode::Fused,
                Some(("mode", "peer")) => args.mode = Mode::Peer,
                Some(("mode", "recovery-blk")) => args.mode = Mode::RecoveryBlk,
                Some(("mode", "recovery-net")) => args.mode = Mode::RecoveryNet,
                Some(("only", names)) => args.only = names,
                _ => return Err(word),
            }
        }
        Ok(args)
    }

    /// Whether the case of this name is to run.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.split(',').any(|part| name.contains(part))
    }
}
