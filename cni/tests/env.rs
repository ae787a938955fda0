//! The environment of each verb.

#![allow(
    clippy::unwrap_used,
    reason = "in a test a failed step is a failed test"
)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use warren_cni::args::CniArgs;
use warren_cni::env::{CniRequest, EnvError};

fn request(pairs: &[(&str, &str)]) -> Result<CniRequest, EnvError> {
    let env: BTreeMap<&str, &str> = pairs.iter().copied().collect();
    CniRequest::from_env(|name| env.get(name).map(OsString::from))
}

fn add_with(name: &str, value: &str) -> Result<CniRequest, EnvError> {
    let mut env = BTreeMap::from([
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/c1"),
        ("CNI_IFNAME", "eth0"),
    ]);
    env.insert(name, value);
    request(&env.into_iter().collect::<Vec<_>>())
}

#[test]
fn each_verb_reports_all_missing_variables_at_once() {
    let missing = |pairs: &[(&str, &str)]| match request(pairs) {
        Err(EnvError::Missing(names)) => names,
        other => panic!("{other:?}"),
    };
    assert_eq!(missing(&[]), ["CNI_COMMAND"]);
    assert_eq!(
        missing(&[("CNI_COMMAND", "ADD")]),
        ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]
    );
    // An empty value is a missing one.
    assert_eq!(
        missing(&[
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "a"),
            ("CNI_NETNS", "")
        ]),
        ["CNI_NETNS", "CNI_IFNAME"]
    );
    assert_eq!(
        missing(&[("CNI_COMMAND", "CHECK"), ("CNI_IFNAME", "eth0")]),
        ["CNI_CONTAINERID", "CNI_NETNS"]
    );
    assert_eq!(
        missing(&[("CNI_COMMAND", "DEL")]),
        ["CNI_CONTAINERID", "CNI_IFNAME"]
    );
    assert_eq!(missing(&[("CNI_COMMAND", "GC")]), ["CNI_PATH"]);
}

#[test]
fn version_and_status_need_the_verb_alone_and_del_no_netns() {
    assert_eq!(
        request(&[("CNI_COMMAND", "VERSION")]),
        Ok(CniRequest::Version)
    );
    assert_eq!(
        request(&[("CNI_COMMAND", "STATUS")]),
        Ok(CniRequest::Status)
    );
    assert_eq!(
        request(&[("CNI_COMMAND", "GC"), ("CNI_PATH", "/opt/cni/bin")]),
        Ok(CniRequest::Gc)
    );
    let del = [
        ("CNI_COMMAND", "DEL"),
        ("CNI_CONTAINERID", "a"),
        ("CNI_IFNAME", "eth0"),
    ];
    assert!(matches!(request(&del), Ok(CniRequest::Del { .. })));
}

#[test]
fn verbs_that_are_not_carried_out_are_refused_by_name() {
    for verb in ["add", "UPDATE", "ADD "] {
        let error = request(&[("CNI_COMMAND", verb)]).unwrap_err().to_string();
        assert!(
            error.contains(verb) && error.contains("ADD, DEL, CHECK, GC, STATUS, VERSION"),
            "{error}"
        );
    }
}

#[test]
fn container_ids_follow_the_specification() {
    let long = "a".repeat(254);
    for good in ["a", "0", "c-1_2.3", "A.b", &long] {
        assert!(add_with("CNI_CONTAINERID", good).is_ok(), "{good}");
    }
    let too_long = "a".repeat(255);
    for bad in ["-a", ".a", "_a", "a/b", "a b", "ä", "a\n", &too_long] {
        let error = add_with("CNI_CONTAINERID", bad).unwrap_err();
        assert!(error.to_string().contains("CNI_CONTAINERID"), "{error}");
    }
}

