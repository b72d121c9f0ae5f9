//! Answers as text for people and as JSON for programs.

use std::fmt::Write;

use ring_proto::{
    DomainId,
    bundle::Name,
    control::{
        Absence, ConnectionStatus, CrashEntry, DomainAudit, DomainStatus, Info, LogPage, Recovery,
        Updated,
    },
    hypercall::{HYPERVISOR, LogHeader, Trial},
};
use serde_json::{Value, json};
use zerocopy::FromBytes;

use crate::names;

/// Columns that line up; the first row is the head.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

pub(crate) fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

/// ns as ms.
pub(crate) fn ms(ns: u64) -> String {
    format!("{:.3} ms", ns as f64 / 1e6)
}

/// ns as s.
pub(crate) fn seconds(ns: u64) -> String {
    format!("{:.3} s", ns as f64 / 1e9)
}

fn size(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 20 => format!("{:.1} MiB", b as f64 / f64::from(1 << 20)),
        b => format!("{} KiB", b >> 10),
    }
}

/// Domains and connections.
pub fn list(domains: &[DomainStatus], connections: &[ConnectionStatus]) -> String {
    let mut rows = vec![row([
        "DOMAIN",
        "STATE",
        "GEN",
        "DEATHS",
        "LAST DEATH",
        "CORE",
        "MEMORY",
        "IMAGE",
        "CPU",
        "EXITS",
        "HYPERCALLS",
        "NOTIFIES",
        "IRQS",
        "RESET",
    ])];
    for d in domains {
        let state = match names::domain_state(d.state) {
            state if state == "running" && !d.ready => "starting".to_owned(),
            state if state == "running" && d.spare_of.is_some() => "standby".to_owned(),
            state => state,
        };
        rows.push(vec![
            d.name.to_string(),
            state,
            d.generation.to_string(),
            d.deaths.to_string(),
            if d.died_ns == 0 { "-".to_owned() } else { names::reason(d.last_reason) },
            d.core.to_string(),
            size(d.memory),
            match d.trial == Trial::Here as u32 {
                true => format!("{:08x} on trial", d.image_crc),
                false => format!("{:08x}", d.image_crc),
            },
            seconds(d.cpu_ns),
            d.exits.to_string(),
            d.hypercalls.to_string(),
            d.notifies.to_string(),
            d.interrupts.to_string(),
            if d.devices == 0 { "-".to_owned() } else { names::reset(d.reset) },
        ]);
    }
    let mut out = table(&rows);
    if connections.is_empty() {
        return out;
    }
    let name = |id| name_of(domains, id);
    let mut rows = vec![row(["CONNECTION", "PROTOCOL", "FRONTEND", "", "BACKEND", ""])];
    for c in connections {
        rows.push(vec![
            c.id.to_string(),
            names::protocol(c.protocol),
            name(c.frontend),
            names::connection_state(c.frontend_state),
            name(c.backend),
            names::connection_state(c.backend_state),
        ]);
    }
    out.push('\n');
    out + &table(&rows)
}

fn name_of(domains: &[DomainStatus], id: DomainId) -> String {
    let found = domains.iter().find(|domain| domain.id == id);
    found.map_or_else(|| format!("#{id}"), |domain| domain.name.to_string())
}

/// The same for programs.
pub fn list_json(domains: &[DomainStatus], connections: &[ConnectionStatus]) -> Value {
    let domains_json: Vec<Value> = domains
        .iter()
        .map(|d| {
            json!({
                "id": d.id, "name": d.name.as_str(), "state": names::domain_state(d.state),
                "ready": d.ready, "core": d.core, "generation": d.generation, "deaths": d.deaths,
                "last_reason": names::reason(d.last_reason), "memory": d.memory,
                "started_ns": d.started_ns, "died_ns": d.died_ns, "cpu_ns": d.cpu_ns,
                "exits": d.exits, "hypercalls": d.hypercalls, "notifies": d.notifies,
                "mapped": d.mapped, "granted": d.granted,
                "interrupts": d.interrupts, "spare_of": d.spare_of,
                "devices": d.devices, "reset": names::reset(d.reset), "resets": d.resets,
                "image_crc": d.image_crc, "good_crc": d.good_crc, "on_trial": d.trial == Trial::Here as u32,
            })
        })
        .collect();
    let connections: Vec<Value> = connections
        .iter()
        .map(|c| {
            json!({
                "id": c.id, "protocol": names::protocol(c.protocol),
                "frontend": name_of(domains, c.frontend),
                "frontend_state": names::connection_state(c.frontend_state),
                "backend": name_of(domains, c.backend),
                "backend_state": names::connection_state(c.backend_state),
            })
        })
        .collect();
    json!({ "domains": domains_json, "connections": connections })
}

