//! From an instruction to bytes of the same length, and to text.

use iced_x86::{
    Decoder, DecoderOptions, Encoder, Formatter, Instruction, IntelFormatter, Mnemonic,
};

/// The bytes of `wanted` in the place of `old`, whose length they have: what is
/// left over are no-operations.
///
/// `None`: it does not fit, or there is no such instruction.
pub(super) fn in_place_of(old: &Instruction, wanted: &Instruction) -> Option<Vec<u8>> {
    let mut encoder = Encoder::new(64);
    let len = encoder.encode(wanted, old.ip()).ok()?;
    let mut bytes = encoder.take_buffer();
    bytes.extend(no_operations(old.len().checked_sub(len)?));
    // The encoder takes an operand that the opcode implies for granted.
    let decoded = Decoder::with_ip(64, &bytes, old.ip(), DecoderOptions::NONE).decode();
    (decoded == *wanted && decoded != *old).then_some(bytes)
}

/// No-operations of `len` bytes in all, as few as can be: the forms that AMD's and
/// Intel's manuals recommend.
pub(super) fn no_operations(len: usize) -> Vec<u8> {
    const FORMS: [&[u8]; 9] = [
        &[0x90],
        &[0x66, 0x90],
        &[0x0f, 0x1f, 0x00],
        &[0x0f, 0x1f, 0x40, 0x00],
        &[0x0f, 0x1f, 0x44, 0x00, 0x00],
        &[0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00],
        &[0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00],
        &[0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
        &[0x66, 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
    ];
    let mut bytes = Vec::new();
    while bytes.len() < len {
        let form = (len - bytes.len()).min(FORMS.len());
        bytes.extend(FORMS[form - 1]);
    }
    bytes
}

/// The instructions that `code` holds, until `len` bytes are used up: `xor eax,eax; nop`.
///
/// The last may reach beyond them. What is no instruction is `(bad)`, and the end.
pub(super) fn show(address: u64, code: &[u8], len: usize) -> String {
    let mut formatter = IntelFormatter::new();
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_branch_leading_zeros(false);
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    let mut shown: Vec<String> = Vec::new();
    while decoder.position() < len && decoder.can_decode() {
        let instruction = decoder.decode();
        let mut text = String::new();
        match instruction.mnemonic() {
            Mnemonic::Nop => text.push_str("nop"),
            _ => formatter.format(&instruction, &mut text),
        }
        if text != "nop" || shown.last().is_none_or(|last| last != "nop") {
            shown.push(text);
        }
        if instruction.is_invalid() {
            break;
        }
    }
    shown.join("; ")
}
