//! How the node's state is told to the host: from the hypervisor's fixed
//! layouts to control messages.

use ring_proto::{
    DomainId, Generation,
    bundle::Name,
    control::{ConnectionStatus, CrashEntry, DomainStatus, LOG_BYTES, LogPage, PAGE_ENTRIES, Page},
    crash::{CrashRecord, UNKNOWN},
    hypercall::{ConnectionInfo, DomainInfo, Error, LogHeader, NOBODY},
};
use zerocopy::FromBytes;

use crate::Node;

/// The name of a domain.
pub fn name(domain: &DomainInfo) -> Name {
    text(&domain.name)
}

/// NUL-padded text; what does not fit or is not UTF-8 is cut.
fn text<const N: usize>(bytes: &[u8]) -> heapless::String<N> {
    let bytes = bytes.split(|&b| b == 0).next().unwrap_or_default();
    let mut out = heapless::String::new();
    for part in bytes.utf8_chunks() {
        for c in part.valid().chars() {
            if out.push(c).is_err() {
                return out;
            }
        }
    }
    out
}

/// One page of `all`, beginning with number `first`.
pub fn page<T, U>(all: &[T], first: u16, convert: impl Fn(&T) -> U) -> Page<U> {
    let rest = all.get(usize::from(first)..).unwrap_or_default();
    let mut entries = heapless::Vec::new();
    for item in rest.iter().take(PAGE_ENTRIES) {
        // At most `PAGE_ENTRIES` of them.
        let _ = entries.push(convert(item));
    }
    let next = first.saturating_add(entries.len().try_into().unwrap_or(u16::MAX));
    let next = (rest.len() > entries.len()).then_some(next);
    Page { entries, next }
}

/// A domain for the host.
pub fn domain(info: &DomainInfo) -> DomainStatus {
    DomainStatus {
        id: info.id,
        name: name(info),
        state: info.state,
        ready: info.ready != 0,
        core: info.core,
        generation: info.generation,
        deaths: info.deaths,
        last_reason: info.last_reason,
        memory: info.memory,
        started_ns: info.started_ns,
        died_ns: info.died_ns,
        cpu_ns: info.cpu_ns,
        exits: info.exits,
        hypercalls: info.hypercalls,
        notifies: info.notifies,
        interrupts: info.interrupts,
        mapped: info.mapped,
        granted: info.granted,
        spare_of: (info.spare_of != NOBODY).then_some(info.spare_of),
        reset: info.reset,
        devices: info.devices,
        resets: info.resets,
        image_crc: info.image_crc,
        good_crc: info.good_crc,
        trial: info.trial,
        update_space: info.update_space,
    }
}

/// A connection for the host.
pub fn connection(info: &ConnectionInfo) -> ConnectionStatus {
    ConnectionStatus {
        id: info.id,
        protocol: info.protocol,
        frontend: info.frontend,
        backend: info.backend,
        frontend_state: info.frontend_state,
        backend_state: info.backend_state,
    }
}

/// A crash record for the host.
pub fn crash(record: &CrashRecord, name: Name) -> CrashEntry {
    let mut backtrace = heapless::Vec::new();
    for &address in record.report.backtrace.iter().take_while(|&&a| a != 0) {
        // As long as the record's array.
        let _ = backtrace.push(address);
    }
    CrashEntry {
        sequence: record.sequence,
        domain: record.domain,
        name,
        generation: record.generation,
        reason: record.report.reason,
        vector: record.report.vector,
        error_code: record.report.error_code,
        rip: record.report.rip,
        rsp: record.report.rsp,
        cr2: record.report.cr2,
        fault_address: record.fault_address,
        exit_code: record.exit_code,
        registers: record.report.registers,
        backtrace,
        times: record.times,
        rebuild: record.rebuild,
        pages_restored: record.pages_restored,
        in_flight: (record.in_flight != UNKNOWN).then_some(record.in_flight),
        image_crc: record.image_crc,
        ordered: record.ordered != 0,
        reset: record.reset,
        message: text(&record.report.message),
    }
}

/// A page of console text.
pub fn log(
    node: &mut impl Node,
    cursor: u64,
    of: Option<(DomainId, Generation)>,
) -> Result<LogPage, Error> {
    let mut buffer = [0u8; LOG_BYTES];
    let next = node.log_read(cursor, of, &mut buffer)?;
    let len = entries_len(&buffer);
    let mut bytes = heapless::Vec::new();
    if next != cursor {
        // As long as the buffer.
        let _ = bytes.extend_from_slice(buffer.get(..len).unwrap_or_default());
    }
    Ok(LogPage { next, bytes })
}

/// Bytes of whole log entries at the front of a buffer that was zero before.
/// No entry is written at time 0 with no text, so that marks the end.
fn entries_len(buffer: &[u8]) -> usize {
    let mut rest = buffer;
    while let Ok((header, after)) = LogHeader::read_from_prefix(rest) {
        let text = after.get(usize::from(header.len)..);
        match text {
            Some(after) if header.len != 0 || header.time_ns != 0 => rest = after,
            _ => break,
        }
    }
    buffer.len().saturating_sub(rest.len())
}
