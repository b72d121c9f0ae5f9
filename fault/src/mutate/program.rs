//! A program: its code as instructions, and its symbols.

use std::fmt;
use std::ops::Range;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use object::elf::PF_X;
use object::{
    Architecture, Object, ObjectSegment, ObjectSymbol, SegmentFlags, SymbolKind, SymbolSection,
};

use super::sites::Sites;

/// How many instructions in front of a hypercall are looked through for its number.
const NEAR: usize = 16;

/// A program.
///
/// It is decoded function by function, from the first byte of each on: where an
/// instruction of x86 begins is known only from there. Code that no symbol
/// covers, such as assembly without `.size`, is left alone, and so is a function
/// that holds something that is not an instruction.
#[derive(Debug)]
pub struct Program {
    entry: u64,
    text: Vec<Text>,
    /// Ascending; they do not overlap.
    functions: Vec<Function>,
    /// In the file's order.
    symbols: Vec<(String, u64)>,
    /// Ascending by address.
    instructions: Vec<Instruction>,
    pub(super) sites: Sites,
}

/// Executable memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// Where it begins.
    pub address: u64,
    /// What it holds.
    pub bytes: Vec<u8>,
}

/// A function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Path, without the hash of the compiler.
    pub name: String,
    /// Of its first instruction.
    pub address: u64,
    /// Bytes.
    pub len: u64,
    instructions: Range<usize>,
}

impl Function {
    /// The addresses that it covers.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.address..self.address + self.len
    }
}

/// Why a file cannot be used as a program.
#[derive(Debug, PartialEq, Eq)]
pub enum Unusable {
    /// It is no ELF file, or a broken one.
    Broken(object::Error),
    /// It is for another machine.
    Machine,
    /// Two executable segments share addresses, or one ends beyond the last address.
    Layout,
    /// It has no code that a symbol covers.
    Stripped,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(why) => write!(f, "it cannot be read: {why}"),
            Self::Machine => f.write_str("it is not for x86-64"),
            Self::Layout => f.write_str("its executable segments make no sense"),
            Self::Stripped => f.write_str("it has no symbols of functions"),
        }
    }
}

impl std::error::Error for Unusable {}

impl From<object::Error> for Unusable {
    fn from(why: object::Error) -> Self {
        Self::Broken(why)
    }
}

impl Program {
    /// Reads an ELF file with its symbols.
    ///
    /// # Errors
    ///
    /// See [`Unusable`].
    pub fn read(elf: &[u8]) -> Result<Self, Unusable> {
        let file = object::File::parse(elf)?;
        if file.architecture() != Architecture::X86_64 {
            return Err(Unusable::Machine);
        }
        let mut text = Vec::new();
        for segment in file.segments() {
            if matches!(segment.flags(), SegmentFlags::Elf { p_flags, .. } if (p_flags & PF_X).0 != 0)
            {
                text.push(Text { address: segment.address(), bytes: segment.data()?.to_vec() });
            }
        }
        let mut symbols = Vec::new();
        let mut functions = Vec::new();
        for symbol in file.symbols() {
            let is_defined =
                matches!(symbol.section(), SymbolSection::Section(_) | SymbolSection::Absolute);
            let Ok(name) = symbol.name() else { continue };
            if !is_defined || name.is_empty() {
                continue;
            }
            let name = plain(&format!("{:#}", rustc_demangle::demangle(name))).to_owned();
            if symbol.kind() == SymbolKind::Text {
                functions.push((name.clone(), symbol.address(), symbol.size()));
            }
            symbols.push((name, symbol.address()));
        }
        Self::of_parts(file.entry(), text, functions, symbols)
    }

    /// A program of these segments, functions (name, address, bytes) and symbols.
    pub(super) fn of_parts(
        entry: u64,
        mut text: Vec<Text>,
        mut functions: Vec<(String, u64, u64)>,
        symbols: Vec<(String, u64)>,
    ) -> Result<Self, Unusable> {
        text.sort_by_key(|text| text.address);
        let mut free = 0;
        for Text { address, bytes } in &text {
            if *address < free {
                return Err(Unusable::Layout);
            }
            free = address.checked_add(bytes.len() as u64).ok_or(Unusable::Layout)?;
        }
        // Of functions that overlap the first is used, and of those that begin together the longest.
        functions.sort_by_key(|(_, address, len)| (*address, u64::MAX - len));
        let mut program = Self {
            entry,
            text,
            functions: Vec::new(),
            symbols,
            instructions: Vec::new(),
            sites: Sites::default(),
        };
        let mut free = 0;
        for (name, address, len) in functions {
            if len == 0 || address < free {
                continue;
            }
            let Some(code) = program.bytes(address, len) else { continue };
            let decoded = decode(address, code);
            free = address + len;
            let first = program.instructions.len();
            program.instructions.extend(decoded.unwrap_or_default());
            let instructions = first..program.instructions.len();
            program.functions.push(Function { name, address, len, instructions });
        }
        match program.instructions.is_empty() {
            true => Err(Unusable::Stripped),
            false => Ok(program),
        }
    }

    /// Address of the first instruction.
    #[must_use]
    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// Executable memory, ascending by address.
    #[must_use]
    pub fn text(&self) -> &[Text] {
        &self.text
    }

