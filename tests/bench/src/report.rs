//! Everything that was measured, as one table and as JSON.

use std::fmt;

use crate::contender::Contender;
use crate::measure::Figures;
use crate::memory::Memory;

/// A round in which a plain veth is slower than this part of its median was not the tunnels' alone.
const DISTURBED: f64 = 0.6;

/// One figure, and what is asked of its ratio to wireguard-go's.
pub(crate) struct Line {
    /// What it is, with its unit.
    pub(crate) name: &'static str,
    /// Takes it from a round's figures.
    pub(crate) of: fn(&Figures) -> f64,
    /// What the ratio shall be.
    pub(crate) aim: f64,
    /// What it must be.
    pub(crate) least: f64,
    /// Whether the ratio shall be at least so much, or at most.
    pub(crate) more_is_better: bool,
}

const fn more(name: &'static str, of: fn(&Figures) -> f64, aim: f64, least: f64) -> Line {
    Line {
        name,
        of,
        aim,
        least,
        more_is_better: true,
    }
}

const fn less(name: &'static str, of: fn(&Figures) -> f64, aim: f64, least: f64) -> Line {
    Line {
        name,
        of,
        aim,
        least,
        more_is_better: false,
    }
}

/// All lines of the table.
pub(crate) const LINES: [Line; 9] = [
    less("CPU s/GB, TCP 1 flow", |f| f.cpu_s_per_gb[0], 0.41, 0.46),
    less("CPU s/GB, TCP 4 flows", |f| f.cpu_s_per_gb[1], 0.41, 0.46),
    more("TCP Gb/s, 1 flow", |f| f.tcp_gbps[0], 2.2, 1.9),
    more("TCP Gb/s, 4 flows", |f| f.tcp_gbps[1], 2.3, 2.1),
    more("UDP 64 B, kpps", |f| f.udp_kpps[0], 5.5, 5.0),
    more("UDP 1392 B, kpps", |f| f.udp_kpps[1], 3.6, 3.2),
    less("CPU us/packet, 30 kpps", |f| f.light_cpu_us, 0.3, 0.4),
    less("round trip p50, us", |f| f.rtt_us[0], 0.45, 0.55),
    less("round trip p99, us", |f| f.rtt_us[1], 0.6, 0.7),
];

/// A figure of warren-tunnel that is compared with a number.
pub(crate) struct Absolute {
    /// What it is, with its unit.
    pub(crate) name: &'static str,
    /// What was measured.
    pub(crate) value: f64,
    /// The most that it shall be.
    pub(crate) aim: f64,
    /// The most that it may be.
    pub(crate) least: f64,
}

/// All rounds.
pub(crate) struct Report {
    contenders: Vec<Contender>,
    rounds: Vec<Vec<(Contender, Figures)>>,
    /// Of thousands of peers, of those of whom it was measured.
    pub(crate) memory: Vec<Memory>,
    /// What ring itself takes to seal a GB, after each round.
    pub(crate) seal_cpu_s_per_gb: Vec<f64>,
}

impl Report {
    /// Begins one without rounds.
    pub(crate) fn new(contenders: Vec<Contender>) -> Self {
        Self {
            contenders,
            rounds: Vec::new(),
            memory: Vec::new(),
            seal_cpu_s_per_gb: Vec::new(),
        }
    }

    /// Adds what a contender did in a round, counted from 0.
    pub(crate) fn add(&mut self, round: usize, contender: Contender, figures: Figures) {
        self.rounds
            .resize_with(self.rounds.len().max(round + 1), Vec::new);
        self.rounds[round].push((contender, figures));
    }

    /// Who was measured.
    pub(crate) fn contenders(&self) -> &[Contender] {
        &self.contenders
    }

    /// All rounds, those that do not count among them.
    pub(crate) fn rounds(&self) -> &[Vec<(Contender, Figures)>] {
        &self.rounds
    }

