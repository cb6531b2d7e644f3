//! Reads the files of `/proc` and `/sys`: plain functions from bytes to numbers.
//!
//! What cannot be read is absent and never an error: other kernels have other lines. The formats are those
//! of `proc(5)` and of the kernel's documentation (`filesystems/proc.rst`, `accounting/psi.rst`,
//! `admin-guide/iostats.rst`, `admin-guide/cgroup-v2.rst`).

/// Processor time of the machine by mode, in ticks, as the first line of `/proc/stat` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuTicks {
    /// User, nice, system, idle, iowait, irq, softirq, steal; guests count as users.
    pub modes: [u64; 8],
}

/// The names of [`CpuTicks::modes`].
pub const CPU_MODES: [&str; 8] =
    ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"];

impl CpuTicks {
    /// Returns all ticks.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.modes.iter().fold(0, |sum, ticks| sum.saturating_add(*ticks))
    }

    /// Returns the ticks with nothing to run.
    #[must_use]
    pub fn idle(&self) -> u64 {
        self.modes[3].saturating_add(self.modes[4])
    }
}

/// What `/proc/stat` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stat {
    /// Time of all processors.
    pub cpu: CpuTicks,
    /// Processors that are on line.
    pub cpus: u64,
    /// Changes from one thread to another.
    pub context_switches: Option<u64>,
    /// When the machine started, in seconds since 1970.
    pub started: Option<u64>,
    /// Processes and threads that were made.
    pub forks: Option<u64>,
    /// Threads that run or could.
    pub running: Option<u64>,
    /// Threads that wait for a disk.
    pub blocked: Option<u64>,
}

/// Reads `/proc/stat`; nothing if there is no line of all processors.
#[must_use]
pub fn stat(text: &[u8]) -> Option<Stat> {
    let mut stat = Stat::default();
    let mut found = false;
    for line in lines(text) {
        let mut words = words(line);
        let Some(name) = words.next() else { continue };
        let mut next = || words.next().and_then(number);
        match name {
            b"cpu" => {
                stat.cpu.modes = std::array::from_fn(|_| next().unwrap_or(0));
                found = true;
            }
            b"ctxt" => stat.context_switches = next(),
            b"btime" => stat.started = next(),
            b"processes" => stat.forks = next(),
            b"procs_running" => stat.running = next(),
            b"procs_blocked" => stat.blocked = next(),
            cpu if cpu.starts_with(b"cpu") => stat.cpus += 1,
            _ => {}
        }
    }
    found.then_some(stat)
}

/// What `/proc/self/stat` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessStat {
    /// Ticks outside the kernel.
    pub user: u64,
    /// Ticks in the kernel.
    pub system: u64,
    /// Threads.
    pub threads: u64,
    /// When it started, in ticks since the machine did.
    pub started: u64,
    /// Address space in bytes.
    pub virtual_bytes: u64,
    /// Pages in RAM.
    pub resident_pages: u64,
}

/// Reads `/proc/self/stat`. The name of the program may hold blanks and parentheses.
#[must_use]
pub fn process_stat(text: &[u8]) -> Option<ProcessStat> {
    let end = text.iter().rposition(|byte| *byte == b')')?;
    let fields: Vec<&[u8]> = words(&text[end + 1..]).take(22).collect();
    // Fields are counted from 1 in proc(5), and the third is the first here.
    let field = |of: usize| fields.get(of - 3).copied().and_then(number);
    Some(ProcessStat {
        user: field(14)?,
        system: field(15)?,
        threads: field(20)?,
        started: field(22)?,
        virtual_bytes: field(23)?,
        resident_pages: field(24)?,
    })
}

/// What `/proc/meminfo` tells, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    /// All of it.
    pub total: u64,
    /// What can be had without swapping.
    pub available: u64,
    /// Swap space in use.
    pub swap_used: u64,
}

