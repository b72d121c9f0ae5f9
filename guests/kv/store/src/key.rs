//! Which keys are allowed.

use crate::PutError;

/// Longest key, in bytes.
pub const MAX_KEY: usize = 255;

/// Checks a key: 1 to 255 bytes of UTF-8 without control characters and without
/// `/`, and not `.` or `..`.
///
/// So a key is one segment of a URL path, survives the normalisation that HTTP
/// clients apply to paths, and a list of keys can be printed one a line. `/` is
/// kept back for a hierarchy.
pub fn check_key(key: &str) -> Result<(), PutError> {
    if key.len() > MAX_KEY {
        return Err(PutError::KeyTooLong);
    }
    let forbidden = |c: char| c.is_control() || c == '/';
    if key.is_empty() || key == "." || key == ".." || key.contains(forbidden) {
        return Err(PutError::BadKey);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules() {
        let long = "k".repeat(MAX_KEY + 1);
        for good in ["a", "...", "a b", "größe", &long[..MAX_KEY]] {
            assert_eq!(check_key(good), Ok(()), "{good:?}");
        }
        for bad in ["", ".", "..", "a/b", "/", "a\n", "\u{7f}", "a\u{85}b", "\0"] {
            assert_eq!(check_key(bad), Err(PutError::BadKey), "{bad:?}");
        }
        assert_eq!(check_key(&long), Err(PutError::KeyTooLong));
    }
}
