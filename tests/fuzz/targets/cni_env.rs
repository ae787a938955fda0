//! The environment of a call of the CNI plugin: `NAME=value` with a zero byte behind each.
#![no_main]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use libfuzzer_sys::fuzz_target;
use warren_cni::env::{CniRequest, EnvError, SUPPORTED_VERBS};
use warren_cni::plan::host_name;

fuzz_target!(|input: &[u8]| {
    let pairs: Vec<(&[u8], &[u8])> = input
        .split(|byte| *byte == 0)
        .filter_map(|pair| {
            let at = pair.iter().position(|byte| *byte == b'=')?;
            Some((&pair[..at], &pair[at + 1..]))
        })
        .collect();
    let get = |name: &str| {
        let pair = pairs.iter().find(|(key, _)| *key == name.as_bytes());
        pair.map(|(_, value)| OsString::from_vec(value.to_vec()))
    };
    match CniRequest::from_env(get) {
        Ok(CniRequest::Add(pod) | CniRequest::Check(pod)) => {
            let name = host_name(&pod.attachment);
            assert!(name.len() == 15 && !pod.netns.as_os_str().is_empty());
        }
        Ok(_) => {}
        // What is refused is refused by name.
        Err(EnvError::Missing(names)) => assert!(!names.is_empty()),
        Err(EnvError::Invalid(invalid)) => {
            assert!(
                invalid
                    .iter()
                    .all(|variable| variable.name.starts_with("CNI_"))
            );
        }
        Err(EnvError::UnsupportedVerb { verb }) => {
            assert!(!SUPPORTED_VERBS.contains(&&*verb));
        }
    }
});
