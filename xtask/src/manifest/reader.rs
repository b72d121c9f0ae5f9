//! Reading TOML tables so that every complaint points at its place.
//!
//! This goes over the parser's own tree and not through `Deserialize`, since
//! the wording of errors is part of what xtask promises and is tested.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::size;

/// Bytes of the manifest's text.
pub type Span = Range<usize>;

/// What is wrong with a manifest, and where.
///
/// Its `Display` is one line; [`ManifestError::snippet`] shows the place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestError {
    /// The manifest.
    pub path: PathBuf,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    text: String,
    width: usize,
}

impl ManifestError {
    /// The line in question with a mark under the place.
    #[must_use]
    pub fn snippet(&self) -> String {
        let number = self.line.to_string();
        let gutter = " ".repeat(number.len());
        let indent = " ".repeat(self.column.saturating_sub(1));
        let mark = "^".repeat(self.width.max(1));
        format!("{gutter} |\n{number} | {}\n{gutter} | {indent}{mark}", self.text)
    }
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, line, column, message, .. } = self;
        write!(f, "{}:{line}:{column}: {message}", path.display())
    }
}

impl std::error::Error for ManifestError {}

/// A manifest's text and where it came from.
#[derive(Clone, Debug)]
pub struct Source {
    /// For messages.
    pub path: PathBuf,
    /// All of it.
    pub text: String,
}

impl Source {
    /// An error that points at `span`.
    pub fn error(&self, span: &Span, message: impl Into<String>) -> ManifestError {
        let start = span.start.min(self.text.len());
        let before = self.text.get(..start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let text = self.text.get(line_start..).unwrap_or_default();
        let text = text.lines().next().unwrap_or_default();
        let line_end = line_start + text.len();
        let marked = self.text.get(start..span.end.clamp(start, line_end.max(start)));
        ManifestError {
            path: self.path.clone(),
            line: before.matches('\n').count() + 1,
            column: self.text.get(line_start..start).map_or(0, |s| s.chars().count()) + 1,
            message: message.into(),
            text: text.to_owned(),
            width: marked.map_or(1, |s| s.chars().count()),
        }
    }

    /// Parses the text.
    pub fn parse(&self) -> Result<Spanned<DeTable<'_>>, ManifestError> {
        DeTable::parse(&self.text).map_err(|error| {
            let span = error.span().unwrap_or(0..0);
            // One line is promised; the parser likes to add an "expected" line.
            self.error(&span, error.message().trim().replace('\n', ", "))
        })
    }

    /// For messages.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A table whose keys are known beforehand.
pub struct Section<'a> {
    source: &'a Source,
    name: String,
    span: Span,
    table: &'a DeTable<'a>,
}

impl<'a> Section<'a> {
    /// Takes `table`, which people know as `name`, and refuses keys that are not in `known`.
    pub fn new(
        source: &'a Source,
        name: &str,
        span: Span,
        table: &'a DeTable<'a>,
        known: &[&str],
    ) -> Result<Self, ManifestError> {
        let unknown = table
            .keys()
            .filter(|key| !known.contains(&&**key.get_ref()))
            .min_by_key(|key| key.span().start);
        if let Some(key) = unknown {
            let hint = suggestion(key.get_ref(), known);
            return Err(source
                .error(&key.span(), format!("unknown key `{}` in {name}; {hint}", key.get_ref())));
        }
        Ok(Self { source, name: name.to_owned(), span, table })
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<Field<'a>> {
        let (key, value) = self.table.get_key_value(key)?;
        Some(Field {
            source: self.source,
            label: format!("`{}` in {}", key.get_ref(), self.name),
            span: value.span(),
            value: value.get_ref(),
        })
    }

    /// The value of `key`, which must be there.
    pub fn require(&self, key: &str) -> Result<Field<'a>, ManifestError> {
        self.get(key)
            .ok_or_else(|| self.source.error(&self.span, format!("{} has no `{key}`", self.name)))
    }

    /// Where the section is.
    pub fn span(&self) -> &Span {
        &self.span
    }
}

/// A value and how people know it.
pub struct Field<'a> {
    source: &'a Source,
    label: String,
    span: Span,
    value: &'a DeValue<'a>,
}

impl<'a> Field<'a> {
    /// Where the value is.
    pub fn span(&self) -> Span {
        self.span.clone()
    }

    /// An error about this value; `rest` goes after its name.
    pub fn wrong(&self, rest: impl fmt::Display) -> ManifestError {
        self.source.error(&self.span, format!("{} {rest}", self.label))
    }

    fn expected(&self, what: &str) -> ManifestError {
        let got = match self.value {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a float",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a table",
        };
        self.wrong(format_args!("must be {what}, not {got}"))
    }

