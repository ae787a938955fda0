//! The network configuration: what is read, what is tolerated, what is refused and how.

#![allow(
    clippy::unwrap_used,
    reason = "in a test a failed step is a failed test"
)]

use serde_json::{Value, json};
use warren_cni::Error;
use warren_cni::config::{LogLevel, MAX_CONFIG_BYTES, NetConf};

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
    assert_eq!((conf.mtu_bytes, conf.log_level), (None, LogLevel::Info));
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
    assert_eq!(
        (conf.mtu_bytes, conf.log_level),
        (Some(1280), LogLevel::Debug)
    );
    assert_eq!(conf.dns.nameservers, ["10.0.0.1", "fd00::1"]);
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
        let error = parse(|conf| conf[key] = value.clone()).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.code(), 7, "{text}");
        let named = [key, &value.to_string(), allowed]
            .iter()
            .all(|part| text.contains(part));
        assert!(named, "{text}");
    }
    let error = parse(|conf| conf["dns"] = json!({"nameservers": ["dns.example"]})).unwrap_err();
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
