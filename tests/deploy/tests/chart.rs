//! What the chart renders, and what it refuses.
#![allow(clippy::unwrap_used)] // in a test, a failed unwrap is the report

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use serde_json::{Value, json};
use warren_agent::config::{RegistryKind, SETTINGS, Surroundings, load};
use warren_deploy::{REQUIRED, deploy, object, rendered, run, skipped};

/// Sets of values as people have them.
const SETS: [&[&str]; 5] = [
    &[],
    &["--set", "httpListen=off,uninstall.enabled=false"],
    &[
        "--set",
        "httpListen=[::]:9151,podMonitor.enabled=true,prometheusRule.enabled=true,dashboard.enabled=true",
    ],
    &[
        "--set",
        "kubernetesServiceHost=192.0.2.1,kubernetesServicePort=6443,image.pullSecrets[0].name=mine",
        "--set",
        "cniBinDir=/var/lib/rancher/k3s/data/cni,cniConfDir=/var/lib/rancher/k3s/agent/etc/cni/net.d",
    ],
    &[
        "--set",
        "mtu=1400,pinning=strict,masquerade=false,dataPlane=kernel,persistentKeepalive=25,listenPort=7,agent.maxUnavailable=1",
        "--set",
        "reservedCIDRs={10.96.0.0/12},nodeSelector.pool=a,tunnel.podLabels.a=b,agent.podAnnotations.c=d",
    ],
];

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    REQUIRED.iter().chain(more).copied().collect()
}

#[test]
fn helms_linter_accepts_the_chart_with_every_set_of_values() -> Result<()> {
    if skipped("helm") {
        return Ok(());
    }
    let chart = deploy("chart").display().to_string();
    for set in SETS {
        let mut arguments = vec!["lint", "--strict", &chart];
        arguments.extend(with(set));
        let output = run("helm", &arguments)?;
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{set:?}: {said}");
    }
    Ok(())
}

#[test]
fn wrong_values_are_refused_with_the_key_and_what_is_allowed() -> Result<()> {
    if skipped("helm") {
        return Ok(());
    }
    let chart = deploy("chart").display().to_string();
    for (wrong, expected) in [
        (
            "clusterCIDRs=null",
            "clusterCIDRs is missing. Give the pod ranges of the whole cluster, as kube-controller-manager's \
             --cluster-cidr has them:\n\n  --set clusterCIDRs='{10.244.0.0/16,fd00:10:244::/48}'\n",
        ),
        (
            "clusterCIDRs={10.244.0.0}",
            "clusterCIDRs has \"10.244.0.0\", which is no prefix; allowed: IPv4 or IPv6 ADDRESS/LENGTH, such as \
             10.244.0.0/16 or fd00:10:244::/48\n",
        ),
        (
            "clusterCIDRs={10.244.7.0/16}",
            "clusterCIDRs has \"10.244.7.0/16\" with host bits set; allowed: the range's first address, /LENGTH\n",
        ),
        (
            "reservedCIDRs={10.96.0.0/33}",
            "reservedCIDRs has \"10.96.0.0/33\", which is no prefix; allowed: IPv4 or IPv6 ADDRESS/LENGTH, such as \
             10.244.0.0/16 or fd00:10:244::/48\n",
        ),
        (
            "podMonitor.enabled=true",
            "podMonitor.enabled is true, and httpListen is 127.0.0.1:9151, which no Prometheus can reach. Read in \
             values.yaml what another httpListen tells to whom.\n",
        ),
        (
            "listenport=7",
            "- at '': additional properties 'listenport' not allowed\n",
        ),
        (
            "tunnel.spinMicroseconds=201",
            "- at '/tunnel/spinMicroseconds': maximum: got 201, want 200\n",
        ),
        (
            "tunnel.tag=x",
            "- at '/tunnel': additional properties 'tag' not allowed\n",
        ),
        (
            "pinning=off",
            "- at '/pinning': value must be one of 'warn', 'strict'\n",
        ),
        (
            "dataPlane=auto",
            "- at '/dataPlane': value must be one of 'userspace', 'kernel'\n",
        ),
        ("mtu=1279", "- at '/mtu': minimum: got 1,279, want 1,280\n"),
        (
            "listenPort=0",
            "- at '/listenPort': minimum: got 0, want 1\n",
        ),
        (
            "masquerade=maybe",
            "- at '/masquerade': got string, want boolean\n",
        ),
        (
            "logLevel=loud",
            "- at '/logLevel': value must be one of 'error', 'warn', 'info', 'debug', 'trace'\n",
        ),
        (
            "stateDir=/warren",
            "- at '/stateDir': '/warren' does not match pattern '^/[^/]+(/[^/]+)+$'\n",
        ),
        (
            "httpListen=:9151",
            "- at '/httpListen': ':9151' does not match pattern ",
        ),
    ] {
        let mut arguments = vec!["template", "warren", &chart];
        arguments.extend(with(&["--set", wrong]));
        let output = run("helm", &arguments)?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{wrong} is taken");
        assert!(said.contains(expected), "{wrong}: {said}");
    }
    Ok(())
}

