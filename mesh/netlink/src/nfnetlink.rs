//! Messages of nfnetlink, written byte by byte.

/// Length of `struct nfgenmsg`, which comes before the attributes (linux/netfilter/nfnetlink.h).
pub(crate) const FAMILY_HEADER: usize = 4;
/// `NLA_F_NESTED` (linux/netlink.h).
const NESTED: u16 = 1 << 15;

/// A message that is being written: header, family header, attributes.
pub(crate) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    pub(crate) fn new(kind: u16, flags: u16, sequence: u32, family: u8) -> Self {
        Self::with_resource(kind, flags, sequence, (family, 0))
    }

    /// `resource` is the family and the number in `nfgenmsg.res_id`, which is big-endian.
    pub(crate) fn with_resource(
        kind: u16,
        flags: u16,
        sequence: u32,
        (family, resource): (u8, u16),
    ) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend([family, 0]);
        bytes.extend(resource.to_be_bytes());
        Self { bytes }
    }

    /// An attribute of bytes.
    pub(crate) fn raw(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.pad();
    }

    /// An attribute that holds a string, ended by a zero.
    pub(crate) fn text(&mut self, kind: u16, text: &str) {
        self.raw(kind, &[text.as_bytes(), &[0]].concat());
    }

    /// An attribute that holds a number, as nf_tables wants them: big-endian.
    pub(crate) fn number(&mut self, kind: u16, number: u32) {
        self.raw(kind, &number.to_be_bytes());
    }

    /// An attribute that holds attributes.
    pub(crate) fn nested(&mut self, kind: u16, write: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 4]);
        write(self);
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        if let Some(header) = self.bytes.get_mut(start..start + 4) {
            header[..2].copy_from_slice(&length.to_ne_bytes());
            header[2..].copy_from_slice(&(kind | NESTED).to_ne_bytes());
        }
    }

    /// The whole message with its length.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        if let Some(header) = self.bytes.get_mut(..4) {
            header.copy_from_slice(&length.to_ne_bytes());
        }
        self.bytes
    }

    fn pad(&mut self) {
        let length = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(length, 0);
    }
}
