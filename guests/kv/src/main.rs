//! The demo guest: a key-value store that speaks HTTP.
//!
//! It owns no device. Blocks come over a blk connection, frames over a net
//! connection, and when the domain behind either is replaced, requests here
//! take a moment longer and nothing else happens.
#![no_std]
#![no_main]

extern crate alloc;

mod serve;
mod volume;

use alloc::{boxed::Box, string::ToString};

use domain_rt::{boot, exec, set_ready, start::text};
use embassy_executor::Spawner;
use embassy_net::Stack;
use guest_io::{args::NetArgs, blk::BlkClient, stack};
use kv_http::Service;

use crate::{serve::Server, volume::Volume};

domain_rt::entry!(main);

/// Where the service listens unless `port=` says otherwise.
const DEFAULT_PORT: u16 = 80;

fn main(_boot: &'static domain_rt::ring_proto::boot::BootInfo) -> ! {
    exec::run(start)
}

#[embassy_executor::task]
async fn start(spawner: Spawner) {
    let args = match NetArgs::parse(text(&boot().args), |_| false) {
        Ok(args) => args,
        Err(error) => return give_up(&error),
    };
    // The address is negotiated while the volume is mounted.
    let stack = match stack::start::<{ serve::SOCKETS + 1 }>(spawner, &args) {
        Ok(stack) => stack,
        Err(error) => return give_up(&error),
    };
    let service = match open_volume(spawner).await {
        Ok(service) => service,
        Err(why) => {
            log::error!("no store: {why}; every request is answered with 503");
            Service::Unavailable(why)
        }
    };
    let port = args.port.unwrap_or(DEFAULT_PORT);
    let server: &'static Server = Box::leak(Box::new(Server::new(stack, service, port)));
    server.start(spawner).await;
    announce_address(stack, port).await;
    set_ready();
}

/// Nothing of this mends itself: the manifest is wrong.
fn give_up(error: &dyn core::fmt::Display) {
    log::error!("cannot serve: {error}");
    domain_rt::hypercall::exit(1);
}

/// Waits for the disk and mounts the store on it.
async fn open_volume(spawner: Spawner) -> Result<Service<'static, Volume>, &'static str> {
    let leak = |why: &dyn ToString| -> &'static str { why.to_string().leak() };
    let client = BlkClient::new(guest_io::blk::DEFAULT_POOL_PAGES).map_err(|e| leak(&e))?;
    match run_disk(client.clone()) {
        Ok(token) => spawner.spawn(token),
        Err(_) => return Err("no room for the disk task"),
    }
    let volume = Volume::wait(client).await;
    let store = volume::mount(volume).await.map_err(|e| leak(&e))?;
    let stats = store.stats();
    log::info!(
        "store: {} keys, {} KiB used, {} MiB free",
        stats.keys,
        stats.used_bytes >> 10,
        stats.free_bytes >> 20
    );
    Ok(Service::Ready(Box::leak(Box::new(store))))
}

#[embassy_executor::task]
async fn run_disk(client: BlkClient) {
    client.run().await
}

async fn announce_address(stack: Stack<'static>, port: u16) {
    let waiting = stack.config_v4().is_none();
    if waiting {
        log::info!("net: waiting for an address");
    }
    stack.wait_config_up().await;
    if let Some(config) = stack.config_v4() {
        log::info!("serving http://{}:{port}/", config.address.address());
    }
}