/// Reads `/proc/meminfo`; nothing without the total.
#[must_use]
pub fn memory(text: &[u8]) -> Option<Memory> {
    let (mut memory, mut free, mut swap_total, mut swap_free) = (Memory::default(), None, 0, 0);
    let mut available = None;
    for line in lines(text) {
        let mut words = words(line);
        let (Some(name), Some(kib)) = (words.next(), words.next().and_then(number)) else {
            continue;
        };
        let bytes = kib.saturating_mul(1_024);
        match name {
            b"MemTotal:" => memory.total = bytes,
            b"MemFree:" => free = Some(bytes),
            b"MemAvailable:" => available = Some(bytes),
            b"SwapTotal:" => swap_total = bytes,
            b"SwapFree:" => swap_free = bytes,
            _ => {}
        }
    }
    memory.available = available.or(free)?;
    memory.swap_used = swap_total.saturating_sub(swap_free);
    (memory.total > 0).then_some(memory)
}

/// A line of `/proc/diskstats`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk<'a> {
    /// The name of the device.
    pub device: &'a str,
    /// Reads that were completed.
    pub reads: u64,
    /// Bytes that were read.
    pub read_bytes: u64,
    /// Writes that were completed.
    pub writes: u64,
    /// Bytes that were written.
    pub written_bytes: u64,
    /// Milliseconds in which it had work.
    pub busy_ms: u64,
}

/// The sectors of `/proc/diskstats` have this size, whatever those of the device.
const SECTOR_BYTES: u64 = 512;

/// Reads `/proc/diskstats`, passing over what never did anything.
pub fn disks(text: &[u8]) -> impl Iterator<Item = Disk<'_>> {
    lines(text).filter_map(|line| {
        let mut words = words(line).skip(2);
        let device = std::str::from_utf8(words.next()?).ok()?;
        let mut fields = [0; 10];
        for field in &mut fields {
            *field = number(words.next()?)?;
        }
        let [reads, _, read, _, writes, _, written, _, _, busy_ms] = fields;
        let disk = Disk {
            device,
            reads,
            read_bytes: read.saturating_mul(SECTOR_BYTES),
            writes,
            written_bytes: written.saturating_mul(SECTOR_BYTES),
            busy_ms,
        };
        (reads > 0 || writes > 0).then_some(disk)
    })
}

/// One direction of a network interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Packets in error.
    pub errors: u64,
    /// Packets that were dropped.
    pub drops: u64,
}

/// A line of `/proc/net/dev`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interface<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it received.
    pub received: Traffic,
    /// What it sent.
    pub sent: Traffic,
}

/// Reads `/proc/net/dev`, passing over interfaces without any packet.
pub fn interfaces(text: &[u8]) -> impl Iterator<Item = Interface<'_>> {
    lines(text).filter_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = std::str::from_utf8(&line[..colon]).ok()?.trim();
        let mut fields = [0; 16];
        let mut words = words(&line[colon + 1..]);
        for field in &mut fields {
            *field = number(words.next()?)?;
        }
        let traffic = |at: usize| Traffic {
            bytes: fields[at],
            packets: fields[at + 1],
            errors: fields[at + 2],
            drops: fields[at + 3],
        };
        let (received, sent) = (traffic(0), traffic(8));
        let seen = received.packets > 0 || sent.packets > 0;
        (seen && !name.is_empty()).then_some(Interface { name, received, sent })
    })
}

/// What `/proc/net/sockstat` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sockets {
    /// Sockets of any kind.
    pub used: Option<u64>,
    /// TCP sockets in use.
    pub tcp_in_use: Option<u64>,
    /// TCP sockets that no process holds.
    pub tcp_orphaned: Option<u64>,
    /// Closed TCP connections that linger.
    pub tcp_time_wait: Option<u64>,
}

/// Reads `/proc/net/sockstat`.
#[must_use]
pub fn sockets(text: &[u8]) -> Sockets {
    let mut sockets = Sockets::default();
    for line in lines(text) {
        let mut words = words(line);
        let group = words.next().unwrap_or_default();
        while let (Some(name), Some(value)) = (words.next(), words.next()) {
            let value = number(value);
            match (group, name) {
                (b"sockets:", b"used") => sockets.used = value,
                (b"TCP:", b"inuse") => sockets.tcp_in_use = value,
                (b"TCP:", b"orphan") => sockets.tcp_orphaned = value,
                (b"TCP:", b"tw") => sockets.tcp_time_wait = value,
                _ => {}
            }
        }
    }
    sockets
}

