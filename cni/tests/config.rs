//! The network configuration: what is read, what is tolerated, what is refused and how.

#![allow(
    clippy::unwrap_used,
    reason = "in a test a failed step is a failed test"
)]

use serde_json::{Value, json};
use warren_cni::Error;
use warren_cni::config::{LogLevel, MAX_CONFIG_BYTES, NetConf, PodConf};

fn parse_pod(change: impl FnOnce(&mut Value)) -> Result<PodConf, Error> {
    parse(change)?.pod().map_err(Error::from)
}

fn parse(change: impl FnOnce(&mut Value)) -> Result<NetConf, Error> {
    let mut conf = json!({"cniVersion": "1.0.0", "name": "warren", "type": "warren-cni"});
    change(&mut conf);
    NetConf::parse(conf.to_string().as_bytes()).map_err(Error::from)
}

#[test]
fn defaults_and_unknown_keys() {
    let conf = parse(|conf| {
        conf["somethingNew"] = json!({"a": [1, 2]});
        conf["mtu"] = Value::Null;
    })
    .unwrap();
    assert_eq!(conf.name, "warren");
    assert_eq!(conf.state_dir.to_str(), Some("/var/lib/warren"));
    assert_eq!(conf.run_dir.to_str(), Some("/run/warren"));
    assert_eq!(conf.log_level, LogLevel::Info);
    let pod = conf.pod().unwrap();
    let default = PodConf {
        network_mac: pod.network_mac,
        ..PodConf::default()
    };
    assert_eq!(pod, default);
    assert_ne!(pod.network_mac, PodConf::default().network_mac);
    assert_eq!(conf.valid_attachments().unwrap(), None);
    assert_eq!((conf.prev_result, conf.log_file), (None, None));
}

#[test]
fn every_key_is_read() {
    let conf = parse(|conf| {
        conf["stateDir"] = json!("/s");
        conf["runDir"] = json!("/r");
        conf["mtu"] = json!(1280);
        conf["logFile"] = json!("/l");
        conf["logLevel"] = json!("debug");
        conf["dns"] = json!({"nameservers": ["10.0.0.1", "fd00::1"], "domain": "x"});
        conf["prevResult"] = json!({});
    })
    .unwrap();
    assert_eq!(conf.state_dir.to_str(), Some("/s"));
    assert_eq!(conf.run_dir.to_str(), Some("/r"));
    assert_eq!(conf.log_level, LogLevel::Debug);
    let pod = conf.pod().unwrap();
    assert_eq!(pod.mtu_bytes, Some(1280));
    assert_eq!(pod.dns.nameservers, ["10.0.0.1", "fd00::1"]);
    assert_eq!(conf.prev_result, Some(json!({})));
    assert_eq!(conf.log_file.unwrap().to_str(), Some("/l"));
}

#[test]
fn wrong_values_are_refused_by_key_value_and_what_is_allowed() {
    let cases = [
        ("name", json!(""), "matching"),
        ("name", json!("a/b"), "matching"),
        ("name", json!(7), "matching"),
        ("type", json!("/bin/x"), "file name"),
        ("stateDir", json!("relative"), "absolute"),
        ("runDir", json!([]), "absolute"),
        ("logFile", json!("x.log"), "absolute"),
        ("mtu", json!(1279), "1280 to 65535"),
        ("mtu", json!(65_536), "1280 to 65535"),
        ("mtu", json!(-1), "1280 to 65535"),
        ("mtu", json!("1500"), "1280 to 65535"),
        ("mtu", json!(1500.5), "1280 to 65535"),
        ("logLevel", json!("loud"), "\"warn\""),
        (
            "dns",
            json!({"nameservers": "10.0.0.1"}),
            "lists of strings",
        ),
    ];
    for (key, value, allowed) in cases {
        let error = parse_pod(|conf| conf[key] = value.clone()).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.code(), 7, "{text}");
        let named = [key, &value.to_string(), allowed]
            .iter()
            .all(|part| text.contains(part));
        assert!(named, "{text}");
    }
    let error =
        parse_pod(|conf| conf["dns"] = json!({"nameservers": ["dns.example"]})).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("dns.nameservers = \"dns.example\""),
        "{error}"
    );
}

#[test]
fn missing_keys_are_named() {
    for key in ["name", "type"] {
        let error = parse(|conf| drop(conf.as_object_mut().unwrap().remove(key))).unwrap_err();
        assert_eq!(error.code(), 7);
        assert!(error.to_string().contains(key), "{error}");
    }
}

