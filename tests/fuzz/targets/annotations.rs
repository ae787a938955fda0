//! A node's annotations, as anybody may set them who can write to the registry: five values with a
//! NUL between, in a node that is well otherwise.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_core::consts::annotation;
use warren_fuzz::mesh::{meet, view};

fuzz_target!(|content: &[u8]| {
    let keys = [
        annotation::PUBLIC_KEY,
        annotation::ENDPOINT,
        annotation::FORCE_ENDPOINT,
        annotation::MTU,
        annotation::DATA_PLANE,
        annotation::NEXT_PUBLIC_KEY,
    ];
    let mut node = view(3);
    for (key, value) in keys.into_iter().zip(content.split(|byte| *byte == 0)) {
        // An empty value leaves the annotation as it is.
        if !value.is_empty() {
            let value = String::from_utf8_lossy(value).into_owned();
            node.annotations.insert(key.into(), value);
        }
    }
    meet(&node);
});
