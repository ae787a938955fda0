//! The configuration: every key, every source, every error.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use warren_agent::config::{
    Config, ConfigError, DataPlaneChoice, Default as SettingDefault, Loaded, LogFormat,
    RegistryKind, SETTINGS, Source, Surroundings, load,
};
use warren_core::Pinning;

/// What every configuration needs.
const REQUIRED: &[(&str, &str)] = &[
    ("cluster-cidrs", "10.244.0.0/16,fd00::/48"),
    ("pod-cidrs", "10.244.1.0/24,fd00:0:0:1::/64"),
];

/// One value of each setting that is not its default, as text.
const OTHER: &[(&str, &str)] = &[
    ("node-name", "other.example"),
    ("registry", "file"),
    ("kubeconfig", "/srv/kubeconfig"),
    ("pinning", "strict"),
    ("registry-dir", "/srv/nodes"),
    ("cluster-cidrs", "10.0.0.0/8"),
    ("reserved-cidrs", "10.96.0.0/12"),
    ("pod-cidrs", "10.1.0.0/24"),
    ("node-addresses", "192.0.2.7,2001:db8::7"),
    ("endpoint", "198.51.100.1:4000,[2001:db8::9]:4001"),
    ("interface", "mesh1"),
    ("data-plane", "auto"),
    ("listen-port", "51999"),
    ("masquerade", "false"),
    ("persistent-keepalive", "25"),
    ("mtu", "1400"),
    ("state-dir", "/srv/state"),
    ("run-dir", "/srv/run"),
    ("uapi-dir", "/srv/uapi"),
    ("cni-conf-dir", "/srv/cni"),
    ("cni-conf-name", "05-mesh.conflist"),
    ("cni-bin-dir", "/usr/lib/cni"),
    ("sysctl-dir", "/host/proc/sys"),
    ("http-listen", "[::1]:8080"),
    ("log-format", "json"),
    ("log-level", "debug"),
];

/// Values that are refused, and what the error must say besides key, value and source.
const REFUSED: &[(&str, &str, &str)] = &[
    ("node-name", "Node_1", "DNS subdomain"),
    ("registry", "etcd", "allowed: kubernetes or file"),
    ("kubeconfig", "kubeconfig", "absolute path, or nothing"),
    ("pinning", "loose", "warn or strict"),
    ("registry-dir", "nodes", "absolute path"),
    ("cluster-cidrs", "10.244.0.1/16", "host bits"),
    ("cluster-cidrs", "10.0.0.0/8,10.1.0.0/16", "overlaps"),
    ("cluster-cidrs", "", "is empty"),
    ("cluster-cidrs", "ten", "prefix"),
    ("reserved-cidrs", "10.96.0.1/12", "host bits"),
    ("pod-cidrs", "192.0.2.0/24", "outside cluster-cidrs"),
    ("pod-cidrs", "10.244.1.0/31", "at least four addresses"),
    ("node-addresses", "127.0.0.1", "loopback"),
    ("node-addresses", "192.0.2.1,192.0.2.1", "twice"),
    ("node-addresses", "node1", "no IP address"),
    ("endpoint", "192.0.2.1", "not ip:port"),
    ("endpoint", "192.0.2.1:1,192.0.2.2:1", "more than one IPv4"),
    ("endpoint", "node1:51871", "names are not resolved"),
    ("interface", "a-name-that-is-long", "length"),
    ("interface", "warren0\";drop", "characters"),
    ("interface", "wrn0", "other devices"),
    ("data-plane", "boringtun", "userspace, kernel or auto"),
    ("listen-port", "0", "is 0"),
    ("listen-port", "65536", "1 to 65535"),
    ("masquerade", "yes", "true or false"),
    ("persistent-keepalive", "-1", "0 to 65535"),
    ("persistent-keepalive", "65536", "0 to 65535"),
    ("mtu", "1279", "1280 to 65535"),
    ("mtu", "large", "auto, or"),
    ("state-dir", "", "absolute path"),
    ("run-dir", "./run", "absolute path"),
    ("uapi-dir", "wireguard", "absolute path"),
    ("cni-conf-dir", "etc", "absolute path, or nothing"),
    ("cni-conf-name", "10-warren.conf", ".conflist"),
    ("cni-conf-name", "../x.conflist", "plain file name"),
    ("cni-bin-dir", "bin", "absolute path, or nothing"),
    ("sysctl-dir", "", "absolute path"),
    ("http-listen", "9151", "off, or ip:port"),
    ("log-format", "xml", "text or json"),
    ("log-level", "loud", "error, warn, info, debug or trace"),
];

