//! System tests: each boots a node in QEMU. See the crate's library for the
//! harness; `cargo xtask test FILTER` runs some of them.

/// A test named as its function.
macro_rules! tests {
    ($($module:ident :: $name:ident),* $(,)?) => {
        vec![$(Test { name: stringify!($name).to_owned(), body: $module::$name }),*]
    };
}

mod attacks;
mod attacks_devices;
mod attacks_limits;
mod attacks_rings;
mod chapter;
mod configurations;
mod control;
mod durability;
mod endurance;
mod hypervisor;
mod iommu;
mod judges;
mod recovery;
mod resets;
mod serving;
mod spares;
mod updates;
mod workloads;

use std::process::ExitCode;

use system_tests::runner::{self, Test};

fn main() -> ExitCode {
    let mut tests = tests![
        serving::boots_and_serves,
        serving::values_of_all_sizes_come_back,
        serving::bad_requests_get_clear_answers,
        serving::many_connections_at_a_time,
        serving::a_full_volume_is_said_and_recovers,
        durability::g3_values_survive_a_clean_stop,
        durability::g3_acknowledged_values_survive_power_cuts,
        control::nodectl_shows_and_orders,
        control::g8_every_death_leaves_a_record,
        hypervisor::g1_the_hypervisor_keeps_its_own_rules,
        iommu::machine_vt_d,
        recovery::g2_an_endless_loop_is_ended_by_the_watchdog,
        recovery::g2_a_driver_that_does_no_work_is_replaced,
        recovery::g2_a_net_that_brings_nothing_is_replaced,
        recovery::g3_planned_restarts_finish_the_work_first,
        recovery::g6_a_deterministic_crasher_is_held_and_its_clients_wait,
        recovery::g7_the_supervisor_is_killed_under_load,
        recovery::g3_no_request_fails_over_100_driver_crashes,
        recovery::g3_both_drivers_die_at_once,
        judges::g3_judges_see_no_harm_when_drivers_die,
        judges::g3_the_example_driver_serves_and_outlives_its_deaths,
        chapter::the_chapter_on_ones_own_driver_holds,
        judges::judges_find_corrupt_data,
        judges::judges_find_corrupt_datagrams,
        endurance::g3_deaths_leave_nothing_behind,
        workloads::g3_files_and_a_download_outlive_their_drivers,
        workloads::g3_files_and_a_download_outlive_their_drivers_with_spares,
        recovery::g6_clients_of_a_held_driver_wait_for_its_release,
        spares::g6_a_spare_takes_over_at_each_of_20_deaths,
        spares::g6_a_spare_may_die_too,
        spares::g6_driver_and_spare_may_die_at_once,
        updates::g3_live_updates_under_load_lose_nothing,
        updates::g3_live_updates_without_a_spare_lose_nothing,
        updates::g3_broken_images_are_rolled_back_under_load,
        updates::g7_the_supervisor_may_die_during_an_update,
        recovery::g7_the_supervisor_may_crash_too,
        resets::g6_a_function_is_reset_where_the_driver_does_not_help,
        resets::g6_a_bus_is_reset_where_the_function_cannot_be,
        resets::g6_a_disk_that_is_pulled_is_held_until_it_is_back,
    ];
    tests.extend(attacks::all());
    tests.extend(attacks_devices::all());
    tests.extend(attacks_limits::all());
    tests.extend(attacks_rings::all());
    tests.extend(configurations::all());
    runner::main(&tests)
}
