//! A report as JSON: written with the medians for whoever reads it, read back from the rounds.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::contender::Contender;
use crate::measure::Figures;
use crate::report::{LINES, Report};

/// Writes everything that was measured.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn write(report: &Report, path: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(&to_json(report))? + "\n";
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

/// Reads what [`write()`] has written.
///
/// # Errors
/// With what is missing or cannot be understood, and where.
pub(crate) fn read(path: &Path) -> Result<Report> {
    let read = || from_json(&serde_json::from_slice(&std::fs::read(path)?)?);
    read().with_context(|| format!("read {}, which --json is to have written", path.display()))
}

/// Everything, with the medians.
fn to_json(report: &Report) -> Value {
    let rounds = report.rounds().iter().map(|round| {
        let figures = round.iter();
        let of = figures
            .map(|(contender, figures)| json!({ "contender": contender, "figures": figures }));
        Value::from(of.collect::<Vec<_>>())
    });
    let lines = LINES.iter().map(|line| {
        json!({
            "name": line.name,
            "ratio_to_wireguard_go": report.ratio(Contender::Warren, line),
            "aim": line.aim,
            "least": line.least,
        })
    });
    let absolutes = report.absolutes().into_iter().map(|line| {
        json!({ "name": line.name, "value": line.value, "aim": line.aim, "least": line.least })
    });
    json!({
        "rounds": rounds.collect::<Vec<_>>(),
        "discarded_rounds": report.rounds().len() - report.calm().len(),
        "lines": lines.collect::<Vec<_>>(),
        "absolutes": absolutes.collect::<Vec<_>>(),
        "memory": report.memory,
        "seal_cpu_s_per_gb": report.seal_cpu_s_per_gb,
    })
}

fn from_json(json: &Value) -> Result<Report> {
    let rounds = json["rounds"].as_array().context("it has no \"rounds\"")?;
    if rounds.iter().all(|round| round[0].is_null()) {
        bail!("its \"rounds\" hold nothing");
    }
    let mut measured = Vec::new();
    for (number, round) in rounds.iter().enumerate() {
        let place = || format!("round {}", number + 1);
        for entry in round.as_array().with_context(place)? {
            let contender: Contender = parse(&entry["contender"]).with_context(place)?;
            let figures: Figures =
                parse(&entry["figures"]).with_context(|| format!("{}, {contender}", place()))?;
            measured.push((number, contender, figures));
        }
    }
    let was_there = |contender: &Contender| measured.iter().any(|(_, c, _)| c == contender);
    let contenders = Contender::ALL.into_iter().filter(was_there);
    let mut report = Report::new(contenders.collect());
    for (number, contender, figures) in measured {
        report.add(number, contender, figures);
    }
    report.memory = parse(&json["memory"]).context("memory")?;
    report.seal_cpu_s_per_gb = parse(&json["seal_cpu_s_per_gb"]).context("seal_cpu_s_per_gb")?;
    Ok(report)
}

fn parse<T: DeserializeOwned>(value: &Value) -> Result<T> {
    Ok(T::deserialize(value)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    #[test]
    fn what_is_read_back_is_what_was_written() {
        let report = report(&[[2.0, 1.0, 40.0], [9.0, 1.0, 20.0], [2.0, 1.5, 41.0]]);
        let json = to_json(&report);
        assert_eq!(json["discarded_rounds"], 1);
        let back = from_json(&json).unwrap();
        assert_eq!(back.contenders(), report.contenders());
        assert_eq!(back.to_string(), report.to_string());
        assert_eq!(to_json(&back), json);
    }

    #[test]
    fn what_is_missing_is_named_with_its_place() {
        let whole = to_json(&report(&[[2.0, 1.0, 40.0], [2.0, 1.0, 40.0]]));
        let error = |json: &Value| match from_json(json) {
            Ok(_) => panic!("taken: {json}"),
            Err(error) => format!("{error:#}"),
        };
        assert_eq!(error(&json!({})), "it has no \"rounds\"");
        assert_eq!(
            error(&json!({ "rounds": [[]] })),
            "its \"rounds\" hold nothing"
        );
        let mut json = whole.clone();
        let figures = json["rounds"][1][1]["figures"].as_object_mut().unwrap();
        figures.remove("udp_kpps");
        assert_eq!(
            error(&json),
            "round 2, wireguard-go: missing field `udp_kpps`"
        );
        let mut json = whole.clone();
        json["rounds"][0][0]["contender"] = "somebody".into();
        let text = error(&json);
        assert!(
            text.contains("round 1") && text.contains("warren-tunnel"),
            "{text}"
        );
        let mut json = whole;
        json.as_object_mut().unwrap().remove("memory");
        assert!(error(&json).starts_with("memory"));
    }
}
