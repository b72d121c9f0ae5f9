//! Firmware tables for the simulated machine.

use crate::sim::{ECAM, IOAPIC, IOAPIC_ID, IOMMU, Machine};
use crate::sim_vtd;

pub const RSDP: u64 = 0xf_0000;
const XSDT: u64 = 0x7_0000;

/// Sets byte `at` so that all bytes sum to zero.
fn fix_checksum(bytes: &mut [u8], at: usize) {
    bytes[at] = 0;
    bytes[at] = bytes.iter().fold(0_u8, |sum, b| sum.wrapping_add(*b)).wrapping_neg();
}

pub fn table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut bytes = signature.to_vec();
    bytes.extend((36 + body.len() as u32).to_le_bytes());
    bytes.resize(36, 0);
    bytes.extend(body);
    fix_checksum(&mut bytes, 9);
    bytes
}

pub fn madt() -> Vec<u8> {
    let mut body = 0xfee0_0000_u32.to_le_bytes().to_vec();
    body.extend([1, 0, 0, 0]);
    for id in 0..2 {
        body.extend([0, 8, id, id, 1, 0, 0, 0]);
    }
    // A CPU that is not there.
    body.extend([0, 8, 2, 2, 0, 0, 0, 0]);
    body.extend([1, 12, 0, 0]);
    body.extend((IOAPIC as u32).to_le_bytes());
    body.extend(0_u32.to_le_bytes());
    body.extend([2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
    body.extend([2, 10, 0, 9, 9, 0, 0, 0, 0xd, 0]);
    table(b"APIC", &body)
}

pub fn mcfg() -> Vec<u8> {
    let mut body = vec![0; 8];
    body.extend(ECAM.base.to_le_bytes());
    body.extend([0, 0, ECAM.first_bus, ECAM.last_bus, 0, 0, 0, 0]);
    table(b"MCFG", &body)
}

pub fn fadt() -> Vec<u8> {
    let mut body = vec![0; 244 - 36];
    body[76 - 36..80 - 36].copy_from_slice(&0x608_u32.to_le_bytes());
    table(b"FACP", &body)
}

/// With these device entries.
pub fn ivrs_with(entries: &[u8]) -> Vec<u8> {
    let mut body = vec![0; 12];
    body.extend([0x10, 0]);
    body.extend((24 + entries.len() as u16).to_le_bytes());
    body.extend([0x20, 0, 0x40, 0]);
    body.extend(IOMMU.to_le_bytes());
    body.extend([0; 8]);
    body.extend(entries);
    table(b"IVRS", &body)
}

pub fn ivrs() -> Vec<u8> {
    let mut entries = vec![3, 0, 0, 0, 4, 0xff, 0x01, 0];
    entries.extend([0x42, 0, 3, 0, 0, 0x10, 3, 0]);
    entries.extend([0x48, 0, 0, 0xd7, 0]);
    entries.extend(IOAPIC_ID.to_le_bytes());
    entries.push(1);
    ivrs_with(&entries)
}

/// A remapping structure: its kind, flags or not, address, further words, scopes.
pub fn dmar_part(kind: u16, flags: u8, words: &[u64], scopes: &[u8]) -> Vec<u8> {
    let mut part = kind.to_le_bytes().to_vec();
    part.extend((8 + 8 * words.len() as u16 + scopes.len() as u16).to_le_bytes());
    part.extend([flags, 0, 0, 0]);
    words.iter().for_each(|word| part.extend(word.to_le_bytes()));
    part.extend(scopes);
    part
}

pub fn dmar_with(parts: &[u8]) -> Vec<u8> {
    let mut body = vec![47, 1];
    body.resize(12, 0);
    body.extend(parts);
    table(b"DMAR", &body)
}

/// One unit that names the I/O APIC, the NIC and the port above the disk, and
/// reserved memory of the device beside the NIC.
pub fn dmar() -> Vec<u8> {
    let [bus, devfn] = IOAPIC_ID.to_be_bytes();
    let mut scopes = vec![3, 8, 0, 0, 0, bus, devfn >> 3, devfn & 7];
    scopes.extend([1, 8, 0, 0, 0, 0, 3, 0]);
    scopes.extend([2, 8, 0, 0, 0, 0, 2, 0]);
    let mut parts = dmar_part(0, 0, &[sim_vtd::IOMMU], &scopes);
    parts.extend(dmar_part(1, 0, &[0x7f00_0000, 0x7fff_ffff], &[1, 8, 0, 0, 0, 0, 4, 0]));
    dmar_with(&parts)
}

/// Puts tables into the machine's memory.
pub fn install(machine: &Machine, tables: &[Vec<u8>]) {
    let mut at = 0x8_0000_u64;
    let mut root = Vec::new();
    for bytes in tables {
        machine.write_bytes(at, bytes);
        root.extend(at.to_le_bytes());
        at += 0x1_0000;
    }
    machine.write_bytes(XSDT, &table(b"XSDT", &root));
    let mut rsdp = b"RSD PTR \0BOCHS ".to_vec();
    rsdp.push(2);
    rsdp.extend([0; 4]);
    rsdp.extend(36_u32.to_le_bytes());
    rsdp.extend(XSDT.to_le_bytes());
    rsdp.extend([0; 4]);
    fix_checksum(&mut rsdp[..20], 8);
    fix_checksum(&mut rsdp, 32);
    machine.write_bytes(RSDP, &rsdp);
}

pub fn all() -> Vec<Vec<u8>> {
    vec![madt(), mcfg(), fadt(), ivrs()]
}
