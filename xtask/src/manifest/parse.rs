//! From TOML to a checked [`Manifest`].

use std::collections::HashMap;

use ring_proto::boot::{CAP_CONTROL_UART, CAP_SUPERVISOR};
use ring_proto::bundle::{self, MAX_DEVICES, Select};
use ring_proto::conn::Protocol;
use ring_proto::{MAX_DOMAIN_DEVICES, MAX_DOMAINS, PAGE_SIZE};
use toml::Spanned;

use super::connect::{Volumes, connections, default_windows};
use super::reader::{Field, ManifestError, Section, Source, Span, suggestion};
use super::{Domain, Manifest, Plugged};
use crate::size::{self, MIB};

/// `weight` of domains and connections that do not give one.
pub(super) const DEFAULT_WEIGHT: u16 = 256;
/// ms of CPU time without `wait` until a domain counts as hung.
const DEFAULT_WATCHDOG_MS: u32 = 500;
/// DMA pool of a domain with a device.
const DEFAULT_DMA_POOL: u64 = MIB;
/// Grant table entries: a pool of 512 pages and rings for four connections.
const DEFAULT_GRANT_ENTRIES: u32 = 2048;
/// Grant tables and windows come in units of what one page table covers.
pub(super) const WINDOW_UNIT: u32 = 512;
/// Most grant table entries and window pages.
const MAX_GRANT_ENTRIES: u64 = 16_384;
/// As far as an unbounded number goes that is a time, a share or a limit.
pub(super) const MAX_U32: u64 = u32::MAX as u64;

/// Classes of PCI functions.
const STORAGE: u8 = 1;
const NETWORK: u8 = 2;

pub(super) type Named<'a> = Vec<(Spanned<String>, Section<'a>)>;

/// Where a name was given first.
pub(super) type Index = HashMap<String, u16>;

pub fn parse(source: Source) -> Result<Manifest, ManifestError> {
    let document = source.parse()?;
    let known = ["node", "device", "domain", "connection", "volume"];
    let whole = 0..0;
    let root = Section::new(&source, "the manifest", whole.clone(), document.get_ref(), &known)?;

    let cores = match root.get("node") {
        Some(field) => match field.section("[node]", &["cores"])?.get("cores") {
            Some(cores) => cores.integer(1..=64)?,
            None => 0,
        },
        None => 0,
    };
    let (devices, device_index, plugged) = devices(&source, root.get("device"))?;
    let Some(table) = root.get("domain") else {
        return Err(source.error(&whole, "the manifest has no [domain.name]"));
    };
    let sections = table.named_sections("domain", DOMAIN_KEYS)?;
    let (mut domains, domain_index) = domains(&source, &sections, &device_index)?;
    let mut volumes = Volumes::new(&source, root.get("volume"))?;
    let connections = connections(&source, root.get("connection"), &domain_index, &mut volumes)?;
    default_windows(&mut domains, &sections, &connections)?;

    spares(&source, &mut domains, &sections)?;

    let mut warnings = volumes.warnings;
    for connection in connections.iter().filter(|c| c.protocol == Protocol::Net as u16) {
        let frontend = domains.get(usize::from(connection.frontend));
        if let Some(frontend) = frontend.filter(|_| connection.addresses.checked == 0) {
            warnings.push(format!(
                "the net connection of [domain.{}] has no `addresses`: \
                 its guest can send from any IP address",
                frontend.spec.name
            ));
        }
    }
    if domains.iter().all(|d| d.spec.capabilities & CAP_SUPERVISOR == 0) {
        warnings.push(
            "no domain has the capability `supervisor`: a domain that dies stays dead".to_owned(),
        );
    }
    Ok(Manifest {
        cores,
        devices,
        plugged,
        domains,
        connections,
        volumes: volumes.used,
        warnings,
        source: source.clone(),
    })
}

/// Checks a name that the hypervisor has to hold.
fn name(source: &Source, span: &Span, text: &str) -> Result<bundle::Name, ManifestError> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if text.is_empty() || !text.chars().all(good) {
        let why = format!("the name `{text}` must be of letters, digits, `-` and `_`");
        return Err(source.error(span, why));
    }
    let capacity = bundle::Name::new().capacity();
    bundle::Name::try_from(text).map_err(|_| {
        source.error(span, format!("the name `{text}` is longer than {capacity} characters"))
    })
}