/// What came of an update.
#[derive(Debug)]
pub struct Outcome {
    /// What the node says.
    pub updated: Updated,
    /// Checksum of the image before.
    pub old: u32,
    /// The same of the new one.
    pub new: u32,
    /// How long the domain paused, ns, if it did.
    pub pause: Option<u64>,
    /// A death of the new image, if it came to that.
    pub death: Option<CrashEntry>,
}

impl Outcome {
    /// The domain has the image already.
    pub fn none_needed(domain: Name, crc: u32) -> Self {
        let why = heapless::String::new();
        let updated = Updated { domain, kept: true, image_crc: crc, why, record: None };
        Self { updated, old: crc, new: crc, pause: None, death: None }
    }

    /// As text.
    pub fn show(&self) -> String {
        let Self { old, new, .. } = self;
        let Updated { domain, kept, image_crc, why, .. } = &self.updated;
        let mut out = match kept {
            true if old == new => format!("{domain} has this image already: {old:08x}"),
            true => format!("{domain} runs the new image: {old:08x} -> {image_crc:08x}"),
            false => format!("{domain} has its image {image_crc:08x} again, not {new:08x}: {why}"),
        };
        if let Some(ns) = self.pause.filter(|&ns| ns > 0) {
            let _ = write!(out, "; it paused for {}", ms(ns));
        }
        out.push('\n');
        if let Some(death) = &self.death {
            let (reason, message) = (names::reason(death.reason), death.message.trim_end());
            let colon = if message.is_empty() { "" } else { ": " };
            let _ = writeln!(
                out,
                "  {} generation {} ended: {reason}{colon}{message}\n  more: nodectl crashes show {} \
                 --images FILE",
                death.name, death.generation, death.sequence
            );
        }
        out
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        json!({
            "domain": self.updated.domain.as_str(), "kept": self.updated.kept,
            "old_crc": self.old, "new_crc": self.new, "image_crc": self.updated.image_crc,
            "why": self.updated.why.as_str(), "pause_ns": self.pause,
            "death": self.death.as_ref().map(|death| death.sequence),
        })
    }
}

/// A recovery.
pub fn recovery(recovery: &Recovery) -> String {
    let t = &recovery.times;
    let mut out = format!("{} serves as generation {}", recovery.domain, recovery.generation);
    if recovery.ended != 0 {
        let _ = write!(out, "; {} ended by {}", recovery.ended, names::reason(recovery.reason));
        if recovery.drained {
            out.push_str(" after it had finished its work");
        }
    }
    out.push('\n');
    let mut rows = Vec::new();
    let mut last = t.ordered;
    let steps = [
        ("ordered", t.ordered),
        ("detected", t.detected),
        ("quiesced", t.quiesced),
        ("restarted", t.restarted),
        ("ready", t.ready),
        ("connected", t.connected),
    ];
    for (step, at) in steps {
        if at == 0 {
            continue;
        }
        let since = at.saturating_sub(last);
        rows.push(vec![
            format!("  {step}"),
            format!("at {}", seconds(at)),
            format!("+{}", ms(since)),
        ]);
        last = at;
    }
    out + &table(&rows)
}

/// The same for programs.
pub fn recovery_json(recovery: &Recovery) -> Value {
    let t = &recovery.times;
    json!({
        "domain": recovery.domain.as_str(), "generation": recovery.generation,
        "ended": recovery.ended, "reason": names::reason(recovery.reason),
        "drained": recovery.drained,
        "times_ns": {
            "ordered": t.ordered, "detected": t.detected, "quiesced": t.quiesced,
            "restarted": t.restarted, "ready": t.ready, "connected": t.connected,
        },
    })
}

/// An audit.
pub fn audit(all: &[DomainAudit]) -> String {
    let mut rows = vec![row(["DOMAIN", "VIOLATIONS"])];
    for entry in all {
        let result = match entry.violations {
            Ok(count) => count.to_string(),
            Err(why) => format!("not audited: {}", names::hypercall_error(why)),
        };
        rows.push(vec![entry.domain.to_string(), result]);
    }
    let verdict = if is_clean(all) { "clean" } else { "NOT clean" };
    format!("{}audit: {verdict}\n", table(&rows))
}

