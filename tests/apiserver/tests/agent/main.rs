//! The real daemons on a machine that is a node of a cluster.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod machine;
mod uninstall;

use std::os::unix::fs::PermissionsExt as _;

use anyhow::Result;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::DeleteParams;
use machine::{Machine, keyed};
use serde_json::json;
use warren_apiserver::skip_reason;
use warren_core::consts::annotation;
use warren_keyring::{PrivateKey, PublicKey};

fn machine(name: &str, flags: &[&'static str]) -> Result<Option<Machine>> {
    if let Some(reason) = skip_reason() {
        assert!(std::env::var_os("CI").is_none(), "skipped in CI: {reason}");
        eprintln!("skipped: {reason}");
        return Ok(None);
    }
    Machine::new(name, flags).map(Some)
}

fn key() -> PublicKey {
    PrivateKey::generate().unwrap().public_key()
}

/// Makes this machine's Node, starts both daemons, and waits until pods may be made.
fn up(machine: &mut Machine) -> Result<()> {
    machine.add_node("node1", "192.0.2.1", json!({}))?;
    machine.start_tunnel()?;
    machine.start_agent()?;
    machine.until("ready", |m| Ok(m.http("/readyz")?.0 == 200))
}

#[test]
fn a_node_learns_its_ranges_of_its_node_object_and_tells_its_key_and_state_there() -> Result<()> {
    let Some(mut machine) = machine("agent-joins", &[])? else {
        return Ok(());
    };
    let conflist = machine.cni_dir().join("10-warren.conflist");
    machine.start_tunnel()?;
    machine.start_agent()?;
    // Without a Node there is protection, and nothing for pods.
    machine.until("it says that its Node is missing", |m| {
        let status = m.status()?;
        let problems = status["problems"].to_string();
        Ok(status["protected"] == true && problems.contains("there is no Node node1"))
    })?;
    let (code, reasons) = machine.http("/readyz")?;
    assert!(
        code == 503 && reasons.contains("no valid podCIDR"),
        "{reasons}"
    );
    assert!(!conflist.exists());

    machine.add_node("node1", "192.0.2.1", json!({}))?;
    machine.until("ready", |m| Ok(m.http("/readyz")?.0 == 200))?;
    let up = ("False".to_owned(), "WarrenIsUp".to_owned());
    machine.until("its condition", |m| Ok(m.condition()? == up))?;
    machine.until("its key is published", |m| {
        let annotations = m.node("node1")?.metadata.annotations.unwrap_or_default();
        let key = m.status()?["public_key"].clone();
        let endpoint = annotations.get(annotation::ENDPOINT).map(String::as_str);
        Ok(json!(annotations.get(annotation::PUBLIC_KEY)) == key
            && endpoint == Some("192.0.2.1:51871"))
    })?;
    let status = machine.status()?;
    let ranges = machine.node("node1")?.spec.unwrap_or_default().pod_cidrs;
    assert_eq!(status["pod_cidrs"], json!(ranges));
    // It sees its own record by the watch, as the others do.
    machine.until("nothing is wrong", |m| {
        Ok(m.status()?["problems"] == json!([]))
    })?;
    machine.until("the CNI configuration", |_| Ok(conflist.exists()))?;
    let addresses = machine.host.run(&["ip", "addr", "show", "warren0"])?;
    assert!(
        addresses.stdout.contains("10.244.0.1/32"),
        "{}",
        addresses.stdout
    );

    machine.stop_tunnel();
    let down = ("True".to_owned(), "WarrenTunnelDown".to_owned());
    machine.until("it is down", |m| {
        Ok(m.condition()? == down && m.http("/readyz")?.0 == 503)
    })?;
    machine.start_tunnel()?;
    machine.until("it is up again", |m| {
        Ok(m.condition()? == up && m.http("/readyz")?.0 == 200)
    })
}

#[test]
fn peers_come_of_node_objects_and_what_is_refused_or_changed_is_told_in_one_event() -> Result<()> {
    let Some(mut machine) = machine("agent-peers", &[])? else {
        return Ok(());
    };
    up(&mut machine)?;
    let (old, new) = (key(), key());
    machine.add_node("node2", "192.0.2.2", keyed(old))?;
    let has = |key: PublicKey| {
        move |m: &Machine| {
            let peer = m.peer("node2")?;
            let in_tunnel = m.host.run(&["wg", "show", "warren0", "peers"])?.stdout;
            let key = key.to_base64();
            Ok(peer["public_key"] == *key && in_tunnel.contains(&key))
        }
    };
    machine.until("the peer", has(old))?;
    machine.set_key("node2", new)?;
    machine.until("its new key", has(new))?;
    machine.until("the change to be counted", |m| {
        Ok(m.metric("warren_key_changes_total")? == Some(1.0))
    })?;
    machine.until("the Event", |m| {
        let told = m.events("node2", "PublicKeyChanged")?;
        Ok(told == [format!("public key changed from {old} to {new}")])
    })?;

    let mut garbage = keyed(key());
    garbage[annotation::ENDPOINT] = json!("node3.example:51871");
    machine.add_node("node3", "192.0.2.3", garbage)?;
    machine.until("it is refused", |m| {
        let told = m.events("node3", "InvalidEndpoint")?;
        Ok(told.len() == 1 && told[0].contains("names are not resolved"))
    })?;
    machine.until("the refusal to be counted", |m| {
        Ok(m.metric("warren_rejected_nodes{reason=\"InvalidEndpoint\"}")? == Some(1.0))
    })?;
    let (_, page) = machine.warren(&["status"])?;
    assert!(
        page.contains("node3") && page.contains("names are not resolved"),
        "{page}"
    );
    // Nothing of it is said again by an agent that is started anew.
    machine.start_agent()?;
    machine.until("synced", |m| Ok(m.status()?["synced"] == true))?;
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(machine.events("node3", "InvalidEndpoint")?.len(), 1);
    assert_eq!(machine.events("node2", "PublicKeyChanged")?.len(), 1);
    Ok(())
}

#[test]
fn a_pinned_key_is_held_over_restarts_until_an_operator_trusts_the_new_one() -> Result<()> {
    let Some(mut machine) = machine("agent-pins", &["--pinning", "strict"])? else {
        return Ok(());
    };
    up(&mut machine)?;
    let (old, new) = (key(), key());
    machine.add_node("node2", "192.0.2.2", keyed(old))?;
    machine.until("the peer", |m| {
        Ok(m.peer("node2")?["public_key"] == old.to_base64())
    })?;
    let (code, said) = machine.warren(&["trust", "node2"])?;
    assert!(
        code == 1 && said.contains("nothing to do"),
        "{code}: {said}"
    );
    machine.set_key("node2", new)?;
    let held = |m: &Machine| {
        let peer = m.peer("node2")?;
        Ok(peer["public_key"] == old.to_base64() && peer["untrusted_key"] == new.to_base64())
    };
    machine.until("the old key is held", held)?;
    machine.until("the Event", |m| {
        Ok(m.events("node2", "PublicKeyHeld")?.len() == 1)
    })?;
    machine.until("the held key to be counted", |m| {
        Ok(m.metric("warren_held_keys")? == Some(1.0))
    })?;
    machine.start_agent()?;
    machine.until("it is held after a restart", |m| {
        Ok(m.status()?["synced"] == true && held(m)?)
    })?;
    let other = key().to_base64();
    let (code, said) = machine.warren(&["trust", "node2", &other])?;
    assert!(
        code == 1 && said.contains("not the key that was given"),
        "{code}: {said}"
    );
    assert!(held(&machine)?);
    let (code, said) = machine.warren(&["trust", "node2", &new.to_base64()])?;
    assert!(code == 0 && said.contains("is trusted"), "{code}: {said}");
    let trusted = |m: &Machine| {
        let peer = m.peer("node2")?;
        let in_tunnel = m.host.run(&["wg", "show", "warren0", "peers"])?.stdout;
        Ok(peer["public_key"] == new.to_base64()
            && peer["untrusted_key"].is_null()
            && in_tunnel.trim() == new.to_base64())
    };
    machine.until("the new key", trusted)?;
    machine.start_agent()?;
    machine.until("the new key after a restart", |m| {
        Ok(m.status()?["synced"] == true && trusted(m)?)
    })
}

#[test]
fn an_agent_without_its_api_server_starts_from_the_last_view_and_removes_nothing() -> Result<()> {
    let Some(mut machine) = machine("agent-alone", &[])? else {
        return Ok(());
    };
    up(&mut machine)?;
    let (second, third) = (key(), key());
    machine.add_node("node2", "192.0.2.2", keyed(second))?;
    machine.add_node("node3", "192.0.2.3", keyed(third))?;
    let both = |m: &Machine| {
        let in_tunnel = m.host.run(&["wg", "show", "warren0", "peers"])?.stdout;
        Ok([second, third]
            .iter()
            .all(|key| in_tunnel.contains(&key.to_base64())))
    };
    machine.until("both peers", both)?;
    let view = machine.state_dir().join("view.json");
    machine.until("the view on disk", |_| {
        Ok(std::fs::read_to_string(&view)?.contains(&third.to_base64()))
    })?;
    assert_eq!(view.metadata()?.permissions().mode() & 0o777, 0o600);
    let ranges = machine.status()?["pod_cidrs"].clone();

    machine.plane.stop();
    // A tunnel that lost its state gets its peers of the agent's view.
    machine.stop_tunnel();
    std::fs::remove_file(machine.state_dir().join("tunnel.state"))?;
    machine.start_agent()?;
    machine.start_tunnel()?;
    machine.until("the registry's trouble", |m| {
        let registry = m.status()?["registry"].clone();
        Ok(registry["ok"] == false && registry["detail"].to_string().contains("last view holds"))
    })?;
    machine.until("both peers without the API", both)?;
    machine.until("ready without the API", |m| Ok(m.http("/readyz")?.0 == 200))?;
    let status = machine.status()?;
    assert_eq!(
        (&status["synced"], &status["pod_cidrs"]),
        (&json!(false), &ranges)
    );

    machine.plane.resume()?;
    machine.admin(async |client| {
        let nodes: Api<Node> = Api::all(client);
        nodes.delete("node3", &DeleteParams::default()).await?;
        Ok(())
    })?;
    machine.until("what left is removed, once that is known", |m| {
        let in_tunnel = m.host.run(&["wg", "show", "warren0", "peers"])?.stdout;
        Ok(in_tunnel.trim() == second.to_base64())
    })
}

#[test]
fn what_agents_wrote_to_nodes_is_taken_back_and_nothing_else() -> Result<()> {
    let Some(mut machine) = machine("agent-uninstall", &[])? else {
        return Ok(());
    };
    uninstall::takes_back_what_agents_wrote(&mut machine)
}