#[test]
fn the_agent_takes_the_configuration_and_no_setting_is_forgotten() -> Result<()> {
    if skipped("helm") {
        return Ok(());
    }
    // What is found out on the node, and what no chart's user needs.
    let elsewhere = [
        "cni-conf-name",
        "endpoint",
        "kubeconfig",
        "node-addresses",
        "node-name",
        "pod-cidrs",
        "registry-dir",
        "uapi-dir",
    ];
    for set in SETS {
        let objects = rendered(&with(set))?;
        let text = object(&objects, "ConfigMap", "warren-agent")?["data"]["agent.yaml"]
            .as_str()
            .unwrap();
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("agent.yaml");
        std::fs::write(&file, text)?;
        let arguments = [
            "warren-agent".into(),
            "--config".into(),
            file.into_os_string(),
        ];
        let loaded = load(
            arguments,
            &BTreeMap::new(),
            &Surroundings {
                hostname: "node1".into(),
                service_account: true,
            },
        )?;
        assert_eq!(loaded.config.registry, RegistryKind::Kubernetes);
        let given: BTreeSet<&str> = serde_saphyr::from_str::<BTreeMap<String, Value>>(text)
            .unwrap()
            .keys()
            .map(|key| SETTINGS.iter().find(|s| s.key == key).unwrap().key)
            .collect();
        let expected: BTreeSet<&str> = SETTINGS
            .iter()
            .map(|setting| setting.key)
            .filter(|key| !elsewhere.contains(key))
            .collect();
        assert_eq!(given, expected, "{set:?}");
    }
    Ok(())
}

#[test]
fn defaults_of_the_chart_are_those_of_the_agent() -> Result<()> {
    if skipped("helm") {
        return Ok(());
    }
    let objects = rendered(&with(&[]))?;
    let text = object(&objects, "ConfigMap", "warren-agent")?["data"]["agent.yaml"].as_str();
    let given: BTreeMap<String, Value> = serde_saphyr::from_str(text.unwrap()).unwrap();
    // In a container the settings are written elsewhere.
    let own = ["sysctl-dir"];
    for setting in SETTINGS
        .iter()
        .filter(|setting| !own.contains(&setting.key))
    {
        let (Some(given), warren_agent::config::Default::Text(default)) =
            (given.get(setting.key), &setting.default)
        else {
            continue;
        };
        let given = match given {
            Value::String(text) => text.clone(),
            Value::Array(items) if items.is_empty() => String::new(),
            other => other.to_string(),
        };
        assert_eq!(given, *default, "{}", setting.key);
    }
    Ok(())
}

#[test]
fn with_the_kernels_wireguard_there_is_no_tunnel_and_no_tun_device() -> Result<()> {
    if skipped("helm") {
        return Ok(());
    }
    let both = rendered(&with(&[]))?;
    object(&both, "DaemonSet", "warren-tunnel")?;
    assert!(serde_json::to_string(&both)?.contains("/dev/net/tun"));
    let kernel = rendered(&with(&["--set", "dataPlane=kernel"]))?;
    assert!(object(&kernel, "DaemonSet", "warren-tunnel").is_err());
    object(&kernel, "DaemonSet", "warren-agent")?;
    assert!(!serde_json::to_string(&kernel)?.contains("/dev/net/tun"));
    Ok(())
}

