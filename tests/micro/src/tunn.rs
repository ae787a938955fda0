//! boringtun's sessions as they are.

use boringtun::noise::{Tunn, TunnResult};
use warren_keyring::PrivateKey;

/// Two ends with a session.
pub(crate) fn connected() -> (Tunn, Tunn) {
    let keys = [0, 1].map(|_| PrivateKey::generate().unwrap());
    let tunn = |own: usize, other: usize| {
        let other = keys[other].public_key().to_x25519();
        Tunn::new(keys[own].to_x25519(), other, None, None, own as u32, None)
    };
    let (mut a, mut b) = (tunn(0, 1), tunn(1, 0));
    let mut room = [0; 2048];
    let initiation = sent(a.format_handshake_initiation(&mut room, false));
    let response = sent(b.decapsulate(None, &initiation, &mut room));
    let keepalive = sent(a.decapsulate(None, &response, &mut room));
    let confirmed = b.decapsulate(None, &keepalive, &mut room);
    assert!(matches!(confirmed, TunnResult::Done), "{confirmed:?}");
    (a, b)
}

/// What is to be sent.
pub(crate) fn sent(result: TunnResult<'_>) -> Vec<u8> {
    match result {
        TunnResult::WriteToNetwork(message) => message.to_vec(),
        other => panic!("nothing to send: {other:?}"),
    }
}