/// The number behind a reference by name.
pub(super) fn resolve(field: &Field<'_>, kind: &str, index: &Index) -> Result<u16, ManifestError> {
    let text = field.string()?;
    index.get(text).copied().ok_or_else(|| {
        let mut known: Vec<&str> = index.keys().map(String::as_str).collect();
        known.sort_unstable();
        field.wrong(format_args!("names an unknown {kind} `{text}`; {}", suggestion(text, &known)))
    })
}

pub(super) fn too_many(source: &Source, span: &Span, what: &str, most: usize) -> ManifestError {
    source.error(span, format!("too many {what}: a node holds at most {most}"))
}

fn devices(
    source: &Source,
    field: Option<Field<'_>>,
) -> Result<(Vec<bundle::Device>, Index, Plugged), ManifestError> {
    let mut devices: Vec<bundle::Device> = Vec::new();
    let mut index = Index::new();
    let mut plugged = Plugged::default();
    let sections = match field {
        Some(field) => field.named_sections("device", &["match", "bdf", "qemu"])?,
        None => Vec::new(),
    };
    for (key, section) in &sections {
        let label = key.get_ref();
        let select = match (section.get("match"), section.get("bdf")) {
            (Some(field), None) => class(label, &field)?,
            (None, Some(field)) => Select::Bdf(bdf(&field)?),
            (None, None) => {
                return Err(source.error(
                    &key.span(),
                    format!("[device.{label}] has neither `match` nor `bdf`"),
                ));
            }
            (Some(_), Some(field)) => {
                return Err(
                    field.wrong("stands beside `match`; only one of them can choose the device")
                );
            }
        };
        if let Some(other) = devices.iter().find(|other| other.select == select) {
            let why =
                format!("[device.{label}] is the same PCI function as [device.{}]", other.name);
            return Err(source.error(&key.span(), why));
        }
        if devices.len() == MAX_DEVICES {
            return Err(too_many(source, &key.span(), "devices", MAX_DEVICES));
        }
        if let Some(field) = section.get("qemu") {
            let place = match select {
                Select::Class { class: STORAGE, index: 0 } => &mut plugged.disk,
                Select::Class { class: NETWORK, index: 0 } => &mut plugged.nic,
                _ => return Err(field.wrong("is for the first `storage` and `network` only")),
            };
            *place = Some(field.string()?.to_owned());
        }
        index.insert(label.clone(), devices.len() as u16);
        devices.push(bundle::Device { name: name(source, &key.span(), label)?, select });
    }
    Ok((devices, index, plugged))
}

fn class(label: &str, field: &Field<'_>) -> Result<Select, ManifestError> {
    let section = field.section(&format!("`match` of [device.{label}]"), &["class", "index"])?;
    let class = section.require("class")?.word(&[("storage", STORAGE), ("network", NETWORK)])?;
    let index = match section.get("index") {
        Some(index) => index.integer(0..=255)?,
        None => 0,
    };
    Ok(Select::Class { class, index })
}

fn bdf(field: &Field<'_>) -> Result<u16, ManifestError> {
    let text = field.string()?;
    let parts = || {
        let (bus, rest) = text.split_once(':')?;
        let (device, function) = rest.split_once('.')?;
        if bus.len() != 2 || device.len() != 2 || function.len() != 1 {
            return None;
        }
        let hex = |digits| u16::from_str_radix(digits, 16).ok();
        let (bus, device, function) = (hex(bus)?, hex(device)?, hex(function)?);
        (device < 32 && function < 8).then_some(bus << 8 | device << 3 | function)
    };
    parts().ok_or_else(|| {
        field.wrong(format_args!("must be a PCI address such as \"01:00.0\", not \"{text}\""))
    })
}

const DOMAIN_KEYS: &[&str] = &[
    "image",
    "memory",
    "dma_pool",
    "device",
    "devices",
    "capabilities",
    "core",
    "weight",
    "cap",
    "watchdog_ms",
    "grant_entries",
    "grant_window_pages",
    "restart",
    "args",
    "autostart",
    "spare",
    "update_space",
];