/// The names of the states of TCP connections, by the numbers of the kernel less one.
pub const TCP_STATES: [&str; 12] = [
    "established",
    "syn_sent",
    "syn_recv",
    "fin_wait1",
    "fin_wait2",
    "time_wait",
    "close",
    "close_wait",
    "last_ack",
    "listen",
    "closing",
    "new_syn_recv",
];

/// Counts the lines of `/proc/net/tcp` or `/proc/net/tcp6` by state and adds them to `counts`.
pub fn tcp_states(text: &[u8], counts: &mut [u64; 12]) {
    for line in lines(text).skip(1) {
        let state = words(line).nth(3).and_then(|word| std::str::from_utf8(word).ok());
        let state = state.and_then(|hex| usize::from_str_radix(hex, 16).ok());
        if let Some(count) = state.and_then(|state| counts.get_mut(state.checked_sub(1)?)) {
            *count += 1;
        }
    }
}

/// A line of a file of `/proc/pressure`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stall {
    /// Part of the last ten seconds.
    pub ratio: f64,
    /// Time since the machine started, in seconds.
    pub seconds: f64,
}

/// Reads a file of `/proc/pressure`: some tasks waited, and all did.
#[must_use]
pub fn pressure(text: &[u8]) -> [Option<Stall>; 2] {
    let mut stalls = [None; 2];
    for line in lines(text) {
        let mut words = words(line);
        let stall = match words.next() {
            Some(b"some") => &mut stalls[0],
            Some(b"full") => &mut stalls[1],
            _ => continue,
        };
        let (mut ratio, mut seconds) = (None, None);
        for word in words {
            if let Some(percent) = word.strip_prefix(b"avg10=") {
                ratio = decimal(percent).map(|percent| percent / 100.0);
            } else if let Some(micros) = word.strip_prefix(b"total=") {
                seconds = number(micros).map(|micros| micros as f64 / 1e6);
            }
        }
        *stall = ratio.zip(seconds).map(|(ratio, seconds)| Stall { ratio, seconds });
    }
    stalls
}

/// What `/proc/loadavg` tells.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Means over 1, 5 and 15 minutes.
    pub means: [f64; 3],
    /// Threads on the machine.
    pub threads: Option<u64>,
}

/// Reads `/proc/loadavg`.
#[must_use]
pub fn load(text: &[u8]) -> Option<Load> {
    let mut words = words(text);
    let mut next = || words.next().and_then(decimal);
    let means = [next()?, next()?, next()?];
    let threads = words.next().and_then(|word| {
        let slash = word.iter().position(|byte| *byte == b'/')?;
        number(&word[slash + 1..])
    });
    Some(Load { means, threads })
}

/// Reads `/proc/self/io`: bytes that the process had read from disks and written to them.
#[must_use]
pub fn process_io(text: &[u8]) -> Option<(u64, u64)> {
    let (mut read, mut written) = (None, None);
    for line in lines(text) {
        let mut words = words(line);
        match words.next() {
            Some(b"read_bytes:") => read = words.next().and_then(number),
            Some(b"write_bytes:") => written = words.next().and_then(number),
            _ => {}
        }
    }
    read.zip(written)
}

/// Returns the soft limit of open files from `/proc/self/limits`; nothing if there is none.
#[must_use]
pub fn open_files_limit(text: &[u8]) -> Option<u64> {
    let line = lines(text).find_map(|line| line.strip_prefix(b"Max open files"))?;
    words(line).next().and_then(number)
}

/// Returns the own control group of version 2 from `/proc/self/cgroup`, without the leading slash.
#[must_use]
pub fn cgroup(text: &[u8]) -> Option<&str> {
    let path = lines(text).find_map(|line| line.strip_prefix(b"0::/"))?;
    // A path outside of the own namespace begins with `..`; nothing of it can be read.
    std::str::from_utf8(path).ok().filter(|path| !path.split('/').any(|part| part == ".."))
}

/// Returns the limit that `memory.max` states; nothing for `max`.
#[must_use]
pub fn limit(text: &[u8]) -> Option<u64> {
    words(text).next().and_then(number)
}

