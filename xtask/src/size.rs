//! Sizes as people write them: `"4MiB"`, `512M`, `"200MiB/s"`.

/// Bytes of a KiB.
pub const KIB: u64 = 1024;
/// Bytes of a MiB.
pub const MIB: u64 = 1024 * KIB;
/// Bytes of a GiB.
pub const GIB: u64 = 1024 * MIB;

/// Reads a size: a whole number and one of `B`, `KiB`, `MiB`, `GiB`, or short
/// `K`, `M`, `G` with the same meaning.
///
/// `MB` and its like are refused, since half the world means 1000² by them.
///
/// # Errors
///
/// A phrase that says what is wrong with `text`.
pub fn parse(text: &str) -> Result<u64, String> {
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let number: u64 =
        number.parse().map_err(|_| format!("`{text}` is not a size such as `4MiB`"))?;
    let factor = match unit.trim() {
        "B" => 1,
        "K" | "KiB" => KIB,
        "M" | "MiB" => MIB,
        "G" | "GiB" => GIB,
        "" => return Err(format!("`{text}` has no unit; write for example `{text}MiB`")),
        decimal @ ("KB" | "MB" | "GB" | "kB") => {
            let binary = format!("{}iB", decimal[..1].to_uppercase());
            return Err(format!("`{text}` has the unit `{decimal}`; write `{number}{binary}`"));
        }
        other => {
            return Err(format!("`{text}` has an unknown unit `{other}`; write KiB, MiB or GiB"));
        }
    };
    number.checked_mul(factor).ok_or_else(|| format!("`{text}` is too large"))
}

/// Reads a rate: a size with `/s` behind it.
///
/// # Errors
///
/// A phrase that says what is wrong with `text`.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let size = text
        .trim()
        .strip_suffix("/s")
        .ok_or_else(|| format!("`{text}` is not a rate such as `200MiB/s`"))?;
    parse(size)
}

/// Writes a size so that [`parse`] reads it back, in the largest unit that
/// leaves a whole number.
#[must_use]
pub fn show(bytes: u64) -> String {
    for (factor, unit) in [(GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")] {
        if bytes >= factor && bytes.is_multiple_of(factor) {
            return format!("{}{unit}", bytes / factor);
        }
    }
    format!("{bytes}B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_shows() {
        for bytes in [0, 1, 512, KIB, 3 * KIB, MIB, 256 * MIB, 4 * GIB, MIB + 1] {
            assert_eq!(parse(&show(bytes)), Ok(bytes));
        }
        assert_eq!(parse("512M"), Ok(512 * MIB));
        assert_eq!(parse("4 GiB"), Ok(4 * GIB));
        assert_eq!(parse_rate("200MiB/s"), Ok(200 * MIB));
    }

    #[test]
    fn says_what_is_wrong() {
        let wrong = |text| parse(text).unwrap_err();
        assert_eq!(wrong("12"), "`12` has no unit; write for example `12MiB`");
        assert_eq!(wrong("4MB"), "`4MB` has the unit `MB`; write `4MiB`");
        assert_eq!(wrong("big"), "`big` is not a size such as `4MiB`");
        assert_eq!(wrong("99999999999GiB"), "`99999999999GiB` is too large");
        assert_eq!(wrong("4TiB"), "`4TiB` has an unknown unit `TiB`; write KiB, MiB or GiB");
        assert_eq!(parse_rate("4MiB").unwrap_err(), "`4MiB` is not a rate such as `200MiB/s`");
    }
}
