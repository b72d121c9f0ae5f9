//! The harness of the system tests: boot a node in QEMU, talk to it by HTTP
//! and by its control line, and judge it.
//!
//! | module | does |
//! |---|---|
//! | [`runner`] | runs tests one after the other; three verdicts |
//! | [`attack`] | a node with an attacker in it, and what must hold whatever it does |
//! | [`mod@bench`] | a node for a test, and what happens after the test |
//! | [`mod@fat`] | a FAT volume, formatted before and judged after |
//! | [`files`] | what a guest that works with files tells of them |
//! | [`download`] | the server of a stream that a guest downloads |
//! | [`http`] | one connection to the node, whose every break is noticed |
//! | [`judges`] | the node of the fault campaigns, and orders to the judges in it |
//! | [`values`] | values whose bytes say what they are |
//! | [`workload`] | clients that put, get and check without end |
//!
//! The tests themselves are in `tests/system/`; names that begin with `g1_`
//! and so on belong to the guarantee of that number.

pub mod attack;
pub mod bench;
pub mod capture;
pub mod download;
pub mod fat;
pub mod files;
pub mod http;
pub mod judges;
pub mod runner;
pub mod values;
pub mod workload;