/// Returns the bytes of `memory.stat` that the kernel drops first when memory is short.
#[must_use]
pub fn inactive_file(text: &[u8]) -> Option<u64> {
    let line = lines(text).find_map(|line| line.strip_prefix(b"inactive_file "))?;
    words(line).next().and_then(number)
}

/// Returns how many processors `cpu.max` grants; nothing for `max`.
#[must_use]
pub fn cpu_limit(text: &[u8]) -> Option<f64> {
    let mut words = words(text);
    let (quota, period) = (number(words.next()?)?, number(words.next()?)?);
    (period > 0).then(|| quota as f64 / period as f64)
}

/// Returns the mean frequency in hertz from `/proc/cpuinfo`.
#[must_use]
pub fn frequency(text: &[u8]) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0.0);
    for line in lines(text).filter(|line| line.starts_with(b"cpu MHz")) {
        let colon = line.iter().position(|byte| *byte == b':')?;
        sum += words(&line[colon + 1..]).next().and_then(decimal)?;
        count += 1.0;
    }
    (count > 0.0).then(|| sum / count * 1e6)
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n')
}

fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

/// A whole number; what is too large for 64 bits is none.
fn number(word: &[u8]) -> Option<u64> {
    if word.is_empty() {
        return None;
    }
    word.iter().try_fold(0_u64, |sum, byte| match byte {
        b'0'..=b'9' => sum.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

fn decimal(word: &[u8]) -> Option<f64> {
    let value: f64 = std::str::from_utf8(word).ok()?.parse().ok()?;
    (value.is_finite() && value >= 0.0).then_some(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_files_of_a_machine_are_read() {
        let text = b"cpu  10 2 30 400 5 6 7 8 9 0\ncpu0 5 1 15 200 2 3 3 4 0 0\ncpu1 5 1 15 \
            200 3 3 4 4 0 0\nintr 1 2 3\nctxt 77\nbtime 1700000000\nprocesses 42\n\
            procs_running 3\nprocs_blocked 1\n";
        let found = stat(text).expect("there is a line of all");
        assert_eq!(found.cpu.modes, [10, 2, 30, 400, 5, 6, 7, 8]);
        assert_eq!((found.cpu.total(), found.cpu.idle(), found.cpus), (468, 405, 2));
        assert_eq!((found.context_switches, found.started), (Some(77), Some(1_700_000_000)));
        assert_eq!((found.forks, found.running, found.blocked), (Some(42), Some(3), Some(1)));

        let text = b"77 (a (b) c) S 1 77 77 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 9 0 12345 \
            104857600 2560 18446744073709551615 1 1";
        let expected = ProcessStat {
            user: 250,
            system: 50,
            threads: 9,
            started: 12_345,
            virtual_bytes: 104_857_600,
            resident_pages: 2_560,
        };
        assert_eq!(process_stat(text), Some(expected));

        let text = b"MemTotal:       1000 kB\nMemFree: 100 kB\nMemAvailable:    400 kB\n\
            SwapTotal: 50 kB\nSwapFree: 20 kB\n";
        let expected = Memory { total: 1_024_000, available: 409_600, swap_used: 30_720 };
        assert_eq!(memory(text), Some(expected));

        let text = b"Inter-|   Receive  | Transmit\n face |bytes packets errs\n    lo: 0 0 0 \
            0 0 0 0 0 0 0 0 0 0 0 0 0\n  eth0:1000 10 1 2 0 0 0 0 2000 20 3 4 0 0 0 \
            0\n";
        let found: Vec<_> = interfaces(text).collect();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].name, "eth0");
        assert_eq!(found[0].received, Traffic { bytes: 1_000, packets: 10, errors: 1, drops: 2 });
        assert_eq!(found[0].sent, Traffic { bytes: 2_000, packets: 20, errors: 3, drops: 4 });

        let text = b"   7       0 loop0 0 0 0 0 0 0 0 0 0 0 0\n 254 0 vda 100 5 2000 30 50 6 \
            4000 70 0 90 100 0 0 0 0 0 0\n 254 1 vda1 1 2 3\n";
        let found: Vec<_> = disks(text).collect();
        assert_eq!(found.len(), 1);
        let expected = Disk {
            device: "vda",
            reads: 100,
            read_bytes: 1_024_000,
            writes: 50,
            written_bytes: 2_048_000,
            busy_ms: 90,
        };
        assert_eq!(found[0], expected);
    }

    #[test]
    fn the_small_files_are_read() {
        let text = b"sockets: used 21\nTCP: inuse 5 orphan 1 tw 4 alloc 6 mem 283\nUDP: inuse 9\n";
        let expected = Sockets {
            used: Some(21),
            tcp_in_use: Some(5),
            tcp_orphaned: Some(1),
            tcp_time_wait: Some(4),
        };
        assert_eq!(sockets(text), expected);
        let text = b"some avg10=47.50 avg60=27.51 avg300=13.50 total=3000000\nfull \
            avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";
        let full = Stall { ratio: 0.0, seconds: 0.0 };
        assert_eq!(pressure(text), [Some(Stall { ratio: 0.475, seconds: 3.0 }), Some(full)]);
        let expected = Load { means: [2.44, 1.46, 1.39], threads: Some(130) };
        assert_eq!(load(b"2.44 1.46 1.39 5/130 15423\n"), Some(expected));
        let text = b"rchar: 1\nwchar: 2\nread_bytes: 4096\nwrite_bytes: 8192\n";
        assert_eq!(process_io(text), Some((4_096, 8_192)));
        let text = b"Max processes  10 10 processes\nMax open files            \
            20000                30000                files\n";
        assert_eq!(open_files_limit(text), Some(20_000));
        assert_eq!(open_files_limit(b"Max open files unlimited unlimited files"), None);
        assert_eq!(cgroup(b"1:cpu:/\n0::/a/b\n"), Some("a/b"));
        assert_eq!(cgroup(b"0::/../b\n"), None);
        assert_eq!((limit(b"1024\n"), limit(b"max\n")), (Some(1_024), None));
        assert_eq!(inactive_file(b"anon 1\ninactive_file 2048\nactive_file 9\n"), Some(2_048));
        assert_eq!(cpu_limit(b"150000 100000\n"), Some(1.5));
        assert_eq!((cpu_limit(b"max 100000\n"), cpu_limit(b"1 0")), (None, None));
        let text = b"processor : 0\ncpu MHz : 2000.000\n\nprocessor : 1\ncpu MHz : 3000.000\n";
        assert_eq!(frequency(text), Some(2.5e9));
        let mut counts = [0; 12];
        tcp_states(
            b"  sl  local rem st\n   0: a:1 b:2 01 x\n 1: a:1 b:2 0A x\n 2: a b 01\n \
            3: a b FF\n 4: a b 00\n",
            &mut counts,
        );
        assert_eq!((counts[0], counts[9], counts.iter().sum::<u64>()), (2, 1, 3));
    }

    /// Everything that reads bytes, on the same bytes.
    fn read_all(text: &[u8]) {
        let _ = (stat(text), process_stat(text), memory(text), sockets(text), pressure(text));
        let _ = (load(text), process_io(text), open_files_limit(text), cgroup(text));
        let _ = (limit(text), cpu_limit(text), frequency(text), inactive_file(text));
        let _ = (disks(text).count(), interfaces(text).count());
        tcp_states(text, &mut [0; 12]);
        if let Some(stat) = stat(text) {
            let _ = (stat.cpu.total(), stat.cpu.idle());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic(text in prop::collection::vec(any::<u8>(), 0..400)) {
            read_all(&text);
        }

        /// Bytes that look like the files: their words, their signs, and numbers of any size.
        #[test]
        fn no_lines_of_their_words_make_a_reader_panic(
            words in prop::collection::vec(
                prop_oneof![
                    prop::sample::select(vec![
                        "cpu", "cpu0", "ctxt", "MemTotal:", "MemAvailable:", "SwapFree:", "TCP:",
                        "inuse", "some", "full", "avg10=", "avg10=1e999", "total=9", "0::/", "eth0:",
                        "cpu MHz", ":", ")", "(", "\n", "max", "Max open files", "inactive_file", "read_bytes:", "/",
                    ]).prop_map(str::to_owned),
                    any::<u128>().prop_map(|number| number.to_string()),
                    any::<i8>().prop_map(|number| number.to_string()),
                ],
                0..60,
            ),
        ) {
            read_all(words.join(" ").as_bytes());
        }
    }
}
