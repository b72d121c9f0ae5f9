//! What a driver shows its device: the chains of a split virtqueue (virtio 1.2,
//! section 2.7). QEMU says where it lies and how far the device has come.
//!
//! The chain that is struck is one which the device has not taken yet. Some wait for it, such as
//! buffers for frames to come. For others the machine stops where the driver has shown them and
//! not yet notified the device. A watch of the word by which it shows them would stop others,
//! whose queues have the same addresses, many times.

use anyhow::{Context, Result, ensure};
use fault::mutate::Program;
use serde_json::{Value, json};

use super::monitor::Monitor;

/// Bytes of a descriptor.
const DESCRIPTOR: u64 = 16;
/// Flags of a descriptor: another follows; the device writes its buffer; it names a table of them.
const NEXT: u64 = 1;
const WRITE: u64 = 2;
const INDIRECT: u64 = 4;
/// Longest chain that is followed.
const LONGEST: u64 = 64;
/// A shorter buffer has no room for an interrupt message.
const MESSAGE: u64 = 4;

/// Where a driver has shown its device a chain: the end of the runtime's function that does it.
pub fn shows(program: &Program) -> Vec<u64> {
    let functions = program.functions_named("virtio::queue::Queue::publish");
    functions.into_iter().flat_map(|function| program.returns(function)).collect()
}

/// Which chain is struck, and where.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// How many chains come before that would do.
    pub after: u32,
    /// Which of its buffers: 65536ths of the way through those that will do.
    pub fraction: u16,
    /// Only those will do that the device writes.
    pub written: bool,
}

/// A queue in which a chain is to be struck.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// What QEMU calls its device, and its number there.
    device: String,
    number: u16,
    /// The descriptors.
    desc: u64,
    /// The ring of what is shown; flags and index are in front, and one word.
    avail: u64,
    /// Slots.
    size: u64,
    /// The next chain that was not looked at.
    next: u16,
    /// Chains that would do and were let pass.
    passed: u32,
    /// The chain that was struck.
    struck: Option<u16>,
}

/// A descriptor's length, flags and successor are its second word.
struct Second(u64);

impl Second {
    fn len(&self) -> u64 {
        self.0 & 0xffff_ffff
    }

    fn has(&self, flag: u64) -> bool {
        self.0 >> 32 & flag != 0
    }

    fn next(&self) -> u64 {
        self.0 >> 48
    }

    fn will_do(&self, wanted: &Wanted) -> bool {
        !wanted.written || self.has(WRITE) && self.len() >= MESSAGE
    }
}

impl Queue {
    /// That of the device of the driver `target`.
    ///
    /// # Errors
    ///
    /// QEMU does not tell, or the driver does not use it.
    pub fn find(monitor: &mut Monitor, target: &str, number: u16) -> Result<Self> {
        let all = monitor.ask("x-query-virtio", &json!({}))?;
        let name = format!("virtio-{target}");
        let own = |device: &&Value| device.get("name").and_then(Value::as_str) == Some(&name);
        let paths = all.as_array().into_iter().flatten().filter(own);
        // The peer's NIC comes behind the driver's.
        let path = paths.filter_map(|device| device.get("path")?.as_str()).min();
        let device = path.with_context(|| format!("QEMU has no {name}: {all}"))?.to_owned();
        let status = status(monitor, &device, number)?;
        Self::new(device, number, &status)
    }

    /// From what QEMU says of it.
    fn new(device: String, number: u16, status: &Value) -> Result<Self> {
        let queue = Self {
            device,
            number,
            desc: field(status, "vring-desc")?,
            avail: field(status, "vring-avail")?,
            size: field(status, "vring-num")?,
            next: field(status, "last-avail-idx")? as u16,
            passed: 0,
            struck: None,
        };
        let is_used = queue.size.is_power_of_two() && queue.avail != 0;
        ensure!(is_used, "the queue is not in use: {status}");
        Ok(queue)
    }

    /// Looks at what was shown since the last look. Where the address of a buffer stands that is to
    /// be another, if there is one. `read` reads a word of the driver's memory.
    ///
    /// # Errors
    ///
    /// The memory can't be read.
    pub fn look(
        &mut self,
        read: impl Fn(u64) -> Result<u64>,
        wanted: &Wanted,
    ) -> Result<Option<u64>> {
        let half = |address: u64| anyhow::Ok(read(address & !7)? >> (address % 8 * 8) & 0xffff);
        let shown = half(self.avail + 2)? as u16;
        while self.struck.is_none() && self.next != shown {
            let chain = self.next;
            self.next = chain.wrapping_add(1);
            let slot = u64::from(chain) & (self.size - 1);
            let places = self.buffers(&read, half(self.avail + 4 + slot * 2)?, wanted)?;
            let chosen = (places.len() * usize::from(wanted.fraction)) >> 16;
            let Some(place) = places.get(chosen) else { continue };
            if self.passed == wanted.after {
                self.struck = Some(chain);
                return Ok(Some(*place));
            }
            self.passed += 1;
        }
        Ok(None)
    }

