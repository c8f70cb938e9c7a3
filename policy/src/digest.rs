//! Content addresses: the name of an identity or a ruleset is the digest of what it means, so every replica computes the
//! same name and no allocator is needed.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A 256-bit BLAKE3 digest of a domain tag and length-prefixed fields.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Digests fields under a domain tag; the lengths are digested too, so `["ab", "c"]` and `["a", "bc"]` differ.
    pub fn of<'a>(domain: &str, fields: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hasher = blake3::Hasher::new();
        let mut field = |bytes: &[u8]| {
            let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            hasher.update(&length.to_le_bytes());
            hasher.update(bytes);
        };
        field(domain.as_bytes());
        fields.into_iter().for_each(field);
        Self(*hasher.finalize().as_bytes())
    }

    /// The first 12 hexadecimal digits: enough for a person to tell two apart.
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.short())
    }
}