fn try_load(
    flags: &[(&str, &str)],
    env: &[(&str, &str)],
    file: Option<&Path>,
) -> Result<Loaded, ConfigError> {
    let mut args: Vec<OsString> = vec!["warren-agent".into()];
    args.extend(file.map(|file| format!("--config={}", file.display()).into()));
    args.extend(
        flags
            .iter()
            .map(|(key, value)| format!("--{key}={value}").into()),
    );
    let env: BTreeMap<OsString, OsString> = env
        .iter()
        .map(|(key, value)| (variable(key).into(), (*value).into()))
        .collect();
    load(args, &env, &surroundings())
}

fn surroundings() -> Surroundings {
    Surroundings {
        hostname: "Host-1".into(),
        service_account: false,
    }
}

fn variable(key: &str) -> String {
    format!("WARREN_{}", key.to_ascii_uppercase().replace('-', "_"))
}

/// A file of these settings, lists as YAML sequences.
fn file(settings: &[(&str, &str)]) -> tempfile::NamedTempFile {
    let is_list = |key: &str| SETTINGS.iter().any(|s| s.key == key && s.is_list());
    let mut text = String::new();
    for (key, value) in settings {
        if is_list(key) {
            let items: Vec<String> = value
                .split(',')
                .filter(|item| !item.is_empty())
                .map(|item| format!("{item:?}"))
                .collect();
            text += &format!("{key}: [{}]\n", items.join(", "));
        } else {
            text += &format!("{key}: {value:?}\n");
        }
    }
    raw_file(&text)
}

fn raw_file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

fn without<'a>(key: &str) -> Vec<(&'a str, &'a str)> {
    REQUIRED
        .iter()
        .copied()
        .filter(|(required, _)| *required != key)
        .collect()
}

fn defaults() -> Config {
    try_load(REQUIRED, &[], None).unwrap().config
}

#[test]
fn the_defaults_are_those_that_are_documented() {
    let config = defaults();
    assert_eq!(config.node_name.as_str(), "host-1");
    assert_eq!(config.registry_dir, Path::new("/var/lib/warren/registry"));
    assert!(config.node_addresses.is_empty() && config.endpoint.is_none());
    assert!(config.reserved_cidrs.is_empty());
    assert_eq!(
        (config.interface.as_str(), config.listen_port),
        ("warren0", 51871)
    );
    assert_eq!(config.data_plane, DataPlaneChoice::Userspace);
    assert!(config.masquerade && config.persistent_keepalive == 0 && config.mtu_bytes.is_none());
    assert_eq!(config.state_dir, Path::new("/var/lib/warren"));
    assert_eq!(config.run_dir, Path::new("/run/warren"));
    assert_eq!(config.uapi_dir, Path::new("/var/run/wireguard"));
    assert_eq!(
        config.cni_conf_dir.as_deref(),
        Some(Path::new("/etc/cni/net.d"))
    );
    assert_eq!(config.cni_conf_name, "10-warren.conflist");
    assert_eq!(
        config.cni_bin_dir.as_deref(),
        Some(Path::new("/opt/cni/bin"))
    );
    assert_eq!(config.sysctl_dir, Path::new("/proc/sys"));
    assert_eq!(config.http_listen, Some("127.0.0.1:9151".parse().unwrap()));
    assert_eq!(
        (config.log_format, config.log_level),
        (LogFormat::Text, tracing::Level::INFO)
    );
}

