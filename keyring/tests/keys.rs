//! The properties of the three kinds of keys.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use subtle::ConstantTimeEq;
use warren_keyring::{KeyError, PresharedKey, PrivateKey, PublicKey};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// All encodings of all points of low order, made by arithmetic on p = 2^255 - 19 where they are
/// near 0 or p, and from the published list (<https://cr.yp.to/ecdh.html#validate>) else.
fn low_order_encodings() -> Vec<[u8; 32]> {
    let mut p = [0xff; 32];
    p[0] = 0xed;
    p[31] = 0x7f;
    let offset = |mut bytes: [u8; 32], by: i16| {
        bytes[0] = u8::try_from(i16::from(bytes[0]) + by).unwrap();
        bytes
    };
    let order_8 = [
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    ];
    let mut points = vec![[0; 32], offset([0; 32], 1), offset(p, -1), p, offset(p, 1)];
    for text in order_8 {
        let bytes: Vec<u8> = (0..32)
            .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
            .collect();
        points.push(bytes.try_into().unwrap());
    }
    let high_bit = points.clone().into_iter().map(|mut bytes| {
        bytes[31] |= 0x80;
        bytes
    });
    points.extend(high_bit);
    points
}

fn shared_secret(private: &PrivateKey, public: [u8; 32]) -> [u8; 32] {
    private
        .to_x25519()
        .diffie_hellman(&x25519_dalek::PublicKey::from(public))
        .to_bytes()
}

#[test]
fn every_constructor_refuses_every_low_order_point() {
    use base64::Engine as _;
    let encodings = low_order_encodings();
    assert_eq!(encodings.len(), 14);
    for bytes in encodings {
        for _ in 0..4 {
            let private = PrivateKey::generate().unwrap();
            assert_eq!(shared_secret(&private, bytes), [0; 32], "{}", hex(&bytes));
        }
        let base64 = base64::engine::general_purpose::STANDARD.encode(bytes);
        assert_eq!(
            PublicKey::from_bytes(bytes),
            Err(KeyError::LowOrder),
            "{}",
            hex(&bytes)
        );
        assert_eq!(PublicKey::try_from(bytes), Err(KeyError::LowOrder));
        assert_eq!(PublicKey::from_base64(&base64), Err(KeyError::LowOrder));
        assert_eq!(base64.parse::<PublicKey>(), Err(KeyError::LowOrder));
        assert_eq!(PublicKey::from_hex(&hex(&bytes)), Err(KeyError::LowOrder));
    }
}

#[test]
fn the_neighbours_of_low_order_points_are_keys() {
    let private = PrivateKey::generate().unwrap();
    for bytes in low_order_encodings() {
        for byte in [0, 15] {
            let mut neighbour = bytes;
            neighbour[byte] ^= 0x10;
            let accepted = PublicKey::from_bytes(neighbour).is_ok();
            assert_eq!(accepted, shared_secret(&private, neighbour) != [0; 32]);
            assert!(accepted, "{}", hex(&neighbour));
        }
    }
}

#[test]
fn bytes_are_clamped_like_wg_does() {
    let key = PrivateKey::from_bytes([0xff; 32]).unwrap();
    assert_eq!(key.as_bytes()[0], 0xf8);
    assert_eq!(key.as_bytes()[31], 0x7f);
    assert_eq!(key.as_bytes()[1..31], [0xff; 30]);
    assert_eq!(PrivateKey::from_bytes(*key.as_bytes()).unwrap(), key);
}

#[test]
fn generated_keys_are_clamped_and_differ() {
    let one = PrivateKey::generate().unwrap();
    let two = PrivateKey::generate().unwrap();
    assert_ne!(one, two);
    assert_ne!(one.public_key(), two.public_key());
    assert_eq!(one.as_bytes()[0] & 7, 0);
    assert_eq!(one.as_bytes()[31] & 0xc0, 0x40);
    assert_ne!(
        PresharedKey::generate().unwrap(),
        PresharedKey::generate().unwrap()
    );
}

#[test]
fn the_zero_private_key_is_refused() {
    let base64 = format!("{}=", "A".repeat(43));
    assert_eq!(
        PrivateKey::from_bytes([0; 32]),
        Err(KeyError::ZeroPrivateKey)
    );
    assert_eq!(
        PrivateKey::from_base64(&base64),
        Err(KeyError::ZeroPrivateKey)
    );
    assert_eq!(
        PrivateKey::from_hex(&"0".repeat(64)),
        Err(KeyError::ZeroPrivateKey)
    );
}

#[test]
fn the_zero_preshared_key_says_none() {
    assert!(PresharedKey::ZERO.is_zero());
    assert!(PresharedKey::from_hex(&"0".repeat(64)).unwrap().is_zero());
    let mut bytes = [0; 32];
    bytes[31] = 1;
    assert!(!PresharedKey::from_bytes(bytes).is_zero());
}

