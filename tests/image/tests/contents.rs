//! What is in the images, and that the same sources give the same bytes.
#![allow(clippy::unwrap_used)] // in a test, a failed unwrap is the report

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use serde_json::Value;
use warren_image_suite::{IMAGES, Image, directory, output, reference, source, tar};

/// The largest that an image may be, compressed, in bytes.
const LIMIT: u64 = 16 << 20;

fn programs(image: &str) -> BTreeSet<&str> {
    match image {
        "tunnel" => ["/usr/bin/warren", "/usr/bin/warren-tunnel"].into(),
        "agent" => ["/usr/bin/warren", "/usr/bin/warren-agent", "/usr/sbin/nft"].into(),
        _ => ["/usr/bin/warren", "/usr/bin/warren-cni"].into(),
    }
}

#[test]
fn an_image_holds_its_programs_and_nothing_that_a_shell_or_another_user_could_use() -> Result<()> {
    for name in IMAGES {
        let image = Image::open(&tar(name)?)?;
        for entry in image.entries()? {
            assert_eq!(entry.owner, "0/0", "{entry:?}");
            assert_eq!(entry.time, "1970-01-01 00:00:00", "{entry:?}");
            let (kind, mode) = entry.mode.split_at(1);
            match kind {
                "d" => assert_eq!(mode, "rwxr-xr-x", "{entry:?}"),
                "-" => assert!(["rwxr-xr-x", "rw-r--r--"].contains(&mode), "{entry:?}"),
                _ => panic!("neither file nor directory: {entry:?}"),
            }
            if kind == "-" && mode.contains('x') {
                let is_library = entry.path.contains(".so");
                let path = entry.path.as_str();
                assert!(is_library || programs(name).contains(path), "{entry:?}");
            }
        }
        let root = image.unpack()?;
        for program in programs(name) {
            assert!(root.path().join(&program[1..]).is_file(), "{program}");
        }
    }
    Ok(())
}

#[test]
fn an_image_says_what_it_is() -> Result<()> {
    for name in IMAGES {
        let image = Image::open(&tar(name)?)?;
        let annotations = &image.descriptor["annotations"];
        assert_eq!(annotations["io.containerd.image.name"], reference(name));
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(annotations["org.opencontainers.image.ref.name"], version);

        let labels = &image.config["config"]["Labels"];
        assert_eq!(*labels, image.manifest["annotations"]);
        let label = |key: &str| &labels[format!("org.opencontainers.image.{key}")];
        assert_eq!(label("title"), &format!("warren-{name}"));
        assert_eq!(label("version"), version);
        assert_eq!(label("licenses"), "Apache-2.0");
        assert!(label("revision").as_str().is_some_and(|it| it.len() >= 40));

        let config = &image.config["config"];
        assert_eq!(config["User"], "0:0");
        let program = match name {
            "cni" => "/usr/bin/warren".to_owned(),
            _ => format!("/usr/bin/warren-{name}"),
        };
        assert_eq!(config["Entrypoint"], serde_json::json!([program]));
        assert_eq!(image.config["architecture"], "amd64");
        // What containerd unpacks must be what the configuration names.
        let layers = image.layers()?;
        let diffs = image.config["rootfs"]["diff_ids"].as_array().unwrap();
        assert_eq!(layers.len(), diffs.len());
        for (layer, diff) in layers.iter().zip(diffs) {
            let mut sum = Command::new("sh");
            sum.args(["-c", "gzip -dc \"$0\" | sha256sum"]).arg(layer);
            let sum = output(&mut sum)?;
            assert_eq!(diff, &format!("sha256:{}", &sum[..64]));
        }
    }
    Ok(())
}

#[test]
fn images_are_small_and_share_what_is_the_same() -> Result<()> {
    let mut layers: BTreeMap<String, usize> = BTreeMap::new();
    for name in IMAGES {
        let size = tar(name)?.metadata()?.len();
        println!("warren-{name}: {:.1} MiB", size as f64 / f64::from(1 << 20));
        assert!(size < LIMIT, "{name}: {size} bytes");
        for layer in Image::open(&tar(name)?)?.layers()? {
            let digest = layer.file_name().unwrap().to_string_lossy().into_owned();
            *layers.entry(digest).or_default() += 1;
        }
    }
    assert_eq!(layers.values().max(), Some(&IMAGES.len()), "{layers:?}");
    Ok(())
}

#[test]
fn programs_name_no_directory_of_the_machine_that_built_them() -> Result<()> {
    let home = std::env::var("HOME")?;
    let tree = source().canonicalize()?;
    for name in IMAGES {
        let root = Image::open(&tar(name)?)?.unpack()?;
        for program in programs(name) {
            if program.ends_with("nft") {
                continue;
            }
            let bytes = std::fs::read(root.path().join(&program[1..]))?;
            let text = String::from_utf8_lossy(&bytes);
            for path in [format!("{home}/.cargo"), tree.display().to_string()] {
                assert!(!text.contains(&path), "{program} names {path}");
            }
            // The search above would find something: panics name their sources.
            assert!(text.contains("/cargo/registry/"), "{program}");
        }
    }
    Ok(())
}