#[test]
fn what_is_no_json_object_cannot_be_decoded() {
    for bad in ["", "  \n", "{", "[]", "null", "\"x\"", "{}x", "\u{feff}{}"] {
        let error = Error::from(NetConf::parse(bad.as_bytes()).unwrap_err());
        assert_eq!(error.code(), 6, "{bad:?}: {error}");
    }
    let deep = "[".repeat(100_000);
    assert_eq!(
        Error::from(NetConf::parse(deep.as_bytes()).unwrap_err()).code(),
        6
    );
}

#[test]
fn versions_outside_the_list_are_refused_with_the_list() {
    for good in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        assert_eq!(
            parse(|conf| conf["cniVersion"] = json!(good))
                .unwrap()
                .version
                .as_str(),
            good
        );
    }
    for bad in ["0.3.0", "0.2.0", "1.2.0", "", "1.0"] {
        let error = parse(|conf| conf["cniVersion"] = json!(bad)).unwrap_err();
        assert_eq!(error.code(), 1, "{error}");
        assert!(
            error.to_string().contains("0.3.1, 0.4.0, 1.0.0, 1.1.0"),
            "{error}"
        );
    }
    let error = parse(|conf| drop(conf.as_object_mut().unwrap().remove("cniVersion")));
    assert_eq!(error.unwrap_err().code(), 1);
}

#[test]
fn a_configuration_that_is_too_long_is_refused() {
    let error = parse(|conf| conf["x"] = json!("y".repeat(MAX_CONFIG_BYTES))).unwrap_err();
    assert_eq!(error.code(), 7);
    // A long value is not repeated in full.
    let error = parse(|conf| conf["name"] = json!("/".repeat(1000))).unwrap_err();
    assert!(error.to_string().len() < 400, "{error}");
}

#[test]
fn ranges_routes_and_what_is_asked_are_read() {
    let pod = parse_pod(|conf| {
        conf["ranges"] = json!([
            {"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.10", "rangeEnd": "10.244.1.20",
             "gateway": "10.244.1.254", "exclude": ["10.244.1.12", "10.244.1.16/30"], "new": 1},
            {"subnet": "fd00:0:0:1::/64"},
        ]);
        conf["routes"] = json!([
            {"dst": "192.0.2.7/24", "mtu": 68, "advmss": 9, "priority": 0, "table": 1, "scope": 0},
            {"dst": "::/0", "gw": "fe80::1"},
        ]);
        conf["ipMasq"] = json!(false);
        conf["runtimeConfig"] = json!({
            "ips": ["10.244.1.11/24", "fd00:0:0:1::b"], "mac": "C2-00-00-00-00-01",
            "aliases": ["Primary-DB", "db.example"], "portMappings": null,
        });
        conf["args"] = json!({"cni": {"ips": ["10.244.1.19"]}, "other": 7});
        conf["ipam"] = json!({});
    });
    let pod = pod.unwrap();
    let (v4, v6) = (&pod.ranges[0], &pod.ranges[1]);
    assert_eq!(v4.first, Some("10.244.1.10".parse().unwrap()));
    assert_eq!(v4.gateway, Some("10.244.1.254".parse().unwrap()));
    assert_eq!(v4.exclude.len(), 2);
    assert_eq!((v6.first, v6.last, v6.gateway), (None, None, None));
    assert_eq!(pod.routes[0].dst.to_string(), "192.0.2.0/24");
    assert_eq!(
        (pod.routes[0].priority, pod.routes[0].table),
        (Some(0), Some(1))
    );
    assert_eq!(pod.masquerade, Some(false));
    assert_eq!(pod.asked.ips.len(), 2);
    assert_eq!(pod.asked.mac, Some([0xc2, 0, 0, 0, 0, 1]));
    assert_eq!(pod.asked.aliases, ["primary-db", "db.example"]);
    let args = parse_pod(|conf| conf["args"] = json!({"cni": {"ips": ["10.244.1.19"]}})).unwrap();
    assert_eq!(
        args.asked.ips,
        ["10.244.1.19".parse::<std::net::IpAddr>().unwrap()]
    );
}

