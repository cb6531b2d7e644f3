//! The names of all series of the collector, their units and what they tell.
//!
//! Names follow the conventions of Prometheus (<https://prometheus.io/docs/practices/naming/>), and those of
//! its client libraries for the process. The plain names beside them hold percents.

use super::{Kind, Registry, Unit};

use Kind::{Counter, Gauge};
use Unit::{Bytes, None as Plain, Percent, Ratio, Seconds};

/// Describes all series that a collector may report.
pub(super) fn describe(registry: &Registry) {
    for (name, kind, unit, help) in NAMES {
        registry.describe(name, *kind, *unit, help);
    }
}

pub(super) const NAMES: &[(&str, Kind, Unit, &str)] = &[
    ("cpu_usage", Gauge, Percent, "Processor use of the machine in percent."),
    ("memory_usage", Gauge, Percent, "Memory in use in percent of the limit that applies."),
    ("disk_usage", Gauge, Percent, "Space in use in percent of the fullest file system."),
    ("network_io", Counter, Bytes, "Bytes over all interfaces but the loopback, by direction."),
    ("process_count", Gauge, Plain, "Processes on the machine."),
    ("resource_usage_percent", Gauge, Percent, "Use in percent, by type: cpu, memory, disk."),
    ("memory_usage_bytes", Gauge, Bytes, "Memory of this process, by type: rss, vms."),
    ("system_cpu_usage_ratio", Gauge, Ratio, "Processor use of the machine."),
    ("system_cpu_seconds_total", Counter, Seconds, "Processor time of the machine, by mode."),
    ("system_cpu_count", Gauge, Plain, "Processors of the machine."),
    ("system_cpu_frequency_hertz", Gauge, Plain, "Mean frequency of the processors."),
    ("system_load1", Gauge, Plain, "Mean of running and waiting tasks over a minute."),
    ("system_load5", Gauge, Plain, "Mean of running and waiting tasks over five minutes."),
    ("system_load15", Gauge, Plain, "Mean of running and waiting tasks over fifteen minutes."),
    ("system_processes", Gauge, Plain, "Processes on the machine."),
    ("system_threads", Gauge, Plain, "Threads on the machine."),
    ("system_processes_running", Gauge, Plain, "Threads that run or could."),
    ("system_processes_blocked", Gauge, Plain, "Threads that wait for a disk."),
    ("system_forks_total", Counter, Plain, "Processes and threads that were made."),
    ("system_context_switches_total", Counter, Plain, "Changes from one thread to another."),
    ("system_memory_total_bytes", Gauge, Bytes, "Memory of the machine."),
    ("system_memory_available_bytes", Gauge, Bytes, "Memory that can be had without swapping."),
    ("system_memory_used_bytes", Gauge, Bytes, "Memory that is not available."),
    ("system_memory_usage_ratio", Gauge, Ratio, "Memory in use, of the limit that applies."),
    ("system_swap_used_bytes", Gauge, Bytes, "Swap space in use."),
    ("system_disk_read_bytes_total", Counter, Bytes, "Bytes read from a disk."),
    ("system_disk_written_bytes_total", Counter, Bytes, "Bytes written to a disk."),
    ("system_disk_reads_total", Counter, Plain, "Reads that a disk completed."),
    ("system_disk_writes_total", Counter, Plain, "Writes that a disk completed."),
    ("system_disk_busy_ratio", Gauge, Ratio, "Part of the time in which a disk had work."),
    ("system_filesystem_size_bytes", Gauge, Bytes, "Size of a file system."),
    ("system_filesystem_used_bytes", Gauge, Bytes, "Space in use in a file system."),
    ("system_filesystem_free_bytes", Gauge, Bytes, "Space left to users in a file system."),
    ("system_network_received_bytes_total", Counter, Bytes, "Bytes that an interface received."),
    ("system_network_sent_bytes_total", Counter, Bytes, "Bytes that an interface sent."),
    (
        "system_network_received_packets_total",
        Counter,
        Plain,
        "Packets that an interface received.",
    ),
    ("system_network_sent_packets_total", Counter, Plain, "Packets that an interface sent."),
    ("system_network_receive_errors_total", Counter, Plain, "Packets received in error."),
    ("system_network_send_errors_total", Counter, Plain, "Packets that could not be sent."),
    ("system_network_receive_drops_total", Counter, Plain, "Packets received and dropped."),
    ("system_network_send_drops_total", Counter, Plain, "Packets dropped before sending."),
    ("system_sockets_used", Gauge, Plain, "Sockets of the machine."),
    ("system_tcp_in_use", Gauge, Plain, "TCP sockets in use, version 4."),
    ("system_tcp_orphaned", Gauge, Plain, "TCP sockets that no process holds."),
    ("system_tcp_time_wait", Gauge, Plain, "Closed TCP connections that linger."),
    ("system_tcp_connections", Gauge, Plain, "TCP sockets of both versions, by state."),
    (
        "system_psi_cpu_some_ratio",
        Gauge,
        Ratio,
        "Part of 10 s in which some task waited for a processor.",
    ),
    (
        "system_psi_cpu_full_ratio",
        Gauge,
        Ratio,
        "Part of 10 s in which all tasks waited for a processor.",
    ),
    (
        "system_psi_memory_some_ratio",
        Gauge,
        Ratio,
        "Part of 10 s in which some task waited for memory.",
    ),
    (
        "system_psi_memory_full_ratio",
        Gauge,
        Ratio,
        "Part of 10 s in which all tasks waited for memory.",
    ),
    (
        "system_psi_io_some_ratio",
        Gauge,
        Ratio,
        "Part of 10 s in which some task waited for a disk.",
    ),
    (
        "system_psi_io_full_ratio",
        Gauge,
        Ratio,
        "Part of 10 s in which all tasks waited for a disk.",
    ),
    (
        "system_psi_cpu_some_seconds_total",
        Counter,
        Seconds,
        "Time in which some task waited for a processor.",
    ),
    (
        "system_psi_cpu_full_seconds_total",
        Counter,
        Seconds,
        "Time in which all tasks waited for a processor.",
    ),
    (
        "system_psi_memory_some_seconds_total",
        Counter,
        Seconds,
        "Time in which some task waited for memory.",
    ),
    (
        "system_psi_memory_full_seconds_total",
        Counter,
        Seconds,
        "Time in which all tasks waited for memory.",
    ),
    (
        "system_psi_io_some_seconds_total",
        Counter,
        Seconds,
        "Time in which some task waited for a disk.",
    ),
    (
        "system_psi_io_full_seconds_total",
        Counter,
        Seconds,
        "Time in which all tasks waited for a disk.",
    ),
    ("process_cpu_seconds_total", Counter, Seconds, "Processor time of this process."),
    (
        "process_cpu_user_seconds_total",
        Counter,
        Seconds,
        "Processor time of this process outside the kernel.",
    ),
    (
        "process_cpu_system_seconds_total",
        Counter,
        Seconds,
        "Processor time of this process in the kernel.",
    ),
    (
        "process_cpu_usage_ratio",
        Gauge,
        Ratio,
        "Processor use of this process, of the limit that applies.",
    ),
    (
        "process_cpu_limit",
        Gauge,
        Plain,
        "Processors that this process may use; the label says by whose limit.",
    ),
    ("process_resident_memory_bytes", Gauge, Bytes, "Memory of this process that is in RAM."),
    ("process_virtual_memory_bytes", Gauge, Bytes, "Address space of this process."),
    (
        "process_memory_limit_bytes",
        Gauge,
        Bytes,
        "Memory limit that applies; the label says whose.",
    ),
    ("process_start_time_seconds", Gauge, Seconds, "When this process started, since 1970."),
    ("process_threads", Gauge, Plain, "Threads of this process."),
    ("process_open_fds", Gauge, Plain, "File descriptors that this process has open."),
    ("process_max_fds", Gauge, Plain, "File descriptors that it may have open."),
    ("process_open_connections", Gauge, Plain, "Sockets that this process has open."),
    ("process_read_bytes_total", Counter, Bytes, "Bytes that this process had read from disks."),
    (
        "process_written_bytes_total",
        Counter,
        Bytes,
        "Bytes that this process had written to disks.",
    ),
    ("tokio_workers", Gauge, Plain, "Threads of the runtime that run tasks."),
    ("tokio_alive_tasks", Gauge, Plain, "Tasks of the runtime that are not done."),
    ("tokio_global_queue_depth", Gauge, Plain, "Tasks in the queue that all workers share."),
    (
        "tokio_busy_seconds_total",
        Counter,
        Seconds,
        "Time in which workers ran tasks, all together.",
    ),
    ("tokio_busy_ratio", Gauge, Ratio, "Part of their time in which workers ran tasks."),
];