fn domains(
    source: &Source,
    sections: &Named<'_>,
    devices: &Index,
) -> Result<(Vec<Domain>, Index), ManifestError> {
    let mut domains: Vec<Domain> = Vec::new();
    let mut index = Index::new();
    let mut owners: HashMap<u16, String> = HashMap::new();
    for (key, section) in sections {
        let label = key.get_ref();
        if domains.len() == MAX_DOMAINS {
            return Err(too_many(source, &key.span(), "domains", MAX_DOMAINS));
        }
        let domain = domain(source, key, section, devices, &mut owners)?;
        if let Some(field) = section.get("capabilities") {
            sole_holder(&field, &domain, &domains)?;
        }
        index.insert(label.clone(), domains.len() as u16);
        domains.push(domain);
    }
    Ok((domains, index))
}

fn domain(
    source: &Source,
    key: &Spanned<String>,
    section: &Section<'_>,
    devices: &Index,
    owners: &mut HashMap<u16, String>,
) -> Result<Domain, ManifestError> {
    let label = key.get_ref();
    let image = section.require("image")?;
    name(source, &image.span(), image.string()?)?;
    let memory = section.require("memory")?;
    let owned = owned_devices(label, section, devices, owners)?;
    let dma_pool = match section.get("dma_pool") {
        Some(field) if owned.is_empty() => return Err(field.wrong("is of no use without a device")),
        Some(field) => pages(&field)?,
        None if owned.is_empty() => 0,
        None => DEFAULT_DMA_POOL,
    };
    let bytes = pages(&memory)?;
    if dma_pool >= bytes {
        return Err(memory.wrong(format_args!(
            "is {}, which leaves nothing beside the DMA pool of {}",
            size::show(bytes),
            size::show(dma_pool)
        )));
    }
    let args = match section.get("args") {
        Some(field) => heapless::String::try_from(field.string()?)
            .map_err(|_| field.wrong("is longer than 255 bytes"))?,
        None => heapless::String::new(),
    };
    let spec = bundle::Domain {
        name: name(source, &key.span(), label)?,
        image: 0,
        memory: bytes,
        dma_pool,
        capabilities: capabilities(section)?,
        devices: owned,
        core: section.get("core").map(|f| f.integer(0..=63)).transpose()?,
        weight: or(section, "weight", 1..=65_535, DEFAULT_WEIGHT)?,
        cap: or(section, "cap", 1..=100, 100)?,
        watchdog_ms: or(section, "watchdog_ms", 1..=MAX_U32, DEFAULT_WATCHDOG_MS)?,
        grant_entries: units(section, "grant_entries")?.unwrap_or(DEFAULT_GRANT_ENTRIES),
        grant_window_pages: units(section, "grant_window_pages")?.unwrap_or(0),
        restart: restart(label, section)?,
        args,
        autostart: flag(section, "autostart", true)?,
        spare_of: None,
        update_space: section.get("update_space").map_or(Ok(0), |field| pages(&field))?,
    };
    Ok(Domain {
        spec,
        image: image.string()?.to_owned(),
        image_at: image.span(),
        memory_at: memory.span(),
        spare: flag(section, "spare", false)?,
    })
}

/// Adds the spares, behind all others so that these keep their numbers.
fn spares(
    source: &Source,
    domains: &mut Vec<Domain>,
    sections: &Named<'_>,
) -> Result<(), ManifestError> {
    for (index, (key, section)) in (0..).zip(sections) {
        let Some(principal) = domains.get(usize::from(index)).filter(|d| d.spare) else { continue };
        let span = section.require("spare")?.span();
        if principal.spec.capabilities != 0 {
            let why =
                format!("[domain.{}] has capabilities, which a spare can't share", key.get_ref());
            return Err(source.error(&span, why));
        }
        let label = format!("{}-spare", principal.spec.name);
        let mut spare = principal.clone();
        spare.spare = false;
        spare.spec.name = name(source, &span, &label)?;
        spare.spec.devices.clear();
        spare.spec.spare_of = Some(index);
        if domains.iter().any(|other| other.spec.name == spare.spec.name) {
            let why = format!("the spare's name `{label}` is taken");
            return Err(source.error(&span, why));
        }
        if domains.len() == MAX_DOMAINS {
            return Err(too_many(source, &span, "domains", MAX_DOMAINS));
        }
        domains.push(spare);
    }
    Ok(())
}

/// An optional whole number.
pub(super) fn or<T: TryFrom<u64>>(
    section: &Section<'_>,
    key: &str,
    range: std::ops::RangeInclusive<u64>,
    default: T,
) -> Result<T, ManifestError> {
    section.get(key).map_or(Ok(default), |field| field.integer(range))
}

