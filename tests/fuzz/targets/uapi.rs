//! UAPI: requests as a client may send them, and answers as a server may.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_core::uapi::{Device, Request};
use warren_keyring::PrivateKey;
use warren_tunnel::{Engine, EngineConfig, Now};

fuzz_target!(|text: &str| {
    let _ = Device::parse(text);
    let Ok(Request::Set(set)) = Request::parse(text) else {
        return;
    };
    let again = Request::parse(&set.to_text());
    assert_eq!(
        again,
        Ok(Request::Set(set.clone())),
        "what is written is read back as another request"
    );
    let key = PrivateKey::from_bytes([0x41; 32]).expect("a constant that is a key");
    let mut engine = Engine::new(EngineConfig::new(Some(key), 7));
    if engine.apply(Now::read(), &set).is_ok() {
        let shown = engine.get().to_text();
        let read = Device::parse(&format!("{}errno=0\n\n", &*shown));
        assert!(read.is_ok(), "{read:?} of {}", &*shown);
    }
});