#[test]
fn public_keys_and_shared_secrets_are_those_of_rfc_7748_section_6_1() {
    let private = |text| PrivateKey::from_hex(text).unwrap();
    let public = |text| PublicKey::from_hex(text).unwrap();
    let alice = private("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a");
    let bob = private("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb");
    assert_eq!(
        alice.public_key(),
        public("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    );
    assert_eq!(
        bob.public_key(),
        public("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    );
    let secret = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742";
    assert_eq!(
        hex(&shared_secret(&alice, *bob.public_key().as_bytes())),
        secret
    );
    assert_eq!(
        hex(&shared_secret(&bob, *alice.public_key().as_bytes())),
        secret
    );
    let noise = bob
        .to_x25519()
        .diffie_hellman(&alice.public_key().to_x25519());
    assert_eq!(hex(noise.as_bytes()), secret);
}

#[test]
fn debug_of_a_secret_shows_nothing_of_it() {
    let private = PrivateKey::generate().unwrap();
    let preshared = PresharedKey::generate().unwrap();
    assert_eq!(
        format!("{private:?} {private:#?}"),
        "PrivateKey(redacted) PrivateKey(redacted)"
    );
    assert_eq!(format!("{preshared:?}"), "PresharedKey(redacted)");
}

#[test]
fn a_public_key_prints_as_base64_and_honours_width() {
    let key = PrivateKey::generate().unwrap().public_key();
    assert_eq!(format!("{key}"), key.to_base64());
    assert_eq!(format!("{key:?}"), key.to_base64());
    assert_eq!(format!("{key:<46}|"), format!("{}  |", key.to_base64()));
}

#[test]
fn only_canonical_padded_base64_of_44_characters_is_taken() {
    let good = PrivateKey::generate().unwrap().public_key().to_base64();
    let unpadded = good.trim_end_matches('=').to_owned();
    for text in [
        "",
        "=",
        &unpadded,
        &good[..40],
        &format!("{good}\n"),
        &format!(" {good}"),
    ] {
        assert_eq!(
            PublicKey::from_base64(text),
            Err(KeyError::Base64Length { found: text.len() }),
            "{text:?}"
        );
    }
    let mut not_canonical = "BAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_owned();
    assert!(PublicKey::from_base64(&not_canonical).is_ok());
    // The last character's two low bits lie beyond the key.
    not_canonical.replace_range(42..43, "B");
    for text in [
        not_canonical,
        format!("{unpadded}A"),
        format!("{}==", &unpadded[..42]),
        good.replacen(|_: char| true, "-", 1),
        good.replacen(|_: char| true, "_", 1),
        format!("{} =", &good[..42]),
        format!("{}\n", &unpadded),
        "é".repeat(22),
    ] {
        assert_eq!(
            PublicKey::from_base64(&text),
            Err(KeyError::Base64Encoding),
            "{text:?}"
        );
    }
}

#[test]
fn only_64_hexadecimal_digits_are_taken() {
    let key = PresharedKey::generate().unwrap();
    let good = key.to_hex();
    assert_eq!(PresharedKey::from_hex(&good.to_uppercase()).unwrap(), key);
    assert_eq!(
        PresharedKey::from_hex(&good[1..]),
        Err(KeyError::HexLength { found: 63 })
    );
    assert_eq!(
        PresharedKey::from_hex(""),
        Err(KeyError::HexLength { found: 0 })
    );
    for bad in ['g', '/', ':', '@', 'G', '`', '+', ' '] {
        let text = format!("{bad}{}", &good[1..]);
        assert_eq!(
            PresharedKey::from_hex(&text),
            Err(KeyError::HexEncoding),
            "{bad:?}"
        );
    }
    assert_eq!(
        PresharedKey::from_hex(&"é".repeat(32)),
        Err(KeyError::HexEncoding)
    );
}

proptest! {
    #[test]
    fn text_forms_round_trip(bytes in any::<[u8; 32]>()) {
        let private = PrivateKey::from_bytes(bytes).unwrap();
        prop_assert_eq!(&PrivateKey::from_base64(&private.to_base64()).unwrap(), &private);
        prop_assert_eq!(&PrivateKey::from_hex(&private.to_hex()).unwrap(), &private);
        prop_assert_eq!(&*private.to_hex(), &hex(private.as_bytes()));

        let preshared = PresharedKey::from_bytes(bytes);
        prop_assert_eq!(preshared.as_bytes(), &bytes);
        prop_assert_eq!(&PresharedKey::from_base64(&preshared.to_base64()).unwrap(), &preshared);
        prop_assert_eq!(&PresharedKey::from_hex(&preshared.to_hex()).unwrap(), &preshared);

        let public = PublicKey::from_bytes(bytes).unwrap();
        prop_assert_eq!(public.as_bytes(), &bytes);
        prop_assert_eq!(public.to_string().parse::<PublicKey>().unwrap(), public);
        prop_assert_eq!(PublicKey::from_hex(&public.to_hex()).unwrap(), public);
    }

    #[test]
    fn random_points_are_not_of_low_order(bytes in any::<[u8; 32]>()) {
        let private = PrivateKey::generate().unwrap();
        prop_assert!(PublicKey::from_bytes(bytes).is_ok());
        prop_assert_ne!(shared_secret(&private, bytes), [0; 32]);
    }

    #[test]
    fn secrets_are_equal_only_when_all_bytes_are(bytes in any::<[u8; 32]>(), at in 0usize..32) {
        let mut other = bytes;
        other[at] ^= 0x20;
        let (one, two) = (PresharedKey::from_bytes(bytes), PresharedKey::from_bytes(other));
        prop_assert!(one == one.clone() && one != two);
        prop_assert!(!bool::from(one.ct_eq(&two)));
        let (one, two) =
            (PrivateKey::from_bytes(bytes).unwrap(), PrivateKey::from_bytes(other).unwrap());
        prop_assert!(one == one.clone() && one != two);
        prop_assert!(!bool::from(one.ct_eq(&two)));
    }

    #[test]
    fn no_text_makes_a_parser_panic(text in ".{0,80}") {
        let _ = PublicKey::from_base64(&text);
        let _ = PublicKey::from_hex(&text);
        let _ = PrivateKey::from_base64(&text);
        let _ = PrivateKey::from_hex(&text);
    }
}
