//! QEMU's gdbstub, seen from the other side: GDB's Remote Serial Protocol, as
//! far as fault injection needs it (GDB manual, appendix E).
//!
//! The machine stands still when the connection is made, and whenever a byte is
//! sent to it while it runs; so nothing is sent between [`Gdb::resume`] and a
//! stop but [`Gdb::interrupt`].

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// How long an answer may take of a machine that stands still.
const ANSWER: Duration = Duration::from_secs(60);
/// Most bytes of memory in one packet; QEMU 7.2 takes 4096 characters.
const MEMORY: usize = 1024;

/// Index of RAX in GDB's order of registers: RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP, R8 … R15, RIP, RFLAGS in
/// `org.gnu.gdb.i386.core`.
pub const RAX: usize = 0;
/// Of RSI and RDI, the first arguments of a function that is called.
pub const RSI: usize = 4;
/// See [`RSI`].
pub const RDI: usize = 5;
/// Of the stack pointer.
pub const RSP: usize = 7;
/// Of the instruction pointer.
pub const RIP: usize = 16;
/// Registers of 64 bits at the front of all.
const REGISTERS: usize = 17;
/// Where CR3 is behind them, after EFLAGS, six selectors and six more registers, bytes.
const CR3: usize = REGISTERS * 8 + 7 * 4 + 5 * 8;

/// Registers of the processor.
#[derive(Clone, Copy, Debug)]
pub struct Registers {
    /// General ones, see [`RSP`], and at [`RIP`] the instruction pointer.
    pub general: [u64; REGISTERS],
    /// CR3: who is executing has its own.
    pub cr3: u64,
}

impl Registers {
    /// The instruction pointer.
    pub fn rip(&self) -> u64 {
        self.general[RIP]
    }
}

/// A machine that is debugged.
#[derive(Debug)]
pub struct Gdb {
    stream: UnixStream,
    /// Received and not yet used.
    input: Vec<u8>,
    /// It stands still.
    stopped: bool,
    breakpoints: BTreeSet<u64>,
    watched: Option<(Access, u64)>,
    /// The last stop was over what [`Self::watch`] watches.
    at_watched: bool,
}

/// What is done to a word that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It is written.
    Write = 2,
    /// It is read.
    Read = 3,
}

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The machine stands still.
    Stopped,
    /// It still runs.
    Time,
    /// QEMU is gone.
    Ended,
}