    /// A string.
    pub fn string(&self) -> Result<&'a str, ManifestError> {
        self.value.as_str().ok_or_else(|| self.expected("a string"))
    }

    /// A boolean.
    pub fn boolean(&self) -> Result<bool, ManifestError> {
        self.value.as_bool().ok_or_else(|| self.expected("true or false"))
    }

    /// A whole number within `range`.
    pub fn integer<T>(&self, range: std::ops::RangeInclusive<u64>) -> Result<T, ManifestError>
    where
        T: TryFrom<u64>,
    {
        let DeValue::Integer(integer) = self.value else {
            return Err(self.expected("a whole number"));
        };
        u64::from_str_radix(integer.as_str(), integer.radix())
            .ok()
            .filter(|value| range.contains(value))
            .and_then(|value| T::try_from(value).ok())
            .ok_or_else(|| {
                self.wrong(format_args!(
                    "must be within {}..={}, not {}",
                    range.start(),
                    range.end(),
                    integer.as_str()
                ))
            })
    }

    /// A number within `range`, as hundredths.
    pub fn hundredths(&self, range: std::ops::RangeInclusive<f64>) -> Result<u32, ManifestError> {
        let text = match self.value {
            DeValue::Integer(integer) if integer.radix() == 10 => integer.as_str(),
            DeValue::Float(float) => float.as_str(),
            _ => return Err(self.expected("a number")),
        };
        let value: f64 = text.parse().unwrap_or(f64::NAN);
        if !range.contains(&value) {
            return Err(self.wrong(format_args!(
                "must be within {:.1}..={:.1}, not {text}",
                range.start(),
                range.end()
            )));
        }
        // In range, so the cast is exact enough.
        Ok((value * 100.0).round() as u32)
    }

    /// A size in bytes.
    pub fn size(&self) -> Result<u64, ManifestError> {
        let text = self.value.as_str().ok_or_else(|| self.expected("a size such as \"4MiB\""))?;
        size::parse(text).map_err(|why| self.wrong(format_args!("is wrong: {why}")))
    }

    /// A size per second, in bytes.
    pub fn rate(&self) -> Result<u64, ManifestError> {
        let text =
            self.value.as_str().ok_or_else(|| self.expected("a rate such as \"200MiB/s\""))?;
        size::parse_rate(text).map_err(|why| self.wrong(format_args!("is wrong: {why}")))
    }

    /// One of the given words.
    pub fn word<T: Copy>(&self, words: &[(&str, T)]) -> Result<T, ManifestError> {
        let text = self.string()?;
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Ok(*value),
            None => {
                let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                Err(self
                    .wrong(format_args!("names an unknown `{text}`; {}", suggestion(text, &words))))
            }
        }
    }

    /// The values of an array.
    pub fn array(&self) -> Result<Vec<Field<'a>>, ManifestError> {
        let items = self.value.as_array().ok_or_else(|| self.expected("an array"))?;
        let field = |item: &'a Spanned<DeValue<'a>>| Field {
            source: self.source,
            label: self.label.clone(),
            span: item.span(),
            value: item.get_ref(),
        };
        Ok(items.iter().map(field).collect())
    }

    /// The tables of all `[[name]]`.
    pub fn tables(&self, name: &str) -> Result<Vec<Field<'a>>, ManifestError> {
        if self.value.as_table().is_some() {
            return Err(self.wrong(format_args!("must be written [[{name}]], in double brackets")));
        }
        self.array()
    }

    /// A table with known keys, which people know as `name`.
    pub fn section(&self, name: &str, known: &[&str]) -> Result<Section<'a>, ManifestError> {
        let table = self.value.as_table().ok_or_else(|| self.expected("a table"))?;
        Section::new(self.source, name, self.span(), table, known)
    }

    /// The named tables in this one, such as all `[domain.*]`, in the order of the text.
    pub fn named_sections(
        &self,
        kind: &str,
        known: &[&str],
    ) -> Result<Vec<(Spanned<String>, Section<'a>)>, ManifestError> {
        let table = self
            .value
            .as_table()
            .ok_or_else(|| self.expected(&format!("tables such as [{kind}.name]")))?;
        let mut sections = Vec::new();
        for (key, value) in table {
            let name = format!("[{kind}.{}]", key.get_ref());
            let table = value.get_ref().as_table().ok_or_else(|| {
                let why = format!("`{}` in [{kind}] must be a table {name}", key.get_ref());
                self.source.error(&value.span(), why)
            })?;
            let section = Section::new(self.source, &name, key.span(), table, known)?;
            sections.push((Spanned::new(key.span(), key.get_ref().to_string()), section));
        }
        sections.sort_by_key(|(name, _)| name.span().start);
        Ok(sections)
    }
}

/// "did you mean …" or, if nothing is near, what there is.
pub fn suggestion(word: &str, known: &[&str]) -> String {
    let near = known
        .iter()
        .map(|known| (strsim::damerau_levenshtein(word, known), known))
        .filter(|(distance, known)| *distance <= 1 + known.len() / 4)
        .min_by_key(|(distance, _)| *distance);
    match near {
        Some((_, known)) => format!("did you mean `{known}`?"),
        None if known.is_empty() => "there is none".to_owned(),
        None => {
            let all: Vec<String> = known.iter().map(|word| format!("`{word}`")).collect();
            format!("there is {}", all.join(", "))
        }
    }
}
