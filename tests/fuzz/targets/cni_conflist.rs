//! A network configuration list as an operator writes it, taken apart as libcni does it: each plugin
//! gets its own object with the list's name and version.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use warren_cni::config::NetConf;

fuzz_target!(|content: &[u8]| {
    let Ok(list) = serde_json::from_slice::<Value>(content) else {
        return;
    };
    let plugins = list["plugins"].as_array().cloned().unwrap_or_default();
    let newest = list["cniVersions"]
        .as_array()
        .and_then(|all| all.last())
        .cloned();
    for plugin in plugins {
        for version in [Some(list["cniVersion"].clone()), newest.clone()]
            .into_iter()
            .flatten()
        {
            let mut conf = plugin.clone();
            let Some(object) = conf.as_object_mut() else {
                continue;
            };
            object.insert("name".into(), list["name"].clone());
            object.insert("cniVersion".into(), version);
            // Capabilities are for the runtime; what it makes of them is runtimeConfig.
            if let Some(asked) = object.remove("capabilities") {
                object.entry("runtimeConfig").or_insert(asked);
            }
            let text = conf.to_string();
            if let Ok(parsed) = NetConf::parse(text.as_bytes()) {
                let first = parsed.pod().map_err(|error| error.to_string());
                let again = parsed.pod().map_err(|error| error.to_string());
                assert_eq!(first, again);
                if let Err(error) = first {
                    assert!(error.len() < 2048, "an error repeats its input: {error}");
                }
            }
        }
    }
});
