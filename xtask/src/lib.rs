//! Everything around the node that runs on the host: reading manifests,
//! building images and bundles, disk images, QEMU, checks and figures.
//!
//! The binary is a thin command line over this library, and the system tests
//! and benchmarks use the same library to boot nodes.
//!
//! | module | does |
//! |---|---|
//! | [`manifest`] | TOML to a checked node manifest, errors with line and column |
//! | [`build`], [`elf`], [`bundle`] | bare-metal images, flattened, into one bundle |
//! | [`disk`] | GPT disk images with the manifest's volumes |
//! | [`qemu`] | a running node and its verdict |
//! | [`judge`] | orders to a judge in a running machine, and what it saw |
//! | [`run`], [`test`](mod@test), [`check`], [`deny`], [`sizes`], [`mod@bench`] | the commands |
//! | [`attacks`], [`without`] | attacks on a node, and their tests without the defence |
//! | [`sim`](mod@sim) | deterministic simulation, and bugs planted for it |
//! | [`models`], [`mutants`] | tests in which every interleaving is explored, and what they must find |
//! | [`mod@say`] | lines on the terminal |
//! | [`figures`] | what measuring commands print and write |

pub mod attacks;
pub mod bench;
pub mod build;
pub mod bundle;
pub mod check;
pub mod clauses;
pub mod deny;
pub mod disk;
pub use nodectl::elf;
pub mod fault;
pub mod figures;
pub mod fuzz;
pub mod http;
pub mod judge;
pub mod manifest;
pub mod models;
pub mod mutants;
pub mod qemu;
pub mod run;
pub mod say;
pub mod sim;
pub mod size;
pub mod sizes;
pub mod test;
pub mod without;
pub mod workspace;