#[test]
fn what_concerns_the_agent_alone_leaves_the_tunnels_daemonset_as_it_is() -> Result<()> {
    if skipped("helm") {
        return Ok(());
    }
    let daemon_set = |name: &str, more: &[&str]| -> Result<Value> {
        Ok(object(&rendered(&with(more))?, "DaemonSet", name)?.clone())
    };
    let tunnel = daemon_set("warren-tunnel", &[])?;
    let agent = daemon_set("warren-agent", &[])?;
    for change in [
        "agent.image.tag=new",
        "agent.maxUnavailable=1",
        "agent.podLabels.a=b",
        "agent.resources.limits.memory=1Gi",
        "cni.image.tag=new",
        "cniBinDir=/opt/other/bin",
        "clusterCIDRs={10.0.0.0/8}",
        "reservedCIDRs={10.96.0.0/12}",
        "mtu=1400",
        "masquerade=false",
        "pinning=strict",
        "persistentKeepalive=25",
        "httpListen=off",
        "kubernetesServiceHost=192.0.2.1",
        "logLevel=debug",
    ] {
        assert_eq!(
            daemon_set("warren-tunnel", &["--set", change])?,
            tunnel,
            "{change}"
        );
        // And the agents are replaced, for they read their configuration at start.
        assert_ne!(
            daemon_set("warren-agent", &["--set", change])?,
            agent,
            "{change}"
        );
    }
    assert_eq!(
        tunnel["spec"]["updateStrategy"],
        json!({"type": "OnDelete"})
    );
    Ok(())
}

#[test]
fn the_tunnel_polls_only_where_that_is_asked_for() -> Result<()> {
    if skipped("helm") {
        return Ok(());
    }
    let arguments = |more: &[&str]| -> Result<Vec<String>> {
        let objects = rendered(&with(more))?;
        let tunnel = object(&objects, "DaemonSet", "warren-tunnel")?;
        let arguments = &tunnel["spec"]["template"]["spec"]["containers"][0]["args"];
        Ok(serde_json::from_value(arguments.clone())?)
    };
    // An older tunnel that is kept does not know the option.
    let usual = arguments(&[])?;
    assert!(
        !usual.iter().any(|argument| argument.contains("spin")),
        "{usual:?}"
    );
    let asked = arguments(&["--set", "tunnel.spinMicroseconds=60"])?;
    assert_eq!(asked, [usual, vec!["--spin=60".to_owned()]].concat());
    Ok(())
}

