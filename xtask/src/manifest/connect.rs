//! Connections and the volumes that they name.

use std::collections::HashMap;

use ring_proto::boot::{Addresses, Limits};
use ring_proto::bundle;
use ring_proto::conn::Protocol;
use ring_proto::{MAX_CONNECTIONS, MAX_DOMAIN_CONNECTIONS};

use super::addresses::addresses;
use super::parse::{
    DEFAULT_WEIGHT, Index, MAX_U32, Named, WINDOW_UNIT, or, pages, resolve, too_many, units,
};
use super::reader::{Field, ManifestError, Section, Source, Span};
use super::{DEFAULT_VOLUME, Domain, Volume};
use crate::size::MIB;

/// Window pages that a backend needs for one connection, rings and pool, rounded up.
const WINDOW_PER_CONNECTION: u32 = 2 * WINDOW_UNIT;

/// The `[volume.*]` tables and which of them connections use.
pub(super) struct Volumes {
    sizes: Vec<(String, u64)>,
    pub(super) used: Vec<Volume>,
    pub(super) warnings: Vec<String>,
}

impl Volumes {
    pub(super) fn new(source: &Source, field: Option<Field<'_>>) -> Result<Self, ManifestError> {
        let mut sizes = Vec::new();
        let sections = match field {
            Some(field) => field.named_sections("volume", &["size"])?,
            None => Vec::new(),
        };
        for (key, section) in sections {
            label(source, &key.span(), key.get_ref())?;
            let size = section.get("size");
            let bytes = size.as_ref().map_or(Ok(DEFAULT_VOLUME), pages)?;
            if let Some(size) = size
                && bytes < MIB
            {
                return Err(size.wrong("must be at least 1MiB"));
            }
            sizes.push((key.get_ref().clone(), bytes));
        }
        let warnings = Vec::new();
        Ok(Self { sizes, used: Vec::new(), warnings })
    }

    /// Notes that a connection uses the volume; false if another one does already.
    fn take(&mut self, label: &str) -> bool {
        if self.used.iter().any(|volume| volume.label == label) {
            return false;
        }
        let given = self.sizes.iter().find(|(name, _)| name == label);
        let size = given.map_or(DEFAULT_VOLUME, |(_, size)| *size);
        self.used.push(Volume { label: label.to_owned(), size });
        true
    }

    /// Volumes that nobody uses exist on the disk all the same.
    fn finish(&mut self) {
        for (label, size) in &self.sizes {
            if !self.used.iter().any(|volume| volume.label == *label) {
                self.warnings.push(format!("[volume.{label}] is not used by any connection"));
                self.used.push(Volume { label: label.clone(), size: *size });
            }
        }
    }
}

/// Checks a GPT label.
fn label(source: &Source, span: &Span, text: &str) -> Result<heapless::String<36>, ManifestError> {
    if text.is_empty() || !text.chars().all(|c| c.is_ascii_graphic()) {
        return Err(source.error(
            span,
            format!("the volume label `{text}` must be of printable ASCII without spaces"),
        ));
    }
    heapless::String::try_from(text).map_err(|_| {
        source.error(span, format!("the volume label `{text}` is longer than 36 characters"))
    })
}

const CONNECTION_KEYS: &[&str] = &[
    "protocol",
    "frontend",
    "backend",
    "volume",
    "mac",
    "addresses",
    "weight",
    "limits",
    "stall_ms",
];

/// Time in which an empty bucket fills, unless the manifest says otherwise. Short, so that what a
/// guest saved up does not hold up the others; much longer than a turn of the driver's loop.
const DEFAULT_REFILL_MS: u32 = 100;

/// Time without a completion after which a frontend complains.
const DEFAULT_STALL_MS: u32 = 2000;

pub(super) fn connections(
    source: &Source,
    field: Option<Field<'_>>,
    domains: &Index,
    volumes: &mut Volumes,
) -> Result<Vec<bundle::Connection>, ManifestError> {
    let mut all: Vec<bundle::Connection> = Vec::new();
    let mut ends: HashMap<u16, usize> = HashMap::new();
    let items = match field {
        Some(field) => field.tables("connection")?,
        None => Vec::new(),
    };
    for item in items {
        if all.len() == MAX_CONNECTIONS {
            return Err(too_many(source, &item.span(), "connections", MAX_CONNECTIONS));
        }
        let section = item.section("[[connection]]", CONNECTION_KEYS)?;
        let connection = connection(source, &section, domains, volumes, &all)?;
        for (end, key) in [(connection.frontend, "frontend"), (connection.backend, "backend")] {
            let count = ends.entry(end).or_default();
            *count += 1;
            if *count > MAX_DOMAIN_CONNECTIONS {
                let field = section.require(key)?;
                return Err(field.wrong(format_args!(
                    "is `{}`, which has more than {MAX_DOMAIN_CONNECTIONS} connections",
                    field.string()?
                )));
            }
        }
        all.push(connection);
    }
    volumes.finish();
    Ok(all)
}

