//! Everything that was measured, as one table and as JSON.

use std::fmt;

use serde_json::{Value, json};

use crate::contender::Contender;
use crate::measure::Figures;
use crate::memory::Memory;

/// A round in which a plain veth is slower than this part of its median was not the tunnels' alone.
const DISTURBED: f64 = 0.6;

/// One figure, and what is asked of its ratio to wireguard-go's.
struct Line {
    name: &'static str,
    of: fn(&Figures) -> f64,
    aim: f64,
    least: f64,
    more_is_better: bool,
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

const LINES: [Line; 9] = [
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
struct Absolute {
    name: &'static str,
    value: f64,
    aim: f64,
    least: f64,
}

/// All rounds.
pub(crate) struct Report {
    contenders: Vec<Contender>,
    rounds: Vec<Vec<(Contender, Figures)>>,
    /// Of thousands of peers, if it was measured.
    pub(crate) memory: Option<Memory>,
    /// What ring itself takes to seal a GB.
    pub(crate) seal_cpu_s_per_gb: Option<f64>,
}

impl Report {
    /// Begins one without rounds.
    pub(crate) fn new(contenders: Vec<Contender>) -> Self {
        Self {
            contenders,
            rounds: Vec::new(),
            memory: None,
            seal_cpu_s_per_gb: None,
        }
    }

    /// Adds what a contender did in a round, counted from 0.
    pub(crate) fn add(&mut self, round: usize, contender: Contender, figures: Figures) {
        self.rounds
            .resize_with(self.rounds.len().max(round + 1), Vec::new);
        self.rounds[round].push((contender, figures));
    }

    /// Everything, with the medians.
    pub(crate) fn to_json(&self) -> Value {
        let rounds = self.rounds.iter().map(|round| {
            let figures = round.iter();
            let of = figures.map(|(contender, figures)| {
                json!({ "contender": contender.to_string(), "figures": figures })
            });
            Value::from(of.collect::<Vec<_>>())
        });
        let lines = LINES.iter().map(|line| {
            json!({
                "name": line.name,
                "ratio_to_wireguard_go": self.ratio(line),
                "aim": line.aim,
                "least": line.least,
            })
        });
        json!({
            "rounds": rounds.collect::<Vec<_>>(),
            "discarded_rounds": self.rounds.len() - self.calm().len(),
            "lines": lines.collect::<Vec<_>>(),
            "memory": self.memory,
            "seal_cpu_s_per_gb": self.seal_cpu_s_per_gb,
        })
    }

    /// The rounds that count.
    fn calm(&self) -> Vec<&Vec<(Contender, Figures)>> {
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

    fn median(&self, contender: Contender, of: fn(&Figures) -> f64) -> Option<f64> {
        let rounds = self.calm();
        median(
            rounds
                .iter()
                .filter_map(|round| find(round, contender).map(of))
                .collect(),
        )
    }

    /// The median of the rounds' ratios.
    fn ratio(&self, line: &Line) -> Option<f64> {
        let ratios = self.calm().into_iter().filter_map(|round| {
            let ours = find(round, Contender::Warren).map(line.of)?;
            let theirs = find(round, Contender::WireguardGo).map(line.of)?;
            Some(ours / theirs)
        });
        median(ratios.collect())
    }

    fn absolutes(&self) -> Vec<Absolute> {
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
        let slope = self.memory.map(|memory| memory.kib_a_peer);
        add("memory a peer, 1,000 to 5,000, KiB", slope, 19.0, 24.0);
        let idle = self.memory.map(|memory| memory.idle_percent);
        add("5,000 idle peers, % of a core", idle, 0.3, 0.3);
        let sender = self.median(Contender::Warren, |f| f.sender_cpu_s_per_gb);
        let over_seal = sender
            .zip(self.seal_cpu_s_per_gb)
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
fn digits(value: Option<f64>) -> String {
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
            let ratio = self.ratio(line);
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
                "short" => short.push(line.name),
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
                short.push(name);
            }
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
mod tests {
    use super::*;

    fn figures(gbps: f64) -> Figures {
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

    fn report(rounds: &[[f64; 3]]) -> Report {
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
        assert_eq!(report.ratio(&LINES[2]), Some(2.0));
    }

    #[test]
    fn a_disturbed_round_is_discarded_and_counted() {
        let report = report(&[[2.0, 1.0, 40.0], [9.0, 1.0, 20.0], [2.0, 1.0, 41.0]]);
        assert_eq!(report.to_json()["discarded_rounds"], 1);
        assert_eq!(report.ratio(&LINES[2]), Some(2.0));
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