#[test]
fn a_new_version_of_the_chart_changes_nothing_of_a_tunnel_whose_tag_is_kept() -> Result<()> {
    if skipped("helm") {
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let chart = directory.path().join("chart");
    let copied = std::process::Command::new("cp")
        .arg("-rL")
        .args([deploy("chart"), chart.clone()])
        .status()?;
    assert!(copied.success());
    let file = chart.join("Chart.yaml");
    let text = std::fs::read_to_string(&file)?;
    let version = env!("CARGO_PKG_VERSION");
    assert!(
        text.contains(&format!("\nappVersion: {version}\n")),
        "{text}"
    );
    std::fs::write(&file, text.replace(version, "9.9.9"))?;
    let template = |chart: &str| -> Result<Value> {
        let tag = format!("tunnel.image.tag={version}");
        let mut arguments = vec!["template", "warren", chart, "--namespace", "warren-system"];
        let kept = ["--set", &tag];
        arguments.extend(with(&kept));
        let objects = warren_deploy::objects(&warren_deploy::printed("helm", &arguments)?)?;
        Ok(object(&objects, "DaemonSet", "warren-tunnel")?["spec"]["template"].clone())
    };
    let old = template(&deploy("chart").display().to_string())?;
    assert_eq!(template(&chart.display().to_string())?, old);
    Ok(())
}

#[test]
fn names_of_accounts_follow_the_releases_namespace() -> Result<()> {
    if skipped("helm") {
        return Ok(());
    }
    let objects = rendered(&with(&["--namespace", "mesh"]))?;
    let text = serde_json::to_string(&objects)?;
    assert!(!text.contains("warren-system"));
    assert!(text.contains("system:serviceaccount:mesh:warren-agent"));
    Ok(())
}

#[test]
fn a_tunnel_that_is_to_have_several_shards_may_deal_packets_out_to_them() -> Result<()> {
    if skipped("helm") {
        return Ok(());
    }
    for (shards, argument, right) in [("0", false, false), ("1", true, false), ("4", true, true)] {
        let objects = rendered(&with(&["--set", &format!("tunnel.shards={shards}")]))?;
        let mut tunnels = objects.iter().filter(|object| {
            object["kind"] == "DaemonSet" && object["metadata"]["name"] == "warren-tunnel"
        });
        let container = &tunnels.next().unwrap()["spec"]["template"]["spec"]["containers"][0];
        let mut arguments = container["args"].as_array().unwrap().iter();
        let asked = arguments.any(|given| *given == format!("--shards={shards}"));
        assert_eq!(asked, argument, "{shards} shards");
        let mut added = vec!["NET_ADMIN", "NET_RAW"];
        added.extend(right.then_some("BPF"));
        let capabilities = &container["securityContext"]["capabilities"];
        assert_eq!(capabilities["add"], json!(added), "{shards} shards");
    }
    Ok(())
}

/// Every container with what it may; another right is another line here.
#[test]
fn containers_have_the_rights_that_they_need_and_no_more() -> Result<()> {
    if skipped("helm") {
        return Ok(());
    }
    let objects = rendered(&with(&[]))?;
    let mut seen = BTreeMap::new();
    for object in &objects {
        let pod = &object["spec"]["template"]["spec"];
        let kinds = ["initContainers", "containers"];
        let containers = kinds.iter().filter_map(|kind| pod[*kind].as_array());
        for container in containers.flatten() {
            let context = &container["securityContext"];
            let name = format!(
                "{} {}",
                object["metadata"]["name"].as_str().unwrap(),
                container["name"].as_str().unwrap()
            );
            assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
            assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(context["privileged"], Value::Null, "{name}");
            assert_eq!(context["capabilities"]["drop"], json!(["ALL"]), "{name}");
            assert!(
                container["resources"]["requests"]["memory"].is_string(),
                "{name}"
            );
            seen.insert(name, context["capabilities"]["add"].clone());
            assert_eq!(
                pod["securityContext"]["seccompProfile"]["type"],
                "RuntimeDefault"
            );
            assert_eq!(pod["automountServiceAccountToken"], false);
        }
    }
    let expected = BTreeMap::from([
        (
            "warren-agent agent".to_owned(),
            json!(["NET_ADMIN", "NET_RAW"]),
        ),
        ("warren-agent install-cni".to_owned(), Value::Null),
        (
            "warren-tunnel tunnel".to_owned(),
            json!(["NET_ADMIN", "NET_RAW"]),
        ),
        ("warren-uninstall done".to_owned(), json!(["NET_ADMIN"])),
        (
            "warren-uninstall uninstall".to_owned(),
            json!(["NET_ADMIN"]),
        ),
        ("warren-uninstall wait".to_owned(), Value::Null),
    ]);
    assert_eq!(seen, expected);
    Ok(())
}

#[test]
fn only_the_agent_and_the_job_of_the_uninstall_have_a_token_and_it_ends_after_an_hour() -> Result<()>
{
    if skipped("helm") {
        return Ok(());
    }
    let mut with_token = BTreeSet::new();
    for object in &rendered(&with(&[]))? {
        let volumes = object["spec"]["template"]["spec"]["volumes"].as_array();
        for volume in volumes.into_iter().flatten() {
            for source in volume["projected"]["sources"]
                .as_array()
                .into_iter()
                .flatten()
            {
                let token = &source["serviceAccountToken"];
                if token.is_object() {
                    assert_eq!(token["expirationSeconds"], 3600);
                    with_token.insert(format!("{} {}", object["kind"], object["metadata"]["name"]));
                }
            }
        }
    }
    let expected = [
        "\"DaemonSet\" \"warren-agent\"",
        "\"Job\" \"warren-uninstall\"",
    ];
    assert_eq!(with_token, expected.map(str::to_owned).into());
    Ok(())
}

/// A hook outlives what it is a hook of unless it says that it does not.
#[test]
fn all_of_the_uninstall_is_a_hook_that_goes_when_it_is_done() -> Result<()> {
    if skipped("helm") {
        return Ok(());
    }
    let mut hooks = 0;
    for object in &rendered(&with(&[]))? {
        let annotations = &object["metadata"]["annotations"];
        let is_of_uninstall = object["metadata"]["name"] == "warren-uninstall";
        assert_eq!(
            annotations["helm.sh/hook"] == "post-delete",
            is_of_uninstall,
            "{object}"
        );
        if is_of_uninstall {
            hooks += 1;
            let policy = &annotations["helm.sh/hook-delete-policy"];
            assert_eq!(policy, "before-hook-creation,hook-succeeded");
        }
    }
    assert_eq!(hooks, 7);
    Ok(())
}
