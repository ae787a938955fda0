//! What a capture saw.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use super::pcap;
use super::rules::{Allow, Family, Verdict, WireGuardKind};
use crate::directory;
use crate::error::{LabError, Result};

/// How many offending packets of each sort are kept with their bytes, for each link.
pub const KEPT_PACKETS: usize = 16;

/// Frames and the bytes they had on the wire, link-layer header included. A super-packet that
/// the kernel did not cut before the capture point counts as one frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Number of frames.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Count {
    fn add(&mut self, bytes: usize) {
        self.frames += 1;
        self.bytes += bytes as u64;
    }
}

impl std::iter::Sum for Count {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |sum, count| Self {
            frames: sum.frames + count.frames,
            bytes: sum.bytes + count.bytes,
        })
    }
}

/// A packet that should not have been there.
#[derive(Debug, Clone)]
pub struct Offence {
    /// The link it was seen on.
    pub link: String,
    /// What is wrong with it.
    pub reason: String,
    /// When it was seen, since the epoch.
    pub time: Duration,
    /// The frame as captured.
    pub frame: Vec<u8>,
    /// Whether the frame begins with an Ethernet header, not with an IP header.
    pub(crate) ethernet: bool,
}

/// What was seen on one link.
#[derive(Debug, Clone, Default)]
pub struct LinkReport {
    /// The link or `host:interface`.
    pub link: String,
    /// All frames.
    pub total: Count,
    /// WireGuard packets by family, message type and port.
    pub wireguard: BTreeMap<WireGuardKind, Count>,
    /// Other traffic that was allowed, by the rule that allowed it.
    pub allowed: BTreeMap<Allow, Count>,
    /// Packets with a pod address or the marker.
    pub clear_text: Count,
    /// Packets that no rule allows.
    pub unexpected: Count,
    /// Frames the kernel could not hand over: what was in them is not known.
    pub kernel_drops: u64,
    pub(crate) kept_clear_text: Vec<Offence>,
    pub(crate) kept_unexpected: Vec<Offence>,
}

impl LinkReport {
    pub(crate) fn record(&mut self, verdict: Verdict, frame: super::ring::Frame<'_>) {
        self.total.add(frame.wire_len);
        let (count, kept, reason) = match verdict {
            Verdict::WireGuard(kind) => {
                return self.wireguard.entry(kind).or_default().add(frame.wire_len);
            }
            Verdict::Allowed(allow) => {
                return self.allowed.entry(allow).or_default().add(frame.wire_len);
            }
            Verdict::ClearText(reason) => (&mut self.clear_text, &mut self.kept_clear_text, reason),
            Verdict::Unexpected(reason) => {
                (&mut self.unexpected, &mut self.kept_unexpected, reason)
            }
        };
        count.add(frame.wire_len);
        if kept.len() < KEPT_PACKETS {
            kept.push(Offence {
                link: self.link.clone(),
                reason,
                time: frame.time,
                frame: frame.data.to_vec(),
                ethernet: frame.layer == super::parse::LinkLayer::Ethernet,
            });
        }
    }

    /// WireGuard packets of all sorts.
    pub fn wireguard_total(&self) -> Count {
        self.wireguard.values().copied().sum()
    }

    /// WireGuard packets whose outer packet is of this family.
    pub fn wireguard_of(&self, family: Family) -> Count {
        self.wireguard
            .iter()
            .filter(|(k, _)| k.family == family)
            .map(|(_, c)| *c)
            .sum()
    }

    /// WireGuard packets of this message type (1 initiation, 2 response, 3 cookie reply, 4 data).
    pub fn messages(&self, message: u8) -> Count {
        self.wireguard
            .iter()
            .filter(|(k, _)| k.message == message)
            .map(|(_, c)| *c)
            .sum()
    }
}

/// What was seen on all links of a capture.
#[derive(Debug, Clone)]
pub struct Report {
    pub(crate) lab: String,
    pub(crate) links: Vec<LinkReport>,
}

impl Report {
    /// The report of each tap, in the order they were given.
    pub fn per_link(&self) -> &[LinkReport] {
        &self.links
    }

    /// WireGuard packets on all links; one that crosses two links counts twice.
    pub fn wireguard_total(&self) -> Count {
        self.links.iter().map(LinkReport::wireguard_total).sum()
    }

    /// WireGuard packets on all links whose outer packet is of this family.
    pub fn wireguard_of(&self, family: Family) -> Count {
        self.links.iter().map(|l| l.wireguard_of(family)).sum()
    }

    /// Packets with a pod address or the marker, on all links.
    pub fn clear_text(&self) -> Count {
        self.links.iter().map(|l| l.clear_text).sum()
    }

    /// Packets that no rule allows, on all links.
    pub fn unexpected(&self) -> Count {
        self.links.iter().map(|l| l.unexpected).sum()
    }

    /// Frames the kernel could not hand over, on all links.
    pub fn kernel_drops(&self) -> u64 {
        self.links.iter().map(|l| l.kernel_drops).sum()
    }

