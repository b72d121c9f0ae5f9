//! Records of deaths, as text for people and as JSON for programs.

use std::{fmt::Write, path::Path};

use ring_proto::{control::CrashEntry, crash::Reset};
use serde_json::{Value, json};

use crate::{
    names,
    report::{LogEntry, ms, row, seconds, table},
    symbols::{Backtrace, Frame},
};

/// The general registers in the order of [`CrashEntry::registers`].
const REGISTERS: [&str; 15] = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

/// A death with all that is known of it.
#[derive(Debug)]
pub struct Story {
    /// The record.
    pub entry: CrashEntry,
    /// Where it was.
    pub backtrace: Backtrace,
    /// The last that the generation wrote.
    pub log: Vec<LogEntry>,
}

/// The steps of a death and its recovery, in the order in which they happen.
fn steps(entry: &CrashEntry) -> [(&'static str, u64); 10] {
    let t = &entry.times;
    [
        ("died", t.died),
        ("detected", t.detected),
        ("quiesced", t.quiesced),
        ("peers told", t.told),
        ("start ordered", t.decided),
        ("memory restored", t.restored),
        ("entered", t.entered),
        ("device enabled", t.enabled),
        ("ready", t.ready),
        ("first request served", t.served),
    ]
}

/// From the death to the last step of the recovery that is known, ns.
fn recovery_ns(entry: &CrashEntry) -> Option<u64> {
    let t = &entry.times;
    let begin = if t.died != 0 { t.died } else { t.detected };
    let end = if t.served != 0 { t.served } else { t.ready };
    (end != 0).then(|| end.saturating_sub(begin))
}

/// One line a death.
pub fn list(entries: &[CrashEntry]) -> String {
    if entries.is_empty() {
        return "no deaths\n".to_owned();
    }
    let mut rows = vec![row(["#", "DOMAIN", "GEN", "REASON", "AT", "RECOVERY", "BY", "IN FLIGHT"])];
    for entry in entries {
        rows.push(vec![
            entry.sequence.to_string(),
            entry.name.to_string(),
            entry.generation.to_string(),
            reason(entry),
            seconds(entry.times.detected),
            recovery_ns(entry).map_or_else(|| "-".to_owned(), ms),
            names::rebuild(entry.rebuild),
            in_flight(entry),
        ]);
    }
    table(&rows)
}

fn reason(entry: &CrashEntry) -> String {
    let ordered = if entry.ordered { " (ordered)" } else { "" };
    names::reason(entry.reason) + ordered
}

fn in_flight(entry: &CrashEntry) -> String {
    entry.in_flight.map_or_else(|| "unknown".to_owned(), |count| count.to_string())
}

/// The same for programs.
pub fn list_json(entries: &[CrashEntry]) -> Value {
    entries.iter().map(record_json).collect()
}

/// All about one death.
pub fn show(story: &Story) -> String {
    let entry = &story.entry;
    let mut out = format!(
        "#{} {} generation {}: {} at {}\n",
        entry.sequence,
        entry.name,
        entry.generation,
        reason(entry),
        seconds(entry.times.detected),
    );
    if !entry.message.is_empty() {
        let _ = writeln!(out, "  {}", entry.message.trim_end());
    }
    let _ = writeln!(out, "  requests in flight: {}", in_flight(entry));
    // A domain without devices has nothing else.
    if entry.reset != Reset::Driver as u16 {
        let _ = writeln!(out, "  next reset of its devices: {}", names::reset(entry.reset));
    }
    out.push_str("\nbacktrace\n");
    out.push_str(&backtrace(&story.backtrace));
    out.push_str("\nregisters\n");
    out.push_str(&registers(entry));
    out.push_str("\nrecovery\n");
    out.push_str(&timeline(entry));
    let _ = writeln!(out, "\nlast log lines of generation {}", entry.generation);
    match story.log.is_empty() {
        true => out.push_str("  none are kept\n"),
        false => out.extend(story.log.iter().map(LogEntry::show)),
    }
    out
}

fn backtrace(backtrace: &Backtrace) -> String {
    let mut out = String::new();
    match &backtrace.program {
        Ok(path) => drop(writeln!(out, "  symbols of {}", path.display())),
        Err(why) => drop(writeln!(out, "  {why}")),
    }
    if backtrace.frames.is_empty() {
        out.push_str("  no addresses\n");
    }
    for (number, (address, frames)) in backtrace.frames.iter().enumerate() {
        let _ = write!(out, "  {number:>2} {address:#010x}");
        if frames.is_empty() {
            out.push('\n');
        }
        for (depth, frame) in frames.iter().enumerate() {
            let indent = if depth == 0 { 1 } else { 15 };
            let inlined = if frame.inlined { " (inlined)" } else { "" };
            let _ = writeln!(out, "{:indent$}{}{inlined}", "", frame.function);
            if let Some((file, line)) = &frame.place {
                let _ = writeln!(out, "{:17}at {}:{line}", "", near(file));
            }
        }
    }
    out
}

/// A path as seen from here, if it lies below.
fn near(file: &str) -> &str {
    let below = std::env::current_dir().ok().and_then(|here| {
        let rest = Path::new(file).strip_prefix(here).ok()?;
        file.get(file.len() - rest.as_os_str().len()..)
    });
    below.unwrap_or(file)
}

fn registers(entry: &CrashEntry) -> String {
    let mut all = vec![("rip", entry.rip), ("rsp", entry.rsp), ("cr2", entry.cr2)];
    all.extend(REGISTERS.into_iter().zip(entry.registers));
    let mut out = String::new();
    for line in all.chunks(3) {
        let cells = line.iter().map(|(name, value)| format!("  {name:<3} {value:#018x}"));
        let _ = writeln!(out, "{}", cells.collect::<String>());
    }
    let _ = writeln!(
        out,
        "  vector {}  error code {:#x}  fault address {:#x}  exit {:#x}",
        entry.vector, entry.error_code, entry.fault_address, entry.exit_code,
    );
    out
}

fn timeline(entry: &CrashEntry) -> String {
    let mut rows = vec![row(["  STEP", "AT", "STEP TOOK", "SINCE DEATH"])];
    let mut known = steps(entry).into_iter().filter(|(_, at)| *at != 0).peekable();
    let Some(&(_, begin)) = known.peek() else { return "  nothing is known\n".to_owned() };
    let mut last = begin;
    for (step, at) in known {
        rows.push(vec![
            format!("  {step}"),
            seconds(at),
            format!("+{}", ms(at.saturating_sub(last))),
            ms(at.saturating_sub(begin)),
        ]);
        last = at;
    }
    let mut out = table(&rows);
    let how = match (entry.times.ready, entry.rebuild) {
        (0, _) => "not recovered".to_owned(),
        (_, rebuild) => format!("by {}", names::rebuild(rebuild)),
    };
    let _ = writeln!(out, "  {how}; {} pages restored", entry.pages_restored);
    out
}

/// The same for programs.
pub fn show_json(story: &Story) -> Value {
    let mut json = record_json(&story.entry);
    let frames = |frames: &[Frame]| -> Value {
        let frame = |f: &Frame| {
            let (file, line) = f.place.clone().unzip();
            json!({ "function": f.function, "file": file, "line": line, "inlined": f.inlined })
        };
        frames.iter().map(frame).collect()
    };
    let all: Vec<Value> = (story.backtrace.frames.iter())
        .map(|(address, named)| json!({ "address": address, "functions": frames(named) }))
        .collect();
    let (program, missing) = match &story.backtrace.program {
        Ok(path) => (Some(path.display().to_string()), None),
        Err(why) => (None, Some(why.to_string())),
    };
    if let Some(object) = json.as_object_mut() {
        object.insert("symbols".to_owned(), json!({ "program": program, "missing": missing }));
        object.insert("frames".to_owned(), all.into());
        let log = story.log.iter().map(LogEntry::json).collect();
        object.insert("log".to_owned(), log);
    }
    json
}

fn record_json(entry: &CrashEntry) -> Value {
    let t = &entry.times;
    let registers: serde_json::Map<String, Value> = REGISTERS
        .iter()
        .map(|name| (*name).to_owned())
        .zip(entry.registers.map(Value::from))
        .collect();
    json!({
        "sequence": entry.sequence, "domain": entry.name.as_str(), "generation": entry.generation,
        "reason": names::reason(entry.reason), "ordered": entry.ordered,
        "message": entry.message.as_str(), "vector": entry.vector,
        "error_code": entry.error_code, "rip": entry.rip, "rsp": entry.rsp, "cr2": entry.cr2,
        "fault_address": entry.fault_address, "exit_code": entry.exit_code,
        "registers": registers, "backtrace": entry.backtrace.as_slice(),
        "image_crc": format!("{:08x}", entry.image_crc), "in_flight": entry.in_flight,
        "rebuild": names::rebuild(entry.rebuild), "reset": names::reset(entry.reset), "pages_restored": entry.pages_restored,
        "recovery_ns": recovery_ns(entry),
        "times_ns": {
            "died": t.died, "detected": t.detected, "quiesced": t.quiesced, "told": t.told,
            "decided": t.decided, "restored": t.restored, "entered": t.entered,
            "enabled": t.enabled, "ready": t.ready, "served": t.served,
        },
    })
}
