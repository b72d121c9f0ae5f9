//! An `embassy-net` stack over the first net connection.

use alloc::boxed::Box;

use domain_rt::random;
use embassy_executor::Spawner;
use embassy_net::{Config, Ipv4Cidr, Runner, Stack, StackResources, StaticConfigV4};

use crate::{
    args::{Address, NetArgs},
    connect::SetupError,
    net::NetDevice,
};

/// Starts the stack, with room for so many sockets; with DHCP one of them is
/// the stack's own. An address by DHCP comes later: see
/// [`Stack::wait_config_up`].
///
/// # Errors
///
/// There is no net connection, no room for it, or a stack already.
pub fn start<const SOCKETS: usize>(
    spawner: Spawner,
    args: &NetArgs,
) -> Result<Stack<'static>, SetupError> {
    let config = match args.address {
        Address::Dhcp => Config::dhcpv4(Default::default()),
        Address::Fixed { ip, prefix, gateway } => Config::ipv4_static(StaticConfigV4 {
            address: Ipv4Cidr::new(ip, prefix),
            gateway,
            dns_servers: Default::default(),
        }),
    };
    let device = NetDevice::new()?;
    let resources = Box::leak(Box::new(StackResources::<SOCKETS>::new()));
    let (stack, runner) = embassy_net::new(device, config, resources, random::seed());
    spawner.spawn(run(runner).map_err(|_| SetupError::Taken)?);
    Ok(stack)
}

#[embassy_executor::task]
async fn run(mut runner: Runner<'static, NetDevice>) {
    runner.run().await
}