#[test]
fn a_bill_names_every_crate_of_its_programs_and_every_package_of_its_files() -> Result<()> {
    for name in IMAGES {
        let path = directory().join(format!("warren-{name}.cdx.json"));
        let text = std::fs::read_to_string(&path)?;
        let root = Image::open(&tar(name)?)?.unpack()?;
        let inside = root
            .path()
            .join(format!("usr/share/sbom/warren-{name}.cdx.json"));
        assert_eq!(std::fs::read_to_string(inside)?, text);

        let bill: Value = serde_json::from_str(&text)?;
        assert_eq!(
            (&bill["bomFormat"], &bill["specVersion"]),
            (&"CycloneDX".into(), &"1.5".into())
        );
        let mut refs = BTreeSet::new();
        for component in bill["components"].as_array().unwrap() {
            assert!(component["version"].is_string(), "{component}");
            let is_new = refs.insert(component["bom-ref"].as_str().unwrap().to_owned());
            assert!(is_new, "twice: {component}");
        }
        let container = bill["metadata"]["component"]["bom-ref"].as_str().unwrap();
        for dependency in bill["dependencies"].as_array().unwrap() {
            let of = dependency["ref"].as_str().unwrap();
            assert!(of == container || refs.contains(of), "{of}");
            for on in dependency["dependsOn"].as_array().unwrap() {
                assert!(refs.contains(on.as_str().unwrap()), "{of}: {on}");
            }
        }
        let has = |prefix: &str| refs.iter().any(|it| it.starts_with(prefix));
        assert_eq!(has("pkg:cargo/boringtun@"), name == "tunnel");
        assert_eq!(has("pkg:cargo/kube@"), name == "agent");
        assert_eq!(has("pkg:deb/debian/nftables@"), name == "agent");
        assert!(has("pkg:deb/debian/libc6-dev@") && has("pkg:generic/rust-std@"));
        assert!(!has("pkg:cargo/proptest@"), "a crate of tests alone");

        let lock = std::fs::read_to_string(source().join("Cargo.lock"))?;
        for component in bill["components"].as_array().unwrap() {
            if let Some(hash) = component["hashes"][0]["content"].as_str() {
                assert!(
                    lock.contains(&format!("checksum = \"{hash}\"")),
                    "{component}"
                );
            }
        }
        if name == "agent" {
            assert_every_library_has_a_package(root.path(), &refs)?;
        }
    }
    Ok(())
}

fn assert_every_library_has_a_package(root: &Path, refs: &BTreeSet<String>) -> Result<()> {
    let find = output(
        Command::new("find")
            .arg(root)
            .args(["-name", "*.so*", "-type", "f"]),
    )?;
    let libraries: Vec<&str> = find.lines().collect();
    assert!(libraries.len() > 5, "{libraries:?}");
    for library in libraries {
        // Under the name that programs know it by; dpkg knows the file that this name leads to.
        let known = Path::new("/").join(Path::new(library).strip_prefix(root)?);
        let file = known.canonicalize()?;
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let found = output(Command::new("dpkg-query").args(["--search", &format!("*/{name}")]))?;
        let package = found.split(':').next().unwrap_or_default();
        let prefix = format!("pkg:deb/debian/{package}@");
        assert!(
            refs.iter().any(|it| it.starts_with(&prefix)),
            "{library}: {found}"
        );
    }
    Ok(())
}

#[test]
fn the_same_programs_give_the_same_bytes_wherever_and_however_images_are_made() -> Result<()> {
    let programs = tempfile::tempdir()?;
    for name in IMAGES {
        let root = Image::open(&tar(name)?)?.unpack()?;
        for program in ["warren", &format!("warren-{name}")] {
            let from = root.path().join("usr/bin").join(program);
            // Other times, and modes that others may not read.
            std::fs::write(programs.path().join(program), std::fs::read(from)?)?;
        }
    }
    let elsewhere = tempfile::tempdir()?;
    let build = source().join("deploy/image/build").canonicalize()?;
    let mut command = Command::new("sh");
    command
        .args(["-c", "umask 077; exec \"$0\" \"$@\""])
        .arg(build);
    command
        .arg(programs.path())
        .arg(elsewhere.path().join("out"));
    command.current_dir(elsewhere.path());
    command.envs([("TZ", "Asia/Kathmandu"), ("LC_ALL", "C.UTF-8")]);
    command.env("TMPDIR", elsewhere.path());
    output(&mut command)?;
    for name in IMAGES {
        for file in [
            format!("warren-{name}.tar"),
            format!("warren-{name}.cdx.json"),
        ] {
            let first = std::fs::read(directory().join(&file))?;
            let second = std::fs::read(elsewhere.path().join("out").join(&file))?;
            assert!(first == second, "{file} differs");
        }
    }
    Ok(())
}