    /// The rounds that count.
    pub(crate) fn calm(&self) -> Vec<&Vec<(Contender, Figures)>> {
        let speed = |round: &Vec<(Contender, Figures)>| {
            find(round, Contender::Veth).map(|figures| figures.tcp_gbps[0])
        };
        let usual = median(self.rounds.iter().filter_map(speed).collect());
        let counts = |round: &&Vec<(Contender, Figures)>| match (speed(round), usual) {
            (Some(speed), Some(usual)) => speed >= DISTURBED * usual,
            _ => true,
        };
        self.rounds.iter().filter(counts).collect()
    }

    /// A contender's figure in each round that counts.
    pub(crate) fn values(&self, contender: Contender, of: fn(&Figures) -> f64) -> Vec<f64> {
        let rounds = self.calm().into_iter();
        let figures = rounds.filter_map(|round| find(round, contender));
        figures.map(of).collect()
    }

    /// Whether ours is no slower than no tunnel at all: then the load is the limit.
    fn is_as_a_plain_veth(&self, line: &Line) -> bool {
        let [ours, veth] = [Contender::Warren, Contender::Veth].map(|c| self.median(c, line.of));
        line.more_is_better && ours.zip(veth).is_some_and(|(ours, veth)| ours >= veth)
    }

    /// The median of those.
    pub(crate) fn median(&self, contender: Contender, of: fn(&Figures) -> f64) -> Option<f64> {
        median(self.values(contender, of))
    }

    /// The median of the rounds' ratios to wireguard-go.
    pub(crate) fn ratio(&self, contender: Contender, line: &Line) -> Option<f64> {
        let ratios = self.calm().into_iter().filter_map(|round| {
            let ours = find(round, contender).map(line.of)?;
            let theirs = find(round, Contender::WireguardGo).map(line.of)?;
            Some(ours / theirs)
        });
        median(ratios.collect())
    }

    /// The figures of warren-tunnel that are compared with numbers.
    pub(crate) fn absolutes(&self) -> Vec<Absolute> {
        let mut lines = Vec::new();
        let mut add = |name, value: Option<f64>, aim, least| {
            lines.extend(value.map(|value| Absolute {
                name,
                value,
                aim,
                least,
            }));
        };
        let memory = self.median(Contender::Warren, |f| f.memory_mib);
        add("memory with one peer, MiB", memory, 8.0, 16.0);
        let of_warren = |memory: &&Memory| memory.contender == Contender::Warren;
        let many = self.memory.iter().find(of_warren);
        let slope = many.and_then(Memory::kib_a_peer);
        add("memory a peer, 1,000 to 5,000, KiB", slope, 19.0, 24.0);
        let idle = many.map(|memory| memory.idle_percent);
        add("5,000 idle peers, % of a core", idle, 0.3, 0.3);
        let sender = self.median(Contender::Warren, |f| f.sender_cpu_s_per_gb);
        let over_seal = sender
            .zip(median(self.seal_cpu_s_per_gb.clone()))
            .map(|(all, seal)| all / seal);
        add("sender's CPU over ring's own sealing", over_seal, 2.2, 2.6);
        lines
    }
}

fn find(round: &[(Contender, Figures)], contender: Contender) -> Option<&Figures> {
    let found = round.iter().find(|(other, _)| *other == contender);
    found.map(|(_, figures)| figures)
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.retain(|value| value.is_finite());
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        len if len % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

fn verdict(value: f64, aim: f64, least: f64, more_is_better: bool) -> &'static str {
    let reaches = |limit: f64| match more_is_better {
        true => value >= limit,
        false => value <= limit,
    };
    match (reaches(aim), reaches(least)) {
        (true, _) => "aim",
        (_, true) => "least",
        _ => "short",
    }
}

