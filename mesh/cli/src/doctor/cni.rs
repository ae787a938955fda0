//! The CNI configuration and the plugin that it names.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::facts::Facts;
use super::finding::{Check, Finding};
use super::program;

const PLUGIN_LIMIT: Duration = Duration::from_secs(10);
/// What container runtimes read, by the end of its name (libcni, `ConfFiles`).
const EXTENSIONS: [&str; 3] = ["conflist", "conf", "json"];

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut check = Check::new("cni");
    let dir = &facts.args.cni_conf_dir;
    let own = facts.args.cni_conf_name.as_str();
    let path = dir.join(own);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(e) => {
            check.error(
                format!("read {}: {e}", path.display()),
                "the container runtime does not call warren-cni: no pod starts, or another network \
                 is used",
                "warren-agent writes it once the node is protected: warren status; or give \
                 --cni-conf-dir as the agent has it",
            );
            return check.done("");
        }
    };
    let first = configurations(dir).into_iter().next();
    if let Some(first) = first.filter(|first| first.as_str() < own) {
        check.error(
            format!("{} comes before {own} in {}", first, dir.display()),
            "the container runtime takes the first by name: pods get that network, not Warren's",
            format!(
                "mv {0}/{first} {0}/{first}.off, if its network is not wanted",
                dir.display()
            ),
        );
    }
    let rewrite = format!(
        "rm {}; warren-agent writes it anew within 5 s",
        path.display()
    );
    let plugins = serde_json::from_slice::<Value>(&text)
        .map_err(|e| e.to_string())
        .and_then(|document| plugins_of(&document));
    match plugins {
        Err(cause) => check.error(
            format!("{} is no CNI configuration: {cause}", path.display()),
            "the container runtime refuses it: no pod starts",
            rewrite,
        ),
        Ok((versions, plugins)) => {
            if plugins.first().map(String::as_str) != Some("warren-cni") {
                check.error(
                    format!("the first plugin of {} is not warren-cni", path.display()),
                    "pods do not get Warren's network",
                    rewrite,
                );
            }
            for plugin in &plugins {
                judge(facts, plugin, &versions, &mut check);
            }
        }
    }
    check.done(format!("{own} is the first, and its plugins answer"))
}

/// Calls a plugin's VERSION.
fn judge(facts: &Facts, plugin: &str, versions: &[String], check: &mut Check) {
    let path = facts.args.cni_bin_dir.join(plugin);
    let shown = path.display();
    let install = format!(
        "install {plugin} as {shown} with mode 0755, or give --cni-bin-dir as the runtime has it"
    );
    let means = "no pod starts on this node";
    if !path.is_file() {
        check.error(format!("the plugin {shown} does not exist"), means, install);
        return;
    }
    let mut command = Command::new(&path);
    command.env("CNI_COMMAND", "VERSION");
    let supported = program::run_command(&mut command, r#"{"cniVersion":"1.0.0"}"#, PLUGIN_LIMIT)
        .and_then(|ended| {
            let answer: Value = serde_json::from_str(&ended.stdout)
                .map_err(|e| format!("its answer to VERSION is no JSON: {e}"))?;
            let list = answer["supportedVersions"].as_array().cloned();
            list.ok_or_else(|| format!("its answer to VERSION has no supportedVersions: {answer}"))
        });
    match supported {
        Err(cause) => check.error(format!("the plugin {shown}: {cause}"), means, install),
        Ok(supported) => {
            if !versions
                .iter()
                .any(|v| supported.iter().any(|s| s == v.as_str()))
            {
                check.error(
                    format!("the plugin {shown} supports no version of the configuration"),
                    means,
                    install,
                );
            }
        }
    }
}

/// The configuration's versions and its plugins' names.
fn plugins_of(document: &Value) -> Result<(Vec<String>, Vec<String>), String> {
    let texts = |value: &Value| {
        let items = value.as_array().into_iter().flatten();
        let texts = items.filter_map(|item| item.as_str().map(str::to_owned));
        texts.collect::<Vec<_>>()
    };
    let mut versions = texts(&document["cniVersions"]);
    versions.extend(document["cniVersion"].as_str().map(str::to_owned));
    let plugins = document["plugins"]
        .as_array()
        .ok_or("it has no list `plugins`")?;
    let name = |plugin: &Value| {
        let name = plugin["type"].as_str().filter(|name| !name.contains('/'));
        name.map(str::to_owned)
            .ok_or("a plugin has no `type`".to_owned())
    };
    let names: Result<Vec<String>, String> = plugins.iter().map(name).collect();
    Ok((versions, names?))
}

/// The names of what a container runtime would read, in its order.
fn configurations(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names
        .filter(|name| {
            let extension = Path::new(name).extension().and_then(|e| e.to_str());
            extension.is_some_and(|extension| EXTENSIONS.contains(&extension))
        })
        .collect();
    names.sort();
    names
}
