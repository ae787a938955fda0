//! The three sources of values, and how they are put together.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use clap::{Arg, ArgMatches, Command};
use warren_core::NodeName;

use super::table::{Default, Parse, blank};
use super::{Config, ConfigError, RegistryKind, SETTINGS, Setting};

/// The environment variable that names the file.
const CONFIG_ENV: &str = "WARREN_CONFIG";

/// Where a value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The table's default, or what was found out at start.
    Default,
    /// The file.
    File,
    /// The environment.
    Environment,
    /// The command line.
    Flag,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::File => "file",
            Self::Environment => "env",
            Self::Flag => "flag",
        })
    }
}

/// A configuration, and where each value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// The source of each setting, by key.
    pub sources: BTreeMap<&'static str, Source>,
    /// The file that was read, if there was one.
    pub file: Option<PathBuf>,
}

/// What one source says of one setting.
struct Given {
    items: Vec<String>,
    is_list: bool,
}

impl Given {
    fn one(text: impl Into<String>) -> Self {
        Self {
            items: vec![text.into()],
            is_list: false,
        }
    }

    fn shown(&self) -> String {
        self.items.join(",")
    }

    /// The items of a list; text has them between commas.
    fn list(&self) -> Vec<String> {
        if self.is_list {
            return self.items.clone();
        }
        let items = self.items.iter().flat_map(|text| text.split(','));
        items
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .map(str::to_owned)
            .collect()
    }
}

/// The command line, made of the table.
pub fn command() -> Command {
    let config = Arg::new("config")
        .long("config")
        .value_name("PATH")
        .help(format!(
            "YAML file of these settings, one `key: value` each [env: {CONFIG_ENV}]"
        ));
    let args = SETTINGS.iter().map(|setting| {
        let default = match setting.default {
            Default::Required => "required".to_owned(),
            Default::RequiredByFiles => "required with registry=file".to_owned(),
            Default::Text("") => "default: none".to_owned(),
            Default::Text(text) | Default::Found(text) => format!("default: {text}"),
        };
        let help = format!(
            "{} ({}) [{default}] [env: {}]",
            setting.help,
            setting.allowed,
            setting.env()
        );
        let arg = Arg::new(setting.key)
            .long(setting.key)
            .value_name("VALUE")
            .help(help);
        arg.allow_hyphen_values(true)
    });
    Command::new("warren-agent")
        .version(env!("CARGO_PKG_VERSION"))
        .about("The mesh controller of Warren: peers, routes and filters of this node")
        .after_help(
            "A flag beats the environment, which beats the file.\n\n`warren-agent uninstall-cluster --help` tells of \
             the pod that takes back what agents wrote to Nodes.",
        )
        .arg(config)
        .args(args)
}

/// What the defaults depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// The host's name.
    pub hostname: String,
    /// Whether the process has a Kubernetes service account's token.
    pub service_account: bool,
}

/// Puts the configuration together from the command line (the program's name first), the
/// environment, the file that either names, and the surroundings.
///
/// # Errors
/// [`ConfigError::CommandLine`] also for `--help` and `--version`, whose text it holds; the others
/// name what a person must correct.
pub fn load(
    args: impl IntoIterator<Item = OsString>,
    env: &BTreeMap<OsString, OsString>,
    surroundings: &Surroundings,
) -> Result<Loaded, ConfigError> {
    let matches = command().try_get_matches_from(args).map_err(Box::new)?;
    let path = matches.get_one::<String>("config").map(PathBuf::from);
    let path = path.or_else(|| {
        env.get(&OsString::from(CONFIG_ENV))
            .filter(|p| !p.is_empty())
            .map(PathBuf::from)
    });
    let mut file = match &path {
        Some(path) => read_file(path)?,
        None => BTreeMap::new(),
    };
    // Replaced below, if only by the host's name.
    let mut config = blank(NodeName::new("unnamed").expect("a lower-case word is a node name"));
    let mut sources = BTreeMap::new();
    for setting in SETTINGS {
        let from_file = file.remove(setting.key);
        let (given, source) = match given(setting, &matches, env, from_file)? {
            Some(found) => found,
            None => match setting.default {
                Default::Text(text) => (Given::one(text), Source::Default),
                Default::Found(_) => match found(setting.key, env, surroundings) {
                    Some(text) => (Given::one(text), Source::Default),
                    None => {
                        sources.insert(setting.key, Source::Default);
                        continue;
                    }
                },
                Default::RequiredByFiles if config.registry != RegistryKind::File => {
                    sources.insert(setting.key, Source::Default);
                    continue;
                }
                Default::Required | Default::RequiredByFiles => {
                    let (key, allowed) = (setting.key, setting.allowed);
                    return Err(ConfigError::Missing {
                        key,
                        env: setting.env(),
                        allowed,
                    });
                }
            },
        };
        apply(setting, &mut config, &given, source)?;
        sources.insert(setting.key, source);
    }
    Ok(Loaded {
        config,
        sources,
        file: path,
    })
}

