//! What is measured on one scene.

use std::fmt;
use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use warren_lab::poll_until;

use crate::scene::Scene;

/// The kernel counts a process's time in these.
const TICKS_PER_SECOND: f64 = 100.0;
/// How long an iperf3 may take beyond its own time.
const PATIENCE: Duration = Duration::from_secs(30);
/// Packets a second for the figure of a light load.
const LIGHT_PPS: u64 = 30_000;
/// The payload of the small datagrams, and of the large ones: with headers they fill 1,420 bytes.
const SMALL: u64 = 64;
const LARGE: u64 = 1392;

/// One contender's figures of one round.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Figures {
    /// TCP goodput in Gb/s, one flow and four.
    pub(crate) tcp_gbps: [f64; 2],
    /// The daemons' processor time in seconds for each GB of that.
    pub(crate) cpu_s_per_gb: [f64; 2],
    /// That of the sender's daemon alone, one flow.
    pub(crate) sender_cpu_s_per_gb: f64,
    /// Datagrams received in thousands a second: of 64 bytes, and of 1,392.
    pub(crate) udp_kpps: [f64; 2],
    /// The daemons' processor time in microseconds for each packet at 30,000 a second.
    pub(crate) light_cpu_us: f64,
    /// Round trips of one small datagram in microseconds: the median, and the slowest of a hundred.
    pub(crate) rtt_us: [f64; 2],
    /// Resident memory of the receiver's daemon in MiB after all that, with one peer.
    pub(crate) memory_mib: f64,
}

impl Figures {
    /// Measures everything, each for the time given.
    pub(crate) fn measure(scene: &Scene, time: Duration) -> Result<Self> {
        let server = scene
            .b
            .pod
            .spawn(Command::new("iperf3").args(["-s", "--forceflush"]))?;
        server.wait_log("Server listening", PATIENCE)?;
        let one = Load::run(scene, time, &["-C", "cubic"])?;
        let four = Load::run(scene, time, &["-C", "cubic", "-P", "4"])?;
        let udp = |len: u64, rate: u64| {
            let (len, rate) = (len.to_string(), rate.to_string());
            Load::run(scene, time, &["-u", "-l", &len, "-b", &rate])
        };
        let (small, large) = (udp(SMALL, 0)?, udp(LARGE, 0)?);
        let light = udp(SMALL, LIGHT_PPS * SMALL * 8)?;
        drop(server);
        let seconds = |load: &Load| load.seconds.max(f64::MIN_POSITIVE);
        let gbps = |load: &Load| load.received_bytes * 8.0 / 1e9 / seconds(load);
        let per_gb = |load: &Load| load.cpu_seconds() / (load.received_bytes / 1e9);
        let kpps = |load: &Load| load.received_packets / 1e3 / seconds(load);
        Ok(Self {
            tcp_gbps: [gbps(&one), gbps(&four)],
            cpu_s_per_gb: [per_gb(&one), per_gb(&four)],
            sender_cpu_s_per_gb: one.cpu.first().copied().unwrap_or_default()
                / (one.received_bytes / 1e9),
            udp_kpps: [kpps(&small), kpps(&large)],
            light_cpu_us: light.cpu_seconds() * 1e6 / light.received_packets,
            rtt_us: round_trips(scene, time)?,
            memory_mib: match scene.daemons.last() {
                Some(pid) => resident_kib(*pid)? / 1024.0,
                None => 0.0,
            },
        })
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "TCP {:.2} and {:.2} Gb/s, {:.2} and {:.2} s/GB; UDP {:.0} and {:.0} kpps; \
             {:.1} us a packet; round trip {:.0}/{:.0} us; {:.1} MiB",
            self.tcp_gbps[0],
            self.tcp_gbps[1],
            self.cpu_s_per_gb[0],
            self.cpu_s_per_gb[1],
            self.udp_kpps[0],
            self.udp_kpps[1],
            self.light_cpu_us,
            self.rtt_us[0],
            self.rtt_us[1],
            self.memory_mib,
        )
    }
}

/// What one run of iperf3 moved, and what that cost the daemons.
struct Load {
    seconds: f64,
    received_bytes: f64,
    received_packets: f64,
    /// Processor seconds of each daemon.
    cpu: Vec<f64>,
}

