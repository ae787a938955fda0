//! The files that a control plane authenticates itself and its clients with.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// Writes `ca.crt`, `server.crt`, `server.key` and `service-accounts.{key,pub}` to `directory`, and returns
/// the certificate of the authority in PEM.
pub(crate) fn write(directory: &Path, addresses: &[IpAddr]) -> Result<String> {
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    ca.distinguished_name
        .push(DnType::CommonName, "warren test authority");
    let ca_key = KeyPair::generate()?;
    let ca_pem = ca.self_signed(&ca_key)?.pem();

    let names = ["localhost", "kubernetes", "kubernetes.default.svc"].map(str::to_owned);
    let names = names
        .into_iter()
        .chain(addresses.iter().map(ToString::to_string));
    let mut server = CertificateParams::new(names.collect::<Vec<_>>())?;
    server
        .distinguished_name
        .push(DnType::CommonName, "kube-apiserver");
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let server_key = KeyPair::generate()?;
    let server_pem = server
        .signed_by(&server_key, &Issuer::from_params(&ca, &ca_key))?
        .pem();

    let tokens_key = KeyPair::generate()?;
    for (name, content) in [
        ("ca.crt", ca_pem.clone()),
        ("server.crt", server_pem),
        ("server.key", server_key.serialize_pem()),
        ("service-accounts.key", tokens_key.serialize_pem()),
        ("service-accounts.pub", tokens_key.public_key_pem()),
    ] {
        let path = directory.join(name);
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(ca_pem)
}