impl Gdb {
    /// Connects to the socket of a stub, which stops the machine.
    ///
    /// # Errors
    ///
    /// It does not answer.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path)
            .with_context(|| format!("can't reach QEMU's gdbstub at {}", path.display()))?;
        let mut gdb = Self::over(stream);
        ensure!(gdb.wait(ANSWER)? == Wait::Stopped, "QEMU's gdbstub does not stop the machine");
        // Memory is that of the machine from here on, not what some domain sees of it.
        let answer = gdb.ask("Qqemu.PhyMemMode:1")?;
        ensure!(answer == "OK", "QEMU's gdbstub knows no physical memory: {answer:?}");
        // It lets registers be written one by one only by those who know their description.
        gdb.ask("qXfer:features:read:target.xml:0,ff0")?;
        Ok(gdb)
    }

    fn over(stream: UnixStream) -> Self {
        Self {
            stream,
            input: Vec::new(),
            stopped: false,
            breakpoints: BTreeSet::new(),
            watched: None,
            at_watched: false,
        }
    }

    /// Whether the last stop was over what is watched.
    pub fn is_at_watched(&self) -> bool {
        self.at_watched
    }

    /// Whether the machine stands still.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Whether nothing can stop the machine but [`Self::interrupt`].
    pub fn is_free(&self) -> bool {
        self.breakpoints.is_empty() && self.watched.is_none()
    }

    /// Lets the machine run.
    pub fn resume(&mut self) -> Result<()> {
        self.send("c")?;
        self.stopped = false;
        Ok(())
    }

    /// Has the machine stop, if it runs. A breakpoint may have stopped it meanwhile.
    pub fn interrupt(&mut self) -> Result<Wait> {
        if self.stopped {
            return Ok(Wait::Stopped);
        }
        self.write(&[3])?;
        match self.wait(ANSWER)? {
            Wait::Time => bail!("the machine does not stop"),
            wait => Ok(wait),
        }
    }

    /// Waits until the machine stops.
    pub fn wait(&mut self, limit: Duration) -> Result<Wait> {
        if self.stopped {
            return Ok(Wait::Stopped);
        }
        match self.receive(limit)? {
            None => Ok(Wait::Time),
            Some(packet) if packet.starts_with('T') || packet.starts_with('S') => {
                self.stopped = true;
                self.at_watched = packet.contains("watch:");
                Ok(Wait::Stopped)
            }
            // `W`: the machine ended. Empty: the connection did.
            Some(packet) if packet.is_empty() || packet.starts_with('W') => Ok(Wait::Ended),
            Some(other) => bail!("QEMU's gdbstub says {other:?} instead of that it stopped"),
        }
    }

    /// Executes one instruction; no interrupt comes meanwhile.
    pub fn step(&mut self) -> Result<Wait> {
        self.send("s")?;
        self.stopped = false;
        match self.wait(ANSWER)? {
            Wait::Time => bail!("one instruction does not end"),
            wait => Ok(wait),
        }
    }

    /// Stops the machine whenever any program comes to `address`.
    pub fn insert(&mut self, address: u64) -> Result<()> {
        if self.breakpoints.insert(address) {
            self.demand(&format!("Z0,{address:x},1"))?;
        }
        Ok(())
    }

    /// No longer.
    pub fn remove(&mut self, address: u64) -> Result<()> {
        if self.breakpoints.remove(&address) {
            self.demand(&format!("z0,{address:x},1"))?;
        }
        Ok(())
    }

    /// Stops the machine whenever any program has written or read one of 8 bytes at `address`;
    /// what was watched before is so no more. Unlike a breakpoint, this leaves QEMU all that it
    /// has translated.
    pub fn watch(&mut self, access: Access, address: u64) -> Result<()> {
        self.forget()?;
        self.demand(&format!("Z{},{address:x},8", access as u8))?;
        self.watched = Some((access, address));
        Ok(())
    }

    /// No longer.
    pub fn forget(&mut self) -> Result<()> {
        match self.watched.take() {
            Some((access, address)) => self.demand(&format!("z{},{address:x},8", access as u8)),
            None => Ok(()),
        }
    }

    /// Takes all breakpoints away.
    pub fn clear(&mut self) -> Result<()> {
        self.forget()?;
        while let Some(&address) = self.breakpoints.first() {
            self.remove(address)?;
        }
        Ok(())
    }

    /// Lets a machine go on that stands still, at a breakpoint or not. QEMU translates all
    /// programs anew after a stop at a breakpoint, and after the step over one that stays: both
    /// are to be rare.
    pub fn go_on(&mut self) -> Result<()> {
        if self.breakpoints.is_empty() {
            return self.resume();
        }
        let rip = self.registers()?.rip();
        if self.breakpoints.contains(&rip) {
            self.remove(rip)?;
            if self.step()? == Wait::Ended {
                return Ok(());
            }
            self.insert(rip)?;
        }
        self.resume()
    }

    /// The registers.
    pub fn registers(&mut self) -> Result<Registers> {
        let bytes = unhex(&self.ask("g")?).context("registers")?;
        let mut general = [0; REGISTERS];
        let (words, _) = bytes.as_chunks::<8>();
        let cr3 = bytes.get(CR3..).and_then(<[u8]>::first_chunk);
        let cr3 = cr3.with_context(|| format!("{} bytes of registers", bytes.len()))?;
        for (register, word) in general.iter_mut().zip(words) {
            *register = u64::from_le_bytes(*word);
        }
        Ok(Registers { general, cr3: u64::from_le_bytes(*cr3) })
    }

    /// Changes one of them.
    pub fn set_register(&mut self, index: usize, value: u64) -> Result<()> {
        self.demand(&format!("P{index:x}={}", hex(&value.to_le_bytes())))
    }

    /// Writes the machine's memory. What was translated of it is thrown away, so
    /// this is the way to change instructions.
    pub fn write_memory(&mut self, address: u64, bytes: &[u8]) -> Result<()> {
        for (at, part) in (address..).step_by(MEMORY).zip(bytes.chunks(MEMORY)) {
            self.demand(&format!("M{at:x},{:x}:{}", part.len(), hex(part)))?;
        }
        Ok(())
    }

    fn demand(&mut self, packet: &str) -> Result<()> {
        let answer = self.ask(packet)?;
        ensure!(answer == "OK", "QEMU's gdbstub answers {answer:?} to {packet:?}");
        Ok(())
    }

    fn ask(&mut self, packet: &str) -> Result<String> {
        ensure!(self.stopped, "the machine runs");
        self.send(packet)?;
        let answer = self.receive(ANSWER)?;
        answer.with_context(|| format!("QEMU's gdbstub does not answer {packet:?}"))
    }

    fn send(&mut self, packet: &str) -> Result<()> {
        let sum = packet.bytes().fold(0u8, u8::wrapping_add);
        self.write(format!("${packet}#{sum:02x}").as_bytes())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).context("can't write to QEMU's gdbstub")
    }

    /// The next packet; empty if there will be none, `None` if there is none yet.
    fn receive(&mut self, limit: Duration) -> Result<Option<String>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(packet) = self.packet()? {
                self.write(b"+")?;
                return Ok(Some(packet));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(Some(String::new())),
                Ok(len) => self.input.extend_from_slice(buffer.get(..len).unwrap_or(&[])),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    return Ok(Some(String::new()));
                }
                Err(error) => return Err(error).context("can't read from QEMU's gdbstub"),
            }
        }
    }

    /// Takes one packet out of what was received; acknowledgements are skipped.
    fn packet(&mut self) -> Result<Option<String>> {
        let Some(start) = self.input.iter().position(|&byte| byte == b'$') else {
            self.input.clear();
            return Ok(None);
        };
        let rest = self.input.get(start + 1..).unwrap_or(&[]);
        let Some(len) = rest.iter().position(|&byte| byte == b'#') else { return Ok(None) };
        let Some((body, [high, low, ..])) = rest.split_at_checked(len).map(|(a, b)| (a, &b[1..]))
        else {
            return Ok(None);
        };
        let sum = body.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        let told = unhex(std::str::from_utf8(&[*high, *low])?)?;
        let body = String::from_utf8(body.to_vec()).context("a packet that is no text")?;
        ensure!(told == [sum], "a damaged packet of QEMU's gdbstub: {body:?}");
        self.input.drain(..start + 1 + len + 3);
        Ok(Some(body))
    }
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes that `text` means; QEMU writes `x` for what it does not know.
pub fn unhex(text: &str) -> Result<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    ensure!(rest.is_empty(), "half a byte in {text:?}");
    let byte = |pair: &[u8; 2]| {
        let text = std::str::from_utf8(pair)?;
        if text == "xx" { Ok(0) } else { u8::from_str_radix(text, 16).context("no hexadecimal") }
    };
    pairs.iter().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Gdb, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Gdb { stopped: true, ..Gdb::over(ours) }, theirs)
    }

    #[test]
    fn packets_come_in_pieces_and_after_acknowledgements() {
        let (mut gdb, mut stub) = pair();
        stub.write_all(b"+$OK#9").unwrap();
        assert_eq!(gdb.receive(Duration::from_millis(1)).unwrap(), None);
        stub.write_all(b"a$T05thread:01;#07").unwrap();
        assert_eq!(gdb.receive(ANSWER).unwrap().as_deref(), Some("OK"));
        gdb.stopped = false;
        assert_eq!(gdb.wait(ANSWER).unwrap(), Wait::Stopped);
        drop(stub);
        gdb.stopped = false;
        assert_eq!(gdb.wait(ANSWER).unwrap(), Wait::Ended);
    }

    #[test]
    fn damaged_packets_are_refused() {
        let (mut gdb, mut stub) = pair();
        stub.write_all(b"$OK#00").unwrap();
        assert!(gdb.receive(ANSWER).is_err());
    }

    #[test]
    fn what_is_sent_has_its_checksum() {
        let (mut gdb, mut stub) = pair();
        stub.write_all(b"$OK#9a").unwrap();
        gdb.insert(0x200).unwrap();
        let mut bytes = [0; 12];
        stub.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"$Z0,200,1#a5");
    }

    #[test]
    fn registers_are_little_endian() {
        let (mut gdb, mut stub) = pair();
        let mut bytes: Vec<u8> = (0..REGISTERS as u64).flat_map(u64::to_le_bytes).collect();
        bytes.resize(CR3, 0);
        bytes.extend(0x10_2000u64.to_le_bytes());
        let text = hex(&bytes);
        let sum = text.bytes().fold(0u8, u8::wrapping_add);
        stub.write_all(format!("${text}#{sum:02x}").as_bytes()).unwrap();
        let registers = gdb.registers().unwrap();
        assert_eq!((registers.rip(), registers.cr3), (RIP as u64, 0x10_2000));
    }

    #[test]
    fn hexadecimal_goes_both_ways() {
        assert_eq!(unhex(&hex(&[0, 0x7f, 0xff])).unwrap(), [0, 0x7f, 0xff]);
        assert_eq!(unhex("xx01").unwrap(), [0, 1]);
        assert!(unhex("0").is_err());
        assert!(unhex("zz").is_err());
    }
}
