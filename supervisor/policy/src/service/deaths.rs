//! What the crash records tell: to the host, and for the restart budgets.

use ring_proto::{
    control::{Absence, Event},
    crash::CrashRecord,
};

use super::Supervisor;
use crate::{Node, restart::is_unplanned};

/// Records read at a time, so that a storm of deaths cannot keep the loop.
const RECORDS_PER_LOOK: usize = 32;
/// Records read at the start: more than the hypervisor keeps.
const RECORDS_AT_START: usize = 1024;

impl Supervisor {
    /// Takes from the records what a former generation knew: unplanned deaths
    /// within the windows, and since when nobody was there. What happened
    /// since then is left to [`Self::read_deaths`].
    pub(super) fn recall(&mut self, node: &mut impl Node) {
        let mut next = 0;
        let mut gone = None;
        for _ in 0..RECORDS_AT_START {
            let record = match node.crash_read(next) {
                Ok(Some(record)) if record.sequence >= next => record,
                _ => break,
            };
            next = record.sequence.saturating_add(1);
            if record.domain == self.me && record.generation.wrapping_add(1) == self.generation {
                let t = record.times;
                gone = Some((next, if t.died == 0 { t.detected } else { t.died }));
            } else if gone.is_none() {
                self.count(&record);
            }
        }
        self.next_record = next;
        if let Some((after, at)) = gone {
            self.next_record = after;
            self.absence = Absence {
                ns: node.now_ns().saturating_sub(at),
                deaths: u32::try_from(next.saturating_sub(after)).unwrap_or(u32::MAX),
            };
            log::warn!(
                "nobody was here for {} us; {} others died meanwhile",
                self.absence.ns / 1_000,
                self.absence.deaths
            );
        }
    }

    /// Takes note of deaths since the last look: which command each belongs
    /// to, or that it was unplanned.
    pub(super) fn read_deaths(&mut self, node: &mut impl Node) {
        for _ in 0..RECORDS_PER_LOOK {
            let record = match node.crash_read(self.next_record) {
                Ok(Some(record)) if record.sequence >= self.next_record => record,
                _ => return,
            };
            self.next_record = record.sequence.saturating_add(1);
            self.tell(Event::Died {
                domain: record.domain,
                generation: record.generation,
                reason: record.report.reason,
                sequence: record.sequence,
            });
            for operation in &mut self.operations {
                if operation.explains(record.domain, record.generation) {
                    operation.record = Some(record.sequence);
                }
            }
            self.updates.note(&record);
            self.count(&record);
        }
    }

    /// Remembers a death that counts and was not forgiven by a release. That of
    /// an image that the domain is not to run says nothing about the one that it
    /// is to run.
    fn count(&mut self, record: &CrashRecord) {
        let info = self.domains.iter().find(|info| info.id == record.domain);
        let released = info.map_or(0, |info| info.released_ns);
        if is_unplanned(record)
            && info.is_none_or(|info| info.good_crc == record.image_crc)
            && record.times.detected > released
            && let Some(history) = self.history.get_mut(usize::from(record.domain))
        {
            history.record(record.times.detected);
        }
    }
}
