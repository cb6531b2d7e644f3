//! What `sysinfo` tells: file systems everywhere, and everything else where there is no `/proc`.
//!
//! Only single readings are refreshed: `refresh_all` walks all processes and costs a hundred times as much.

use sysinfo::{
    CpuRefreshKind, DiskRefreshKind, Disks, MemoryRefreshKind, Networks, Pid, ProcessRefreshKind,
    ProcessesToUpdate, System,
};

use super::{CollectorOptions, Kind, Slow};

pub(super) struct Portable {
    disks: Option<Disks>,
    system: Option<System>,
    networks: Option<Networks>,
    mounts_max: usize,
    interfaces_max: usize,
}

impl Portable {
    pub(super) fn new(options: &CollectorOptions) -> Self {
        let everything = options.portable || cfg!(not(target_os = "linux"));
        Self {
            disks: Disks::new().ok(),
            system: everything.then(System::new).and_then(Result::ok),
            networks: everything.then(Networks::new).and_then(Result::ok),
            mounts_max: options.mounts_max,
            interfaces_max: options.interfaces_max,
        }
    }

    /// Reads the space of file systems.
    pub(super) fn file_systems(&mut self, slow: &mut Slow) {
        let Some(disks) = &mut self.disks else { return };
        disks.refresh_specifics(true, DiskRefreshKind::nothing().with_storage());
        let mut fullest: f64 = 0.0;
        for disk in disks.iter().filter(|disk| disk.total_space() > 0).take(self.mounts_max) {
            let mount = disk.mount_point().to_string_lossy();
            let device = disk.name().to_string_lossy();
            let labels = [("mountpoint", &*mount), ("device", &*device)];
            let (size, free) = (disk.total_space() as f64, disk.available_space() as f64);
            slow.gauge("system_filesystem_size_bytes", &labels, size);
            slow.gauge("system_filesystem_used_bytes", &labels, (size - free).max(0.0));
            slow.gauge("system_filesystem_free_bytes", &labels, free);
            // An image that is mounted to be read is always full.
            if !disk.is_read_only() {
                fullest = fullest.max((size - free) / size);
            }
        }
        if fullest > 0.0 {
            slow.gauge("disk_usage", &[], fullest * 100.0);
            slow.gauge("resource_usage_percent", &[("type", "disk")], fullest * 100.0);
        }
    }

    /// Reads everything that `sysinfo` tells.
    pub(super) fn read(&mut self) -> Slow {
        let mut slow = Slow::default();
        self.file_systems(&mut slow);
        self.system(&mut slow);
        self.networks(&mut slow);
        slow
    }

    fn system(&mut self, slow: &mut Slow) {
        let Some(system) = &mut self.system else { return };
        system.refresh_cpu_specifics(CpuRefreshKind::nothing().with_usage().with_frequency());
        system.refresh_memory_specifics(MemoryRefreshKind::everything());
        let pid = Pid::from_u32(std::process::id());
        let own = ProcessRefreshKind::nothing().with_cpu().with_memory().without_tasks();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), true, own);

        let cpu = f64::from(system.global_cpu_usage());
        slow.gauge("system_cpu_usage_ratio", &[], cpu / 100.0);
        slow.gauge("cpu_usage", &[], cpu);
        slow.gauge("resource_usage_percent", &[("type", "cpu")], cpu);
        let cpus = system.cpus().len().max(1) as f64;
        slow.gauge("system_cpu_count", &[], cpus);
        let megahertz: f64 = system.cpus().iter().map(|cpu| cpu.frequency() as f64).sum();
        if megahertz > 0.0 {
            slow.gauge("system_cpu_frequency_hertz", &[], megahertz / cpus * 1e6);
        }
        if let Ok(load) = System::load_average() {
            slow.gauge("system_load1", &[], load.one);
            slow.gauge("system_load5", &[], load.five);
            slow.gauge("system_load15", &[], load.fifteen);
        }

        let (total, available) = (system.total_memory() as f64, system.available_memory() as f64);
        if total > 0.0 {
            let used = (total - available).max(0.0);
            slow.gauge("system_memory_total_bytes", &[], total);
            slow.gauge("system_memory_available_bytes", &[], available);
            slow.gauge("system_memory_used_bytes", &[], used);
            slow.gauge("system_swap_used_bytes", &[], system.used_swap() as f64);
            slow.gauge("system_memory_usage_ratio", &[], used / total);
            slow.gauge("memory_usage", &[], used / total * 100.0);
            slow.gauge("resource_usage_percent", &[("type", "memory")], used / total * 100.0);
            slow.gauge("process_memory_limit_bytes", &[("limit_source", "host")], total);
        }

        let Some(process) = system.process(pid) else { return };
        let (resident, virtual_) = (process.memory() as f64, process.virtual_memory() as f64);
        slow.gauge("process_resident_memory_bytes", &[], resident);
        slow.gauge("process_virtual_memory_bytes", &[], virtual_);
        slow.gauge("memory_usage_bytes", &[("type", "rss")], resident);
        slow.gauge("memory_usage_bytes", &[("type", "vms")], virtual_);
        slow.gauge("process_start_time_seconds", &[], process.start_time() as f64);
        slow.gauge("process_cpu_usage_ratio", &[], f64::from(process.cpu_usage()) / 100.0 / cpus);
        slow.gauge("process_cpu_limit", &[("limit_source", "host")], cpus);
        let seconds = process.accumulated_cpu_time() as f64 / 1_000.0;
        slow.push(Kind::Counter, "process_cpu_seconds_total", &[], seconds);
    }

    fn networks(&mut self, slow: &mut Slow) {
        let Some(networks) = &mut self.networks else { return };
        networks.refresh(true);
        let mut found: Vec<_> = networks.iter().collect();
        found.sort_by(|a, b| a.0.cmp(b.0));
        let (mut received, mut sent) = (0.0, 0.0);
        for (name, data) in found.into_iter().take(self.interfaces_max) {
            let name = name.to_string_lossy();
            let labels = [("interface", &*name)];
            let mut counter = |name, value: u64| {
                slow.push(Kind::Counter, name, &labels, value as f64);
            };
            counter("system_network_received_bytes_total", data.total_received());
            counter("system_network_sent_bytes_total", data.total_transmitted());
            counter("system_network_received_packets_total", data.total_packets_received());
            counter("system_network_sent_packets_total", data.total_packets_transmitted());
            counter("system_network_receive_errors_total", data.total_errors_on_received());
            counter("system_network_send_errors_total", data.total_errors_on_transmitted());
            if !name.starts_with("lo") {
                received += data.total_received() as f64;
                sent += data.total_transmitted() as f64;
            }
        }
        slow.push(Kind::Counter, "network_io", &[("direction", "received")], received);
        slow.push(Kind::Counter, "network_io", &[("direction", "sent")], sent);
    }
}