#[test]
fn interface_names_follow_the_kernel() {
    for good in ["e", "eth0", "eth0.5", "...", "a23456789012345"] {
        assert!(add_with("CNI_IFNAME", good).is_ok(), "{good}");
    }
    for bad in [
        ".",
        "..",
        "a/b",
        "a:b",
        "a b",
        "a\tb",
        "a234567890123456",
        "e\u{a0}",
        // The kernel would take it as a pattern.
        "eth%d",
    ] {
        let error = add_with("CNI_IFNAME", bad).unwrap_err();
        assert!(error.to_string().contains("CNI_IFNAME"), "{error}");
    }
}

#[test]
fn all_invalid_variables_are_named_at_once() {
    let error = request(&[
        ("CNI_COMMAND", "DEL"),
        ("CNI_CONTAINERID", "a/b"),
        ("CNI_IFNAME", ".."),
    ]);
    let text = error.unwrap_err().to_string();
    assert!(
        text.contains("CNI_CONTAINERID") && text.contains("CNI_IFNAME"),
        "{text}"
    );
}

#[test]
fn a_value_that_is_no_text_is_refused() {
    let env = |name: &str| match name {
        "CNI_COMMAND" => Some("DEL".into()),
        "CNI_CONTAINERID" => Some(OsString::from_vec(vec![b'a', 0xff])),
        _ => Some("eth0".into()),
    };
    assert!(matches!(
        CniRequest::from_env(env),
        Err(EnvError::Invalid(_))
    ));
}

fn args(value: &str) -> CniArgs {
    match add_with("CNI_ARGS", value) {
        Ok(CniRequest::Add(request)) => request.args,
        other => panic!("{value}: {other:?}"),
    }
}

#[test]
fn the_pod_is_read_from_the_arguments_when_they_name_one() {
    let both = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;X=y";
    assert_eq!(args(both).pod.as_deref(), Some("default/web-0"));
    for other in [
        "",
        ";;",
        "K8S_POD_NAME=web",
        "K8S_POD_NAMESPACE=a/b;K8S_POD_NAME=c",
        "K8S_POD_INFRA_CONTAINER_ID=0123;K8S_POD_UID=7",
    ] {
        assert_eq!(args(other).pod, None, "{other}");
    }
}

#[test]
fn an_address_and_a_hardware_address_can_be_asked_for() {
    let asked = args("IP=10.244.1.9/24;MAC=C2:11:22:33:44:55");
    assert_eq!(asked.ip, Some("10.244.1.9".parse().unwrap()));
    assert_eq!(asked.mac, Some([0xc2, 0x11, 0x22, 0x33, 0x44, 0x55]));
    assert_eq!(args("IP=fd00::9").ip, Some("fd00::9".parse().unwrap()));
}

#[test]
fn arguments_that_are_wrong_or_unknown_are_refused_by_name() {
    for (bad, words) in [
        ("X", "key=value"),
        ("X=y", "IgnoreUnknown"),
        ("IgnoreUnknown=0;X=y", "IgnoreUnknown"),
        ("IgnoreUnknown=maybe", "true"),
        ("IP=10.244.1.256", "an address"),
        ("IP=127.0.0.1", "an address"),
        ("MAC=01:00:5e:00:00:01", "unicast"),
        ("MAC=00:00:00:00:00:00", "unicast"),
        ("MAC=c2:11:22:33:44", "unicast"),
        ("MAC=+2:11:22:33:44:55", "unicast"),
    ] {
        let text = add_with("CNI_ARGS", bad).unwrap_err().to_string();
        let pair = bad.rsplit(';').next().unwrap();
        let named = ["CNI_ARGS", pair, words].iter().all(|w| text.contains(w));
        assert!(named, "{text}");
    }
    // IgnoreUnknown excuses what is unknown, not what is wrong.
    assert!(add_with("CNI_ARGS", "X=y;IgnoreUnknown=true").is_ok());
    assert!(add_with("CNI_ARGS", "IP=x;IgnoreUnknown=true").is_err());
}

#[test]
fn a_del_does_not_fail_on_its_arguments() {
    let del = [
        ("CNI_COMMAND", "DEL"),
        ("CNI_CONTAINERID", "a"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", "nonsense"),
    ];
    assert!(request(&del).is_ok());
}
