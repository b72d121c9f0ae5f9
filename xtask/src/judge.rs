//! The host's side of a judge's block (crate `judge-orders`): over the file that is
//! the machine's memory, while the machine runs or stands.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fault::mutate::Program;
use judge_orders::{BLOCK, BLOCK_SYMBOL, GO, Head, Kind, MAGIC, ORDERS, OUTCOME, Orders, Outcome};
use ring_proto::{DomainId, PAGE_SIZE};
use zerocopy::{FromBytes, IntoBytes};

/// Bytes of the machine's memory that are searched at a time.
const CHUNK: usize = 1 << 20;
/// Pause between two looks at a round that is not over.
const PAUSE: Duration = Duration::from_millis(1);

/// A judge in a running machine.
#[derive(Debug)]
pub struct Judge {
    ram: File,
    /// Where its block is in the machine's memory.
    at: u64,
    domain: DomainId,
    /// Number of the latest round.
    round: u64,
}

impl Judge {
    /// The judge that is domain `domain` of the machine whose memory is the file `ram`;
    /// `elf` is the judge's program. `None`: it serves no orders yet.
    ///
    /// # Errors
    ///
    /// A file can't be read, the program has no block, or there are several in the memory.
    pub fn find(ram: &Path, elf: &Path, domain: DomainId) -> Result<Option<Self>> {
        let offset = symbol(elf, BLOCK_SYMBOL)? as usize % PAGE_SIZE;
        let file = File::options().read(true).write(true).open(ram);
        let file = file.with_context(|| format!("can't open {}", ram.display()))?;
        let mut chunk = vec![0; CHUNK];
        let mut found = Vec::new();
        let mut at = 0;
        while file.read_exact_at(&mut chunk, at).is_ok() {
            for (page, bytes) in (at..).step_by(PAGE_SIZE).zip(chunk.chunks_exact(PAGE_SIZE)) {
                let head = bytes.get(offset..).and_then(|b| Head::read_from_prefix(b).ok());
                let Some((Head { magic: MAGIC, domain: number, .. }, _)) = head else { continue };
                if number == u64::from(domain) {
                    found.push(page + offset as u64);
                }
            }
            at += CHUNK as u64;
        }
        match found[..] {
            [] => Ok(None),
            [at] => Ok(Some(Self { ram: file, at, domain, round: 0 })),
            _ => bail!("several blocks of domain {domain} in the machine's memory: {found:x?}"),
        }
    }

    /// Who serves the block.
    ///
    /// # Errors
    ///
    /// It can't be read, or nobody does.
    pub fn head(&self) -> Result<Head> {
        let head: Head = self.read(0)?;
        let is_ours = head.magic == MAGIC && head.domain == u64::from(self.domain);
        ensure!(is_ours, "the block of domain {} is gone: {head:x?}", self.domain);
        Ok(head)
    }

    /// Whether it judges blk or net.
    ///
    /// # Errors
    ///
    /// Nobody serves the block.
    pub fn kind(&self) -> Result<Kind> {
        match self.head()?.kind {
            kind if kind == Kind::Blk as u64 => Ok(Kind::Blk),
            kind if kind == Kind::Net as u64 => Ok(Kind::Net),
            kind => bail!("domain {} is a judge of kind {kind}", self.domain),
        }
    }

    /// Orders a round; its number and the signal are put in here. Returns the number.
    ///
    /// # Errors
    ///
    /// They can't be written.
    pub fn order(&mut self, orders: Orders) -> Result<u64> {
        self.round += 1;
        let orders = Orders { round: self.round, signal: !self.round, ..orders };
        let (fields, signal) = orders.as_bytes().split_at(ORDERS_FIELDS);
        let at = self.at + ORDERS as u64;
        self.ram.write_all_at(fields, at).context("can't write orders")?;
        self.ram.write_all_at(signal, at + ORDERS_FIELDS as u64).context("can't write orders")?;
        Ok(self.round)
    }

    /// Lets the last requests of the latest round go.
    ///
    /// # Errors
    ///
    /// That can't be written.
    pub fn let_go(&self) -> Result<()> {
        let bytes = self.round.to_le_bytes();
        self.ram.write_all_at(&bytes, self.at + GO as u64).context("can't let a round go")
    }

    /// Whether the moment of the latest round has come.
    ///
    /// # Errors
    ///
    /// It can't be read.
    pub fn is_at_moment(&self) -> Result<bool> {
        let outcome = self.outcome()?;
        Ok(outcome.round == self.round && outcome.moment_ns != 0)
    }

    /// What the judge has seen so far of the round that it is at, or was at last.
    ///
    /// # Errors
    ///
    /// It can't be read.
    pub fn outcome(&self) -> Result<Outcome> {
        self.read(OUTCOME)
    }

    /// The outcome of the latest round, if it is over.
    ///
    /// # Errors
    ///
    /// It can't be read.
    pub fn result(&self) -> Result<Option<Outcome>> {
        if !self.outcome()?.is_over(self.round) {
            return Ok(None);
        }
        // Once more: what is over does not change, and the look before may have come between.
        self.outcome().map(Some)
    }

    /// Waits for the end of the latest round, at most for `patience`.
    ///
    /// # Errors
    ///
    /// It does not end, or can't be read.
    pub fn wait(&self, patience: Duration) -> Result<Outcome> {
        let begin = Instant::now();
        loop {
            if let Some(outcome) = self.result()? {
                return Ok(outcome);
            }
            if begin.elapsed() >= patience {
                bail!(
                    "round {} of domain {} is not over after {} s: {:?}",
                    self.round,
                    self.domain,
                    patience.as_secs(),
                    self.outcome()?
                );
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn read<T: FromBytes>(&self, offset: usize) -> Result<T> {
        let mut bytes = [0; BLOCK];
        self.ram.read_exact_at(&mut bytes, self.at).context("can't read a judge's block")?;
        let (value, _) = T::read_from_prefix(&bytes[offset..])
            .map_err(|_| anyhow::anyhow!("a judge's block is too short"))?;
        Ok(value)
    }
}

/// Bytes of the orders before the signal.
const ORDERS_FIELDS: usize = size_of::<Orders>() - size_of::<u64>();

/// Address of a symbol of a program.
///
/// # Errors
///
/// The file can't be read, or has no such symbol.
pub fn symbol(elf: &Path, name: &str) -> Result<u64> {
    let shown = elf.display();
    let bytes = std::fs::read(elf).with_context(|| format!("can't read {shown}"))?;
    let program = Program::read(&bytes).with_context(|| format!("{shown} is no program"))?;
    program.symbol(name).with_context(|| format!("{shown} has no symbol `{name}`"))
}
