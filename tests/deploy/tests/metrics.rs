//! What is said of metrics is of metrics that there are.
#![allow(clippy::unwrap_used)] // in a test, a failed unwrap is the report

use std::collections::BTreeSet;
use std::fs;

use anyhow::Result;
use serde_json::{Value, json};
use warren_agent::metrics::encode;
use warren_agent::snapshot::Stats;
use warren_agent::tunnel_socket::TunnelReport;
use warren_core::consts::rule_comment;
use warren_core::degraded::DegradedCause;
use warren_core::status::{AgentStatus, PeerState};
use warren_deploy::{deploy, docs, run, skipped};
use warren_tunnel::DropReason;

const KEY: &str = "6iBM1ZdgaC3UbiRvTci4D5V2nxPvMTPz7pUvsmH4I2Y=";

/// The names of all series that an agent can serve: of a node that has something of everything.
fn served() -> BTreeSet<String> {
    let health = json!({"ok": true, "detail": ""});
    let status: AgentStatus = serde_json::from_value(json!({
        "version": "", "node": "a", "public_key": KEY, "interface": "warren0", "endpoints": [], "pod_cidrs": [],
        "protected": true, "tunnel": health, "registry": health, "synced": true, "problems": [],
        "peers": [{
            "node": "b", "public_key": KEY, "state": "degraded", "endpoint": null,
            "published_endpoint": "192.0.2.2:51871", "pod_cidrs": [], "addresses": [], "mtu_bytes": 1440,
            "latest_handshake": null, "handshake_age_seconds": null, "rx_bytes": 0, "tx_bytes": 0, "notice": null,
            "degraded": {"reason": "no-answer", "message": ""},
        }],
        "rejected": [{"node": "c", "reason": "DuplicateKey", "message": "", "waiting": false}],
        "filter_drops": {"antispoof": 1},
    }))
    .unwrap();
    let report = TunnelReport {
        drops: [("no_route".to_owned(), 1)].into(),
        ..TunnelReport::default()
    };
    let text = encode(&status, &Stats::default(), &report).unwrap();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| line.split(['{', ' ']).next().unwrap().to_owned())
        .collect()
}

/// Every name of a metric in a text.
fn named(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("warren_") || word.starts_with("wireguard_"))
        .map(str::to_owned)
        .collect()
}

fn alerts() -> String {
    fs::read_to_string(deploy("alerts/warren.yaml")).unwrap()
}

fn dashboard() -> Value {
    serde_json::from_str(&fs::read_to_string(deploy("dashboards/warren.json")).unwrap()).unwrap()
}

/// The expressions of the dashboard's panels, with something in the place of its variables.
fn expressions() -> Vec<String> {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap());
    let expressions = targets.map(|target| target["expr"].as_str().unwrap());
    expressions
        .map(|text| {
            text.replace("$__rate_interval", "5m")
                .replace("$node", ".*")
        })
        .collect()
}

/// The words in backquotes in the first cells of the table that begins with this line.
fn first_cells(text: &str, head: &str) -> BTreeSet<String> {
    let lines = text
        .lines()
        .skip_while(|line| !line.starts_with(head))
        .skip(2);
    let cells = lines
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.split('|').nth(1).unwrap());
    cells
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_metric_is_documented_and_no_other_is() {
    let text = fs::read_to_string(docs("metrics.md")).unwrap();
    let documented: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(name, _)| name.to_owned())
        .filter(|name| !named(name).is_empty())
        .collect();
    assert_eq!(documented, served());
}

#[test]
fn no_document_alert_or_panel_names_a_metric_that_there_is_not() {
    let served = served();
    let mut texts = vec![
        ("the alerts", alerts()),
        ("the dashboard", dashboard().to_string()),
    ];
    for name in [
        "../README.md",
        "../ARCHITECTURE.md",
        "../SECURITY.md",
        "operations.md",
        "requirements.md",
    ] {
        texts.push((name, fs::read_to_string(docs(name)).unwrap()));
    }
    for (place, text) in texts {
        let strange: Vec<_> = named(&text).difference(&served).cloned().collect();
        assert!(strange.is_empty(), "{place} names {strange:?}");
    }
}

#[test]
fn labels_values_are_documented_and_no_others_are() {
    let text = fs::read_to_string(docs("metrics.md")).unwrap();
    let rules = rule_comment::REQUIRED
        .map(|comment| comment.trim_start_matches(rule_comment::PREFIX).to_owned());
    assert_eq!(first_cells(&text, "| `rule` |"), rules.into());
    let dropped: BTreeSet<String> = DropReason::ALL
        .iter()
        .map(|reason| reason.as_str().to_owned())
        .collect();
    assert_eq!(
        first_cells(&text, "| `reason` | what was dropped |"),
        dropped
    );
    let degraded: BTreeSet<String> = DegradedCause::REASONS.map(str::to_owned).into();
    assert_eq!(first_cells(&text, "| `reason` | what is known |"), degraded);
    let states = text
        .lines()
        .find(|line| line.starts_with("| `warren_peers` |"))
        .unwrap();
    for state in PeerState::ALL {
        assert!(
            states.contains(&format!("`{}`", state.as_str())),
            "{states}"
        );
    }
}

#[test]
fn promtool_takes_the_alerts_and_each_fires_by_what_it_is_for() -> Result<()> {
    if skipped("promtool") {
        return Ok(());
    }
    let rules = deploy("alerts/warren.yaml").display().to_string();
    let tests = deploy("alerts/tests.yaml").display().to_string();
    for arguments in [["check", "rules", &rules], ["test", "rules", &tests]] {
        let output = run("promtool", &arguments)?;
        let said =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
    }
    // An alert without a test of its firing would pass above.
    let alerts = alerts();
    let tests = fs::read_to_string(deploy("alerts/tests.yaml"))?;
    let mut count = 0;
    for name in alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
    {
        assert!(
            tests.contains(&format!("alertname=\"{name}\"")),
            "{name} is not tested"
        );
        count += 1;
    }
    assert!(count > 10, "{count}");
    Ok(())
}

#[test]
fn promtool_takes_every_expression_of_the_dashboard() -> Result<()> {
    if skipped("promtool") {
        return Ok(());
    }
    let rules: Vec<Value> = expressions()
        .into_iter()
        .enumerate()
        .map(
            |(number, expression)| json!({"record": format!("panel:{number}"), "expr": expression}),
        )
        .collect();
    assert!(rules.len() > 15, "{}", rules.len());
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("rules.json");
    fs::write(
        &file,
        json!({"groups": [{"name": "dashboard", "rules": rules}]}).to_string(),
    )?;
    let output = run("promtool", &["check", "rules", &file.display().to_string()])?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    Ok(())
}