fn flag(section: &Section<'_>, key: &str, default: bool) -> Result<bool, ManifestError> {
    section.get(key).map_or(Ok(default), |field| field.boolean())
}

/// A size in whole pages, not zero.
pub(super) fn pages(field: &Field<'_>) -> Result<u64, ManifestError> {
    let bytes = field.size()?;
    if bytes == 0 || !bytes.is_multiple_of(PAGE_SIZE as u64) {
        return Err(field.wrong("must be a multiple of 4KiB and not zero"));
    }
    Ok(bytes)
}

/// A number of grant entries or window pages.
pub(super) fn units(section: &Section<'_>, key: &str) -> Result<Option<u32>, ManifestError> {
    let Some(field) = section.get(key) else {
        return Ok(None);
    };
    let value: u32 = field.integer(u64::from(WINDOW_UNIT)..=MAX_GRANT_ENTRIES)?;
    if !value.is_multiple_of(WINDOW_UNIT) {
        return Err(field.wrong(format_args!("must be a multiple of {WINDOW_UNIT}, not {value}")));
    }
    Ok(Some(value))
}

fn owned_devices(
    label: &str,
    section: &Section<'_>,
    devices: &Index,
    owners: &mut HashMap<u16, String>,
) -> Result<heapless::Vec<u16, MAX_DOMAIN_DEVICES>, ManifestError> {
    let fields = match (section.get("device"), section.get("devices")) {
        (Some(_), Some(field)) => {
            return Err(field.wrong("stands beside `device`; use one of them"));
        }
        (Some(field), None) => vec![field],
        (None, Some(field)) => field.array()?,
        (None, None) => Vec::new(),
    };
    let mut owned = heapless::Vec::new();
    for field in fields {
        let device = resolve(&field, "device", devices)?;
        if let Some(owner) = owners.insert(device, label.to_owned()) {
            return Err(field
                .wrong(format_args!("claims `{}`, which [domain.{owner}] owns", field.string()?)));
        }
        owned.push(device).map_err(|_| {
            field.wrong(format_args!(
                "is one too many: a domain owns at most {MAX_DOMAIN_DEVICES} devices"
            ))
        })?;
    }
    Ok(owned)
}

const CAPABILITIES: [(&str, u32); 2] =
    [("supervisor", CAP_SUPERVISOR), ("control-uart", CAP_CONTROL_UART)];

/// Checks that no domain of `before` has a capability of `domain`.
fn sole_holder(field: &Field<'_>, domain: &Domain, before: &[Domain]) -> Result<(), ManifestError> {
    for (word, bit) in CAPABILITIES {
        let has = |domain: &Domain| domain.spec.capabilities & bit != 0;
        if has(domain)
            && let Some(holder) = before.iter().find(|other| has(other))
        {
            return Err(field
                .wrong(format_args!("claims `{word}`, which [domain.{}] has", holder.spec.name)));
        }
    }
    Ok(())
}

fn capabilities(section: &Section<'_>) -> Result<u32, ManifestError> {
    let Some(field) = section.get("capabilities") else {
        return Ok(0);
    };
    let mut all = 0;
    for item in field.array()? {
        all |= item.word(&CAPABILITIES)?;
    }
    Ok(all)
}

fn restart(label: &str, section: &Section<'_>) -> Result<bundle::Restart, ManifestError> {
    let mut policy = bundle::Restart::default();
    let Some(field) = section.get("restart") else {
        return Ok(policy);
    };
    let keys = ["floor_ms", "backoff", "budget", "window_s", "automatic", "check_ms", "word_s"];
    let section = field.section(&format!("`restart` of [domain.{label}]"), &keys)?;
    policy.floor_ms = or(&section, "floor_ms", 0..=3_600_000, policy.floor_ms)?;
    policy.budget = or(&section, "budget", 0..=MAX_U32, policy.budget)?;
    policy.window_s = or(&section, "window_s", 1..=86_400, policy.window_s)?;
    policy.check_ms = or(&section, "check_ms", 1..=u16::MAX.into(), policy.check_ms)?;
    policy.word_s = or(&section, "word_s", 0..=u16::MAX.into(), policy.word_s)?;
    policy.automatic = flag(&section, "automatic", policy.automatic)?;
    if let Some(backoff) = section.get("backoff") {
        policy.backoff_percent = backoff.hundredths(1.0..=100.0)?;
    }
    Ok(policy)
}
