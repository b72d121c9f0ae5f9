//! Memory that is shared with a driver domain.

use domain_rt::env;
use ring_ends::Region;

/// Memory for a ring or a pool, with grant references for all of it.
pub(crate) fn region(pages: u32) -> Result<Region, &'static str> {
    let mem = env::alloc_shared(pages as usize).ok_or("not enough memory")?;
    let first = env::alloc_grefs(pages).ok_or("the grant table is too small")?;
    Ok(Region { mem, first })
}
