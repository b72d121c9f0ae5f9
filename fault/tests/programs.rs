//! Programs are read from ELF files, and broken files are refused.

use fault::mutate::{Program, Unusable};

const BASE: u64 = 0x20_0000;
/// `moment`: `nop; ret`. `serve`: `vmmcall; call moment; ret`. Then an assembler's `ret`.
const CODE: [u8; 12] = [0x90, 0xc3, 0x0f, 0x01, 0xd9, 0xe8, 0xf6, 0xff, 0xff, 0xff, 0xc3, 0xc3];
const STT_NOTYPE: u8 = 0;
const STT_OBJECT: u8 = 1;
const STT_FUNC: u8 = 2;

/// A symbol: name, kind, address, bytes.
type Symbol = (&'static str, u8, u64, u64);

const SYMBOLS: [Symbol; 6] = [
    ("_ZN6driver6moment17h0123456789abcdefE", STT_FUNC, BASE, 2),
    // Merged with the first by the compiler.
    ("_ZN5other4idle17hfedcba9876543210E", STT_FUNC, BASE, 2),
    ("_ZN6driver7service5serve17h0123456789abcdefE", STT_FUNC, BASE + 2, 9),
    ("_ZN6driver5STATE17h0123456789abcdefE", STT_OBJECT, 0x30_0000, 8),
    ("__stack_top", STT_NOTYPE, 0x40_0000, 0),
    ("stub", STT_NOTYPE, BASE + 11, 0),
];

/// An ELF file of one executable segment.
fn elf(code: &[u8], symbols: &[Symbol]) -> Vec<u8> {
    fn put(file: &mut Vec<u8>, values: &[(u64, usize)]) {
        for (value, len) in values {
            file.extend(&value.to_le_bytes()[..*len]);
        }
    }
    let mut strings = vec![0];
    let mut table = vec![0; 24];
    for (name, kind, address, len) in symbols {
        let name_at = strings.len() as u64;
        let kind = u64::from(0x10 | kind);
        put(&mut table, &[(name_at, 4), (kind, 1), (0, 1), (1, 2), (*address, 8), (*len, 8)]);
        strings.extend(name.bytes());
        strings.push(0);
    }
    let code_at = 64 + 56;
    let table_at = code_at + code.len() as u64;
    let strings_at = table_at + table.len() as u64;
    let sections_at = strings_at + strings.len() as u64;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    put(&mut file, &[(2, 2), (62, 2), (1, 4), (BASE, 8), (64, 8), (sections_at, 8), (0, 4)]);
    put(&mut file, &[(64, 2), (56, 2), (1, 2), (64, 2), (4, 2), (3, 2)]);
    let len = code.len() as u64;
    put(
        &mut file,
        &[(1, 4), (5, 4), (code_at, 8), (BASE, 8), (BASE, 8), (len, 8), (len, 8), (1, 8)],
    );
    file.extend(code);
    file.extend(&table);
    file.extend(&strings);
    // Name, kind, flags, address, offset, bytes, link, info, alignment, bytes of an entry.
    let sections: [[u64; 10]; 4] = [
        [0; 10],
        [0, 1, 6, BASE, code_at, len, 0, 0, 1, 0],
        [0, 2, 0, 0, table_at, table.len() as u64, 3, 1, 8, 24],
        [0, 3, 0, 0, strings_at, strings.len() as u64, 0, 0, 1, 0],
    ];
    for section in sections {
        let widths = [4, 4, 8, 8, 8, 8, 4, 4, 8, 8];
        let fields: Vec<(u64, usize)> = section.into_iter().zip(widths).collect();
        put(&mut file, &fields);
    }
    file
}

#[test]
fn symbols_name_functions_and_what_lies_outside_is_left_alone() {
    let program = Program::read(&elf(&CODE, &SYMBOLS)).unwrap();
    assert_eq!(program.entry(), BASE);
    assert_eq!(program.text().len(), 1);
    assert_eq!(program.text()[0].bytes, CODE);
    let functions = program.functions().iter();
    let functions: Vec<_> = functions.map(|f| (f.name.as_str(), f.address, f.len)).collect();
    assert_eq!(functions, [("driver::moment", BASE, 2), ("driver::service::serve", BASE + 2, 9)]);
    let addresses: Vec<u64> = program.instructions().iter().map(|i| i.ip() - BASE).collect();
    assert_eq!(addresses, [0, 1, 2, 5, 10]);

    let named = |suffix| -> Vec<u64> {
        program.functions_named(suffix).iter().map(|f| f.address - BASE).collect()
    };
    assert_eq!(named("moment"), [0]);
    assert_eq!(named("driver::moment"), [0]);
    assert_eq!(named("idle"), [0]);
    assert_eq!(named("serve"), [2]);
    for other in ["ment", "service", "river::moment", "STATE", "stub", ""] {
        assert!(named(other).is_empty(), "{other}");
    }
    assert_eq!(program.symbol("STATE"), Some(0x30_0000));
    assert_eq!(program.symbol("__stack_top"), Some(0x40_0000));
    assert_eq!(program.symbol("stub"), Some(BASE + 11));
    assert_eq!(program.symbol("top"), None);

    let vmmcalls: Vec<u64> = program.vmmcalls().map(|i| i.ip() - BASE).collect();
    assert_eq!(vmmcalls, [2]);
    let calls: Vec<_> = program.calls().map(|i| (i.ip() - BASE, i.next_ip() - BASE)).collect();
    assert_eq!(calls, [(5, 10)]);
    assert_eq!(program.function_at(BASE + 11), None);
    assert_eq!(program.bytes(BASE + 2, 3), Some(&CODE[2..5]));
    assert_eq!(program.bytes(BASE + 2, 11), None);
    assert_eq!(program.bytes(BASE - 1, 1), None);
}

#[test]
fn files_that_are_no_programs_are_refused() {
    let refused = |file: &[u8]| Program::read(file).unwrap_err();
    assert!(matches!(refused(b"#!/bin/sh"), Unusable::Broken(_)));
    assert_eq!(refused(&elf(&CODE, &[])), Unusable::Stripped);
    assert_eq!(refused(&elf(&CODE, &SYMBOLS[3..])), Unusable::Stripped);
    let beyond = [("f", STT_FUNC, BASE + 8, 5), ("g", STT_FUNC, u64::MAX, u64::MAX)];
    assert_eq!(refused(&elf(&CODE, &beyond)), Unusable::Stripped);
    let good = elf(&CODE, &SYMBOLS);
    let with = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        Program::read(&file).map(|_| ())
    };
    assert_eq!(with(18, &[183]), Err(Unusable::Machine));
    // The segment's flags: readable only.
    assert_eq!(with(64 + 4, &[4]), Err(Unusable::Stripped));
    // Its address: it ends beyond the last.
    assert_eq!(with(64 + 16, &[0xff; 8]), Err(Unusable::Layout));
    assert_eq!(with(0, &[]), Ok(()));
}

#[test]
fn damaged_files_are_no_harm() {
    let good = elf(&CODE, &SYMBOLS);
    for len in 0..good.len() {
        let _ = Program::read(&good[..len]);
    }
    let mut rng = fastrand::Rng::with_seed(7);
    let mut read = 0;
    for _ in 0..20_000 {
        let mut file = good.clone();
        for _ in 0..rng.usize(1..8) {
            let at = rng.usize(..file.len());
            let values = [0, 1, 0x7f, 0x80, 0xff, rng.u8(..)];
            file[at] = values[rng.usize(..values.len())];
        }
        let Ok(program) = Program::read(&file) else { continue };
        read += 1;
        for function in program.functions() {
            let code = program.bytes(function.address, function.len).unwrap();
            assert_eq!(code.len() as u64, function.range().end - function.address);
        }
    }
    assert!((1_000..19_000).contains(&read), "{read}");
}
