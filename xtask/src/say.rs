//! Lines on the terminal.

use std::io::Write as _;

/// Prints a line. (`println!` would panic if nobody reads any more.)
pub fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