/// The same for programs.
pub fn audit_json(all: &[DomainAudit]) -> Value {
    let domains: Vec<Value> = all
        .iter()
        .map(|entry| match entry.violations {
            Ok(count) => json!({ "domain": entry.domain.as_str(), "violations": count }),
            Err(why) => {
                json!({ "domain": entry.domain.as_str(), "error": names::hypercall_error(why) })
            }
        })
        .collect();
    json!({ "clean": is_clean(all), "domains": domains })
}

/// Every domain was audited and none has a violation.
pub fn is_clean(all: &[DomainAudit]) -> bool {
    !all.is_empty() && all.iter().all(|entry| entry.violations == Ok(0))
}

/// The node.
pub fn info(info: &Info) -> String {
    table(&[
        vec!["up".to_owned(), seconds(info.now_ns)],
        vec!["cores".to_owned(), info.cores.to_string()],
        vec!["memory".to_owned(), format!("{}, {} free", size(info.memory), size(info.free))],
        vec!["domains".to_owned(), info.domains.to_string()],
        vec!["deaths".to_owned(), info.next_crash.to_string()],
        vec!["TLB shootdowns".to_owned(), info.shootdowns.to_string()],
        vec!["TLB flushes".to_owned(), info.tlb_flushes.to_string()],
        vec!["IOTLB flushes".to_owned(), info.iotlb_flushes.to_string()],
        vec!["supervisor".to_owned(), format!("generation {}", info.generation)],
        vec!["  before it nobody".to_owned(), absence(&info.absence)],
        vec!["bad frames".to_owned(), info.bad_frames.to_string()],
        vec!["lost events".to_owned(), info.lost_events.to_string()],
    ])
}

fn absence(absence: &Absence) -> String {
    match absence.ns {
        0 => "-".to_owned(),
        ns => format!("for {}, {} deaths", ms(ns), absence.deaths),
    }
}

/// The same for programs.
pub fn info_json(info: &Info) -> Value {
    json!({
        "cores": info.cores, "domains": info.domains, "memory": info.memory, "free": info.free,
        "now_ns": info.now_ns, "next_crash": info.next_crash, "shootdowns": info.shootdowns,
        "tlb_flushes": info.tlb_flushes, "iotlb_flushes": info.iotlb_flushes,
        "supervisor": info.supervisor, "supervisor_generation": info.generation,
        "bad_frames": info.bad_frames, "lost_events": info.lost_events,
        "absence": { "ns": info.absence.ns, "deaths": info.absence.deaths },
    })
}

/// One piece of console text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Who wrote it.
    pub domain: String,
    /// Its generation.
    pub generation: u32,
    /// When, ns on the node's clock.
    pub time_ns: u64,
    /// What.
    pub text: String,
}

impl LogEntry {
    /// The same, a line each.
    pub fn lines(&self) -> Vec<Self> {
        let line = |text: &str| Self { text: text.to_owned(), ..self.clone() };
        self.text.lines().map(line).collect()
    }

    /// For people: each line tagged with its writer.
    pub fn show(&self) -> String {
        let mut out = String::new();
        for line in self.text.lines() {
            let _ = writeln!(out, "{:>12.6} [{}] {line}", self.time_ns as f64 / 1e9, self.domain);
        }
        out
    }

    /// For programs.
    pub fn json(&self) -> Value {
        json!({
            "domain": self.domain, "generation": self.generation, "time_ns": self.time_ns,
            "text": self.text,
        })
    }
}

/// The entries of a page.
pub fn log_entries(page: &LogPage, names: &[(DomainId, String)]) -> Vec<LogEntry> {
    let mut entries = Vec::new();
    let mut rest = page.bytes.as_slice();
    while let Ok((header, after)) = LogHeader::read_from_prefix(rest) {
        let Some((text, after)) = after.split_at_checked(header.len.into()) else {
            break;
        };
        let name = names.iter().find(|(id, _)| *id == header.domain);
        let domain = match (header.domain, name) {
            (HYPERVISOR, _) => "hv".to_owned(),
            (_, Some((_, name))) => name.clone(),
            (id, None) => format!("#{id}"),
        };
        entries.push(LogEntry {
            domain,
            generation: header.generation,
            time_ns: header.time_ns,
            text: String::from_utf8_lossy(text).into_owned(),
        });
        rest = after;
    }
    entries
}
