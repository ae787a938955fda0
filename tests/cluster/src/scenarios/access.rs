//! How the control plane and kubelets reach pods, and what people do with it.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use warren_apiserver::program;

use super::topology::{Member, NAMESPACE};
use super::{World, traffic};
use crate::cluster::{Cluster, PATIENCE};
use crate::probe::{Asker, Check, Kind, PORT, PodProbe, PodSpec, WEBHOOK_PORT, bracketed};

/// Where `kubectl port-forward` listens.
const FORWARDED: u16 = 18080;

pub(super) fn kubectl_reaches_pods(world: &mut World) -> Result<()> {
    let cluster = &world.cluster;
    for member in &traffic::topology(world)?.members {
        let pod = member.pod();
        let exec = [
            "exec", "-n", NAMESPACE, &pod, "-c", "shell", "--", "echo", "hello",
        ];
        let said = cluster.kubectl(&exec)?;
        ensure!(said.trim() == "hello", "exec in {pod}: {said:?}");
        let log = cluster.kubectl(&["logs", "-n", NAMESPACE, &pod, "-c", "shell"])?;
        ensure!(log.contains("started"), "logs of {pod}: {log:?}");
        for path in [
            format!("pods/{pod}:{PORT}"),
            format!("services/on-{}:tcp", member.number),
        ] {
            let path = format!("/api/v1/namespaces/{NAMESPACE}/{path}/proxy/who");
            let answer = cluster.kubectl(&["get", "--raw", &path])?;
            ensure!(answer.starts_with(&pod), "{path}: {answer:?}");
        }
        port_forward(cluster, &pod)?;
    }
    Ok(())
}

fn port_forward(cluster: &Cluster, pod: &str) -> Result<()> {
    let host = cluster.plane.host();
    let (target, ports) = (format!("pod/{pod}"), format!("{FORWARDED}:{PORT}"));
    let mut command = Command::new(program("kubectl"));
    command.args(cluster.kubectl_arguments(&["port-forward", "-n", NAMESPACE, &target, &ports]));
    let forwarding = host.spawn(&mut command)?;
    forwarding.wait_log("Forwarding from", PATIENCE)?;
    let check = Check {
        id: String::new(),
        kind: Kind::Tcp,
        to: format!("127.0.0.1:{FORWARDED}"),
        times: 1,
        secret: false,
    };
    let results = Asker::Host(host.clone()).check(&[check])?;
    let answer = results.first().and_then(|result| result.answers.first());
    let server = answer.map(|answer| answer.server.as_str());
    ensure!(server == Some(pod), "port-forward to {pod}: {results:?}");
    Ok(())
}

/// A kubelet hears that a pod is not ready any more; its Service has nobody then, and has it again later.
pub(super) fn probes_are_heard(world: &mut World) -> Result<()> {
    let cluster = &world.cluster;
    let topology = traffic::topology(world)?;
    let (asker, member) = (&topology.members[0], &topology.members[1]);
    let probe = PodProbe::new(&cluster.node(&member.node).host, member.pod_addresses[0]);
    let check = Check {
        id: String::new(),
        kind: Kind::Tcp,
        to: format!(
            "{}:80",
            bracketed(topology.service(&format!("on-{}", member.number), 0)?)
        ),
        times: 1,
        secret: true,
    };
    for (order, answers) in [("unready", 0), ("ready", 1)] {
        probe.order("POST", order, b"")?;
        cluster.wait(&format!("{order} is heard"), PATIENCE, || {
            let results = asker.in_pod.check(std::slice::from_ref(&check))?;
            Ok(results
                .first()
                .is_some_and(|result| result.answers.len() == answers))
        })?;
    }
    Ok(())
}

/// The API server on node 1 asks webhooks by their Service, whose pod is on another node.
pub(super) fn webhook_is_asked(world: &mut World) -> Result<()> {
    let cluster = &world.cluster;
    let member: &Member = &traffic::topology(world)?.members[2];
    let name = "hook";
    let (certificate, key) = cluster
        .plane
        .serving_certificate(&format!("{name}.{NAMESPACE}.svc"))?;
    let pod = PodSpec {
        name,
        node: &member.node,
        labels: json!({"hook": "true"}),
        host_network: false,
        host_port: None,
    };
    let mut pod = pod.object(NAMESPACE);
    // Not one of the Service of all.
    pod["metadata"]["labels"] = json!({"hook": "true"});
    let container = &mut pod["spec"]["containers"][0];
    let arguments = container["args"].as_array_mut().context("arguments")?;
    arguments.extend(["-tls-cert=/tls/tls.crt", "-tls-key=/tls/tls.key"].map(|a| json!(a)));
    container["volumeMounts"] = json!([{"name": "tls", "mountPath": "/tls"}]);
    pod["spec"]["volumes"] = json!([{"name": "tls", "secret": {"secretName": name}}]);
    cluster.apply(&[
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "stringData": {"tls.crt": certificate, "tls.key": key},
        }),
        pod,
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"selector": {"hook": "true"}, "ports": [{"port": 443, "targetPort": WEBHOOK_PORT}]},
        }),
    ])?;
    cluster.wait_pod_ready(NAMESPACE, name)?;
    let hook = webhook(name, cluster.plane.ca_pem());
    cluster.apply(&[hook])?;
    let asked = cluster.wait("the webhook's denial", PATIENCE, || {
        let output = cluster.try_apply(&[config_map("forbidden")])?;
        Ok(!output.success() && output.stderr.contains("the probe's webhook forbids it"))
    });
    let allowed = cluster.apply(&[config_map("permitted")]);
    // Nothing else is to wait for it.
    cluster.kubectl(&["delete", "validatingwebhookconfiguration", name])?;
    cluster.kubectl(&["delete", "pod,service,secret", "-n", NAMESPACE, name])?;
    asked?;
    allowed
}

fn webhook(name: &str, ca_pem: &str) -> serde_json::Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": [{
            "name": format!("{name}.warren.test"),
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "failurePolicy": "Fail",
            "timeoutSeconds": 10,
            "clientConfig": {
                "service": {"name": name, "namespace": NAMESPACE, "path": "/validate"},
                "caBundle": base64::engine::Engine::encode(
                    &base64::engine::general_purpose::STANDARD, ca_pem),
            },
            "rules": [{
                "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"],
                "operations": ["CREATE", "UPDATE"],
            }],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}},
        }],
    })
}

fn config_map(label: &str) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": label, "namespace": NAMESPACE, "labels": {label: "true"}},
    })
}