#[test]
fn wrong_values_inside_are_refused_with_the_way_to_them() {
    let range = |key: &str, value: Value| {
        let mut range = json!({"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.9"});
        range[key] = value;
        json!([{"subnet": "fd00::/64"}, range])
    };
    let route = |key: &str, value: Value| {
        let mut route = json!({"dst": "2001:db8::/32"});
        route[key] = value;
        json!([route])
    };
    let cases = [
        ("ranges", json!({}), "ranges = {}"),
        ("ranges", json!([7]), "ranges[0] = 7"),
        ("ranges", json!([{}]), "ranges[0].subnet = null"),
        (
            "ranges",
            range("subnet", json!("10.244.1.1/24")),
            "ranges[1].subnet",
        ),
        (
            "ranges",
            range("rangeStart", json!("10.244.2.1")),
            "ranges[1].rangeStart",
        ),
        (
            "ranges",
            range("rangeEnd", json!("10.244.1.8")),
            "ranges[1].rangeEnd",
        ),
        (
            "ranges",
            range("gateway", json!("fd00::1")),
            "ranges[1].gateway",
        ),
        (
            "ranges",
            range("gateway", json!("10.244.1.1/24")),
            "ranges[1].gateway",
        ),
        (
            "ranges",
            range("exclude", json!(["10.244.2.0/28"])),
            "ranges[1].exclude[0]",
        ),
        (
            "ranges",
            range("exclude", json!("10.244.1.7")),
            "ranges[1].exclude",
        ),
        ("routes", json!([{}]), "routes[0].dst = null"),
        ("routes", route("gw", json!("10.0.0.1")), "routes[0].gw"),
        ("routes", route("mtu", json!(1279)), "routes[0].mtu"),
        ("routes", route("advmss", json!(0)), "routes[0].advmss"),
        ("routes", route("priority", json!(-1)), "routes[0].priority"),
        ("routes", route("table", json!(255)), "routes[0].table"),
        ("routes", route("scope", json!(253)), "routes[0].scope"),
        ("masquerade", json!("no"), "masquerade = \"no\""),
        ("runtimeConfig", json!([]), "runtimeConfig = []"),
        (
            "runtimeConfig",
            json!({"ips": ["0.0.0.0"]}),
            "runtimeConfig.ips[0]",
        ),
        (
            "runtimeConfig",
            json!({"mac": "01:00:5e:00:00:01"}),
            "runtimeConfig.mac",
        ),
        (
            "runtimeConfig",
            json!({"aliases": ["a b"]}),
            "runtimeConfig.aliases[0]",
        ),
        ("args", json!({"cni": {"ips": "x"}}), "args.cni.ips"),
    ];
    for (key, value, way) in cases {
        let error = parse_pod(|conf| conf[key] = value.clone()).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.code(), 7, "{text}");
        assert!(
            text.contains(way) && text.contains("must be"),
            "{way}: {text}"
        );
    }
    let error = parse_pod(|conf| {
        conf["masquerade"] = json!(true);
        conf["ipMasq"] = json!(false);
    });
    assert!(error.unwrap_err().to_string().contains("ipMasq = false"));
}

#[test]
fn what_is_not_supported_is_refused_by_key_and_value() {
    let cases = [
        (
            "ipam",
            json!({"type": "host-local"}),
            "ipam = {\"type\":\"host-local\"}",
        ),
        (
            "runtimeConfig",
            json!({"portMappings": []}),
            "runtimeConfig.portMappings = []",
        ),
        (
            "runtimeConfig",
            json!({"bandwidth": {"a": 1}}),
            "runtimeConfig.bandwidth",
        ),
        (
            "runtimeConfig",
            json!({"ips": ["10.0.0.1", "10.0.0.2"]}),
            "runtimeConfig.ips = \"10.0.0.2\"",
        ),
    ];
    for (key, value, named) in cases {
        let error = parse_pod(|conf| conf[key] = value.clone()).unwrap_err();
        assert_eq!(error.code(), 2, "{error}");
        assert!(error.to_string().contains(named), "{error}");
    }
}

#[test]
fn a_slip_in_what_describes_pods_does_not_keep_them_from_being_removed() {
    let conf = parse(|conf| {
        conf["mtu"] = json!("x");
        conf["ranges"] = json!(7);
    })
    .unwrap();
    assert!(conf.pod().is_err());
    assert_eq!(conf.valid_attachments().unwrap(), None);
}

#[test]
fn the_list_of_valid_attachments_is_a_list_or_an_error() {
    let key = "cni.dev/valid-attachments";
    let list = |value: Value| parse(|conf| conf[key] = value).unwrap().valid_attachments();
    assert_eq!(list(Value::Null).unwrap(), None);
    assert_eq!(list(json!([])).unwrap(), Some(Vec::new()));
    let two = json!([
        {"containerID": "a", "ifname": "eth0"},
        {"containerID": "b", "ifname": "net1", "more": true},
    ]);
    let two: Vec<String> = list(two)
        .unwrap()
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(two, ["a/eth0", "b/net1"]);
    for bad in [
        json!({}),
        json!("a"),
        json!([7]),
        json!([{"containerID": "a"}]),
        json!([{"containerID": "a/b", "ifname": "eth0"}]),
        json!([{"containerID": "a", "ifname": ""}]),
    ] {
        let error = Error::from(list(bad.clone()).unwrap_err());
        assert_eq!(error.code(), 7, "{bad}");
        assert!(error.to_string().contains(key), "{error}");
    }
}