/// A number with three digits that say something.
pub(crate) fn digits(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value.abs() >= 100.0 => format!("{value:.0}"),
        Some(value) if value.abs() >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calm = self.calm().len();
        writeln!(
            f,
            "medians of {calm} rounds; {} discarded, for a plain veth was disturbed in them\n",
            self.rounds.len() - calm
        )?;
        write!(f, "{:<38}", "")?;
        for contender in &self.contenders {
            write!(f, "{contender:>15}")?;
        }
        writeln!(f, "{:>8}{:>7}{:>7}", "ratio", "aim", "least")?;
        let (mut short, mut open) = (Vec::new(), 0);
        for line in &LINES {
            write!(f, "{:<38}", line.name)?;
            for contender in &self.contenders {
                write!(f, "{:>15}", digits(self.median(*contender, line.of)))?;
            }
            let ratio = self.ratio(Contender::Warren, line);
            let reached = ratio.map_or("-", |ratio| {
                verdict(ratio, line.aim, line.least, line.more_is_better)
            });
            writeln!(
                f,
                "{:>8}{:>7}{:>7}  {reached}",
                digits(ratio),
                line.aim,
                line.least
            )?;
            match reached {
                "short" if self.is_as_a_plain_veth(line) => {
                    short.push(format!("{} (but not below a plain veth)", line.name));
                }
                "short" => short.push(line.name.to_owned()),
                "-" => open += 1,
                _ => {}
            }
        }
        for Absolute {
            name,
            value,
            aim,
            least,
        } in self.absolutes()
        {
            let reached = verdict(value, aim, least, false);
            writeln!(
                f,
                "{name:<38}{:>15}{aim:>7}{least:>7}  {reached}",
                digits(Some(value))
            )?;
            if reached == "short" {
                short.push(name.to_owned());
            }
        }
        for memory in &self.memory {
            write!(f, "{}, peers and MiB:", memory.contender)?;
            for (peers, kib) in &memory.resident_kib {
                write!(f, " {peers}: {:.1},", kib / 1024.0)?;
            }
            writeln!(f, " {:.2} % of a core at rest", memory.idle_percent)?;
        }
        if self.contenders.contains(&Contender::Spinning) {
            let ratios = LINES.iter().map(|line| {
                let ratio = digits(self.ratio(Contender::Spinning, line));
                format!("{} {ratio}", line.name)
            });
            let ratios = ratios.collect::<Vec<_>>().join("; ");
            writeln!(f, "\n{}, ratios: {ratios}", Contender::Spinning)?;
        }
        if open > 0 {
            writeln!(f, "\nnot compared, for somebody was left out: {open} lines")?;
        }
        match short.len() {
            0 => write!(f, "\nnone that was compared falls short"),
            _ => write!(f, "\nshort of the least: {}", short.join("; ")),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn figures(gbps: f64) -> Figures {
        Figures {
            tcp_gbps: [gbps; 2],
            cpu_s_per_gb: [1.0 / gbps; 2],
            sender_cpu_s_per_gb: 0.5 / gbps,
            udp_kpps: [100.0 * gbps; 2],
            light_cpu_us: 10.0,
            rtt_us: [100.0, 200.0],
            memory_mib: 5.0,
        }
    }

    pub(crate) fn report(rounds: &[[f64; 3]]) -> Report {
        let contenders = vec![Contender::Warren, Contender::WireguardGo, Contender::Veth];
        let mut report = Report::new(contenders.clone());
        for (round, speeds) in rounds.iter().enumerate() {
            for (contender, speed) in contenders.iter().zip(speeds) {
                report.add(round, *contender, figures(*speed));
            }
        }
        report
    }

    #[test]
    fn what_counts_is_the_median_of_ratios_and_not_the_ratio_of_medians() {
        // Ratios 1, 4 and 2; the medians' own would be 3.
        let report = report(&[[1.0, 1.0, 40.0], [4.0, 1.0, 40.0], [3.0, 1.5, 40.0]]);
        assert_eq!(report.ratio(Contender::Warren, &LINES[2]), Some(2.0));
    }

    #[test]
    fn a_disturbed_round_is_discarded_and_counted() {
        let report = report(&[[2.0, 1.0, 40.0], [9.0, 1.0, 20.0], [2.0, 1.0, 41.0]]);
        assert_eq!(report.rounds().len() - report.calm().len(), 1);
        assert_eq!(report.ratio(Contender::Warren, &LINES[2]), Some(2.0));
    }

    #[test]
    fn lines_that_fall_short_are_named_at_the_end() {
        let text = report(&[[2.0, 1.0, 40.0]]).to_string();
        let last = text.lines().last().unwrap();
        assert!(
            last.contains("UDP 64 B") && last.contains("round trip p50"),
            "{text}"
        );
        assert!(!last.contains("TCP Gb/s, 1 flow"), "{text}");
    }
}