#[test]
fn every_key_is_taken_from_every_source() {
    let keys: Vec<&str> = SETTINGS.iter().map(|s| s.key).collect();
    assert_eq!(keys, OTHER.iter().map(|(key, _)| *key).collect::<Vec<_>>());
    let flags = try_load(OTHER, &[], None).unwrap();
    let env = try_load(&[], OTHER, None).unwrap();
    let file = file(OTHER);
    let file = try_load(&[], &[], Some(file.path())).unwrap();
    assert_eq!(flags.config, env.config);
    assert_eq!(flags.config, file.config);
    for (loaded, source) in [
        (flags, Source::Flag),
        (env, Source::Environment),
        (file, Source::File),
    ] {
        assert!(
            loaded.sources.values().all(|s| *s == source),
            "{:?}",
            loaded.sources
        );
        assert_eq!(loaded.sources.len(), SETTINGS.len());
    }
}

#[test]
fn every_key_but_the_only_registry_changes_the_configuration() {
    for (key, value) in OTHER.iter().filter(|(key, _)| *key != "registry") {
        let mut flags = without(key);
        flags.push((key, value));
        // The node's ranges must lie inside the cluster's.
        if *key == "cluster-cidrs" {
            flags.retain(|(key, _)| *key != "pod-cidrs");
            flags.push(("pod-cidrs", "10.1.0.0/24"));
        }
        if *key == "pod-cidrs" {
            flags.retain(|(key, _)| *key != "cluster-cidrs");
            flags.push(("cluster-cidrs", "10.0.0.0/8"));
        }
        let config = try_load(&flags, &[], None).unwrap().config;
        assert_ne!(config, defaults(), "{key}");
    }
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_file() {
    let file = file(&[REQUIRED, &[("listen-port", "1001"), ("mtu", "1301")]].concat());
    let env = [("listen-port", "1002"), ("persistent-keepalive", "2")];
    let loaded = try_load(&[("listen-port", "1003")], &env, Some(file.path())).unwrap();
    assert_eq!(loaded.config.listen_port, 1003);
    assert_eq!(loaded.config.persistent_keepalive, 2);
    assert_eq!(loaded.config.mtu_bytes, Some(1301));
    let source = |key| loaded.sources[key];
    assert_eq!(source("listen-port"), Source::Flag);
    assert_eq!(source("persistent-keepalive"), Source::Environment);
    assert_eq!(source("mtu"), Source::File);
    assert_eq!(source("log-level"), Source::Default);
    let loaded = try_load(&[], &env, Some(file.path())).unwrap();
    assert_eq!(loaded.config.listen_port, 1002);
}

#[test]
fn every_refusal_names_key_value_source_and_what_is_allowed() {
    for (key, value, needle) in REFUSED {
        let setting = SETTINGS.iter().find(|s| s.key == *key).unwrap();
        let bad = [(*key, *value)];
        let rest = without(key);
        let file = file(&[&bad[..], &rest].concat());
        for (loaded, source) in [
            (try_load(&[&bad[..], &rest].concat(), &[], None), "flag"),
            (try_load(&rest, &bad, None), "env"),
            (try_load(&[], &[], Some(file.path())), "file"),
        ] {
            let error = loaded
                .expect_err(&format!("{key}={value} by {source}"))
                .to_string();
            for part in [
                *key,
                &format!("{value:?}"),
                &format!("from {source}"),
                needle,
            ] {
                assert!(error.contains(part), "{part} in {error}");
            }
            assert!(error.contains(setting.allowed), "{error}");
        }
    }
    let with_refusal: Vec<&str> = REFUSED.iter().map(|(key, ..)| *key).collect();
    for setting in SETTINGS {
        assert!(
            with_refusal.contains(&setting.key),
            "no refusal tested for {}",
            setting.key
        );
    }
}

#[test]
fn a_missing_setting_is_named_with_all_its_spellings() {
    for key in ["cluster-cidrs", "pod-cidrs"] {
        let error = try_load(&without(key), &[], None).unwrap_err().to_string();
        for part in [key, &variable(key), &format!("--{key}"), "config file"] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }
}

/// As in a pod of a DaemonSet, or with something of it missing.
fn in_pod(
    service_account: bool,
    env: &[(&str, &str)],
    flags: &[&str],
) -> Result<Loaded, ConfigError> {
    let args = ["warren-agent", "--cluster-cidrs=10.244.0.0/16"];
    let args = args.iter().chain(flags).map(OsString::from);
    let env = env.iter().map(|(key, value)| (key.into(), value.into()));
    let surroundings = Surroundings {
        service_account,
        ..surroundings()
    };
    load(args, &env.collect(), &surroundings)
}

#[test]
fn in_a_cluster_the_registry_is_kubernetes_and_the_node_tells_its_own_ranges() {
    let env = [
        ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
        ("NODE_NAME", "node-7"),
    ];
    let config = in_pod(true, &env, &[]).unwrap().config;
    assert_eq!(config.registry, RegistryKind::Kubernetes);
    assert_eq!(config.node_name.as_str(), "node-7");
    assert!(config.pod_cidrs.is_empty() && config.kubeconfig.is_none());
    assert_eq!(config.pinning, Pinning::Warn);
    let named = in_pod(true, &env, &["--node-name=node-8"]).unwrap().config;
    assert_eq!(named.node_name.as_str(), "node-8");
    for (service_account, env) in [(false, &env[..]), (true, &env[1..])] {
        let error = in_pod(service_account, env, &[]).unwrap_err().to_string();
        assert!(error.contains("pod-cidrs is missing"), "{error}");
        let file = in_pod(service_account, env, &["--pod-cidrs=10.244.1.0/24"]);
        assert_eq!(file.unwrap().config.registry, RegistryKind::File);
    }
}

#[test]
fn ranges_of_a_nodes_own_are_refused_where_its_node_object_tells_them() {
    let flags = ["--registry=kubernetes", "--pod-cidrs=10.244.1.0/24"];
    let error = in_pod(false, &[], &flags).unwrap_err().to_string();
    for part in ["pod-cidrs", "10.244.1.0/24", "flag", "spec.podCIDRs"] {
        assert!(error.contains(part), "{part} in {error}");
    }
}

#[test]
fn pod_ranges_may_not_touch_reserved_ones() {
    let flags = [REQUIRED, &[("reserved-cidrs", "10.244.1.128/25")]].concat();
    let error = try_load(&flags, &[], None).unwrap_err().to_string();
    assert!(
        error.contains("pod-cidrs") && error.contains("10.244.1.128/25"),
        "{error}"
    );
}

#[test]
fn an_unknown_key_is_an_error_that_helps() {
    let misspelt = raw_file("cluster-cidr: 10.0.0.0/8\n");
    let error = try_load(&[], &[], Some(misspelt.path()))
        .unwrap_err()
        .to_string();
    assert!(error.contains("\"cluster-cidr\""), "{error}");
    assert!(error.contains("did you mean \"cluster-cidrs\"?"), "{error}");
    let strange = raw_file("something-else-entirely: 1\n");
    let error = try_load(&[], &[], Some(strange.path()))
        .unwrap_err()
        .to_string();
    assert!(SETTINGS.iter().all(|s| error.contains(s.key)), "{error}");
}

#[test]
fn a_file_that_is_no_flat_mapping_is_an_error_with_its_name() {
    for text in [
        "- a\n- b\n",
        "mtu: {a: 1}\n",
        "mtu: [1, 2\n",
        "mtu: 1400\nmtu: 1500\n",
    ] {
        let file = raw_file(text);
        let error = try_load(REQUIRED, &[], Some(file.path()))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&file.path().display().to_string()),
            "{text}: {error}"
        );
    }
    let error = try_load(REQUIRED, &[], Some(Path::new("/nonexistent.yaml"))).unwrap_err();
    assert!(error.to_string().contains("/nonexistent.yaml"), "{error}");
}