impl Load {
    fn run(scene: &Scene, time: Duration, options: &[&str]) -> Result<Self> {
        let before = cpu_seconds(&scene.daemons)?;
        let mut command = Command::new("iperf3");
        command
            .args(["-J", "-c", &scene.b.v4, "-t", &time.as_secs().to_string()])
            .args(options);
        let output = scene.a.pod.output(&mut command, time + PATIENCE)?;
        let output = scene.a.pod.check(&command, output)?;
        let after = cpu_seconds(&scene.daemons)?;
        let result = output.json()?;
        let end = &result["end"];
        let number = |value: &Value| value.as_f64();
        let missing = || format!("iperf3 {options:?} says too little: {result}");
        // With UDP the sums are the sender's; what the receiver counted stands below them.
        let received = match options.contains(&"-u") {
            true => &end["sum"],
            false => &end["sum_received"],
        };
        let seconds = number(&received["seconds"]).with_context(missing)?;
        let bytes = number(&received["bytes"]).with_context(missing)?;
        let packets = number(&received["packets"]).unwrap_or_default();
        let lost = number(&received["lost_packets"]).unwrap_or_default();
        let cpu = before
            .iter()
            .zip(after)
            .map(|(before, after)| after - before);
        Ok(Self {
            seconds,
            received_bytes: bytes,
            received_packets: packets - lost,
            cpu: cpu.collect(),
        })
    }

    fn cpu_seconds(&self) -> f64 {
        // A sum of nothing is -0 for floats.
        self.cpu.iter().fold(0.0, |sum, seconds| sum + seconds)
    }
}

/// Processor time of each process, in both modes, in seconds.
pub(crate) fn cpu_seconds(pids: &[i32]) -> Result<Vec<f64>> {
    let one = |pid: &i32| -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // Behind the name, which may have spaces and parentheses.
        let rest = stat.rsplit_once(") ").context("no such stat file")?.1;
        let mut times = rest.split(' ').skip(11).take(2).map(str::parse::<f64>);
        let (user, system) = (times.next(), times.next());
        let ticks = user.context("no user time")?? + system.context("no system time")??;
        Ok(ticks / TICKS_PER_SECOND)
    };
    pids.iter().map(one).collect()
}

/// Resident memory of a process in KiB.
pub(crate) fn resident_kib(pid: i32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.context("no VmRSS")?.parse()?)
}

/// One small datagram after the other, there and back.
fn round_trips(scene: &Scene, time: Duration) -> Result<[f64; 2]> {
    let address: SocketAddr = format!("{}:7000", scene.b.v4).parse()?;
    let bind = |address: SocketAddr| move || UdpSocket::bind(address);
    let echo = scene.b.pod.in_netns(bind(address))??;
    let source = SocketAddr::new(scene.a.v4.parse()?, 0);
    let client = scene.a.pod.in_netns(bind(source))??;
    client.connect(address)?;
    echo.set_read_timeout(Some(Duration::from_secs(1)))?;
    client.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut trips = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut room = [0; 128];
            // Ends with the silence after the last one.
            while let Ok((len, from)) = echo.recv_from(&mut room) {
                let _ = echo.send_to(&room[..len], from);
            }
        });
        let start = Instant::now();
        let mut trips = Vec::new();
        let mut room = [0; 128];
        while start.elapsed() < time {
            let sent = Instant::now();
            if client.send(&[7; 64]).is_ok() && client.recv(&mut room).is_ok() {
                trips.push(sent.elapsed().as_secs_f64() * 1e6);
            }
        }
        trips
    });
    trips.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let n = (trips.len() as f64 * share) as usize;
        trips.get(n).copied().context("no datagram came back")
    };
    Ok([at(0.5)?, at(0.99)?])
}

/// Waits until the processes are done with what they were given.
pub(crate) fn wait_idle(pids: &[i32]) -> Result<()> {
    let mut last = cpu_seconds(pids)?;
    poll_until(PATIENCE, "idle daemons", || {
        std::thread::sleep(Duration::from_secs(1));
        let now = cpu_seconds(pids).unwrap_or_default();
        let moved: f64 = now.iter().zip(&last).map(|(now, last)| now - last).sum();
        last = now;
        moved < 0.2
    })?;
    Ok(())
}