    /// All functions, ascending by address.
    #[must_use]
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// All instructions that may be changed, ascending by address.
    #[must_use]
    pub fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }

    /// The instructions of `function`, which is one of this program; none, if it
    /// holds something that is not an instruction.
    #[must_use]
    pub fn instructions_of(&self, function: &Function) -> &[Instruction] {
        self.instructions.get(function.instructions.clone()).unwrap_or_default()
    }

    /// The instruction that begins at `address`.
    #[must_use]
    pub fn instruction_at(&self, address: u64) -> Option<&Instruction> {
        let found = self.instructions.binary_search_by_key(&address, Instruction::ip);
        self.instructions.get(found.ok()?)
    }

    /// The function that `address` lies in.
    #[must_use]
    pub fn function_at(&self, address: u64) -> Option<&Function> {
        let after = self.functions.partition_point(|function| function.address <= address);
        self.functions[..after].last().filter(|function| function.range().contains(&address))
    }

    /// The functions whose path is `suffix` or ends with `::suffix`, under any of their names.
    ///
    /// There are several if a generic function was compiled for several types.
    #[must_use]
    pub fn functions_named(&self, suffix: &str) -> Vec<&Function> {
        let named = self.symbols.iter().filter(|(name, _)| is_path_end(name, suffix));
        let mut found: Vec<&Function> = named
            .filter_map(|(_, at)| self.function_at(*at).filter(|function| function.address == *at))
            .collect();
        found.sort_by_key(|function| function.address);
        found.dedup_by_key(|function| function.address);
        found
    }

    /// Address of the first symbol whose path is `suffix` or ends with `::suffix`:
    /// a function, a static, a label of assembly or of the link script.
    #[must_use]
    pub fn symbol(&self, suffix: &str) -> Option<u64> {
        self.symbols.iter().find(|(name, _)| is_path_end(name, suffix)).map(|(_, at)| *at)
    }

    /// Hypercalls.
    pub fn vmmcalls(&self) -> impl Iterator<Item = &Instruction> {
        self.instructions.iter().filter(|instruction| instruction.mnemonic() == Mnemonic::Vmmcall)
    }

    /// The number of the hypercall at `address`, which is in EAX, if the straight code in front of
    /// it tells.
    #[must_use]
    pub fn vmmcall_number(&self, address: u64) -> Option<u64> {
        let at = self.instructions.binary_search_by_key(&address, Instruction::ip).ok()?;
        let before = self.instructions[..at].iter().rev().take(NEAR);
        let mut straight = before.take_while(|before| {
            before.flow_control() == FlowControl::Next && before.mnemonic() != Mnemonic::Vmmcall
        });
        let sets = straight.find(|before| {
            let names = before.op0_register().full_register() == Register::RAX;
            names && !matches!(before.mnemonic(), Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Push)
        })?;
        match (sets.mnemonic(), sets.op1_kind()) {
            (Mnemonic::Mov, OpKind::Immediate32) => Some(sets.immediate32().into()),
            (Mnemonic::Xor, OpKind::Register) if sets.op1_register() == sets.op0_register() => {
                Some(0)
            }
            _ => None,
        }
    }

    /// Calls of functions; [`Instruction::next_ip`] is where they return to.
    pub fn calls(&self) -> impl Iterator<Item = &Instruction> {
        self.instructions.iter().filter(|instruction| instruction.mnemonic() == Mnemonic::Call)
    }

    /// Where `function`, which is one of this program, returns.
    pub fn returns(&self, function: &Function) -> impl Iterator<Item = u64> {
        let instructions = self.instructions_of(function).iter();
        let returns = instructions.filter(|instruction| instruction.mnemonic() == Mnemonic::Ret);
        returns.map(Instruction::ip)
    }

    /// `len` bytes of text from `address` on.
    #[must_use]
    pub fn bytes(&self, address: u64, len: u64) -> Option<&[u8]> {
        self.rest(address)?.get(..usize::try_from(len).ok()?)
    }

    /// The text from `address` on, to the end of its segment.
    pub(super) fn rest(&self, address: u64) -> Option<&[u8]> {
        let after = self.text.partition_point(|text| text.address <= address);
        let text = self.text[..after].last()?;
        text.bytes.get(usize::try_from(address - text.address).ok()?..)
    }

    /// The name of the function that `address` lies in, which an instruction does.
    pub(super) fn name_at(&self, address: u64) -> String {
        self.function_at(address).map_or_else(|| "?".to_owned(), |function| function.name.clone())
    }
}

/// The instructions of a function, if it consists of them from its first byte to its last.
fn decode(address: u64, code: &[u8]) -> Option<Vec<Instruction>> {
    let decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    let instructions: Vec<Instruction> = decoder.into_iter().collect();
    (!instructions.iter().any(Instruction::is_invalid)).then_some(instructions)
}

/// A name without the number that link-time optimisation gives to what was local to a crate:
/// `events::LAST_WAIT` of `events::LAST_WAIT.0`.
fn plain(name: &str) -> &str {
    match name.rsplit_once('.') {
        Some((plain, number)) if number.parse::<u32>().is_ok() => plain,
        _ => name,
    }
}

/// Whether `path` is `suffix`, or ends with it as whole parts of a path.
fn is_path_end(path: &str, suffix: &str) -> bool {
    path.strip_suffix(suffix).is_some_and(|rest| rest.is_empty() || rest.ends_with("::"))
}