#[test]
fn plain_yaml_values_and_empty_files_are_taken() {
    let file = raw_file("listen-port: 4711\nmasquerade: false\nmtu:\nreserved-cidrs: []\n");
    let config = try_load(REQUIRED, &[], Some(file.path())).unwrap().config;
    assert_eq!(
        (config.listen_port, config.masquerade, config.mtu_bytes),
        (4711, false, None)
    );
    for text in ["", "# nothing\n"] {
        let file = raw_file(text);
        assert_eq!(
            try_load(REQUIRED, &[], Some(file.path())).unwrap().config,
            defaults()
        );
    }
}

#[test]
fn the_environment_names_the_file_and_the_flag_wins() {
    let (one, two) = (
        file(&[REQUIRED, &[("mtu", "1301")]].concat()),
        file(REQUIRED),
    );
    let path = |file: &tempfile::NamedTempFile| file.path().display().to_string();
    let (one_path, two_path) = (path(&one), path(&two));
    let loaded = try_load(&[], &[("config", &one_path)], None).unwrap();
    assert_eq!(loaded.config.mtu_bytes, Some(1301));
    let loaded = try_load(&[("config", &two_path)], &[("config", &one_path)], None).unwrap();
    assert_eq!(loaded.config.mtu_bytes, None);
}