fn connection(
    source: &Source,
    section: &Section<'_>,
    domains: &Index,
    volumes: &mut Volumes,
    before: &[bundle::Connection],
) -> Result<bundle::Connection, ManifestError> {
    let protocol =
        section.require("protocol")?.word(&[("blk", Protocol::Blk), ("net", Protocol::Net)])?;
    let frontend_field = section.require("frontend")?;
    let frontend = resolve(&frontend_field, "domain", domains)?;
    let backend_field = section.require("backend")?;
    let backend = resolve(&backend_field, "domain", domains)?;
    if frontend == backend {
        return Err(
            backend_field.wrong("is the frontend too; a domain can't be connected to itself")
        );
    }
    let mut volume = heapless::String::new();
    let mut mac = [0; 6];
    let mut own_addresses = Addresses::default();
    match protocol {
        Protocol::Blk => {
            if let Some(field) = section.get("mac").or_else(|| section.get("addresses")) {
                return Err(field.wrong("is of no use for a blk connection"));
            }
            let field = section.require("volume")?;
            volume = label(source, &field.span(), field.string()?)?;
            if !volumes.take(&volume) {
                return Err(field.wrong(format_args!(
                    "is `{volume}`, which another connection has; a volume goes to one guest"
                )));
            }
        }
        Protocol::Net => {
            if let Some(field) = section.get("volume") {
                return Err(field.wrong("is of no use for a net connection"));
            }
            mac = match section.get("mac") {
                Some(field) => parse_mac(&field)?,
                None => assigned_mac(frontend_field.string()?, frontend, before),
            };
            if before.iter().any(|other| other.mac == mac) {
                let span =
                    section.get("mac").map_or_else(|| section.span().clone(), |field| field.span());
                return Err(source.error(
                    &span,
                    format!("the MAC address {} is taken by another connection", show_mac(mac)),
                ));
            }
            own_addresses = addresses(section, before, backend, mac)?;
        }
    }
    Ok(bundle::Connection {
        protocol: protocol as u16,
        frontend,
        backend,
        volume,
        mac,
        weight: or(section, "weight", 1..=65_535, u32::from(DEFAULT_WEIGHT))?,
        stall_ms: or(section, "stall_ms", 1..=MAX_U32, DEFAULT_STALL_MS)?,
        limits: limits(section)?,
        addresses: own_addresses,
    })
}

fn limits(section: &Section<'_>) -> Result<Limits, ManifestError> {
    let mut limits = Limits::default();
    let Some(field) = section.get("limits") else {
        return Ok(limits);
    };
    let name = "`limits` of [[connection]]";
    let keys = ["ops", "bandwidth", "refill_time_ms", "one_time_burst"];
    let section = field.section(name, &keys)?;
    limits.ops = or(&section, "ops", 1..=MAX_U32, 0)?;
    limits.bandwidth = section.get("bandwidth").map_or(Ok(0), |rate| rate.rate())?;
    if let Some(rate) = section.get("bandwidth").filter(|_| limits.bandwidth == 0) {
        return Err(rate.wrong("must not be 0; without the key there is no limit"));
    }
    limits.refill_ms = or(&section, "refill_time_ms", 1..=60_000, DEFAULT_REFILL_MS)?;
    if let Some(burst) = section.get("one_time_burst") {
        let name = format!("`one_time_burst` in {name}");
        let burst = burst.section(&name, &["ops", "bandwidth"])?;
        for key in ["ops", "bandwidth"] {
            if let Some(field) = burst.get(key)
                && section.get(key).is_none()
            {
                return Err(field.wrong(format_args!("is of no use without a limit of `{key}`")));
            }
        }
        limits.ops_burst = or(&burst, "ops", 1..=MAX_U32, 0)?;
        limits.bandwidth_burst = burst.get("bandwidth").map_or(Ok(0), |size| size.size())?;
    }
    Ok(limits)
}

fn parse_mac(field: &Field<'_>) -> Result<[u8; 6], ManifestError> {
    let text = field.string()?;
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2))
        .collect();
    let mac = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok()).ok_or_else(|| {
        field.wrong(format_args!(
            "must be a MAC address such as \"02:42:48:00:00:01\", not \"{text}\""
        ))
    })?;
    if mac.first().is_none_or(|first| first & 3 != 2) {
        let why = "must be a locally administered address of one station (02:… for example)";
        return Err(field.wrong(format_args!("{why}, not {text}")));
    }
    Ok(mac)
}

/// A locally administered address that stays the same while other parts of the
/// manifest change: it comes from the frontend's name and the number of vifs it has.
fn assigned_mac(frontend_name: &str, frontend: u16, before: &[bundle::Connection]) -> [u8; 6] {
    let earlier = before
        .iter()
        .filter(|other| other.frontend == frontend && other.protocol == Protocol::Net as u16);
    let hash = crc32fast::hash(format!("{frontend_name}/{}", earlier.count()).as_bytes());
    let [a, b, c, _] = hash.to_be_bytes();
    [0x02, 0x42, 0x48, a, b, c]
}

fn show_mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Gives each domain without `grant_window_pages` a window that fits what its frontends grant.
pub(super) fn default_windows(
    domains: &mut [Domain],
    sections: &Named<'_>,
    connections: &[bundle::Connection],
) -> Result<(), ManifestError> {
    for (index, (domain, (_, section))) in domains.iter_mut().zip(sections).enumerate() {
        let served = connections.iter().filter(|c| usize::from(c.backend) == index);
        let served = u32::try_from(served.count()).unwrap_or(u32::MAX);
        let needed = served.saturating_mul(WINDOW_PER_CONNECTION).max(WINDOW_UNIT);
        if units(section, "grant_window_pages")?.is_none() {
            domain.spec.grant_window_pages = match served {
                0 => WINDOW_UNIT,
                _ => needed.max(2 * WINDOW_PER_CONNECTION),
            };
        }
    }
    Ok(())
}
