//! The readings of each second on Linux, from files that stay open.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{CollectorOptions, Growth, Slow, parse};
use crate::registry::Readings;

/// Longest file that is read; a longer one counts as absent.
const FILE_BYTES_MAX: usize = 1 << 20;
/// Readings after which a file that was not there is looked for again.
const LOOK_AGAIN_AFTER: u32 = 60;

/// A file that stays open and is read from its beginning each time.
struct Kept {
    path: PathBuf,
    file: Option<File>,
    /// Readings for which it is not looked for.
    absent_for: u32,
}

impl Kept {
    fn new(path: PathBuf) -> Self {
        Self { path, file: None, absent_for: 0 }
    }

    /// Reads all of the file into the buffer and returns it.
    fn read<'a>(&mut self, buffer: &'a mut Vec<u8>) -> Option<&'a [u8]> {
        if self.absent_for > 0 {
            self.absent_for -= 1;
            return None;
        }
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        let length = self.file.as_ref().and_then(|file| read_all(file, buffer));
        if length.is_none() {
            self.file = None;
            self.absent_for = LOOK_AGAIN_AFTER;
        }
        Some(&buffer[..length?])
    }
}

/// Reads a file from its beginning; the buffer grows and never shrinks.
fn read_all(file: &File, buffer: &mut Vec<u8>) -> Option<usize> {
    let mut length = 0;
    loop {
        if length == buffer.len() {
            if length >= FILE_BYTES_MAX {
                return None;
            }
            buffer.resize((length * 2).max(8 << 10), 0);
        }
        match file.read_at(&mut buffer[length..], length as u64) {
            Ok(0) => return Some(length),
            Ok(read) => length += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}

/// The memory of the control group whose limit applies.
struct GroupMemory {
    folder: PathBuf,
    current: Kept,
    stat: Kept,
}

impl GroupMemory {
    fn new(folder: &Path) -> Self {
        let kept = |name: &str| Kept::new(folder.join(name));
        let (current, stat) = (kept("memory.current"), kept("memory.stat"));
        Self { folder: folder.to_owned(), current, stat }
    }

    /// What counts against the limit less cached files that were not used of late: the kernel drops those
    /// before it refuses memory. `kubectl top` calls the same the working set.
    fn used(&mut self, buffer: &mut Vec<u8>) -> Option<u64> {
        let current = self.current.read(buffer).and_then(parse::limit)?;
        let inactive = self.stat.read(buffer).and_then(parse::inactive_file);
        Some(current.saturating_sub(inactive.unwrap_or(0)))
    }
}

pub(super) struct Linux {
    buffer: Vec<u8>,
    stat: Kept,
    own_stat: Kept,
    own_io: Kept,
    memory: Kept,
    group_memory: Option<GroupMemory>,
    disks: Kept,
    network: Kept,
    sockets: Kept,
    load: Kept,
    pressure: [(Pressure, Kept); 3],
    descriptors: PathBuf,
    /// Where whole disks have a folder each.
    blocks: PathBuf,
    is_disk: BTreeMap<String, bool>,
    last_cpu: Option<parse::CpuTicks>,
    growth: Growth,
    ticks_per_second: f64,
    page_bytes: f64,
    devices_max: usize,
    interfaces_max: usize,
}

/// The names of the series of one file of `/proc/pressure`: some and all, each as ratio and seconds.
type Pressure = [[&'static str; 2]; 2];

const PRESSURE: [(&str, Pressure); 3] = [
    (
        "cpu",
        [
            ["system_psi_cpu_some_ratio", "system_psi_cpu_some_seconds_total"],
            ["system_psi_cpu_full_ratio", "system_psi_cpu_full_seconds_total"],
        ],
    ),
    (
        "memory",
        [
            ["system_psi_memory_some_ratio", "system_psi_memory_some_seconds_total"],
            ["system_psi_memory_full_ratio", "system_psi_memory_full_seconds_total"],
        ],
    ),
    (
        "io",
        [
            ["system_psi_io_some_ratio", "system_psi_io_some_seconds_total"],
            ["system_psi_io_full_ratio", "system_psi_io_full_seconds_total"],
        ],
    ),
];

impl Linux {
    pub(super) fn new(options: &CollectorOptions) -> Self {
        let proc = options.root.join("proc");
        let kept = |name: &str| Kept::new(proc.join(name));
        Self {
            buffer: Vec::new(),
            stat: kept("stat"),
            own_stat: kept("self/stat"),
            own_io: kept("self/io"),
            memory: kept("meminfo"),
            group_memory: None,
            disks: kept("diskstats"),
            network: kept("net/dev"),
            sockets: kept("net/sockstat"),
            load: kept("loadavg"),
            pressure: PRESSURE.map(|(name, names)| (names, kept(&format!("pressure/{name}")))),
            descriptors: proc.join("self/fd"),
            blocks: options.root.join("sys/block"),
            is_disk: BTreeMap::new(),
            last_cpu: None,
            growth: Growth::default(),
            ticks_per_second: rustix::param::clock_ticks_per_second().max(1) as f64,
            page_bytes: rustix::param::page_size() as f64,
            devices_max: options.devices_max,
            interfaces_max: options.interfaces_max,
        }
    }

    pub(super) fn read(&mut self, now: Duration, slow: Option<&Slow>, readings: &mut Readings) {
        let machine = self.processors(readings);
        self.process(now, machine, slow, readings);
        self.memory(slow, readings);
        self.disks(now, readings);
        self.network(readings);
        self.rest(readings);
        self.growth.keep_only(now);
    }

    /// Returns the processors and when the machine started.
    fn processors(&mut self, readings: &mut Readings) -> Option<parse::Stat> {
        let stat = parse::stat(self.stat.read(&mut self.buffer)?)?;
        for (mode, ticks) in parse::CPU_MODES.iter().zip(stat.cpu.modes) {
            let seconds = ticks as f64 / self.ticks_per_second;
            readings.counter("system_cpu_seconds_total", &[("mode", mode)], seconds);
        }
        if stat.cpus > 0 {
            readings.gauge("system_cpu_count", &[], stat.cpus as f64);
        }
        if let Some(last) = self.last_cpu.replace(stat.cpu) {
            let all = stat.cpu.total().saturating_sub(last.total());
            let idle = stat.cpu.idle().saturating_sub(last.idle());
            if all > 0 {
                let ratio = (1.0 - idle as f64 / all as f64).clamp(0.0, 1.0);
                readings.gauge("system_cpu_usage_ratio", &[], ratio);
                readings.gauge("cpu_usage", &[], ratio * 100.0);
                readings.gauge("resource_usage_percent", &[("type", "cpu")], ratio * 100.0);
            }
        }
        let totals = [
            ("system_context_switches_total", stat.context_switches),
            ("system_forks_total", stat.forks),
        ];
        for (name, total) in totals {
            if let Some(total) = total {
                readings.counter(name, &[], total as f64);
            }
        }
        let gauges = [
            ("system_processes_running", stat.running),
            ("system_processes_blocked", stat.blocked),
        ];
        for (name, value) in gauges {
            if let Some(value) = value {
                readings.gauge(name, &[], value as f64);
            }
        }
        Some(stat)
    }

    fn process(
        &mut self,
        now: Duration,
        machine: Option<parse::Stat>,
        slow: Option<&Slow>,
        readings: &mut Readings,
    ) {
        let own = self.own_stat.read(&mut self.buffer).and_then(parse::process_stat);
        if let Some(own) = own {
            let (user, system) = (
                own.user as f64 / self.ticks_per_second,
                own.system as f64 / self.ticks_per_second,
            );
            readings.counter("process_cpu_seconds_total", &[], user + system);
            readings.counter("process_cpu_user_seconds_total", &[], user);
            readings.counter("process_cpu_system_seconds_total", &[], system);
            let resident = own.resident_pages as f64 * self.page_bytes;
            let virtual_ = own.virtual_bytes as f64;
            readings.gauge("process_resident_memory_bytes", &[], resident);
            readings.gauge("process_virtual_memory_bytes", &[], virtual_);
            readings.gauge("memory_usage_bytes", &[("type", "rss")], resident);
            readings.gauge("memory_usage_bytes", &[("type", "vms")], virtual_);
            readings.gauge("process_threads", &[], own.threads as f64);
            if let Some(started) = machine.and_then(|machine| machine.started) {
                let since = own.started as f64 / self.ticks_per_second;
                readings.gauge("process_start_time_seconds", &[], started as f64 + since);
            }
            let cpus = machine.map_or(0, |machine| machine.cpus) as f64;
            if cpus > 0.0 {
                let quota = slow.and_then(|slow| slow.cpu_limit).filter(|quota| *quota < cpus);
                let source = if quota.is_some() { "cgroup" } else { "host" };
                let limit = quota.unwrap_or(cpus).max(0.01);
                readings.gauge("process_cpu_limit", &[("limit_source", source)], limit);
                if let Some(rate) = self.growth.per_second("cpu", user + system, now) {
                    readings.gauge("process_cpu_usage_ratio", &[], rate / limit);
                }
            }
        }
        let io = self.own_io.read(&mut self.buffer).and_then(parse::process_io);
        if let Some((read, written)) = io {
            readings.counter("process_read_bytes_total", &[], read as f64);
            readings.counter("process_written_bytes_total", &[], written as f64);
        }
        if let Some(open) = descriptors(&self.descriptors) {
            readings.gauge("process_open_fds", &[], open as f64);
        }
    }

    fn memory(&mut self, slow: Option<&Slow>, readings: &mut Readings) {
        let Some(memory) = self.memory.read(&mut self.buffer).and_then(parse::memory) else {
            return;
        };
        let total = memory.total as f64;
        let used = memory.total.saturating_sub(memory.available) as f64;
        readings.gauge("system_memory_total_bytes", &[], total);
        readings.gauge("system_memory_available_bytes", &[], memory.available as f64);
        readings.gauge("system_memory_used_bytes", &[], used);
        readings.gauge("system_swap_used_bytes", &[], memory.swap_used as f64);

        // A limit beyond the memory of the machine is none.
        let limit = slow.and_then(|slow| slow.memory_limit.as_ref());
        let limit = limit.filter(|(limit, _)| *limit < memory.total && *limit > 0);
        let (limit, source, used) = match limit {
            Some((limit, folder)) => {
                if self.group_memory.as_ref().is_none_or(|group| group.folder != *folder) {
                    self.group_memory = Some(GroupMemory::new(folder));
                }
                let group = self.group_memory.as_mut().expect("made above");
                (*limit as f64, "cgroup", group.used(&mut self.buffer).map(|used| used as f64))
            }
            None => (total, "host", Some(used)),
        };
        readings.gauge("process_memory_limit_bytes", &[("limit_source", source)], limit);
        if let Some(used) = used {
            let ratio = used / limit;
            readings.gauge("system_memory_usage_ratio", &[], ratio);
            readings.gauge("memory_usage", &[], ratio * 100.0);
            readings.gauge("resource_usage_percent", &[("type", "memory")], ratio * 100.0);
        }
    }

    fn disks(&mut self, now: Duration, readings: &mut Readings) {
        let Some(text) = self.disks.read(&mut self.buffer) else { return };
        let mut left = self.devices_max;
        for disk in parse::disks(text) {
            // A partition has no folder there, and its disk counts what it does.
            let known = self.is_disk.get(disk.device).copied();
            let is_disk = known.unwrap_or_else(|| {
                let is_disk = !self.blocks.exists()
                    || self.blocks.join(disk.device.replace('/', "!")).exists();
                if self.is_disk.len() < 16 * self.devices_max {
                    self.is_disk.insert(disk.device.to_owned(), is_disk);
                }
                is_disk
            });
            if !is_disk || left == 0 {
                continue;
            }
            left -= 1;
            let labels = [("device", disk.device)];
            let mut counter = |name, total: u64| readings.counter(name, &labels, total as f64);
            counter("system_disk_read_bytes_total", disk.read_bytes);
            counter("system_disk_written_bytes_total", disk.written_bytes);
            counter("system_disk_reads_total", disk.reads);
            counter("system_disk_writes_total", disk.writes);
            let busy = disk.busy_ms as f64 / 1_000.0;
            if let Some(ratio) = self.growth.per_second(disk.device, busy, now) {
                readings.gauge("system_disk_busy_ratio", &labels, ratio.min(1.0));
            }
        }
    }

    fn network(&mut self, readings: &mut Readings) {
        let Some(text) = self.network.read(&mut self.buffer) else { return };
        let (mut received, mut sent) = (0, 0_u64);
        for (at, interface) in parse::interfaces(text).enumerate() {
            if interface.name != "lo" {
                received = interface.received.bytes.saturating_add(received);
                sent = interface.sent.bytes.saturating_add(sent);
            }
            if at >= self.interfaces_max {
                continue;
            }
            let labels = [("interface", interface.name)];
            let mut counter = |name, total: u64| readings.counter(name, &labels, total as f64);
            counter("system_network_received_bytes_total", interface.received.bytes);
            counter("system_network_sent_bytes_total", interface.sent.bytes);
            counter("system_network_received_packets_total", interface.received.packets);
            counter("system_network_sent_packets_total", interface.sent.packets);
            counter("system_network_receive_errors_total", interface.received.errors);
            counter("system_network_send_errors_total", interface.sent.errors);
            counter("system_network_receive_drops_total", interface.received.drops);
            counter("system_network_send_drops_total", interface.sent.drops);
        }
        readings.counter("network_io", &[("direction", "received")], received as f64);
        readings.counter("network_io", &[("direction", "sent")], sent as f64);
    }

    fn rest(&mut self, readings: &mut Readings) {
        if let Some(sockets) = self.sockets.read(&mut self.buffer).map(parse::sockets) {
            let gauges = [
                ("system_sockets_used", sockets.used),
                ("system_tcp_in_use", sockets.tcp_in_use),
                ("system_tcp_orphaned", sockets.tcp_orphaned),
                ("system_tcp_time_wait", sockets.tcp_time_wait),
            ];
            for (name, value) in gauges {
                if let Some(value) = value {
                    readings.gauge(name, &[], value as f64);
                }
            }
        }
        if let Some(load) = self.load.read(&mut self.buffer).and_then(parse::load) {
            let names = ["system_load1", "system_load5", "system_load15"];
            for (name, mean) in names.into_iter().zip(load.means) {
                readings.gauge(name, &[], mean);
            }
            if let Some(threads) = load.threads {
                readings.gauge("system_threads", &[], threads as f64);
            }
        }
        for (names, kept) in &mut self.pressure {
            let Some(text) = kept.read(&mut self.buffer) else { continue };
            for ([ratio, seconds], stall) in names.iter().zip(parse::pressure(text)) {
                if let Some(stall) = stall {
                    readings.gauge(ratio, &[], stall.ratio);
                    readings.counter(seconds, &[], stall.seconds);
                }
            }
        }
    }
}

/// How many descriptors this process has open.
///
/// Since Linux 6.2 the folder tells its size; before, its entries are counted.
fn descriptors(folder: &Path) -> Option<u64> {
    match std::fs::metadata(folder).ok()?.len() {
        // What opens the folder to count it is one of them.
        0 => Some((std::fs::read_dir(folder).ok()?.count() as u64).saturating_sub(1)),
        open => Some(open),
    }
}
