//! What a container runtime gives the CNI plugin on stdin: configuration, previous result, what is
//! asked for a pod, the list of valid attachments.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_cni::config::NetConf;
use warren_cni::env::{AttachmentId, ContainerId, IfName};
use warren_cni::plan::plan_add;
use warren_cni::result::CniResult;
use warren_cni::version::CniVersion;
use warren_core::files::NodeFile;

fuzz_target!(|stdin: &[u8]| {
    let Ok(conf) = NetConf::parse(stdin) else {
        return;
    };
    let _ = conf.valid_attachments();
    let previous = CniResult::from_prev(conf.prev_result.as_ref());
    let Ok(pod) = conf.pod() else { return };
    let node: NodeFile = serde_json::from_str(
        r#"{"name":"node-1","interface":"warren0","clusterCIDRs":["10.244.0.0/16","fd00::/48"],
            "podCIDRs":["10.244.1.0/24","fd00:0:0:1::/64"],
            "tunnelAddresses":["10.244.1.1","fd00:0:0:1::1"],"mtu":1400}"#,
    )
    .expect("a constant");
    let _ = warren_cni::ipam::ranges(&pod, &node);
    let attachment = AttachmentId {
        container_id: ContainerId::new("c1").expect("a constant"),
        ifname: IfName::new("eth0").expect("a constant"),
    };
    let addresses = ["10.244.1.2", "fd00:0:0:1::2"].map(|a| a.parse().expect("a constant"));
    let plan = plan_add(&attachment, &addresses, &node, &pod, pod.asked.mac);
    let (Ok(plan), Ok(previous)) = (plan, previous) else {
        return;
    };
    let result = plan.extend(previous, "/run/netns/c1", &pod);
    for version in CniVersion::ALL {
        let json = result.to_json(version);
        assert_eq!(json["cniVersion"], version.as_str());
        // The next plugin of the chain gets it as its previous result.
        let again = CniResult::from_prev(Some(&json)).expect("our own result is a result");
        assert_eq!(
            again.to_json(version),
            json,
            "a result changes when it is passed through"
        );
    }
});
