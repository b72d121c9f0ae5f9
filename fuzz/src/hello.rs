//! A connection page full of foreign bytes (CONN-2, CONN-5).

use std::fmt::Debug;
use std::sync::atomic::Ordering::Relaxed;

use ring_proto::PAGE_SIZE;
use ring_proto::conn::{BackHello, FrontHello, HELLO_MAX, OwnEnd, Pair, PeerEnd, State};
use ring_proto::shm::SharedMem;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::sim::Sim;

thread_local! {
    static SIM: Sim = Sim::new();
}

/// The first six words of the page, then the hello's bytes.
pub fn run(data: &[u8]) {
    let page = SIM.with(|sim| sim.frame(0));
    page.clear();
    let (words, hello) = data.split_at(data.len().min(24));
    for (word, bytes) in (0..6).zip(words.chunks_exact(4)) {
        let value = u32::from_le_bytes(bytes.try_into().unwrap());
        page.write_u32(word * 4, value, Relaxed);
    }
    // Mostly a length that fits, so that decoding comes far.
    let len = page.read_u32(20, Relaxed);
    if len as usize > HELLO_MAX && len & 7 != 0 {
        page.write_u32(20, hello.len() as u32, Relaxed);
    }
    let most = hello.len().min(PAGE_SIZE - 64);
    page.copy_to(64, &hello[..most]).unwrap();
    let peer = PeerEnd::new(page).unwrap();
    let state = peer.glance().state;
    let known = (0..4).filter_map(State::from_raw).filter(|&s| peer.glance().is(s)).count();
    assert_eq!(known, usize::from(state < 4), "CONN-2");
    look::<FrontHello>(page, peer);
    look::<BackHello>(page, peer);
}

/// What is understood can be said, and is then understood alike.
fn look<H: Serialize + DeserializeOwned + Debug + PartialEq>(page: SharedMem, peer: PeerEnd) {
    let Ok(hello) = peer.hello::<H>(&peer.glance()) else { return };
    let mut before = [0; PAGE_SIZE];
    page.copy_from(0, &mut before).unwrap();
    let own = OwnEnd::new(page).unwrap();
    own.publish(&hello, 7, Pair::default(), State::Closing, State::Connected).unwrap();
    assert_eq!(peer.hello::<H>(&peer.glance()), Ok(hello));
    page.copy_to(0, &before).unwrap();
}
