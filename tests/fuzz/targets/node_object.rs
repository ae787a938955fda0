//! A Node object in JSON, as an API server sends it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_core::kubernetes::NodeObject;
use warren_fuzz::mesh::meet;

fuzz_target!(|content: &[u8]| {
    let Ok(node) = serde_json::from_slice::<NodeObject>(content) else {
        return;
    };
    let _ = node.network_condition();
    meet(&node.view());
});