#[test]
fn empty_texts_switch_the_optional_parts_off() {
    let flags = [REQUIRED, &[("cni-conf-dir", ""), ("http-listen", "off")]].concat();
    let config = try_load(&flags, &[], None).unwrap().config;
    assert_eq!((config.cni_conf_dir, config.http_listen), (None, None));
}

#[test]
fn the_help_text_has_every_key_and_its_variable() {
    let help = warren_agent::config::command()
        .render_long_help()
        .to_string();
    for setting in SETTINGS {
        assert!(
            help.contains(&format!("--{}", setting.key)),
            "{}",
            setting.key
        );
        assert!(help.contains(&variable(setting.key)), "{}", setting.key);
    }
}

#[test]
fn the_example_names_every_key_and_nothing_but_defaults() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/config/agent.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    let loaded = try_load(&[], &[], Some(&path)).unwrap();
    let keys: Vec<&str> = text
        .lines()
        .map(|line| line.strip_prefix('#').unwrap_or(line))
        .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
        .filter_map(|line| Some(line.split_once(':')?.0))
        .collect();
    for key in &keys {
        assert!(
            SETTINGS.iter().any(|s| s.key == *key),
            "{key} is no setting"
        );
    }
    for setting in SETTINGS {
        assert!(
            keys.contains(&setting.key),
            "{} is not in the example",
            setting.key
        );
        let set = loaded.sources[setting.key] == Source::File;
        let found = matches!(setting.default, SettingDefault::Found(_));
        assert_eq!(set, !found, "{}", setting.key);
    }
    let mut expected = defaults();
    expected.cluster_cidrs = loaded.config.cluster_cidrs.clone();
    expected.pod_cidrs = loaded.config.pod_cidrs.clone();
    assert_eq!(loaded.config, expected);
    // What is commented out must be right as well.
    let mut all = String::new();
    for line in text.lines() {
        let setting = line.strip_prefix('#').filter(|rest| {
            let mut chars = rest.chars();
            chars.next().is_some_and(|c| c.is_ascii_lowercase()) || rest.starts_with("  - ")
        });
        all += setting.unwrap_or(line);
        all.push('\n');
    }
    let all = raw_file(&all);
    let loaded = try_load(&[], &[], Some(all.path())).unwrap();
    assert!(
        loaded.sources.values().all(|s| *s == Source::File),
        "{:?}",
        loaded.sources
    );
}