/// What is found out at start about a setting, if that is done here.
fn found(
    key: &str,
    env: &BTreeMap<OsString, OsString>,
    surroundings: &Surroundings,
) -> Option<String> {
    let set = |name: &str| {
        let text = env.get(&OsString::from(name))?.to_str()?;
        Some(text.to_owned()).filter(|text| !text.is_empty())
    };
    match key {
        // What a DaemonSet's `fieldRef: spec.nodeName` is customarily put into.
        "node-name" => set("NODE_NAME").or_else(|| Some(surroundings.hostname.to_lowercase())),
        "registry" => {
            let in_cluster =
                surroundings.service_account && set("KUBERNETES_SERVICE_HOST").is_some();
            Some(if in_cluster { "kubernetes" } else { "file" }.to_owned())
        }
        _ => None,
    }
}

/// The value of the strongest source that has one.
fn given(
    setting: &Setting,
    matches: &ArgMatches,
    env: &BTreeMap<OsString, OsString>,
    file: Option<Given>,
) -> Result<Option<(Given, Source)>, ConfigError> {
    if let Some(text) = matches.get_one::<String>(setting.key) {
        return Ok(Some((Given::one(text), Source::Flag)));
    }
    if let Some(text) = env.get(&OsString::from(setting.env())) {
        let text = text.to_str().ok_or_else(|| ConfigError::Value {
            key: setting.key,
            value: text.to_string_lossy().into_owned(),
            from: Source::Environment,
            why: "is no UTF-8".into(),
            allowed: setting.allowed,
        })?;
        return Ok(Some((Given::one(text), Source::Environment)));
    }
    Ok(file.map(|given| (given, Source::File)))
}

fn apply(
    setting: &Setting,
    config: &mut Config,
    given: &Given,
    from: Source,
) -> Result<(), ConfigError> {
    let parsed = match &setting.parse {
        Parse::One(_) if given.is_list => Err("is a list where one value is wanted".into()),
        Parse::One(parse) => parse(config, given.items.first().map_or("", |text| text.trim())),
        Parse::List(parse) => parse(config, &given.list()),
    };
    parsed.map_err(|why| ConfigError::Value {
        key: setting.key,
        value: given.shown(),
        from,
        why,
        allowed: setting.allowed,
    })
}

fn read_file(path: &PathBuf) -> Result<BTreeMap<&'static str, Given>, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.clone(),
        source,
    })?;
    let yaml = |cause: String| ConfigError::Yaml {
        path: path.clone(),
        cause,
    };
    // An empty document is no mapping to the parser, and yet a file without settings.
    let parsed: Option<BTreeMap<String, serde_json::Value>> =
        serde_saphyr::from_str(&text).map_err(|e| yaml(e.to_string()))?;
    let mut out = BTreeMap::new();
    for (key, value) in parsed.unwrap_or_default() {
        let Some(setting) = SETTINGS.iter().find(|setting| setting.key == key) else {
            let hint = hint(&key);
            return Err(ConfigError::UnknownKey {
                path: path.clone(),
                key,
                hint,
            });
        };
        let given = match &value {
            // `key:` with nothing behind it is the same as no line at all.
            serde_json::Value::Null => continue,
            serde_json::Value::Array(items) => items
                .iter()
                .map(scalar)
                .collect::<Option<Vec<_>>>()
                .map(|items| Given {
                    items,
                    is_list: true,
                }),
            other => scalar(other).map(Given::one),
        };
        let nested = || yaml(format!("{key}: neither a value nor a list of values"));
        out.insert(setting.key, given.ok_or_else(nested)?);
    }
    Ok(out)
}

fn scalar(value: &serde_json::Value) -> Option<String> {
    match value {
        serde_json::Value::String(text) => Some(text.clone()),
        serde_json::Value::Bool(_) | serde_json::Value::Number(_) => Some(value.to_string()),
        _ => None,
    }
}

/// The key that was probably meant, else all keys.
fn hint(key: &str) -> String {
    let close = SETTINGS.iter().map(|s| (distance(key, s.key), s.key)).min();
    match close {
        Some((edits, close)) if edits <= 3 => format!("did you mean \"{close}\"?"),
        _ => {
            let keys: Vec<&str> = SETTINGS.iter().map(|s| s.key).collect();
            format!("allowed: {}", keys.join(", "))
        }
    }
}

/// How many letters must be changed, added or removed to make `b` of `a` (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