    /// Where the addresses of a chain's buffers stand, of those that will do.
    fn buffers(
        &self,
        read: impl Fn(u64) -> Result<u64>,
        head: u64,
        wanted: &Wanted,
    ) -> Result<Vec<u64>> {
        let mut table = self.desc;
        let mut at = table + head * DESCRIPTOR;
        let mut found = Vec::new();
        for _ in 0..LONGEST {
            let second = Second(read(at + 8)?);
            if second.has(INDIRECT) {
                // Its chain begins with its first descriptor, and no table leads to another.
                ensure!(table == self.desc, "a table of descriptors within another");
                table = read(at)?;
                at = table;
                continue;
            }
            if second.will_do(wanted) {
                found.push(at);
            }
            if !second.has(NEXT) {
                break;
            }
            at = table + second.next() * DESCRIPTOR;
        }
        Ok(found)
    }

    /// Whether the chain that was struck is the device's by now.
    ///
    /// # Errors
    ///
    /// QEMU does not tell.
    pub fn is_taken(&self, monitor: &mut Monitor) -> Result<bool> {
        let Some(struck) = self.struck else { return Ok(false) };
        let status = status(monitor, &self.device, self.number)?;
        let taken = field(&status, "last-avail-idx")? as u16;
        // At most `size` chains are with the device, so it is that far behind at most.
        let ahead = taken.wrapping_sub(struck);
        Ok(ahead != 0 && u64::from(ahead) <= self.size)
    }
}

fn status(monitor: &mut Monitor, device: &str, number: u16) -> Result<Value> {
    let which = json!({ "path": device, "queue": number });
    monitor.ask("x-query-virtio-queue-status", &which)
}

fn field(status: &Value, name: &str) -> Result<u64> {
    let number = status.get(name).and_then(Value::as_u64);
    number.with_context(|| format!("QEMU says no `{name}` of a queue: {status}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: Wanted = Wanted { after: 0, fraction: 0, written: false };

    /// Four slots at 0, the ring at 64, the device at chain `next`.
    fn queue(next: u16) -> Queue {
        let status = json!({
            "vring-desc": 0, "vring-avail": 64, "vring-num": 4, "last-avail-idx": next,
        });
        Queue::new("disk".to_owned(), 0, &status).unwrap()
    }

    fn look(queue: &mut Queue, memory: &[(u64, u64)], wanted: Wanted) -> Option<u64> {
        let read = |at: u64| {
            assert_eq!(at % 8, 0);
            Ok(memory.iter().find(|(place, _)| *place == at).map_or(0, |(_, word)| *word))
        };
        queue.look(read, &wanted).unwrap()
    }

    fn second(len: u64, flags: u64, next: u64) -> u64 {
        len | flags << 32 | next << 48
    }

    /// Index 6: slot 1 holds 2. 2, then 1, then 3, which the device writes.
    const CHAIN: [(u64, u64); 4] = [
        (64, 6 << 16 | 2 << 48),
        (2 * 16 + 8, 16 | NEXT << 32 | 1 << 48),
        (16 + 8, 512 | NEXT << 32 | 3 << 48),
        (3 * 16 + 8, 512 | WRITE << 32),
    ];

    #[test]
    fn a_chain_is_followed() {
        let at = |fraction| look(&mut queue(5), &CHAIN, Wanted { fraction, ..ANY });
        assert_eq!([0, 0x6000, 0xffff].map(at), [Some(32), Some(16), Some(48)]);
    }

    #[test]
    fn a_chain_is_looked_at_once_and_none_that_the_device_took() {
        let mut taken = queue(6);
        assert_eq!(look(&mut taken, &CHAIN, ANY), None);
        let mut queue = queue(5);
        let later = Wanted { after: 1, ..ANY };
        assert_eq!(look(&mut queue, &CHAIN, later), None);
        assert_eq!(look(&mut queue, &CHAIN, later), None);
        // Another, in slot 2.
        let mut memory = CHAIN;
        memory[0].1 = 7 << 16 | 2 << 48;
        let memory = [&memory[..], &[(72, 3)]].concat();
        assert_eq!(look(&mut queue, &memory, later), Some(48));
        assert_eq!(look(&mut queue, &memory, later), None, "one is enough");
    }

    #[test]
    fn only_what_the_device_writes_has_room_for_a_message() {
        let written = Wanted { written: true, ..ANY };
        assert_eq!(look(&mut queue(5), &CHAIN, written), Some(48));
        let mut short = CHAIN;
        short[3].1 = second(1, WRITE, 0);
        assert_eq!(look(&mut queue(5), &short, written), None);
        assert_eq!(look(&mut queue(5), &short, Wanted { fraction: 0xffff, ..ANY }), Some(48));
    }

    #[test]
    fn a_table_is_looked_into() {
        // Index 0 after 65535: slot 3 holds 0, whose table is at 128.
        let memory = [
            (64, 0),
            (72, 0),
            (0, 128),
            (8, second(32, INDIRECT, 0)),
            (128 + 8, second(16, NEXT, 1)),
            (144 + 8, second(16, 0, 0)),
        ];
        let at = |fraction| look(&mut queue(u16::MAX), &memory, Wanted { fraction, ..ANY });
        assert_eq!([0, 0xffff].map(at), [Some(128), Some(144)]);
    }

    #[test]
    fn a_chain_without_end_ends() {
        let memory = [(64, 1 << 16), (8, second(16, NEXT, 0))];
        assert_eq!(look(&mut queue(0), &memory, ANY), Some(0));
    }

    #[test]
    fn a_queue_that_is_not_in_use_is_none() {
        for avail in [json!(0), Value::Null] {
            let status = json!({
                "vring-desc": 0, "vring-avail": avail, "vring-num": 4, "last-avail-idx": 0,
            });
            assert!(Queue::new("disk".to_owned(), 0, &status).is_err());
        }
    }
}
