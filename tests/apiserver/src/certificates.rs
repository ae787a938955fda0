//! The files that a control plane authenticates itself and its clients with.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};

/// Writes `ca.{crt,key}`, `server.{crt,key}` and `service-accounts.{key,pub}` to `directory`, and returns the
/// certificate of the authority in PEM.
pub(crate) fn write(directory: &Path, addresses: &[IpAddr]) -> Result<String> {
    let ca = authority();
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
        ("ca.key", ca_key.serialize_pem()),
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

/// Makes a certificate of the authority in `directory` for a server of this name; both in PEM, the key last.
///
/// # Errors
/// Those of the authority's files, and of a name that is none.
pub(crate) fn serving(directory: &Path, name: &str) -> Result<(String, String)> {
    let (ca, ca_key) = (authority(), authority_key(directory)?);
    let mut server = CertificateParams::new(vec![name.to_owned()])?;
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    let certificate = server.signed_by(&key, &Issuer::from_params(&ca, ca_key))?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// Writes a client certificate of the authority in `directory`, and returns the paths of it and of its key.
///
/// # Errors
/// Those of the files, and of a key that is none.
pub(crate) fn write_client(
    directory: &Path,
    user: &str,
    groups: &[&str],
) -> Result<(PathBuf, PathBuf)> {
    let (ca, ca_key) = (authority(), authority_key(directory)?);
    let issuer = Issuer::from_params(&ca, ca_key);
    let mut client = CertificateParams::default();
    client.distinguished_name = DistinguishedName::new();
    client.distinguished_name.push(DnType::CommonName, user);
    for &group in groups {
        client
            .distinguished_name
            .push(DnType::OrganizationName, group);
    }
    client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate()?;
    let path = |end: &str| directory.join(format!("{}.{end}", user.replace(':', "-")));
    let (certificate, private) = (path("crt"), path("key"));
    fs::write(&certificate, client.signed_by(&key, &issuer)?.pem())?;
    fs::write(&private, key.serialize_pem())?;
    Ok((certificate, private))
}

fn authority_key(directory: &Path) -> Result<KeyPair> {
    let key = fs::read_to_string(directory.join("ca.key")).context("read the authority's key")?;
    Ok(KeyPair::from_pem(&key)?)
}

fn authority() -> CertificateParams {
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    ca.distinguished_name
        .push(DnType::CommonName, "warren test authority");
    ca
}