    /// The kept clear-text packets, at most [`KEPT_PACKETS`] a link.
    pub fn violations(&self) -> Vec<&Offence> {
        self.links.iter().flat_map(|l| &l.kept_clear_text).collect()
    }

    /// The kept unexpected packets, at most [`KEPT_PACKETS`] a link.
    pub fn unexpected_packets(&self) -> Vec<&Offence> {
        self.links.iter().flat_map(|l| &l.kept_unexpected).collect()
    }

    /// Tells whether no packet was clear text, none unexpected and none lost unseen; else writes
    /// the kept ones to a pcap file that stays and names it.
    ///
    /// # Errors
    ///
    /// [`LabError::NotClean`] with the report and the file's path.
    pub fn check(&self) -> Result<()> {
        if self.clear_text().frames + self.unexpected().frames + self.kernel_drops() == 0 {
            return Ok(());
        }
        let mut text = format!("the capture of lab {} is not clean\n{self}", self.lab);
        for (sort, offences) in [
            ("clear text", self.violations()),
            ("unexpected", self.unexpected_packets()),
        ] {
            for offence in offences {
                let _ = writeln!(text, "  {sort} on {}: {}", offence.link, offence.reason);
            }
        }
        match self.keep() {
            Ok(path) => {
                let _ = write!(text, "the packets are kept in {}", path.display());
            }
            Err(e) => {
                let _ = write!(text, "the packets could not be kept: {e}");
            }
        }
        Err(LabError::NotClean(text))
    }

    /// Panics unless [`check`](Self::check) is content.
    ///
    /// # Panics
    ///
    /// With the report's text when the capture is not clean.
    pub fn assert_clean(&self) {
        if let Err(e) = self.check() {
            panic!("{e}");
        }
    }

    fn keep(&self) -> std::io::Result<PathBuf> {
        let path = directory::artifacts_for(&self.lab)?.join("offending.pcap");
        let mut offences = self.violations();
        offences.extend(self.unexpected_packets());
        std::fs::write(&path, pcap::file(&offences))?;
        Ok(path)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for link in &self.links {
            let LinkReport {
                clear_text,
                unexpected,
                kernel_drops,
                ..
            } = link;
            let wireguard = link.wireguard_total();
            writeln!(
                f,
                "{}: {} frames, WireGuard {} ({} bytes), clear text {}, unexpected {}, lost by the kernel {kernel_drops}",
                link.link,
                link.total.frames,
                wireguard.frames,
                wireguard.bytes,
                clear_text.frames,
                unexpected.frames,
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::parse::LinkLayer;
    use crate::capture::ring::Frame;

    fn report(link: LinkReport) -> Report {
        Report {
            lab: "unit".into(),
            links: vec![link],
        }
    }

    fn frame(data: &[u8]) -> Frame<'_> {
        let time = Duration::from_nanos(1_000_000_001);
        Frame {
            layer: LinkLayer::Ip,
            time,
            data,
            wire_len: data.len(),
        }
    }

    #[test]
    fn frames_lost_by_the_kernel_make_a_report_unclean() {
        assert!(report(LinkReport::default()).check().is_ok());
        let lossy = report(LinkReport {
            kernel_drops: 1,
            ..LinkReport::default()
        });
        let error = lossy.check().expect_err("one frame was not seen");
        assert!(error.to_string().contains("lost by the kernel 1"));
        let kept = error
            .to_string()
            .rsplit("kept in ")
            .next()
            .map(PathBuf::from);
        std::fs::remove_dir_all(kept.unwrap().parent().unwrap()).unwrap();
    }

    #[test]
    fn all_offences_are_counted_but_only_the_first_are_kept() {
        let mut link = LinkReport::default();
        for number in 0..40_u8 {
            link.record(
                Verdict::ClearText(number.to_string()),
                frame(&[0x45, number]),
            );
            link.record(
                Verdict::Unexpected(number.to_string()),
                frame(&[0x60, number]),
            );
        }
        assert_eq!((link.clear_text.frames, link.unexpected.frames), (40, 40));
        let report = report(link);
        assert_eq!(report.violations().len(), KEPT_PACKETS);
        assert_eq!(report.violations()[15].reason, "15");
        assert_eq!(report.unexpected_packets().len(), KEPT_PACKETS);
    }

    #[test]
    fn the_pcap_file_has_headers_lengths_and_made_up_ethernet() {
        let mut link = LinkReport::default();
        link.record(Verdict::ClearText(String::new()), frame(&[0x60, 7, 7]));
        let report = report(link);
        let file = pcap::file(&report.violations());
        assert_eq!(file.len(), 24 + 16 + 14 + 3);
        assert_eq!(file[..4], [0x4d, 0x3c, 0xb2, 0xa1]);
        assert_eq!(
            file[24..40],
            [1, 0, 0, 0, 1, 0, 0, 0, 17, 0, 0, 0, 17, 0, 0, 0]
        );
        assert_eq!(file[52..], [0x86, 0xdd, 0x60, 7, 7]);
    }
}
